"""Carrying one change of a chunk out, on this disk and on every member of the row (R3, R4); mending and repairing chunks.

    chunk's lock held by the caller
      store's lock:  prepare ── begin (checks, order) ──┬── commit here ── (store's lock given back) ── durable ──┐
                                                        ├── Replicate to each in-sync member ─────────────────────┤── finish
                                                        └── after the commit: whole chunk to each syncing member ─┘

A change that ends early (a cancelled client, a lost lease) leaves its chunk *dirty*: before anybody sees the chunk again
its whole state is pushed under a new order, so that what was not acknowledged is there for everybody or for nobody (I6).
A new row ends what was begun under the old one; its settling covers whatever that left.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import trio

from chunkserver import replica
from chunkserver.locks import Hold, KeyedLocks
from chunkserver.members import RETRY_S, Members, together
from chunkserver.pending import part_of, shown_part
from chunkserver.planner import Prepared
from chunkserver.reader import Snapshot, verify_pieces, whole_extent
from chunkserver.replica import Group, RowChanged
from chunkserver.report import Membership
from chunkserver.store import ChunkBytes, ChunkStore
from fsd.cluster.map import Row
from fsd.core.errors import BaseMismatch, CorruptData, FsError, NotServing
from fsd.core.ids import ChunkId, Member, Order, PgId, RequestNumber, SessionId
from fsd.protocol.chunk import (
    AppliedRequest,
    Change,
    FlushId,
    PullChunk,
    Replicate,
    Resolve,
    Where,
    WholeChunk,
)
from fsd.rpc.connection import Call, Reply
from fsd.wire.frame import Buffer

log = logging.getLogger(__name__)

ROTTEN_RETRY_S = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """A client's change of a chunk. `extents`, `flush`, `committed` as in WriteChunk; `resolve`: what becomes first of what is
    pending there."""

    where: Where
    session: SessionId
    number: RequestNumber
    chunk: ChunkId
    change: Change
    offset: int = 0
    length: int = 0
    data: Buffer = b""
    checksums: tuple[int, ...] = ()
    extents: tuple[tuple[int, int], ...] = ()
    flush: FlushId | None = None
    committed: int = 0
    resolve: Resolve = Resolve.KEEP


Check = Callable[[], object]


class Carrier:
    def __init__(self, nursery: trio.Nursery, store: ChunkStore, membership: Membership, members: Members) -> None:
        self._nursery = nursery
        self._store = store
        self._membership = membership
        self._members = members
        self._running: dict[PgId, dict[Order, trio.CancelScope]] = {}
        self.locks = KeyedLocks()  # by (placement group, chunk): held over everything that a change waits for
        self.repaired = 0

    def end_running(self, pg: PgId) -> None:
        """The group has a new epoch: what runs under the old one raises RowChanged."""
        for scope in self._running.pop(pg, {}).values():
            scope.cancel()

    async def carry_out(
        self, group: Group, row: Row, chunk: ChunkId, request: Request | None, check: Check | None = None
    ) -> Order:
        """One change under the chunk's lock. Without a request: the present state again, whole, under a new order.

        `check` is called in the synchronous step that draws the order (R3). Raises RowChanged, or what refused the change."""
        async with self._store.locked(group.pg, chunk) as locked:
            prepared = await self._prepare(group, row, chunk, request)
            try:
                if check is not None:
                    check()
                order, requests = self._begin(group, row, chunk, request, prepared)
            except BaseException:
                self._store.abandon(prepared)
                raise
            run = _Run(self._store, self._members, self, group, row, chunk, order)
            with trio.CancelScope() as scope:
                self._running.setdefault(group.pg, {})[order] = scope
                try:
                    await run.everywhere(self._membership.me, prepared, request, requests, locked)
                    group.finish(chunk, order)
                    return order
                finally:
                    self._running.get(group.pg, {}).pop(order, None)
                    self._mend_if_dirty(group, row, chunk)
        raise RowChanged

    def _begin(
        self, group: Group, row: Row, chunk: ChunkId, request: Request | None, prepared: Prepared
    ) -> tuple[Order, tuple[AppliedRequest, ...]]:
        group.check_still(row)
        requests = last_requests(group, prepared.before)
        if request is not None and request.change is not Change.RESOLVE:  # that one has no number
            requests = replica.remember(requests, request.session, request.number)
        if prepared.plan is None:
            group.remember_removed(chunk, requests)
        else:
            group.removed.pop(chunk, None)
        return group.begin(chunk, row.epoch), requests

    async def _prepare(self, group: Group, row: Row, chunk: ChunkId, request: Request | None) -> Prepared:
        if request is None:
            await self._read_whole(group, row, chunk, held=True)  # repaired now if need be: no copy has the new order
            return await self._store.prepare(group.pg, chunk, None)
        prepare = partial(
            self._store.prepare,
            group.pg,
            chunk,
            request.change,
            request.offset,
            request.length,
            request.data,
            request.checksums,
            extents=request.extents,
            flush=request.flush,
            resolve=request.resolve,
        )
        try:
            return await prepare()
        except CorruptData:
            await self.repair(group, row, self._store.look(group.pg, chunk), held=True)
            return await prepare()

    # --- mending ------------------------------------------------------------------------------------------------------

    async def mend(self, group: Group, row: Row, chunk: ChunkId) -> None:
        """Under the chunk's lock: push what an interrupted change left, if any."""
        if chunk in group.dirty:
            await self.carry_out(group, row, chunk, None)

    def _mend_if_dirty(self, group: Group, row: Row, chunk: ChunkId) -> None:
        if group.is_still(row) and chunk in group.dirty and chunk not in group.mending:
            group.mending[chunk] = None
            self._nursery.start_soon(self._mend_later, group, row, chunk)

    async def _mend_later(self, group: Group, row: Row, chunk: ChunkId) -> None:
        """Nobody may ever ask for the chunk again, and its members must be equal all the same (I4)."""
        try:
            while group.is_still(row) and chunk in group.dirty:
                await trio.sleep(RETRY_S)
                try:
                    async with self.locks.hold((group.pg, chunk)):
                        group.check_still(row)
                        await self.mend(group, row, chunk)
                except CorruptData as error:
                    log.error("chunk %s of placement group %d cannot be mended: %s", chunk, group.pg, error)
                    await trio.sleep(ROTTEN_RETRY_S)
                except FsError as error:
                    log.info("chunk %s of placement group %d is mended later: %s", chunk, group.pg, error)
        except RowChanged:
            return  # settling the new row mends it
        finally:
            group.mending.pop(chunk, None)

    # --- whole chunks -------------------------------------------------------------------------------------------------

    async def whole(self, group: Group, row: Row, chunk: ChunkId, removal: Order) -> tuple[Replicate, Buffer]:
        """The chunk's present state as a message; `removal` is its order if it does not exist. Raises CorruptData."""
        snapshot, content, pending = await self._read_whole(group, row, chunk)
        order = snapshot.order if snapshot.record else removal
        message = Replicate(
            pg=group.pg,
            epoch=row.epoch,
            sender=self._membership.me.incarnation,
            chunk=chunk,
            order=order,
            base=order,
            change=Change.WHOLE if snapshot.record else Change.REMOVE,
            offset=0,
            length=snapshot.length,
            checksums=content.checksums,
            requests=snapshot.requests,
            settled=group.settled(),
            pending=part_of(snapshot.pending, pending.checksums),
        )
        return message, _together(content.data, pending.data)

    async def _read_whole(
        self, group: Group, row: Row, chunk: ChunkId, *, held: bool = False
    ) -> tuple[Snapshot, ChunkBytes, ChunkBytes]:
        """The chunk, its bytes, and those that are pending for it, all verified. Raises CorruptData."""
        repaired = False
        while True:
            snapshot = self._store.look(group.pg, chunk)
            try:
                content = await self._store.read(snapshot, 0, snapshot.length)
                pending = await self._store.read_pending(snapshot)
            except CorruptData:
                if repaired:
                    raise
                await self.repair(group, row, snapshot, held=held)
                repaired = True
                continue
            if content is not None and pending is not None:
                return snapshot, content, pending

    # --- repair (R13) -------------------------------------------------------------------------------------------------

    async def repair(self, group: Group, row: Row, snapshot: Snapshot, *, held: bool = False) -> None:
        """Rewrite a rotten chunk from another member's copy of the same order. Raises CorruptData if there is none.

        `held`: the caller holds the store's lock of the chunk."""
        chunk = snapshot.chunk
        for member in replica.others(row.in_sync, self._membership.me):
            copy = await self._pull(group, row, member, snapshot)
            if copy is not None:
                async with nullcontext() if held else self._store.locked(group.pg, chunk):
                    await self._rewrite(snapshot, copy)
                self.repaired += 1
                log.warning(
                    "chunk %s of placement group %d was rotten here, repaired from node %d",
                    chunk,
                    group.pg,
                    member.node,
                )
                return
        log.error("chunk %s of placement group %d is rotten and has no other good copy", chunk, group.pg)
        raise CorruptData(f"chunk {chunk} fails its checksum and no good copy answered")

    async def _pull(self, group: Group, row: Row, member: Member, snapshot: Snapshot) -> Reply | None:
        message = PullChunk(group.pg, row.epoch, self._membership.me.incarnation, snapshot.chunk)
        reply = await self._members.ask_once(member, message)
        if reply is None or not isinstance(reply.message, WholeChunk) or reply.message.order != snapshot.order:
            return None
        try:
            shown = shown_part(reply.payload, reply.message.pending)
            verify_pieces(shown, whole_extent(shown), reply.message.checksums)
        except FsError as error:
            log.warning("the copy of chunk %s from node %d is no better: %s", snapshot.chunk, member.node, error)
            return None
        return reply

    async def _rewrite(self, snapshot: Snapshot, copy: Reply) -> None:
        def unchanged() -> None:
            if not self._store.is_current(snapshot):
                raise NotServing(f"chunk {snapshot.chunk} changed while it was repaired")

        checksums = copy.message.checksums
        prepared = await self._store.prepare(
            snapshot.pg,
            snapshot.chunk,
            Change.WHOLE,
            data=copy.payload,
            checksums=checksums,
            pending=copy.message.pending,
            reserve_share=0.0,
        )
        await self._store.commit(prepared, snapshot.order, snapshot.requests, guard=unchanged, flight=False)
        await self._store.durable()


def _together(shown: Buffer, pending: Buffer) -> Buffer:
    return b"".join((shown, pending)) if len(pending) else shown


def last_requests(group: Group, present: Snapshot) -> tuple[AppliedRequest, ...]:
    """Of a chunk, or of one that does not exist any more."""
    return present.requests if present.record else group.removed.get(present.chunk, ())


def _is_whole(request: Request, length: int) -> bool:
    """Whether a write leaves nothing of a chunk of this length."""
    return not request.extents and request.offset == 0 and len(request.data) >= length


@dataclass(slots=True)
class _Run:
    """One change on its way to every member of a row. The first failure ends the rest."""

    store: ChunkStore
    members: Members
    carrier: Carrier
    group: Group
    row: Row
    chunk: ChunkId
    order: Order
    applied: trio.Event | None = None

    async def everywhere(
        self,
        me: Member,
        prepared: Prepared,
        request: Request | None,
        requests: tuple[AppliedRequest, ...],
        locked: Hold,
    ) -> None:
        """Return when this disk and every member of the row have it durably (I1).

        What is small goes out to all members before this disk is written, and the answers are waited for one after the
        other: a task for each would cost as much as the write."""
        self.applied = trio.Event()
        part = None if request is None else self._part(me, prepared, request, requests)
        data = b"" if request is None or prepared.plan is None else request.data
        members = replica.must_answer(self.row, me)
        parts = [part if member in self.row.in_sync else None for member in members]
        calls = [
            None if part is None else self.members.begin(member, part, data)
            for member, part in zip(members, parts, strict=True)
        ]
        steps = [
            partial(self._replicate, member, part, data, call)
            for member, part, call in zip(members, parts, calls, strict=True)
        ]
        here = partial(self._here, prepared, requests, locked)
        try:
            if all(calls):
                for step in (here, *steps):
                    await step()
            else:
                await together([here, *steps])
        finally:
            for call in calls:
                if call is not None:
                    call.give_up()

    async def _replicate(self, member: Member, part: Replicate | None, data: Buffer, call: Call | None) -> None:
        if call is None or not await self.members.finish(member, call):
            await self._send(member, part, data)

    def _part(
        self, me: Member, prepared: Prepared, request: Request, requests: tuple[AppliedRequest, ...]
    ) -> Replicate:
        """The change as it goes to a member that has everything before it."""
        change = request.change
        if prepared.plan is None:
            change = Change.REMOVE
        elif change is Change.WRITE and prepared.before.pending is None and _is_whole(request, prepared.before.length):
            change = Change.WHOLE
        return Replicate(
            pg=self.group.pg,
            epoch=self.row.epoch,
            sender=me.incarnation,
            chunk=self.chunk,
            order=self.order,
            base=prepared.before.order,
            change=change,
            offset=request.offset,
            length=request.length,
            checksums=request.checksums,
            requests=requests,
            settled=self.group.settled(),
            extents=request.extents,
            flush=request.flush,
            resolve=request.resolve,
        )

    async def _here(self, prepared: Prepared, requests: tuple[AppliedRequest, ...], locked: Hold) -> None:
        assert self.applied is not None
        settled = Order(self.order.epoch, self.group.settled())
        await self.store.commit(prepared, self.order, requests, guard=self._guard, settled=settled)
        locked.release()
        self.applied.set()
        await self.store.durable()

    def _guard(self) -> None:
        replica.check_promise(self.group.promised, self.order.epoch)

    async def _send(self, member: Member, part: Replicate | None, data: Buffer) -> None:
        assert self.applied is not None
        if part is not None:
            try:
                await self.members.ask(self.group, self.row, member, part, data)
                return
            except (BaseMismatch, CorruptData) as error:
                log.info("node %d gets chunk %s whole: %s", member.node, self.chunk, error)
        await self.applied.wait()
        message, whole = await self.carrier.whole(self.group, self.row, self.chunk, self.order)
        await self.members.ask(self.group, self.row, member, message, whole)
