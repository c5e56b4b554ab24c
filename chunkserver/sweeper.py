"""Removes what this disk holds of groups that it has no part in any more.

A copy is of use as long as the row could need it: while this node is a member or base, or the row has too few others, or is
not active. Only when a row has been whole without it for SWEEP_AFTER_S are its chunks removed, a few at a time.
"""

import logging
from typing import Never

import trio

from chunkserver.leader import Leader
from chunkserver.replica import RowChanged
from chunkserver.report import Membership
from chunkserver.resync import BEFORE_ALL
from chunkserver.store import ChunkStore
from fsd.cluster.map import Pool, Row
from fsd.core.errors import FsError
from fsd.core.ids import NO_ORDER, ChunkId, Member, PgId
from fsd.protocol.chunk import Change

log = logging.getLogger(__name__)

SWEEP_AFTER_S = 30.0
LOOK_S = 5.0
PAGE = 256


def is_dispensable(row: Row, pool: Pool, me: Member) -> bool:
    """The row is whole, active and knows nothing of this node, in whatever incarnation."""
    named = [member.node for member in (*row.members(), *row.base)]
    return row.active and me.node not in named and len(row.in_sync) >= pool.replicas


class Sweeper:
    def __init__(self, store: ChunkStore, membership: Membership, leader: Leader) -> None:
        self._store = store
        self._membership = membership
        self._leader = leader
        self._since: dict[PgId, float] = {}
        self.swept = 0

    async def run(self) -> Never:
        """Look at all groups now and then, until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            if self._membership.map is not None:
                for pg in self._ripe():
                    await self._sweep(pg)

    def _ripe(self) -> list[PgId]:
        """Groups that have been dispensable for long enough."""
        now = trio.current_time()
        dispensable = [row.pg for row in self._membership.known_map().rows if self._may_go(row.pg)]
        self._since = {pg: self._since.get(pg, now) for pg in dispensable}
        return [pg for pg, since in self._since.items() if now - since >= SWEEP_AFTER_S]

    def _may_go(self, pg: PgId) -> bool:
        row, pool = self._membership.row(pg), self._membership.pool(pg)
        return row is not None and pool is not None and is_dispensable(row, pool, self._membership.me)

    async def _sweep(self, pg: PgId) -> None:
        count = 0
        while self._may_go(pg) and (page := self._store.page(pg, BEFORE_ALL, PAGE).chunks):
            try:
                for summary in page:
                    await self._remove(pg, summary.chunk)
                await self._store.durable()
            except RowChanged:
                break
            except FsError as error:
                log.info("placement group %d is swept later: %s", pg, error)
                break
            count += len(page)
        if count:
            self.swept += count
            log.info("placement group %d lies elsewhere: %d chunks removed here", pg, count)

    async def _remove(self, pg: PgId, chunk: ChunkId) -> None:
        def check() -> None:
            if not self._may_go(pg):
                raise RowChanged

        async with self._store.locked(pg, chunk):
            prepared = await self._store.prepare(pg, chunk, Change.REMOVE)
            await self._store.commit(prepared, NO_ORDER, (), guard=check, flight=False)
