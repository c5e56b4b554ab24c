"""What clients and chunkservers, and chunkservers among themselves, say. Bytes ride in the frame's payload.

`Where` comes with every request of a client. The asked node serves only if it leads `pg` in its newest map, in its own
incarnation, activated and under its lease; it fetches the map first if `min_map_epoch` is newer than its own.
"""

from dataclasses import dataclass
from enum import Enum

from fsd.core.ids import (
    ChunkId,
    DataId,
    Incarnation,
    Ino,
    LayerId,
    MapEpoch,
    NodeId,
    Order,
    PgEpoch,
    PgId,
    RequestNumber,
    SessionId,
)
from fsd.wire.codec import wire

MAX_EXTENTS = 4096  # of one write


@wire(300)
@dataclass(frozen=True, slots=True)
class Where:
    pg: PgId
    pg_epoch: PgEpoch  # of the asker's map; StaleMap if it is not the server's
    min_map_epoch: MapEpoch  # the fence (I13, R14): of the grant of the lease under which the asker acts


# --- flushes over several chunks ---------------------------------------------------------------------------------------


@wire(328)
@dataclass(frozen=True, slots=True)
class FlushId:
    """One flush of one file: its commit record, if there is one, lies in the inode under (session, number)."""

    layer: LayerId
    ino: Ino
    session: SessionId
    number: int


class Resolve(Enum):
    """What becomes of the chunk's pending state before a change is laid over it."""

    KEEP = 0
    APPLY = 1  # its flush is committed
    DROP = 2  # its flush never will be


@wire(329)
@dataclass(frozen=True, slots=True)
class PendingPart:
    """What a flush has prepared for a chunk: pieces (offset, length) whose bytes lie one behind the other at the payload's
    end, with checksums as those of a write."""

    flush: FlushId
    pieces: tuple[tuple[int, int], ...]
    checksums: tuple[int, ...]

    @property
    def size(self) -> int:
        return sum(length for _, length in self.pieces)


@wire(301)
@dataclass(frozen=True, slots=True)
class WriteChunk:
    """Payload: the bytes for [offset, offset + len(payload)) of the chunk; a gap before them reads as zeros. Or, with
    `extents` (chunk offset, length), ascending and apart, at most MAX_EXTENTS: theirs, one behind the other; all or none
    are written. `checksums`: one for each piece of an extent between block boundaries. `number` grows within the
    session and chunk.

    `flush`: only prepare the bytes for this flush; they count when it is committed. `committed`: the number of this
    session's flush that is known to be committed, if one was prepared in the chunk; else the server asks.

    Answer: ChunkWritten, when every member of the row has it durably (R4).
    Errors: StaleMap, NotServing, SessionEvicted, BadChecksum, NoSpace."""

    where: Where
    session: SessionId
    number: RequestNumber
    chunk: ChunkId
    offset: int
    checksums: tuple[int, ...]
    extents: tuple[tuple[int, int], ...] = ()
    flush: FlushId | None = None
    committed: int = 0


@wire(302)
@dataclass(frozen=True, slots=True)
class ChunkWritten:
    order: Order
    length: int


@wire(303)
@dataclass(frozen=True, slots=True)
class TruncateChunk:
    """Cut the chunk to `length` bytes; 0 removes it. A shorter chunk stays as it is. Answer: ChunkWritten."""

    where: Where
    session: SessionId
    number: RequestNumber
    chunk: ChunkId
    length: int


@wire(304)
@dataclass(frozen=True, slots=True)
class ReadChunk:
    """[offset, offset + length), `offset` a multiple of BLOCK_SIZE. Answer: ChunkData."""

    where: Where
    session: SessionId
    chunk: ChunkId
    offset: int
    length: int
    committed: int = 0  # as in WriteChunk


@wire(305)
@dataclass(frozen=True, slots=True)
class ChunkData:
    """Payload: the bytes, fewer than asked for where the chunk ends (none if there is no chunk); `checksums`, one for
    each 64 KiB of them, is for the *client* to check."""

    order: Order
    checksums: tuple[int, ...]


# --- between members of a placement group -----------------------------------------------------------------------------


class Change(Enum):
    """What a Replicate does to the chunk."""

    WRITE = 1  # payload at `offset`, onto the state whose order is `base`
    WHOLE = 2  # payload is all of the chunk, whatever was there
    TRUNCATE = 3  # cut to `length`, onto the state whose order is `base`
    REMOVE = 4  # the chunk does not exist, whatever was there
    PREPARE = 5  # as WRITE, into what is pending for a flush
    RESOLVE = 6  # what is pending is applied or dropped, nothing else


@wire(306)
@dataclass(frozen=True, slots=True)
class AppliedRequest:
    """The last request of a session that changed a chunk (R11)."""

    session: SessionId
    number: RequestNumber


@wire(307)
@dataclass(frozen=True, slots=True)
class Replicate:
    """Primary to member. Answer: SpaceLeft, when it is durable there. Errors: NotALeader, BaseMismatch, BadChecksum,
    NoSpace.

    A member whose chunk already has an order >= `order` answers at once. `requests` is the chunk's list of last
    requests afterwards. `settled`: all of this epoch up to this version has been acknowledged by all (so it is no longer
    in flight). `resync`: copying, not a write; applied only to a chunk with a lower order."""

    pg: PgId
    epoch: PgEpoch
    sender: Incarnation
    chunk: ChunkId
    order: Order
    base: Order
    change: Change
    offset: int
    length: int
    checksums: tuple[int, ...]
    requests: tuple[AppliedRequest, ...]
    settled: int
    resync: bool = False
    extents: tuple[tuple[int, int], ...] = ()  # of a WRITE, as in WriteChunk
    flush: FlushId | None = None  # of a PREPARE
    resolve: Resolve = Resolve.KEEP  # what becomes first of what is pending there
    pending: PendingPart | None = None  # of a WHOLE, its bytes behind the chunk's


@wire(308)
@dataclass(frozen=True, slots=True)
class ListInFlight:
    """Primary to member, before it activates a row: which chunks may have changes that not all have? Answer: ChunkList.
    The member accepts nothing of lower epochs from then on."""

    pg: PgId
    epoch: PgEpoch
    sender: Incarnation


@wire(309)
@dataclass(frozen=True, slots=True)
class ListChunks:
    """Primary to member: what it holds, in the order of chunks, after `after`, at most `limit`. Answer: ChunkList."""

    pg: PgId
    epoch: PgEpoch
    sender: Incarnation
    after: ChunkId
    limit: int


@wire(310)
@dataclass(frozen=True, slots=True)
class ChunkSummary:
    """`checksum` covers length and the checksums of all blocks; equal summaries mean equal bytes."""

    chunk: ChunkId
    order: Order
    length: int
    checksum: int


@wire(311)
@dataclass(frozen=True, slots=True)
class ChunkList:
    chunks: tuple[ChunkSummary, ...]
    end: bool


@wire(312)
@dataclass(frozen=True, slots=True)
class PullChunk:
    """Primary to member (repair, R13, and merging): the whole chunk. Answer: WholeChunk with the bytes as payload.
    Errors: CorruptData."""

    pg: PgId
    epoch: PgEpoch
    sender: Incarnation
    chunk: ChunkId


@wire(313)
@dataclass(frozen=True, slots=True)
class WholeChunk:
    """Payload: all of the chunk, and behind it what is pending for it. `order` NO_ORDER if there is none."""

    order: Order
    checksums: tuple[int, ...]
    requests: tuple[AppliedRequest, ...]
    pending: PendingPart | None = None


@wire(314)
@dataclass(frozen=True, slots=True)
class InspectChunks:
    """For administration and tests, from anybody: what this node stores of the given chunks, whatever its role.
    Answer: ChunkList of those that exist."""

    pg: PgId
    chunks: tuple[ChunkId, ...]


@wire(315)
@dataclass(frozen=True, slots=True)
class InspectGroup:
    """For administration and tests: as ListChunks, whatever this node's role. Answer: ChunkList."""

    pg: PgId
    after: ChunkId
    limit: int


@wire(316)
@dataclass(frozen=True, slots=True)
class ReadCopy:
    """For administration and tests: this node's own copy of a chunk, whatever its role. Answer: WholeChunk."""

    pg: PgId
    chunk: ChunkId


@wire(317)
@dataclass(frozen=True, slots=True)
class AskSpace:
    """Primary to member: is there room for more? Answer: SpaceLeft."""


@wire(318)
@dataclass(frozen=True, slots=True)
class SpaceLeft:
    """`low`: the disk is down to its reserve, which is kept for what was begun: begin no more writes (R12)."""

    low: bool


# --- scrub ------------------------------------------------------------------------------------------------------------


@wire(319)
@dataclass(frozen=True, slots=True)
class MendChunk:
    """Member to primary: my copy fails its checksum. Answer: Done, when every member has a good one. Errors: StaleMap,
    NotServing, CorruptData (there is none)."""

    pg: PgId
    epoch: PgEpoch
    chunk: ChunkId


@wire(320)
@dataclass(frozen=True, slots=True)
class RunScrub:
    """From anybody: look through all copies here, soon. Answer: ScrubStatus."""

    deep: bool


@wire(321)
@dataclass(frozen=True, slots=True)
class GetScrub:
    """Answer: ScrubStatus."""


@wire(322)
@dataclass(frozen=True, slots=True)
class ScrubStatus:
    """Of the pass that runs or ran last; `rotten`, `repaired`: in this life of the node. `lost`: chunks without a good copy."""

    running: bool
    deep: bool
    groups_done: int
    groups: int
    chunks: int
    bytes: int
    rotten: int
    repaired: int
    lost: int
    spent_s: float


@wire(323)
@dataclass(frozen=True, slots=True)
class ProbeNode:
    """From anybody: how fast are this node's disk and its ways to the others? Answer: NodeProbe."""


@wire(324)
@dataclass(frozen=True, slots=True)
class PeerLatency:
    """`seconds` of one round trip; negative: no answer."""

    node: NodeId
    seconds: float


@wire(325)
@dataclass(frozen=True, slots=True)
class NodeProbe:
    """`sync_s`: the median time to make 4 KiB durable. `time_ns`: this node's clock."""

    sync_s: float
    time_ns: int
    peers: tuple[PeerLatency, ...]


# --- huge files with little in them -----------------------------------------------------------------------------------


@wire(326)
@dataclass(frozen=True, slots=True)
class ListData:
    """Client or metadata server to primary: which chunks of these data from `first` on are in the group, being changed ones
    included. Answer: DataChunks. Errors: StaleMap, NotServing, SessionEvicted."""

    where: Where
    session: SessionId
    data: DataId
    first: int
    limit: int


@wire(327)
@dataclass(frozen=True, slots=True)
class DataChunks:
    """Indices, ascending; there are none between them. `end`: none behind them either."""

    indices: tuple[int, ...]
    end: bool


# --- the end of a flush in two phases ---------------------------------------------------------------------------------


@wire(330)
@dataclass(frozen=True, slots=True)
class ApplyFlush:
    """Client to primary: this flush is committed; if the chunk holds it pending, apply it. Answer: ChunkWritten, when every
    member has applied it durably. Errors: StaleMap, NotServing, SessionEvicted."""

    where: Where
    session: SessionId
    chunk: ChunkId
    flush: FlushId
