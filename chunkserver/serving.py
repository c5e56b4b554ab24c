"""What a primary does for clients: changes (R3, R4, R11) and reads (R6), fenced (R14).

A change that meets a new row waits inside until this node serves again and is tried once more, with the check of its
request number again; if another node leads now, the client is told to look at the map. A read takes no lock: it waits
until no change of the chunk is under way, and checks afterwards that none has become visible meanwhile.
"""

from dataclasses import replace
from typing import cast

import trio

from chunkserver import replica
from chunkserver.carrier import Carrier, Request, last_requests
from chunkserver.flushes import Flushes
from chunkserver.leader import Leader
from chunkserver.members import Members
from chunkserver.reader import Snapshot
from chunkserver.replica import Group, RowChanged
from chunkserver.report import Membership
from chunkserver.store import ChunkStore
from fsd.cluster.map import Row
from fsd.core.errors import CorruptData, InvalidArgument, NotServing, StaleMap
from fsd.core.ids import ChunkId, DataId, PgId, SessionId
from fsd.protocol.chunk import Change, ChunkData, ChunkWritten, DataChunks, ListData, ReadChunk, Where
from fsd.rpc.connection import Reply
from fsd.runtime import Runtime

READ_TRIES = 4  # without the chunk's lock
ACTIVATION_PATIENCE_S = 1.0
MAX_INDICES = 4096  # in one DataChunks


class Serving:
    def __init__(
        self,
        runtime: Runtime,
        store: ChunkStore,
        membership: Membership,
        members: Members,
        leader: Leader,
        carrier: Carrier,
        flushes: Flushes,
    ) -> None:
        self._runtime = runtime
        self._members = members
        self._store = store
        self._membership = membership
        self._leader = leader
        self._carrier = carrier
        self._flushes = flushes

    # --- who may ask --------------------------------------------------------------------------------------------------

    async def _enter(self, where: Where) -> Group:
        """The map is new enough (R14) and names this node; a row that is about to be active gets a little patience."""
        await self._membership.at_least(where.min_map_epoch)
        row = self._membership.row(where.pg)
        if row is None or row.epoch < where.pg_epoch:
            await self._membership.refresh()
            row = self._membership.row(where.pg)
        row = replica.check_known(row, where.pg)
        replica.check_primary(row, self._membership.me)
        replica.check_asker(row, where.pg_epoch)
        group = self._leader.group(where.pg)
        if not row.active:
            with trio.move_on_after(ACTIVATION_PATIENCE_S):
                await self._leader.wait_for_change(group)
        return group

    def _check(self, group: Group, session: SessionId) -> Row:
        """In one synchronous step: may this node answer for the group now?"""
        row = replica.check_known(group.row, group.pg)
        replica.check_primary(row, self._membership.me)
        replica.check_active(row)
        replica.check_lease(self._runtime.clock.monotonic(), self._membership.lease_until)
        replica.check_fence(self._membership.known_map(), session)
        return row

    # --- changes ------------------------------------------------------------------------------------------------------

    async def change(self, request: Request) -> ChunkWritten:
        """Carry a client's change out, under as many rows as it takes."""
        group = await self._enter(request.where)
        replica.check_asker(self._check(group, request.session), request.where.pg_epoch)
        while True:
            try:
                async with self._carrier.locks.hold((group.pg, request.chunk)):
                    return await self._change_locked(group, request)
            except RowChanged:
                await self._wait_until_active(group)

    async def _wait_until_active(self, group: Group) -> None:
        """Until the next row is active. Raises StaleMap if another node leads it."""
        while group.row is not None and not group.row.active:
            replica.check_primary(group.row, self._membership.me)
            await self._leader.wait_for_change(group)

    async def _change_locked(self, group: Group, request: Request) -> ChunkWritten:
        row = self._check(group, request.session)
        await self._carrier.mend(group, row, request.chunk)
        present = self._store.look(group.pg, request.chunk)
        replica.check_copies(row, self._membership.pool(group.pg))  # R4 holds for what is told again as well
        if self._is_done(group, present, request):
            await self._store.durable()
            return ChunkWritten(present.order, present.length)
        if request.change in (Change.WRITE, Change.PREPARE):
            await self._members.check_space(row)
        if present.pending is not None and request.change is not Change.RESOLVE:
            request = replace(request, resolve=await self._flushes.before(present, request))

        def check() -> None:
            self._check(group, request.session)

        order = await self._carrier.carry_out(group, row, request.chunk, request, check)
        return ChunkWritten(order, self._store.look(group.pg, request.chunk).length)

    def _is_done(self, group: Group, present: Snapshot, request: Request) -> bool:
        """Whether the change, or one that came later, was carried out before."""
        if request.change is Change.RESOLVE:
            return present.pending is None or present.pending.flush != request.flush
        return replica.already_applied(last_requests(group, present), request.session, request.number)

    # --- reads --------------------------------------------------------------------------------------------------------

    async def read(self, request: ReadChunk) -> Reply:
        """What was acknowledged, and nothing else; checked before and after."""
        group = await self._enter(request.where)
        key = (group.pg, request.chunk)
        await self._meet_pending(group, request)
        for _ in range(READ_TRIES):
            if not self._carrier.locks.is_held(key) and request.chunk not in group.dirty:
                reply = await self._read_once(group, request)
                if reply is not None:
                    return reply
            else:
                async with self._carrier.locks.hold(key):
                    await self._mend(group, request)
        async with self._carrier.locks.hold(key):
            await self._mend(group, request)
            reply = await self._read_once(group, request)
        if reply is None:
            raise NotServing(f"chunk {request.chunk} keeps changing")
        return reply

    async def _meet_pending(self, group: Group, request: ReadChunk) -> None:
        if self._store.look(group.pg, request.chunk).pending is None:
            return

        def check() -> None:
            self._check(group, request.session)

        try:
            await self._flushes.meet(group, request.chunk, request.session, request.committed, check)
        except RowChanged:
            raise StaleMap(f"placement group {group.pg} has a new row") from None

    async def list_data(self, request: ListData) -> DataChunks:
        """What is here, and what is just being changed and may be here in a moment: whoever cuts waits for that one's lock."""
        if not 1 <= request.limit <= MAX_INDICES or request.first < 0:
            raise InvalidArgument(f"{request.limit} chunks from {request.first} on were asked for")
        group = await self._enter(request.where)
        row = self._check(group, request.session)
        replica.check_asker(row, request.where.pg_epoch)
        stored = self._store.indices(group.pg, request.data, request.first, request.limit)
        end = len(stored) < request.limit
        changing = self._changing(group.pg, request.data)
        last = None if end else stored[-1]
        found = {i for i in changing if i >= request.first and (last is None or i <= last)} | set(stored)
        return DataChunks(tuple(sorted(found)), end)

    def _changing(self, pg: PgId, data: DataId) -> list[int]:
        held = cast("list[tuple[PgId, ChunkId]]", self._carrier.locks.held())
        return [chunk.index for group, chunk in held if group == pg and chunk.data == data]

    async def _mend(self, group: Group, request: ReadChunk) -> None:
        row = self._check(group, request.session)
        try:
            await self._carrier.mend(group, row, request.chunk)
        except RowChanged:
            raise StaleMap(f"placement group {group.pg} has a new row") from None

    async def _read_once(self, group: Group, request: ReadChunk) -> Reply | None:
        """None if the chunk changed meanwhile, or was repaired."""
        row = self._check(group, request.session)
        replica.check_asker(row, request.where.pg_epoch)
        snapshot = self._store.look(group.pg, request.chunk)
        try:
            content = await self._store.read(snapshot, request.offset, request.length)
        except CorruptData:
            await self._carrier.repair(group, row, snapshot)
            return None
        replica.check_asker(self._check(group, request.session), request.where.pg_epoch)
        if content is None:
            return None
        return Reply(ChunkData(snapshot.order, content.checksums), content.data)
