"""The dirty bytes of one file: extents, merged, none across a chunk boundary. Pure.

    chunk 0            chunk 1            chunk 2
    |  [aaaa]   [bb]  |                  |[cccccc]          |

Extents of a chunk are sorted, and neither overlap nor touch. What is newer is written over what is older, so a map is
always the state after all its writes in their order. A flush takes extents out, lowest first, and on failure puts them
back *below* what was written since.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from fsd.wire.frame import Buffer


class Extent(NamedTuple):
    """`data` at `file_offset`."""

    file_offset: int
    data: bytearray

    @property
    def end(self) -> int:
        return self.file_offset + len(self.data)


class DirtyMap:
    """Dirty extents by chunk. `size_bytes` is the sum of their lengths."""

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self._chunks: dict[int, list[Extent]] = {}
        self.size_bytes = 0

    def __bool__(self) -> bool:
        return self.size_bytes > 0

    def chunks(self) -> list[int]:
        """Indices of the chunks that have dirty bytes, ascending."""
        return sorted(self._chunks)

    def extents(self, chunk: int) -> list[Extent]:
        """Of one chunk, ascending."""
        return self._chunks.get(chunk, [])

    def all_extents(self) -> Iterator[Extent]:
        """Of all chunks, ascending."""
        for chunk in self.chunks():
            yield from self._chunks[chunk]

    @property
    def start(self) -> int:
        """The first dirty byte; the map must not be empty."""
        return self._chunks[min(self._chunks)][0].file_offset

    @property
    def end(self) -> int:
        """One past the last dirty byte; 0 for an empty map."""
        return self._chunks[max(self._chunks)][-1].end if self._chunks else 0

    def write(self, file_offset: int, data: Buffer) -> None:
        """Lay `data` over what is there."""
        view = memoryview(data)
        while view:
            chunk, chunk_offset = divmod(file_offset, self.chunk_size)
            piece = view[: self.chunk_size - chunk_offset]
            self._write_in_chunk(self._chunks.setdefault(chunk, []), file_offset, piece)
            file_offset += len(piece)
            view = view[len(piece) :]

    def _write_in_chunk(self, extents: list[Extent], start: int, data: memoryview) -> None:
        end = start + len(data)
        first = bisect_left(extents, start, key=_end_of)  # the first extent that ends at `start` or later: it may touch
        last = bisect_right(extents, end, key=_start_of)  # one past the last extent that begins at `end` or before
        touched = extents[first:last]
        before = sum(len(extent.data) for extent in touched)
        if len(touched) == 1 and touched[0].file_offset <= start:
            extent = touched[0]
            extent.data[start - extent.file_offset : end - extent.file_offset] = data
            self.size_bytes += len(extent.data) - before
            return
        merged = _merge(touched, start, data)
        extents[first:last] = [merged]
        self.size_bytes += len(merged.data) - before

    def overlay(self, file_offset: int, buffer: bytearray | memoryview) -> None:
        """Lay the dirty bytes over `buffer`, which is the file's content from `file_offset` on."""
        end = file_offset + len(buffer)
        for extent in self._extents_in(file_offset, end):
            start, stop = max(file_offset, extent.file_offset), min(end, extent.end)
            buffer[start - file_offset : stop - file_offset] = memoryview(extent.data)[
                start - extent.file_offset : stop - extent.file_offset
            ]

    def covers(self, start: int, end: int) -> bool:
        """Whether all of [start, end) is dirty."""
        for extent in self._extents_in(start, end):
            if extent.file_offset > start:
                return False
            start = extent.end
        return start >= end

    def _extents_in(self, start: int, end: int) -> Iterator[Extent]:
        if not self._chunks or end <= start:
            return
        first, last = start // self.chunk_size, (end - 1) // self.chunk_size
        wanted = range(first, last + 1) if last - first < len(self._chunks) else self.chunks()
        for chunk in wanted:
            for extent in self._chunks.get(chunk, ()):
                if extent.file_offset < end and extent.end > start:
                    yield extent

    def copy(self, start: int, end: int) -> "DirtyMap":
        """A copy of the dirty bytes within [start, end)."""
        result = DirtyMap(self.chunk_size)
        for extent in self._extents_in(start, end):
            low, high = max(start, extent.file_offset), min(end, extent.end)
            result.write(low, memoryview(extent.data)[low - extent.file_offset : high - extent.file_offset])
        return result

    def cut(self, size: int) -> None:
        """Forget the dirty bytes from `size` on."""
        for chunk in [chunk for chunk in self._chunks if (chunk + 1) * self.chunk_size > size]:
            kept = [
                Extent(extent.file_offset, extent.data[: size - extent.file_offset])
                for extent in self._chunks[chunk]
                if extent.file_offset < size
            ]
            self.size_bytes += _total(kept) - _total(self._chunks[chunk])
            if kept:
                self._chunks[chunk] = kept
            else:
                del self._chunks[chunk]

    def take(self, limit_bytes: int, limit_chunks: int = 1 << 30) -> "DirtyMap":
        """Take out whole chunks' extents, lowest first, until one of the limits is reached (at least one chunk)."""
        taken = DirtyMap(self.chunk_size)
        for chunk in self.chunks():
            if taken and (taken.size_bytes >= limit_bytes or len(taken._chunks) >= limit_chunks):
                break
            extents = self._chunks.pop(chunk)
            taken._chunks[chunk] = extents
            taken.size_bytes += _total(extents)
            self.size_bytes -= _total(extents)
        return taken

    def take_below(self, stop: int) -> "DirtyMap":
        """Take out the extents of all chunks below `stop`."""
        taken = DirtyMap(self.chunk_size)
        for chunk in [chunk for chunk in self.chunks() if chunk < stop]:
            taken._chunks[chunk] = extents = self._chunks.pop(chunk)
            taken.size_bytes += _total(extents)
            self.size_bytes -= _total(extents)
        return taken

    def drop(self, chunk: int) -> None:
        """Forget the dirty bytes of one chunk."""
        self.size_bytes -= _total(self._chunks.pop(chunk, []))

    def put_below(self, older: "DirtyMap") -> None:
        """Give back what `take` took: what was written since wins."""
        merged = older.copy(0, older.end)  # a broken-off request may still hold views of the old buffers
        for extent in self.all_extents():
            merged.write(extent.file_offset, extent.data)
        self._chunks, self.size_bytes = merged._chunks, merged.size_bytes

    def clear(self) -> None:
        """Forget everything."""
        self._chunks, self.size_bytes = {}, 0


def _start_of(extent: Extent) -> int:
    return extent.file_offset


def _end_of(extent: Extent) -> int:
    return extent.end


def _total(extents: list[Extent]) -> int:
    return sum(len(extent.data) for extent in extents)


def _merge(touched: list[Extent], start: int, data: memoryview) -> Extent:
    """One extent of all that touch [start, start + len(data)), `data` on top."""
    low = min(start, touched[0].file_offset) if touched else start
    high = max(start + len(data), touched[-1].end) if touched else start + len(data)
    buffer = bytearray(high - low)
    for extent in touched:
        buffer[extent.file_offset - low : extent.end - low] = extent.data
    buffer[start - low : start - low + len(data)] = data
    return Extent(low, buffer)
