"""Reading chunks through the block cache: whole blocks, each fetched once however many want it, several chunks at once.

A fetched block is cached only if nothing has changed the file's bytes at the servers meanwhile (`File.changes`) and the
lease is unbroken. It is cut at the committed size: what chunks hold behind it is no part of the file.
"""

import logging

import trio

from fsd.client.chunks import Chunks
from fsd.client.core import Core
from fsd.client.file import Content, File
from fsd.client.writeback import DirtyMap
from fsd.core.errors import FsError
from fsd.core.ids import Ino
from fsd.core.units import BLOCK_SIZE

log = logging.getLogger(__name__)

MAX_PREFETCHES = 8

Found = dict[int, bytes | memoryview]


class BlockReader:
    """See the module."""

    def __init__(self, core: Core, chunks: Chunks) -> None:
        self._core = core
        self._chunks = chunks
        self._fetching: dict[tuple[Ino, int], trio.Event] = {}
        self._prefetches = 0

    async def read(self, file: File, content: Content, start: int, end: int) -> bytearray:
        """[start, end) of the file as the servers have it; zeros where there is nothing."""
        found = await self._blocks(file, content, range(start // BLOCK_SIZE, -(-end // BLOCK_SIZE)))
        buffer = bytearray(end - start)
        for block, data in found.items():
            base = block * BLOCK_SIZE
            low, high = max(start, base), min(end, base + len(data), content.size)
            if low < high:
                buffer[low - start : high - start] = memoryview(data)[low - base : high - base]
        return buffer

    def read_cached(self, file: File, content: Content, start: int, end: int) -> bytes | None:
        """As `read` of what is cached, within one block; None if it is not."""
        block, low = divmod(start, BLOCK_SIZE)
        high = low + end - start
        if high > BLOCK_SIZE or end > content.size:
            return None
        data = self._core.blocks.get(file.ino, block)
        if data is None:
            return None
        self._core.counts["block hits"] += 1
        return data[low:high].ljust(high - low, b"\0")

    def prefetch(self, file: File, start: int, end: int) -> None:
        """Fetch [start, end) into the cache in the background, if not too much of that is going on."""
        content = file.content
        if content is None or self._prefetches >= MAX_PREFETCHES:
            return
        blocks = range(-(-start // BLOCK_SIZE), -(-end // BLOCK_SIZE))
        self._prefetches += 1
        self._core.nursery.start_soon(self._prefetch, file, content, blocks)

    async def _prefetch(self, file: File, content: Content, blocks: range) -> None:
        try:
            missing = [block for block in blocks if not self._core.blocks.has(file.ino, block)]
            self._core.counts["blocks ahead"] += len(missing)
            await self._fetch_mine(file, content, [b for b in missing if (file.ino, b) not in self._fetching], {})
        except FsError as error:
            log.debug("read-ahead of inode %d: %s", file.ino, error)
        except Exception:
            log.exception("read-ahead of inode %d met a bug", file.ino)
        finally:
            self._prefetches -= 1

    async def _blocks(self, file: File, content: Content, blocks: range) -> Found:
        found: Found = {}
        while True:
            missing: list[int] = []
            for block in blocks:
                if block in found:
                    continue
                data = self._core.blocks.get(file.ino, block)
                if data is None:
                    missing.append(block)
                else:
                    found[block] = data
                    self._core.counts["block hits"] += 1
            if not missing:
                return found
            mine = [block for block in missing if (file.ino, block) not in self._fetching]
            others = [self._fetching[file.ino, block] for block in missing if (file.ino, block) in self._fetching]
            if mine:
                self._core.counts["block misses"] += len(mine)
                await self._fetch_mine(file, content, mine, found)
            for event in others:
                await event.wait()

    async def _fetch_mine(self, file: File, content: Content, blocks: list[int], found: Found) -> None:
        event = trio.Event()
        for block in blocks:
            self._fetching[file.ino, block] = event
        try:
            runs = self._runs(blocks)
            if len(runs) == 1:
                await self._fetch_run(file, content, runs[0], found)
                return
            errors: list[FsError] = []
            async with trio.open_nursery() as nursery:
                for run in runs:
                    nursery.start_soon(self._fetch_noting, file, content, run, found, errors)
            if errors:
                raise errors[0]
        finally:
            for block in blocks:
                del self._fetching[file.ino, block]
            event.set()

    def _runs(self, blocks: list[int]) -> list[range]:
        """Neighbours within a chunk together: one request each."""
        per_chunk = self._core.chunk_size // BLOCK_SIZE
        runs: list[range] = []
        for block in blocks:
            if runs and runs[-1].stop == block and block % per_chunk:
                runs[-1] = range(runs[-1].start, block + 1)
            else:
                runs.append(range(block, block + 1))
        return runs

    async def _fetch_noting(
        self, file: File, content: Content, run: range, found: Found, errors: list[FsError]
    ) -> None:
        try:
            await self._fetch_run(file, content, run, found)
        except FsError as error:
            errors.append(error)

    async def _fetch_run(self, file: File, content: Content, run: range, found: Found) -> None:
        changes = file.changes
        per_chunk = self._core.chunk_size // BLOCK_SIZE
        chunk, first = divmod(run.start, per_chunk)
        view = await self._chunks.read(content.data, chunk, first * BLOCK_SIZE, len(run) * BLOCK_SIZE)
        fresh = file.changes == changes and self._core.leases.since(file.ino) != 0
        for i, block in enumerate(run):
            data = view[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE]
            data = data[: max(0, content.size - block * BLOCK_SIZE)]
            found[block] = data
            if fresh:
                self._core.blocks.put(file.ino, block, bytes(data))

    def patch(self, file: File, flushed: DirtyMap) -> None:
        """Bytes that were just written back: put them over cached blocks, and cache whole blocks of them."""
        blocks = self._core.blocks
        for extent in flushed.all_extents():
            for block in range(extent.file_offset // BLOCK_SIZE, -(-extent.end // BLOCK_SIZE)):
                base = block * BLOCK_SIZE
                low, high = max(base, extent.file_offset), min(base + BLOCK_SIZE, extent.end)
                piece = memoryview(extent.data)[low - extent.file_offset : high - extent.file_offset]
                old = blocks.get(file.ino, block) if blocks.has(file.ino, block) else None
                if old is not None:
                    merged = bytearray(old.ljust(high - base, b"\0"))
                    merged[low - base : high - base] = piece
                    blocks.put(file.ino, block, bytes(merged))
                elif len(piece) == BLOCK_SIZE:
                    blocks.put(file.ino, block, bytes(piece))
