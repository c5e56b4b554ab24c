"""Records that the metadata server alone keeps (families `session` and `cluster`; keys in metadata.store)."""

from dataclasses import dataclass

from fsd.cluster.map import Node, Pool, Row
from fsd.core.ids import Ino, LayerId, MapEpoch, NodeId, PoolId, SessionId
from fsd.namespace.records import Inode
from fsd.protocol.metadata import BatchError, IdRange
from fsd.wire.codec import wire


@wire(160)
@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as it survives a restart. `ranges` are the last ranges of ids that it owns, oldest first."""

    session: SessionId
    secret: bytes
    client: str
    layer: LayerId
    ranges: tuple[IdRange, ...]


@wire(161)
@dataclass(frozen=True, slots=True)
class ResultRecord:
    """What an operation answered (I11): the inodes it changed, or an error's number and text if `error` is not 0. Of a run
    of a journal: how many operations it has, and what was refused. `gone` as in Executed."""

    error: int
    text: str
    inodes: tuple[Inode, ...]
    item_count: int = 0
    refused: tuple[BatchError, ...] = ()
    gone: tuple[Ino, ...] = ()


@wire(162)
@dataclass(frozen=True, slots=True)
class MapHead:
    """The cluster map without its rows."""

    epoch: MapEpoch
    nodes: tuple[Node, ...]
    pools: tuple[Pool, ...]
    evicted: tuple[SessionId, ...]
    oldest_session: SessionId
    next_node: NodeId
    paused: bool = False  # moves of groups, by an administrator


@wire(163)
@dataclass(frozen=True, slots=True)
class RowRecord:
    """`former`: nodes that were members, are missing, and have a right to come back. `leaving`: the member that goes when
    the one that is syncing has taken its place; 0: nobody."""

    row: Row
    former: tuple[NodeId, ...]
    leaving: NodeId = NodeId(0)


@wire(164)
@dataclass(frozen=True, slots=True)
class Counters:
    """The next number of each kind; never goes back."""

    next_id: int
    next_session: SessionId
    next_layer: LayerId


@wire(165)
@dataclass(frozen=True, slots=True)
class FileSystemRecord:
    """What is fixed when a file system is created."""

    file_system: str
    chunk_size: int
    pg_count: int
    inline_limit: int


@wire(166)
@dataclass(frozen=True, slots=True)
class PurgeRecord:
    """The tree of a deleted volume that is still to be removed."""

    layer: LayerId
    pool: PoolId


@wire(167)
@dataclass(frozen=True, slots=True)
class AuthorityRecord:
    """How many lives the authority has had (R14)."""

    epoch: int
