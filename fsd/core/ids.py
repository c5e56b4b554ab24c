"""The kinds of identifier. A `NewType` each, so that the type checker tells an inode from a data id."""

from typing import NamedTuple, NewType

NodeId = NewType("NodeId", int)  # a chunkserver's directory, for ever
Incarnation = NewType("Incarnation", int)  # grows by one at every start of a node (R1)
MapEpoch = NewType("MapEpoch", int)  # version of the whole cluster map
PgEpoch = NewType("PgEpoch", int)  # version of one placement group's row
PgId = NewType("PgId", int)  # pool << 16 | hash
PoolId = NewType("PoolId", int)
SessionId = NewType("SessionId", int)  # grows; never used again
RequestNumber = NewType("RequestNumber", int)  # grows within a session, from 1
LayerId = NewType("LayerId", int)  # a volume's tree
Ino = NewType("Ino", int)
DataId = NewType("DataId", int)  # names a file's bytes; drawn from the same counter as inode numbers

ROOT_INO = Ino(1)  # of every layer
FIRST_FREE_ID = 2
NO_SESSION = SessionId(0)


class Member(NamedTuple):
    """One life of one node. Rights in a placement group belong to this, never to a bare node (R1)."""

    node: NodeId
    incarnation: Incarnation


class ChunkId(NamedTuple):
    """`CHUNK_SIZE` bytes of a file, at `index * CHUNK_SIZE`."""

    data: DataId
    index: int  # pyright: ignore[reportIncompatibleMethodOverride]


class Order(NamedTuple):
    """Position of a chunk's state in its placement group's history: compared as a tuple, higher is newer."""

    epoch: PgEpoch
    version: int


NO_ORDER = Order(PgEpoch(0), 0)  # of a chunk that does not exist
