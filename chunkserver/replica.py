"""The rules of one placement group, each a function of its own. Pure: 2-replication.md is the reason for every line.

    asked by            checks, all in one synchronous step
    client's write      known, primary, asker, active, lease, copies, fence, (applied?)      then begin() draws the order
    client's read       known, primary, asker, active, lease, fence; and the same again after the bytes were read (R6)
    primary's message   member: promise, epoch, sender, receiver; then accepts(), base
    takeover            settle_list() of all in-flight lists -> push each -> Activate

`Group` is what a node remembers of one placement group between messages; it dies with the process, which is right: every
restart is a new incarnation, without rights until a row names it (R1).
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from chunkserver.index import MAX_REQUESTS
from fsd.cluster.map import ClusterMap, Pool, Row
from fsd.core.errors import BaseMismatch, NotALeader, NotServing, SessionEvicted, StaleMap
from fsd.core.ids import (
    NO_ORDER,
    NO_SESSION,
    ChunkId,
    Incarnation,
    Member,
    Order,
    PgEpoch,
    PgId,
    RequestNumber,
    SessionId,
)
from fsd.protocol.chunk import AppliedRequest, FlushId, Replicate, Resolve
from fsd.protocol.cluster import Fate

MAX_REMOVED = 256  # removed chunks of a group whose last requests are remembered


class RowChanged(Exception):
    """The row under which some work was begun is over. Never leaves this package."""


@dataclass(slots=True)
class Group:
    """`promised`: nothing of a lower epoch is accepted. `pending`: versions that not all have answered. `dirty`: chunks
    whose last change ended without all answers; before anything else they are pushed whole. `removed`: last requests of
    chunks that do not exist any more: within an epoch a late duplicate can only come to this same process."""

    pg: PgId
    row: Row | None = None
    promised: PgEpoch = PgEpoch(0)
    version: int = 0
    pending: dict[int, ChunkId] = field(default_factory=lambda: dict[int, ChunkId]())
    dirty: dict[ChunkId, int] = field(default_factory=lambda: dict[ChunkId, int]())
    removed: OrderedDict[ChunkId, tuple[AppliedRequest, ...]] = field(
        default_factory=lambda: OrderedDict[ChunkId, tuple[AppliedRequest, ...]]()
    )

    mending: dict[ChunkId, None] = field(default_factory=lambda: dict[ChunkId, None]())

    def is_still(self, row: Row) -> bool:
        return self.row is not None and self.row.epoch == row.epoch

    def check_still(self, row: Row) -> None:
        """Raises RowChanged if the epoch of `row` is over."""
        if not self.is_still(row):
            raise RowChanged

    def adopt(self, row: Row) -> None:
        """A row from a newer map. A new epoch begins with no history: settling covers what the old one left."""
        if self.row is None or row.epoch > self.row.epoch:
            self.version = 0
            self.pending.clear()
            self.dirty.clear()
            self.mending.clear()
            self.removed.clear()
        self.row = row
        self.promised = PgEpoch(max(self.promised, row.epoch))

    def begin(self, chunk: ChunkId, epoch: PgEpoch) -> Order:
        """Draw the order of a change; until `finish` its chunk is dirty."""
        self.version += 1
        self.pending[self.version] = chunk
        self.dirty[chunk] = self.version
        return Order(epoch, self.version)

    def next_order(self, epoch: PgEpoch) -> Order:
        """An order for what is no change: removing from a copy what is not there in truth."""
        self.version += 1
        return Order(epoch, self.version)

    def finish(self, chunk: ChunkId, order: Order) -> None:
        """Every member of the row answered. A whole push also ends what earlier changes of the chunk left."""
        if self.row is None or order.epoch != self.row.epoch:
            return
        for version in [v for v, other in self.pending.items() if other == chunk and v <= order.version]:
            del self.pending[version]
        if self.dirty.get(chunk) == order.version:
            del self.dirty[chunk]

    def settled(self) -> int:
        """All versions up to this one were answered by all."""
        return min(self.pending) - 1 if self.pending else self.version

    def remember_removed(self, chunk: ChunkId, requests: tuple[AppliedRequest, ...]) -> None:
        self.removed[chunk] = requests
        self.removed.move_to_end(chunk)
        while len(self.removed) > MAX_REMOVED:
            self.removed.popitem(last=False)


# --- who may serve (R1, R2, R3, R6) -----------------------------------------------------------------------------------


def check_known(row: Row | None, pg: PgId) -> Row:
    if row is None:
        raise StaleMap(f"placement group {pg} is not in this node's map")
    return row


def check_primary(row: Row, me: Member) -> None:
    """The row names this very incarnation (R1)."""
    if row.primary != me:
        raise StaleMap(f"node {me.node} incarnation {me.incarnation} does not lead placement group {row.pg}")


def check_asker(row: Row, epoch: PgEpoch) -> None:
    if epoch != row.epoch:
        raise StaleMap(f"placement group {row.pg} is at epoch {row.epoch}, asked at {epoch}")


def check_active(row: Row) -> None:
    if not row.active:
        raise NotServing(f"placement group {row.pg} epoch {row.epoch} is not active yet")


def check_lease(now: float, lease_until: float) -> None:
    if now >= lease_until:
        raise NotServing(f"this node's lease ran out {now - lease_until:.2f} s ago")


def check_fence(cluster_map: ClusterMap, session: SessionId) -> None:
    """I13."""
    if cluster_map.is_fenced(session):
        raise SessionEvicted(f"session {session} is evicted")


def check_copies(row: Row, pool: Pool | None) -> None:
    """R4: with fewer members than this nothing can be acknowledged, so nothing is begun."""
    wanted = pool.min_replicas if pool else 1
    if len(row.members()) < wanted:
        raise NotServing(f"placement group {row.pg} has {len(row.members())} of at least {wanted} copies")


# --- a member's view of its primary -----------------------------------------------------------------------------------


def check_promise(promised: PgEpoch, epoch: PgEpoch) -> None:
    """Also the last check before a change becomes visible: the answer to ListInFlight must not miss it."""
    if epoch < promised:
        raise NotALeader(f"epoch {epoch} is over, epoch {promised} was promised")


def check_epoch(row: Row, epoch: PgEpoch) -> None:
    if epoch != row.epoch:
        raise NotALeader(f"placement group {row.pg} is at epoch {row.epoch} here, the sender at {epoch}")


def check_sender(row: Row, sender: Incarnation) -> None:
    if row.primary is None or row.primary.incarnation != sender:
        raise NotALeader(f"incarnation {sender} does not lead placement group {row.pg}, {row.primary} does")


def check_receiver(row: Row, me: Member) -> None:
    if me not in row.members():
        raise NotALeader(f"node {me.node} incarnation {me.incarnation} is no member of placement group {row.pg}")


def accepts(*, present: Order, order: Order, resync: bool, syncing: bool, epoch: PgEpoch) -> bool:
    """Whether a member must apply a change, or has it (or a newer one) already.

    What a syncing member brought along from earlier epochs may have orders higher than the truth: garbage."""
    if resync and syncing:
        return not (present.epoch == epoch and present >= order)
    return present < order


def check_base(present: Order, base: Order) -> None:
    if present != base:
        raise BaseMismatch(f"the change builds on {tuple(base)}, this member has {tuple(present)}")


# --- requests (R11) ---------------------------------------------------------------------------------------------------


def already_applied(requests: Iterable[AppliedRequest], session: SessionId, number: RequestNumber) -> bool:
    return session != NO_SESSION and any(
        request.session == session and number <= request.number for request in requests
    )


def remember(
    requests: tuple[AppliedRequest, ...], session: SessionId, number: RequestNumber
) -> tuple[AppliedRequest, ...]:
    """The list with this request as the latest; the longest unused are forgotten."""
    if session == NO_SESSION:
        return requests
    others = [request for request in requests if request.session != session]
    return (*others[-(MAX_REQUESTS - 1) :], AppliedRequest(session, number))


# --- flushes in two phases --------------------------------------------------------------------------------------------


def resolution(fate: Fate, flush: FlushId, asker: SessionId) -> Resolve:
    """What becomes of a pending state before the asker's request. Raises NotServing where a flush is still open: then the
    asker cannot hold the lease, and its request is a ghost."""
    match fate:
        case Fate.COMMITTED:
            return Resolve.APPLY
        case Fate.OPEN if asker != flush.session:
            raise NotServing(f"flush {flush.number} of session {flush.session} is under way")
        case Fate.OPEN | Fate.OVER:
            return Resolve.DROP


# --- takeover (R7) ----------------------------------------------------------------------------------------------------


def settle_list(lists: Iterable[Iterable[ChunkId]]) -> list[ChunkId]:
    """Every chunk that any in-sync member has as perhaps in flight, in order."""
    return sorted({chunk for chunks in lists for chunk in chunks})


def others(members: Iterable[Member], me: Member) -> list[Member]:
    return [member for member in members if member != me]


def must_answer(row: Row, me: Member) -> list[Member]:
    """R4: whose durable answers an acknowledgement needs, besides this node's own."""
    return others(row.members(), me)


def latest(orders: Iterable[Order]) -> Order:
    return max(orders, default=NO_ORDER)


def as_resync(message: Replicate) -> Replicate:
    """The same as a copy, which no in-flight list needs to know of."""
    return replace(message, resync=True)
