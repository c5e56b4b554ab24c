"""The blocks of a disk: which are free, putting bytes into them, and when a freed one may be used again.

One writer task gathers everything that waits into one synced write of the segments. A block that a batch of the index
freed is free when that batch is durable, not before: until then a crash brings its old owner back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Never

import trio

from chunkserver.blocks import FreeBlocks
from fsd.core.errors import DiskFailed, FsError, NoSpace
from fsd.core.units import BLOCK_SIZE, MIB
from fsd.runtime.storage import Segments, SegmentWrite
from fsd.wire.frame import Buffer

MAX_WRITE_BYTES = 32 * MIB  # gathered into one synced write
MAX_QUEUED = 256  # writes that wait; more wait before they are queued


@dataclass(slots=True)
class _Queued:
    writes: list[SegmentWrite]
    size: int
    done: trio.Event = field(default_factory=trio.Event)
    error: FsError | None = None


class BlockSpace:
    def __init__(self, segments: Segments, reserve_bytes: int) -> None:
        self._segments = segments
        self._reserve_bytes = reserve_bytes
        self._free = FreeBlocks(segments.segment_size // BLOCK_SIZE)
        for _ in range(segments.count()):
            self._free.add_segment()
        self._growing = trio.Lock()
        self._freed: list[tuple[int, list[int]]] = []  # (sequence of the batch that freed them, blocks)
        self._queue: list[_Queued] = []
        self._room = trio.Semaphore(MAX_QUEUED)
        self._work = trio.Event()
        self._stopped = False
        self._failure: DiskFailed | None = None

    @property
    def per_segment(self) -> int:
        return self._free.per_segment

    def mark_used(self, location: int) -> bool:
        """At start, for every referenced block. False if it does not exist or is referenced twice."""
        return self._free.mark_used(location - 1)

    # --- free blocks --------------------------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        return self._free.free * BLOCK_SIZE + self._segments.space().free_bytes

    def total_bytes(self) -> int:
        return self._segments.space().total_bytes

    def stored_bytes(self) -> int:
        """In blocks that are in use."""
        return (self._free.total - self._free.free) * BLOCK_SIZE

    def check(self, wanted: int, reserve_share: float) -> None:
        """Refuse early (R12): after this nothing may fail for want of space. Raises NoSpace."""
        free = self.free_bytes()
        kept = int(self._reserve_bytes * reserve_share)
        if free - wanted < kept:
            raise NoSpace(f"{wanted} bytes wanted, {free} free, {kept} of them kept in reserve")

    def is_low(self) -> bool:
        """The reserve is touched: only what was begun elsewhere, and cutting, may go on."""
        return self.free_bytes() < self._reserve_bytes

    async def allocate(self, count: int, durable_sequence: int) -> list[int]:
        """Locations of `count` blocks that are the caller's until it publishes or releases them. Raises NoSpace."""
        while True:
            blocks = self._free.allocate(count)
            if blocks is not None:
                return [block + 1 for block in blocks]
            self.reuse(durable_sequence)
            async with self._growing:
                if self._free.free < count:
                    await self._segments.grow()
                    self._free.add_segment()

    def release(self, locations: Sequence[int]) -> None:
        """Blocks that no batch ever referenced."""
        for location in locations:
            self._free.release(location - 1)

    def free_after(self, sequence: int, locations: list[int]) -> None:
        """The batch `sequence` gave these up."""
        self._freed.append((sequence, locations))

    def reuse(self, durable_sequence: int) -> None:
        """Batches up to `durable_sequence` are durable."""
        kept: list[tuple[int, list[int]]] = []
        for entry in self._freed:
            if entry[0] <= durable_sequence:
                self.release(entry[1])
            else:
                kept.append(entry)
        self._freed = kept

    # --- bytes --------------------------------------------------------------------------------------------------------

    async def read(self, location: int, length: int, start: int = 0) -> Buffer:
        """`length` bytes of a block from `start` on, over following blocks of its segment too."""
        segment, offset = self._place(location)
        return await self._segments.read(segment, offset + start, length)

    def _place(self, location: int) -> tuple[int, int]:
        segment, block = divmod(location - 1, self._free.per_segment)
        return segment, block * BLOCK_SIZE

    async def write(self, blocks: Sequence[tuple[int, Buffer]]) -> None:
        """(location, bytes) pairs, synced on return. Raises DiskFailed."""
        writes = [SegmentWrite(*self._place(location), data) for location, data in blocks]
        async with self._room:
            if self._stopped:
                raise DiskFailed("the store has stopped")
            queued = _Queued(writes, sum(len(write.data) for write in writes))
            self._queue.append(queued)
            self._work.set()
            await queued.done.wait()
        if queued.error is not None:
            raise queued.error

    def fail(self, error: DiskFailed) -> None:
        """Something else of this disk failed: `run` ends too (R12)."""
        self._failure = self._failure or error
        self._work.set()

    async def run(self) -> Never:
        """The writer. Raises DiskFailed."""
        gathered: list[_Queued] = []
        try:
            while True:
                await self._work.wait()
                if self._failure is not None:
                    raise self._failure
                gathered = self._gather()
                await self._segments.write([write for queued in gathered for write in queued.writes])
                for queued in gathered:
                    queued.done.set()
        finally:
            self._stopped = True
            for queued in gathered + self._queue:
                if not queued.done.is_set():
                    queued.error = DiskFailed("the store stopped before the bytes were written")
                    queued.done.set()

    def _gather(self) -> list[_Queued]:
        size = count = 0
        for queued in self._queue:
            size += queued.size
            if count and size > MAX_WRITE_BYTES:
                break
            count += 1
        gathered, self._queue = self._queue[:count], self._queue[count:]
        if not self._queue and self._failure is None:
            self._work = trio.Event()
        return gathered

    async def aclose(self) -> None:
        await self._segments.aclose()
