"""Removes chunks that nobody refers to any more: asks their primaries, then forgets the record.

Records lie in family `collect`; one is dropped only after every chunk was removed on all replicas, so a restart or a dead
node only delays it. Removing twice is harmless: a data id is never used again.
"""

import logging
from collections.abc import Sequence

import trio

from fsd.cluster.map import Row, pg_of, pool_of
from fsd.core.errors import FsError, NotFound, NotServing
from fsd.core.ids import NO_SESSION, ChunkId, RequestNumber
from fsd.namespace.records import DeadData
from fsd.protocol.chunk import DataChunks, ListData, TruncateChunk, Where
from fsd.rpc.client import ChannelPool
from fsd.rpc.connection import Reply
from fsd.runtime import Clock
from metadata.authority import Authority
from metadata.store import Store, drop

log = logging.getLogger(__name__)

PAGE = 64  # records worked on at once
MAX_REMOVED_BLINDLY = 1024  # chunks of one record that are removed without asking first which of them there are
LIST_PAGE = 1024
PARALLEL = 8  # requests under way
PAUSE_S = 1.0  # before what failed is tried again
REQUEST_TIMEOUT_S = 10.0


class Collector:
    """`wake` says that there may be something; `run` does it."""

    def __init__(self, clock: Clock, store: Store, authority: Authority, channels: ChannelPool) -> None:
        self._clock = clock
        self._store = store
        self._authority = authority
        self._channels = channels
        self._limit = trio.CapacityLimiter(PARALLEL)
        self._wanted = trio.Event()
        self._number = 0

    def wake(self) -> None:
        self._wanted.set()

    def count(self) -> int:
        """How many records wait, at most 10,000."""
        return len(self._store.dead_data(b"", 10_000))

    async def run(self) -> None:
        """Rounds over all records, until cancelled."""
        while True:
            self._wanted = trio.Event()
            if await self._round():
                await self._wanted.wait()
            else:
                await trio.sleep(PAUSE_S)

    async def _round(self) -> bool:
        """Try every record once; whether all went well."""
        after, clean = b"", True
        while page := self._store.dead_data(after, PAGE):
            await self._store.durable()  # never remove chunks for a record that a crash could take back
            done: list[bytes] = []
            async with trio.open_nursery() as nursery:
                for key, dead in page:
                    nursery.start_soon(self._collect, key, dead, done)
            self._store.apply([drop("collect", key) for key in sorted(done)])
            clean = clean and len(done) == len(page)
            after = page[-1][0]
        return clean

    async def _collect(self, key: bytes, dead: DeadData, done: list[bytes]) -> None:
        chunk_size = self._authority.map.chunk_size
        try:
            for index in await self._indices(dead, dead.start // chunk_size, -(-dead.end // chunk_size)):
                async with self._limit:
                    await self._remove(dead, index)
        except FsError as error:
            log.debug("data %d is not collected yet: %s", dead.data, error)
        else:
            done.append(key)

    async def _indices(self, dead: DeadData, first: int, stop: int) -> Sequence[int]:
        """The chunks to remove: all that may be, or of terabytes those that there are."""
        if stop - first <= MAX_REMOVED_BLINDLY:
            return range(first, stop)
        found: list[int] = []
        for row in self._authority.map.rows:
            start = first
            while pool_of(row.pg) == dead.pool and start < stop:
                async with self._limit:
                    request = ListData(self._where(row), NO_SESSION, dead.data, start, LIST_PAGE)
                    answer: DataChunks = (await self._ask(row, request)).message
                found += [index for index in answer.indices if index < stop]
                start = stop if answer.end or not answer.indices else answer.indices[-1] + 1
        return sorted(found)

    async def _remove(self, dead: DeadData, index: int) -> None:
        chunk = ChunkId(dead.data, index)
        pg = pg_of(dead.pool, chunk, self._authority.map.pg_count)
        try:
            row = self._authority.row(pg)
        except NotFound:
            return  # a group that was never placed has no chunks
        await self._ask(row, TruncateChunk(self._where(row), NO_SESSION, self._next_number(), chunk, 0))

    def _where(self, row: Row) -> Where:
        return Where(row.pg, row.epoch, self._authority.map.epoch)

    async def _ask(self, row: Row, request: object) -> Reply:
        cluster = self._authority.map
        node = next((node for node in cluster.nodes if row.primary and node.node == row.primary.node), None)
        if node is None or not row.active:
            raise NotServing(f"placement group {row.pg} is not served")
        with trio.move_on_after(REQUEST_TIMEOUT_S):
            return await self._channels.to(node.address).call(request)
        raise NotServing(f"node {node.node} does not answer")

    def _next_number(self) -> RequestNumber:
        """Grows, also over restarts: session 0 is the metadata server in all its lives."""
        self._number = max(self._number + 1, self._clock.time_ns() // 1000)
        return RequestNumber(self._number)
