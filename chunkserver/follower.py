"""A member's side: what it does for the primary of a row, and what it shows to anybody who inspects it.

Every message is checked against the row: promise, epoch, the sender's and this node's incarnation. A message of a higher
epoch makes this node fetch the map first. A change is answered when it is durable here.
"""

from chunkserver import replica
from chunkserver.leader import Leader
from chunkserver.pending import part_of
from chunkserver.reader import Snapshot
from chunkserver.replica import Group
from chunkserver.report import Membership
from chunkserver.store import ChunkStore
from fsd.cluster.map import Row
from fsd.core.errors import InvalidArgument, NotALeader, NotServing
from fsd.core.ids import NO_ORDER, ChunkId, Incarnation, Order, PgEpoch, PgId
from fsd.protocol.chunk import (
    Change,
    ChunkList,
    ChunkSummary,
    InspectChunks,
    InspectGroup,
    ListChunks,
    ListInFlight,
    PullChunk,
    ReadCopy,
    Replicate,
    SpaceLeft,
    WholeChunk,
)
from fsd.rpc.connection import Reply
from fsd.wire.frame import Buffer

RESYNC_RESERVE_SHARE = 0.5  # copying stops here; a change that its primary has begun may use all of the reserve
MAX_PAGE = 5000
READ_TRIES = 16


class Follower:
    def __init__(self, store: ChunkStore, membership: Membership, leader: Leader) -> None:
        self._store = store
        self._membership = membership
        self._leader = leader

    async def _enter(self, pg: PgId, epoch: PgEpoch, sender: Incarnation) -> Group:
        row = self._membership.row(pg)
        if row is None or row.epoch < epoch:
            await self._membership.refresh()
        group = self._leader.group(pg)
        self._check(group, epoch, sender)
        return group

    def _check(self, group: Group, epoch: PgEpoch, sender: Incarnation) -> Row:
        """Every check of a primary's message, in one synchronous step."""
        if group.row is None:
            raise NotALeader(f"placement group {group.pg} is not in this node's map")
        replica.check_promise(group.promised, epoch)
        replica.check_epoch(group.row, epoch)
        replica.check_sender(group.row, sender)
        replica.check_receiver(group.row, self._membership.me)
        return group.row

    # --- changes ------------------------------------------------------------------------------------------------------

    async def replicate(self, message: Replicate, payload: Buffer) -> SpaceLeft:
        """Make the primary's change durable here, or find that this copy has it already."""
        group = await self._enter(message.pg, message.epoch, message.sender)
        async with self._store.locked(message.pg, message.chunk):
            row = self._check(group, message.epoch, message.sender)
            present = self._store.look(message.pg, message.chunk)
            if self._must_apply(row, present, message):
                await self._apply(group, present, message, payload)
        await self._store.durable()
        return self.space_left()

    def space_left(self) -> SpaceLeft:
        """Whether primaries may begin more writes for this disk (R12)."""
        return SpaceLeft(self._store.is_low())

    def _must_apply(self, row: Row, present: Snapshot, message: Replicate) -> bool:
        in_flight = self._store.in_flight(message.pg).get(message.chunk, NO_ORDER)  # knows of removed chunks too
        return replica.accepts(
            present=replica.latest([present.order, in_flight]),
            order=message.order,
            resync=message.resync,
            syncing=self._membership.me in row.syncing,
            epoch=message.epoch,
        )

    async def _apply(self, group: Group, present: Snapshot, message: Replicate, payload: Buffer) -> None:
        if message.change not in (Change.WHOLE, Change.REMOVE):
            replica.check_base(present.order, message.base)
        prepared = await self._store.prepare(
            message.pg,
            message.chunk,
            message.change,
            message.offset,
            message.length,
            payload,
            message.checksums,
            extents=message.extents,
            flush=message.flush,
            resolve=message.resolve,
            pending=message.pending,
            reserve_share=RESYNC_RESERVE_SHARE if message.resync else 0.0,
        )
        await self._store.commit(
            prepared,
            message.order,
            message.requests,
            guard=lambda: replica.check_promise(group.promised, message.epoch),
            flight=not message.resync,
            settled=Order(message.epoch, message.settled),
        )

    # --- lists --------------------------------------------------------------------------------------------------------

    async def list_in_flight(self, message: ListInFlight) -> ChunkList:
        """The answer is also the promise to accept nothing of lower epochs."""
        group = await self._enter(message.pg, message.epoch, message.sender)
        group.promised = PgEpoch(max(group.promised, message.epoch))
        entries = sorted(self._store.in_flight(message.pg).items())
        return ChunkList(tuple(ChunkSummary(chunk, order, 0, 0) for chunk, order in entries), end=True)

    async def list_chunks(self, message: ListChunks) -> ChunkList:
        """What this copy holds. Raises NotALeader."""
        await self._enter(message.pg, message.epoch, message.sender)
        return self._page(message.pg, message.after, message.limit)

    async def pull(self, message: PullChunk) -> Reply:
        """This copy of a chunk, for the primary. Raises CorruptData."""
        await self._enter(message.pg, message.epoch, message.sender)
        return await self.read_copy(ReadCopy(message.pg, message.chunk))

    # --- for administration and tests ---------------------------------------------------------------------------------

    def inspect_chunks(self, message: InspectChunks) -> ChunkList:
        found = [self._store.summary(message.pg, chunk) for chunk in message.chunks[:MAX_PAGE]]
        return ChunkList(tuple(summary for summary in found if summary is not None), end=True)

    def inspect_group(self, message: InspectGroup) -> ChunkList:
        return self._page(message.pg, message.after, message.limit)

    def _page(self, pg: PgId, after: ChunkId, limit: int) -> ChunkList:
        if limit < 1:
            raise InvalidArgument(f"a page of {limit} chunks was asked for")
        return self._store.page(pg, after, min(limit, MAX_PAGE))

    async def read_copy(self, message: ReadCopy) -> Reply:
        """Raises CorruptData."""
        for _ in range(READ_TRIES):
            snapshot = self._store.look(message.pg, message.chunk)
            content = await self._store.read(snapshot, 0, snapshot.length)
            pending = await self._store.read_pending(snapshot)
            if content is not None and pending is not None:
                part = part_of(snapshot.pending, pending.checksums)
                whole = WholeChunk(snapshot.order, content.checksums, snapshot.requests, part)
                return Reply(whole, b"".join((content.data, pending.data)) if part else content.data)
        raise NotServing(f"chunk {message.chunk} keeps changing")
