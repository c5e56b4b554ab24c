"""What the primary of a placement group does by itself: takeover (R7) and filling members that come back (R10).

    new row ──> settle ──> Activate ──> serve (serving.py) ──> resync the syncing members ──> Promote ──> new row ...

A new epoch ends everything of the old one and starts over, which is cheap: what was copied stays copied.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from chunkserver import replica, resync
from chunkserver.budget import Rate, Turns
from chunkserver.carrier import Carrier
from chunkserver.members import RETRY_S, Members, together
from chunkserver.replica import Group, RowChanged
from chunkserver.report import Membership
from chunkserver.store import ChunkStore
from fsd.cluster.map import ClusterMap, Row
from fsd.core.errors import CorruptData, FsError, NoSpace
from fsd.core.ids import ChunkId, Incarnation, Member, PgId
from fsd.protocol.chunk import ChunkList, ListChunks, ListInFlight
from fsd.protocol.cluster import Activate, Promote

log = logging.getLogger(__name__)

MAX_SETTLING = 64  # placement groups at once
MAX_RESYNCING = 4
PUSHES_AT_ONCE = 4  # chunks of one group
PAGE = 1000
RESYNC_RETRY_S = 5.0
MERE_MOVE = 1000  # urgency


class Leader:
    """Also the keeper of every Group, whatever this node's part in it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        store: ChunkStore,
        membership: Membership,
        members: Members,
        carrier: Carrier,
        resync_bytes_per_s: int = 0,
    ) -> None:
        self._nursery = nursery
        self._store = store
        self._membership = membership
        self._members = members
        self._carrier = carrier
        self._groups: dict[PgId, Group] = {}
        self._changed: dict[PgId, trio.Event] = {}
        self._scopes: dict[PgId, trio.CancelScope] = {}
        self._settling = trio.Semaphore(MAX_SETTLING)
        self._resyncing = Turns(MAX_RESYNCING)
        self.rate = Rate(resync_bytes_per_s)
        self.resynced_bytes = 0

    def group(self, pg: PgId) -> Group:
        group = self._groups.get(pg)
        if group is None:
            group = self._groups[pg] = Group(pg)
            row = self._membership.row(pg)
            if row is not None:
                group.adopt(row)
        return group

    async def wait_for_change(self, group: Group) -> None:
        """Until the group's row differs from what it is now."""
        event = self._changed.get(group.pg)
        if event is None:
            event = self._changed[group.pg] = trio.Event()
        await event.wait()

    # --- rows ---------------------------------------------------------------------------------------------------------

    def adopt(self, cluster_map: ClusterMap) -> None:
        """A newer map: work of rows that changed ends, that of new ones begins."""
        me = self._membership.me
        self._members.forget(Member(node.node, Incarnation(node.incarnation)) for node in cluster_map.nodes)
        for row in cluster_map.rows:
            group = self._groups.get(row.pg)
            if group is None and me in row.members():
                group = self._groups[row.pg] = Group(row.pg)
            if group is not None and group.row != row:
                self._adopt_row(group, row, me)

    def _adopt_row(self, group: Group, row: Row, me: Member) -> None:
        new_epoch = not group.is_still(row)
        group.adopt(row)
        if row.active:
            self._store.forget_flight(row.pg, row.epoch)
        if new_epoch:
            self._carrier.end_running(row.pg)
        scope = self._scopes.pop(row.pg, None)
        if scope is not None:
            scope.cancel()
        changed = self._changed.pop(row.pg, None)
        if changed is not None:
            changed.set()
        if row.primary == me and (not row.active or row.syncing):
            scope = self._scopes[row.pg] = trio.CancelScope()
            self._nursery.start_soon(self._lead, group, row, scope)

    async def _lead(self, group: Group, row: Row, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                try:
                    if row.active:
                        await self._fill_members(group, row)
                    else:
                        async with self._settling:
                            await self._take_over(group, row)
                    return
                except RowChanged:
                    return  # the new row has its own task
                except FsError as error:  # such as a lease that ended: what comes of it shows in the next row
                    log.info("placement group %d epoch %d: %s", group.pg, row.epoch, error)
                await trio.sleep(RETRY_S)

    # --- takeover (R7) ------------------------------------------------------------------------------------------------

    async def _take_over(self, group: Group, row: Row) -> None:
        me = self._membership.me
        lists = [sorted(self._store.in_flight(group.pg))]
        await together(
            [partial(self._collect, group, row, member, lists) for member in replica.others(row.in_sync, me)]
        )
        chunks = replica.settle_list(lists)
        await _each(chunks, partial(self._settle, group, row))
        if chunks:
            log.info("placement group %d epoch %d: settled %d chunks", group.pg, row.epoch, len(chunks))
        while not (group.row is not None and group.row.active):
            group.check_still(row)
            await self._membership.change_row(Activate(group.pg, row.epoch, me))
            await trio.sleep(RETRY_S)

    async def _collect(self, group: Group, row: Row, member: Member, lists: list[list[ChunkId]]) -> None:
        message = ListInFlight(group.pg, row.epoch, self._membership.me.incarnation)
        answer = (await self._members.ask(group, row, member, message)).message
        assert isinstance(answer, ChunkList)
        lists.append([summary.chunk for summary in answer.chunks])

    async def _settle(self, group: Group, row: Row, chunk: ChunkId) -> None:
        async with self._carrier.locks.hold((group.pg, chunk)):
            group.check_still(row)
            try:
                await self._carrier.carry_out(group, row, chunk, None)
            except CorruptData as error:
                group.dirty.pop(chunk, None)  # a read says so again; the rest of the group must not wait for it
                log.error("chunk %s of placement group %d has no good copy here: %s", chunk, group.pg, error)

    # --- resync (R10) -------------------------------------------------------------------------------------------------

    async def _fill_members(self, group: Group, row: Row) -> None:
        for member in row.syncing:
            while True:
                async with self._resyncing.turn(self._urgency(row)):
                    pushed, failed = await self._fill(group, row, member)
                if not failed:
                    break
                log.error("placement group %d: %d chunks cannot be copied to node %d", group.pg, failed, member.node)
                await trio.sleep(RESYNC_RETRY_S)
            log.info("placement group %d epoch %d: node %d got %d chunks", group.pg, row.epoch, member.node, pushed)
            while True:  # until the row with the promoted member ends this task
                await self._membership.change_row(Promote(group.pg, row.epoch, self._membership.me, member))
                group.check_still(row)
                await trio.sleep(RETRY_S)

    def _urgency(self, row: Row) -> int:
        """Groups with the fewest copies first; those that only move last."""
        pool = self._membership.pool(row.pg)
        missing = 0 if pool is None else pool.replicas - len(row.in_sync)
        return len(row.in_sync) if missing > 0 else MERE_MOVE

    async def _fill(self, group: Group, row: Row, member: Member) -> tuple[int, int]:
        """How many chunks were pushed, and how many could not be read here: without them there is no promotion."""
        after: ChunkId | None = resync.BEFORE_ALL
        failed: list[ChunkId] = []
        count = 0
        while after is not None:
            message = ListChunks(group.pg, row.epoch, self._membership.me.incarnation, after, PAGE)
            theirs = (await self._members.ask(group, row, member, message)).message
            assert isinstance(theirs, ChunkList)
            difference = resync.compare(self._store.page(group.pg, after, PAGE), theirs)
            chunks = sorted(difference.push + difference.remove)
            await _each(chunks, partial(self._push, group, row, member, failed))
            count += len(chunks)
            after = difference.upto
        return count - len(failed), len(failed)

    async def _push(self, group: Group, row: Row, member: Member, failed: list[ChunkId], chunk: ChunkId) -> None:
        """The chunk's present state, whatever it is by now, to one syncing member."""
        await self.rate.take(self._store.look(group.pg, chunk).length)
        async with self._carrier.locks.hold((group.pg, chunk)):
            group.check_still(row)
            try:
                await self._carrier.mend(group, row, chunk)
                message, data = await self._carrier.whole(group, row, chunk, group.next_order(row.epoch))
                await self._members.ask(group, row, member, replica.as_resync(message), data)
                self.resynced_bytes += len(data)
            except (CorruptData, NoSpace) as error:
                failed.append(chunk)
                log.error("chunk %s of placement group %d: %s", chunk, group.pg, error)


async def _each(chunks: list[ChunkId], work: Callable[[ChunkId], Awaitable[None]]) -> None:
    """Run `work` for all chunks, a few at a time."""
    remaining = list(reversed(chunks))

    async def worker() -> None:
        while remaining:
            await work(remaining.pop())

    await together([worker] * min(PUSHES_AT_ONCE, len(chunks)))
