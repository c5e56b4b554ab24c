"""What a primary does about flushes in two phases: whoever meets what is pending asks the authority what became of it.

    asked by                       committed     open                                   over
    a reader                       apply         shown as it was                        drop
    a change of the same session   apply         drop: it is done with that flush       drop
    a change of another session    apply         come again later (a stale request)     drop
    the look-round, now and then   apply         wait                                   drop

A client that knows its flush to be committed says so with its next request for the chunk, and nobody is asked.
"""

import logging
from typing import Never

import trio

from chunkserver import replica
from chunkserver.carrier import Carrier, Check, Request
from chunkserver.leader import Leader
from chunkserver.pending import Pending
from chunkserver.reader import Snapshot
from chunkserver.replica import Group, RowChanged
from chunkserver.report import Membership
from chunkserver.store import ChunkStore
from fsd.cluster.map import Row
from fsd.core.errors import FsError
from fsd.core.ids import NO_SESSION, ChunkId, MapEpoch, PgId, RequestNumber, SessionId
from fsd.protocol.chunk import Change, FlushId, Resolve, Where
from fsd.protocol.cluster import AskFlush, Fate, FlushFate

log = logging.getLogger(__name__)

LOOK_S = 5.0
OLD_S = 10.0  # a client applies its flushes itself, well before
MAX_AT_ONCE = 256  # looked after in one round


class Flushes:
    def __init__(self, store: ChunkStore, membership: Membership, leader: Leader, carrier: Carrier) -> None:
        self._store = store
        self._membership = membership
        self._leader = leader
        self._carrier = carrier
        self._since: dict[tuple[PgId, ChunkId, FlushId], float] = {}

    async def fate(self, flush: FlushId, asker: SessionId, committed: int) -> Fate:
        """`committed`: what the asker knows of its own flushes. Raises NotServing if the authority does not answer."""
        if asker == flush.session and committed == flush.number:
            return Fate.COMMITTED
        answer = await self._membership.call_once(AskFlush(flush.layer, flush.ino, flush.session, flush.number))
        assert isinstance(answer, FlushFate)
        return answer.fate

    async def before(self, present: Snapshot, request: Request) -> Resolve:
        """What must become of the chunk's pending state before the request is carried out. Raises NotServing."""
        pending = present.pending
        if pending is None or (request.change is Change.PREPARE and request.flush == pending.flush):
            return Resolve.KEEP
        if request.change is Change.TRUNCATE and request.length == 0:
            return Resolve.DROP
        fate = await self.fate(pending.flush, request.session, request.committed)
        return replica.resolution(fate, pending.flush, request.session)

    async def meet(self, group: Group, chunk: ChunkId, asker: SessionId, committed: int, check: Check) -> None:
        """A reader is about to look: afterwards what the chunk shows is the truth. `check` as in Carrier.carry_out; raises
        RowChanged."""
        while (pending := self._store.look(group.pg, chunk).pending) is not None:
            fate = await self.fate(pending.flush, asker, committed)
            if fate is Fate.OPEN:
                return
            await self._resolve(group, chunk, pending, replica.resolution(fate, pending.flush, asker), check)

    async def _resolve(self, group: Group, chunk: ChunkId, pending: Pending, resolve: Resolve, check: Check) -> None:
        async with self._carrier.locks.hold((group.pg, chunk)):
            check()
            row = group.row
            assert row is not None
            await self._carrier.mend(group, row, chunk)
            if self._store.look(group.pg, chunk).pending == pending:
                await self._carrier.carry_out(group, row, chunk, _request(row, chunk, resolve), check)

    # --- what nobody meets --------------------------------------------------------------------------------------------

    async def run(self) -> Never:
        """Ask for what has been pending for long, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            if self._membership.map is not None:
                for pg, chunk, pending in self._old():
                    await self._look_after(pg, chunk, pending)

    def _old(self) -> list[tuple[PgId, ChunkId, Pending]]:
        """In groups that this node leads."""
        now, me = trio.current_time(), self._membership.me
        rows = {row.pg: row for row in self._membership.known_map().rows if row.primary == me and row.active}
        found = [each for each in self._store.all_pending() if each[0] in rows]
        self._since = {(pg, chunk, p.flush): self._since.get((pg, chunk, p.flush), now) for pg, chunk, p in found}
        return [each for each in found if now - self._since[each[0], each[1], each[2].flush] >= OLD_S][:MAX_AT_ONCE]

    async def _look_after(self, pg: PgId, chunk: ChunkId, pending: Pending) -> None:
        group = self._leader.group(pg)
        row = group.row
        try:
            fate = await self.fate(pending.flush, NO_SESSION, 0)
            if fate is not Fate.OPEN and row is not None:

                def check() -> None:
                    group.check_still(row)
                    replica.check_primary(row, self._membership.me)
                    replica.check_active(row)

                await self._resolve(group, chunk, pending, replica.resolution(fate, pending.flush, NO_SESSION), check)
                log.info(
                    "flush %d of session %d: %s in chunk %s", pending.flush.number, pending.flush.session, fate, chunk
                )
        except RowChanged:
            return  # whoever leads the new row looks after it
        except FsError as error:
            log.info("what is pending for chunk %s is looked after later: %s", chunk, error)


def _request(row: Row, chunk: ChunkId, resolve: Resolve) -> Request:
    where = Where(row.pg, row.epoch, MapEpoch(0))
    return Request(where, NO_SESSION, RequestNumber(0), chunk, Change.RESOLVE, resolve=resolve)
