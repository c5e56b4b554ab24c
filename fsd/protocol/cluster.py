"""What nodes and administrators say to the metadata server."""

from dataclasses import dataclass
from enum import Enum

from fsd.cluster.map import ClusterMap, Node, Row
from fsd.core.ids import DataId, Ino, LayerId, MapEpoch, Member, NodeId, PgEpoch, PgId, PoolId, SessionId
from fsd.namespace.records import Volume
from fsd.wire.codec import wire


@wire(400)
@dataclass(frozen=True, slots=True)
class NodeLoad:
    """Figures of a node's machine and disk (psutil)."""

    total_bytes: int = 0
    free_bytes: int = 0
    chunks: int = 0
    cpu_percent: float = 0.0
    memory_percent: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    stored_bytes: int = 0  # in blocks that chunks refer to
    resynced_bytes: int = 0  # sent to syncing members in this life
    rotten: int = 0  # copies that failed a checksum in this life, here or as this primary's scrub found them
    repaired: int = 0  # of these, rewritten from a good copy
    lost: int = 0  # chunks of this primary's groups that had no good copy when they were last looked at
    light_scrub_s: float = (
        -1.0
    )  # how long ago the last whole light scrub of this primary's groups ended; negative: never
    deep_scrub_s: float = -1.0
    version: str = ""


@wire(401)
@dataclass(frozen=True, slots=True)
class RegisterNode:
    """A chunkserver's first request after the handshake, once for each incarnation and whenever the server asks for it.
    `node` 0 asks for a new id. `damaged`: its store did not hold all that it had promised, or has a doubtful tail (R9);
    it must be filled again. Answer: NodeRegistered. Errors: ForeignFileSystem, Busy (an incarnation as new is alive)."""

    node: NodeId
    incarnation: int
    address: str
    zone: str
    weight: int
    damaged: bool


@wire(402)
@dataclass(frozen=True, slots=True)
class NodeRegistered:
    node: NodeId
    file_system: str
    chunk_size: int
    lease_s: float
    map_epoch: MapEpoch


@wire(403)
@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Every second. Answer: Beat. Errors: SessionUnknown (register again)."""

    node: NodeId
    incarnation: int
    map_epoch: MapEpoch
    load: NodeLoad


@wire(404)
@dataclass(frozen=True, slots=True)
class Beat:
    """`lease_s` > 0: the node's lease reaches to the send time of its heartbeat plus `lease_s` * 0.97 (R2)."""

    map_epoch: MapEpoch
    lease_s: float


@wire(405)
@dataclass(frozen=True, slots=True)
class Goodbye:
    """The node stops on purpose and serves nothing any more. Answer: Done, when its rows have changed durably."""

    node: NodeId
    incarnation: int


@wire(406)
@dataclass(frozen=True, slots=True)
class GetMap:
    """Answer: MapReply. Waits for nothing."""

    known: MapEpoch = MapEpoch(0)


@wire(407)
@dataclass(frozen=True, slots=True)
class MapReply:
    """`map` is None if the asker's is the newest."""

    map: ClusterMap | None


@wire(408)
@dataclass(frozen=True, slots=True)
class DropMember:
    """R5: the primary asks to take a silent member out of the row. Answer: RowReply with the row as it is now, which is
    durable; the same whether it was this request that changed it."""

    pg: PgId
    epoch: PgEpoch
    primary: Member
    victim: Member


@wire(409)
@dataclass(frozen=True, slots=True)
class Activate:
    """R7: all in-sync members agree; the primary may serve once this is answered. Answer: RowReply."""

    pg: PgId
    epoch: PgEpoch
    primary: Member


@wire(410)
@dataclass(frozen=True, slots=True)
class Promote:
    """R10: a syncing member holds everything. Answer: RowReply."""

    pg: PgId
    epoch: PgEpoch
    primary: Member
    member: Member


@wire(411)
@dataclass(frozen=True, slots=True)
class RowReply:
    """Whether it worked shows in the row: compare its epoch and members."""

    row: Row
    map_epoch: MapEpoch


# --- administration ---------------------------------------------------------------------------------------------------


@wire(420)
@dataclass(frozen=True, slots=True)
class CreateVolume:
    """Answer: VolumeReply. Errors: AlreadyExists, InvalidArgument."""

    name: str
    replicas: int
    min_replicas: int
    quota_bytes: int = 0
    quota_inodes: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    root_mode: int = 0o755
    root_uid: int = 0
    root_gid: int = 0


@wire(421)
@dataclass(frozen=True, slots=True)
class SetVolume:
    """None leaves a field as it is. Answer: VolumeReply. Errors: NotFound, InvalidArgument."""

    name: str
    quota_bytes: int | None = None
    quota_inodes: int | None = None
    replicas: int | None = None
    min_replicas: int | None = None


@wire(422)
@dataclass(frozen=True, slots=True)
class DeleteVolume:
    """Answer: Done. Errors: NotFound, Busy (mounted), NotEmpty (unless `force`)."""

    name: str
    force: bool = False


@wire(423)
@dataclass(frozen=True, slots=True)
class ListVolumes:
    """Answer: VolumesReply."""


@wire(424)
@dataclass(frozen=True, slots=True)
class VolumeReply:
    volume: Volume


@wire(425)
@dataclass(frozen=True, slots=True)
class VolumesReply:
    volumes: tuple[Volume, ...]


@wire(426)
@dataclass(frozen=True, slots=True)
class GetStatus:
    """Answer: StatusReply."""


@wire(427)
@dataclass(frozen=True, slots=True)
class NodeStatus:
    node: Node
    load: NodeLoad
    last_heartbeat_s: float  # how long ago; negative if never in this life of the metadata server


@wire(428)
@dataclass(frozen=True, slots=True)
class SessionStatus:
    session: SessionId
    client: str
    volume: str
    address: str
    idle_s: float
    leases: int
    age_s: float = 0.0  # since it was opened, or since the server was started
    locks: int = 0  # that the server knows; a client that decides about a file by itself may have more


@wire(429)
@dataclass(frozen=True, slots=True)
class StatusReply:
    """`in_sync`: rows with as many in-sync members as the pool asks for (or as there are nodes); `degraded`: fewer, but
    served; `down`: not served now."""

    file_system: str
    version: str
    map_epoch: MapEpoch
    nodes: tuple[NodeStatus, ...]
    total: int
    in_sync: int
    degraded: int
    down: int
    sessions: tuple[SessionStatus, ...]
    volumes: tuple[Volume, ...]
    uptime_s: float
    collecting: int  # dead data ids that are still to be removed
    repairing: int = 0  # groups with fewer copies than there could be
    moving: int = 0  # moves of groups that are under way or planned
    left_s: float = -1.0  # until all that is done, at the present speed; negative: unknown
    paused: bool = False  # moves, by an administrator
    single: int = 0  # groups with one copy left, of more that are wanted
    settling: int = 0  # of `down`: whose new primary is about to serve; only for moments


@wire(430)
@dataclass(frozen=True, slots=True)
class RunFsck:
    """Check the whole tree (I12). Answer: FsckReply."""


@wire(431)
@dataclass(frozen=True, slots=True)
class FsckReply:
    """`faults`: one line each, at most 1,000 of them; none means clean."""

    volumes: int
    inodes: int
    dentries: int
    bytes: int
    faults: tuple[str, ...]


@wire(432)
@dataclass(frozen=True, slots=True)
class ListData:
    """Which data ids live, page by page: for checking chunks against the tree. Answer: DataPage."""

    layer: LayerId
    after: Ino
    limit: int


@wire(433)
@dataclass(frozen=True, slots=True)
class LiveData:
    ino: Ino
    data: DataId
    size: int
    trim_end: int


@wire(434)
@dataclass(frozen=True, slots=True)
class DataPage:
    data: tuple[LiveData, ...]
    end: bool


# --- growing and shrinking --------------------------------------------------------------------------------------------


@wire(435)
@dataclass(frozen=True, slots=True)
class SetNode:
    """Drain a node, or take that back; set its weight (0: its own word again). Answer: NodeChanged. Errors: NotFound."""

    node: NodeId
    draining: bool | None = None
    weight: int | None = None


@wire(436)
@dataclass(frozen=True, slots=True)
class NodeChanged:
    node: Node


@wire(437)
@dataclass(frozen=True, slots=True)
class RemoveNode:
    """Forget a node for ever. Answer: Done. Errors: NotFound, Busy with the reason why it cannot be now.

    `force`: its disk is lost; allowed while it is down and no group has its last copy there."""

    node: NodeId
    force: bool = False


@wire(438)
@dataclass(frozen=True, slots=True)
class PauseMoves:
    """Start no moves of groups, or go on. Repairs go on all along. Answer: Done."""

    paused: bool


@wire(439)
@dataclass(frozen=True, slots=True)
class GetPlan:
    """What is to be moved, and what for. Answer: PlanReply."""


@wire(440)
@dataclass(frozen=True, slots=True)
class NodeBalance:
    """Copies of groups that a node holds now, will hold, and by its weight should hold."""

    node: NodeId
    groups: int
    planned: int
    share: float


@wire(441)
@dataclass(frozen=True, slots=True)
class PlanReply:
    """`moves`: copies of groups that are to go elsewhere; `copies`: of how many; `bytes`: about what they hold.
    `waiting_s`: until moves that are no evacuation begin."""

    moves: int
    copies: int
    bytes: int
    nodes: tuple[NodeBalance, ...]
    moving: int
    paused: bool
    waiting_s: float


@wire(442)
@dataclass(frozen=True, slots=True)
class GetDrain:
    """How far a node is from being dispensable. Answer: DrainReply. Errors: NotFound."""

    node: NodeId


@wire(443)
@dataclass(frozen=True, slots=True)
class DrainReply:
    """`groups`: that name the node as member or base. `blocked`: of these, groups that no other node may take now.
    `safe`: nothing depends on the node any more. `left_s`: negative if unknown."""

    node: Node
    groups: int
    blocked: int
    safe: bool
    left_s: float


@wire(444)
@dataclass(frozen=True, slots=True)
class Orphan:
    """A data id with chunks and without a file. Its chunks lie below byte `end` in groups of `pool`."""

    data: DataId
    pool: PoolId
    end: int


@wire(445)
@dataclass(frozen=True, slots=True)
class CollectOrphans:
    """Remove chunks that no file refers to, as a check has found. Left alone is what a live session may still commit.
    Answer: OrphansCollected."""

    orphans: tuple[Orphan, ...]


@wire(446)
@dataclass(frozen=True, slots=True)
class OrphansCollected:
    """`taken`: these will be removed."""

    taken: tuple[DataId, ...]


@wire(447)
@dataclass(frozen=True, slots=True)
class Ping:
    """To any server. Answer: Pong."""


@wire(448)
@dataclass(frozen=True, slots=True)
class Pong:
    time_ns: int
    version: str


# --- flushes in two phases --------------------------------------------------------------------------------------------


class Fate(Enum):
    """Of a flush whose bytes are prepared."""

    COMMITTED = 1
    OPEN = 2  # not committed; its session lives and holds the file's exclusive lease, so it may be
    OVER = 3  # not committed, and never will be


@wire(449)
@dataclass(frozen=True, slots=True)
class AskFlush:
    """A primary has met what session `session` prepared under `number`: does it count? Answer: FlushFate, durable."""

    layer: LayerId
    ino: Ino
    session: SessionId
    number: int


@wire(450)
@dataclass(frozen=True, slots=True)
class FlushFate:
    fate: Fate
