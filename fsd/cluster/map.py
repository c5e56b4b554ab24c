"""The cluster map: the one table that says who may do what to which placement group.

    map epoch ──> nodes, pools, rows, fenced sessions
    row = (pg epoch, primary, in-sync, syncing, base, active)        one for each placement group

Rows change only at the metadata server, each change durable before anybody hears of it. A row becomes *active* when its
primary has settled what was in flight (R7); until then nothing was acknowledged under it, so every member of *base*, the
in-sync set of the last row that was active, still holds every acknowledged write.
"""

from dataclasses import dataclass
from enum import Enum

from fsd.core.ids import ChunkId, MapEpoch, Member, NodeId, PgEpoch, PgId, PoolId, SessionId
from fsd.wire.codec import wire

POOL_SHIFT = 16


class NodeState(Enum):
    UP = 1
    DOWN = 2  # silent longer than the grace, or proved dead
    AWAY = 3  # said goodbye; expected back


@wire(140)
@dataclass(frozen=True, slots=True)
class Node:
    """A chunkserver. `weight` is its capacity in bytes. `zone` is a failure domain; `host` another inside of it.

    `draining`: it is to be emptied. `full`: its disk is nearly full, it gets nothing new. `fixed_weight`: an administrator
    set the weight, what the node says of itself does not count."""

    node: NodeId
    incarnation: int
    address: str
    zone: str
    weight: int
    state: NodeState
    draining: bool = False
    full: bool = False
    fixed_weight: bool = False


@wire(141)
@dataclass(frozen=True, slots=True)
class Row:
    """The state of one placement group; see the module. `in_sync` is never empty after the first placement (I5)."""

    pg: PgId
    epoch: PgEpoch
    primary: Member | None
    in_sync: tuple[Member, ...]
    syncing: tuple[Member, ...]
    base: tuple[Member, ...]
    active: bool

    def members(self) -> tuple[Member, ...]:
        return self.in_sync + self.syncing


@wire(142)
@dataclass(frozen=True, slots=True)
class Pool:
    """Placement groups that keep the same number of replicas: ids `pool << 16 | 0 .. pg_count - 1`."""

    pool: PoolId
    replicas: int
    min_replicas: int


@wire(143)
@dataclass(frozen=True, slots=True)
class ClusterMap:
    """`rows` is in the order of `pg`. Sessions are fenced if they are in `evicted` or older than `oldest_session`."""

    epoch: MapEpoch
    file_system: str
    chunk_size: int
    pg_count: int
    nodes: tuple[Node, ...]
    pools: tuple[Pool, ...]
    rows: tuple[Row, ...]
    evicted: tuple[SessionId, ...]
    oldest_session: SessionId

    def is_fenced(self, session: SessionId) -> bool:
        """Whether nothing from this session may be accepted any more. Session 0 is the servers' own."""
        return session != 0 and (session < self.oldest_session or session in self.evicted)


def hash64(*numbers: int) -> int:
    """A well mixed 64-bit hash of small integers (splitmix64's finalizer chained); the same on every machine."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


_MASK = (1 << 64) - 1


def pg_of(pool: PoolId, chunk: ChunkId, pg_count: int) -> PgId:
    """The placement group of a chunk; `pg_count` is a power of two."""
    return PgId(pool << POOL_SHIFT | hash64(chunk.data, chunk.index) & (pg_count - 1))


def pool_of(pg: PgId) -> PoolId:
    return PoolId(pg >> POOL_SHIFT)
