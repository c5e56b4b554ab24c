"""The client's copy of the cluster map: fetched when something newer was heard of, never polled.

`fence` is the newest map epoch that this client has heard of. It goes with every chunk request, so that a chunkserver that
does not know yet who was evicted fetches the map before it serves (I13, R14): the server announces an eviction's map
before it grants a lease that the eviction has freed.
"""

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

import trio

from fsd.cluster.map import ClusterMap, Row, pg_of, pool_of
from fsd.core.errors import FsError
from fsd.core.ids import ChunkId, MapEpoch, NodeId, PgId, PoolId

Fetch = Callable[[MapEpoch], Awaitable[ClusterMap | None]]


class MapCache:
    """`fetch(known)` asks the metadata server; None: the known one is the newest."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self.map: ClusterMap | None = None
        self._rows: dict[PgId, Row] = {}
        self._addresses: dict[NodeId, str] = {}
        self._heard = MapEpoch(0)
        self._wanted = trio.Event()
        self._fetching = trio.Lock()
        self._begun = 0
        self._attempts: dict[PgId, list[tuple[Row, trio.CancelScope]]] = {}

    def heard(self, epoch: MapEpoch) -> None:
        """A map of this epoch exists."""
        if epoch > self._heard:
            self._heard = epoch
            self._wanted.set()

    @property
    def epoch(self) -> MapEpoch:
        return self.map.epoch if self.map is not None else MapEpoch(0)

    def fence(self) -> MapEpoch:
        """See the module."""
        return max(self._heard, self.epoch)

    async def run(self) -> None:
        """Fetch what was heard of."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if self.epoch < self._heard:
                await self.refresh()

    async def refresh(self) -> None:
        """The newest map, as of some moment after this call began."""
        begun = self._begun
        async with self._fetching:
            if self._begun != begun:
                return  # a fetch that began after this call is done
            self._begun += 1
            newer = await self._fetch(self.epoch)
            if newer is not None and newer.epoch > self.epoch:
                self._install(newer)

    def _install(self, newer: ClusterMap) -> None:
        self.map = newer
        self._rows = {row.pg: row for row in newer.rows}
        self._addresses = {node.node: node.address for node in newer.nodes}
        for pg, attempts in self._attempts.items():
            now = self._rows.get(pg)
            for row, scope in attempts:
                if now is None or now.primary != row.primary or now.epoch != row.epoch:
                    scope.cancel()

    def pg(self, pool: PoolId, chunk: ChunkId) -> PgId:
        """The chunk's placement group. A map must have been fetched."""
        assert self.map is not None
        return pg_of(pool, chunk, self.map.pg_count)

    def placed(self, pool: PoolId) -> list[PgId]:
        """The pool's placement groups. One that was never placed has no chunks."""
        return sorted(pg for pg in self._rows if pool_of(pg) == pool)

    def leader(self, pg: PgId) -> tuple[Row, str] | None:
        """The row and its primary's address; None if nobody leads it now."""
        row = self._rows.get(pg)
        if row is None or row.primary is None:
            return None
        address = self._addresses.get(row.primary.node)
        return None if address is None else (row, address)

    @contextmanager
    def attempt(self, row: Row, patience_s: float) -> Generator[trio.CancelScope]:
        """A request to the primary of `row`: broken off when a newer map has another row, or when patience ends."""
        scope = trio.move_on_after(patience_s)
        mark = (row, scope)
        attempts = self._attempts.setdefault(row.pg, [])
        attempts.append(mark)
        try:
            with scope:
                yield scope
        finally:
            attempts.remove(mark)
            if not attempts:
                self._attempts.pop(row.pg, None)

    async def refresh_for(self, patience_s: float) -> None:
        """Like `refresh`, but the metadata server may be away: then the map stays as it is."""
        with trio.move_on_after(patience_s):
            try:
                await self.refresh()
            except FsError:
                return  # the caller's next attempt says what is wrong
