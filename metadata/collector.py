"""Removes chunks that nobody refers to any more: asks their primaries, then forgets the record.

Records lie in family `collect`; one is dropped only after every chunk was removed on all replicas, so a restart or a dead
node only delays it. Removing twice is harmless: a data id is never used again.
"""

import logging

import trio

from fsd.cluster.map import pg_of
from fsd.core.errors import FsError, NotFound, NotServing
from fsd.core.ids import NO_SESSION, ChunkId, RequestNumber
from fsd.namespace.records import DeadData
from fsd.protocol.chunk import TruncateChunk, Where
from fsd.rpc.client import ChannelPool
from fsd.runtime import Clock
from metadata.authority import Authority
from metadata.store import Store, drop

log = logging.getLogger(__name__)

PAGE = 64  # records worked on at once
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
            for index in range(dead.start // chunk_size, -(-dead.end // chunk_size)):
                async with self._limit:
                    await self._remove(dead, index)
        except FsError as error:
            log.debug("data %d is not collected yet: %s", dead.data, error)
        else:
            done.append(key)

    async def _remove(self, dead: DeadData, index: int) -> None:
        cluster = self._authority.map
        chunk = ChunkId(dead.data, index)
        pg = pg_of(dead.pool, chunk, cluster.pg_count)
        try:
            row = self._authority.row(pg)
        except NotFound:
            return  # a group that was never placed has no chunks
        node = next((node for node in cluster.nodes if row.primary and node.node == row.primary.node), None)
        if node is None or not row.active:
            raise NotServing(f"placement group {pg} is not served")
        request = TruncateChunk(Where(pg, row.epoch, cluster.epoch), NO_SESSION, self._next_number(), chunk, 0)
        with trio.move_on_after(REQUEST_TIMEOUT_S):
            await self._channels.to(node.address).call(request)
            return
        raise NotServing(f"node {node.node} does not answer")

    def _next_number(self) -> RequestNumber:
        """Grows, also over restarts: session 0 is the metadata server in all its lives."""
        self._number = max(self._number + 1, self._clock.time_ns() // 1000)
        return RequestNumber(self._number)
