"""Reading a chunk's blocks as its record says, every stored byte verified (I8).

Blocks that lie side by side and are read just as they are stored come in one read, uncopied. A block with patches, a zero
tail or no place is composed; then its stored bytes, its patches and the result are verified.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from chunkserver.index import PATCH, ChunkRecord, chunk_key, patch_key
from chunkserver.layout import Piece, cut_pieces
from chunkserver.pending import Pending
from chunkserver.space import BlockSpace
from fsd.core.checksum import block_checksums
from fsd.core.errors import BadChecksum, CorruptData, InvalidArgument
from fsd.core.ids import NO_ORDER, ChunkId, Order, PgId
from fsd.core.units import BLOCK_SIZE
from fsd.protocol.chunk import AppliedRequest
from fsd.runtime.storage import KeyValue
from fsd.wire.frame import Buffer


class Snapshot(NamedTuple):
    """A chunk as it was at one moment. `record` is None if there was none."""

    pg: PgId
    chunk: ChunkId
    raw: bytes | None
    record: ChunkRecord | None
    pending: Pending | None = None

    @property
    def order(self) -> Order:
        return self.record.order if self.record else NO_ORDER

    @property
    def length(self) -> int:
        return self.record.length if self.record else 0

    @property
    def requests(self) -> tuple[AppliedRequest, ...]:
        return self.record.requests if self.record else ()


class _Run(NamedTuple):
    first: int
    last: int
    plain: bool


async def read_blocks(
    space: BlockSpace, keyvalue: KeyValue, snapshot: Snapshot, record: ChunkRecord, first: int, last: int
) -> Buffer:
    """The bytes of blocks [first, last). Raises CorruptData, also if the blocks were given to another chunk meanwhile."""
    runs = _runs(record, first, last, space.per_segment)
    if len(runs) == 1:
        return await _read_run(space, keyvalue, snapshot, record, runs[0])
    result = bytearray()
    for run in runs:
        result += await _read_run(space, keyvalue, snapshot, record, run)
    return result


async def _read_run(
    space: BlockSpace, keyvalue: KeyValue, snapshot: Snapshot, record: ChunkRecord, run: _Run
) -> Buffer:
    if not run.plain:
        return await compose(space, keyvalue, snapshot, record, run.first)
    length = (run.last - 1 - run.first) * BLOCK_SIZE + record.valid_length(run.last - 1)
    data = await space.read(record.blocks[run.first].location, length)
    verify_stored(data, [entry.checksum for entry in record.blocks[run.first : run.last]], snapshot.chunk)
    return data


async def compose(
    space: BlockSpace, keyvalue: KeyValue, snapshot: Snapshot, record: ChunkRecord, index: int
) -> bytearray:
    """The bytes of one block, whatever it is made of. Raises CorruptData."""
    entry = record.blocks[index]
    content = bytearray(record.valid_length(index))
    if entry.location:
        stored = await space.read(entry.location, entry.stored)
        verify_stored(stored, [entry.stored_checksum], snapshot.chunk)
        content[: len(stored)] = stored
    key = chunk_key(snapshot.pg, snapshot.chunk)
    for patch in record.patches:
        if patch.offset // BLOCK_SIZE == index:
            data = keyvalue.get(PATCH, patch_key(key, patch.serial))
            if data is None or len(data) != patch.length:
                raise CorruptData(f"patch {patch.serial} of chunk {tuple(snapshot.chunk)} is missing")
            verify_stored(data, [patch.checksum], snapshot.chunk)
            start = patch.offset % BLOCK_SIZE
            content[start : start + len(data)] = data
    if entry.checksum != entry.stored_checksum or entry.stored != len(content):
        verify_stored(content, [entry.checksum], snapshot.chunk)
    return content


async def read_hidden(
    space: BlockSpace, keyvalue: KeyValue, snapshot: Snapshot, record: ChunkRecord, start: int, end: int
) -> bytearray:
    """[start, end) of the chunk, within one block, as it is read now but not verified. Raises CorruptData."""
    index = start // BLOCK_SIZE
    base = index * BLOCK_SIZE
    entry = record.blocks[index]
    content = bytearray(end - start)
    stored = min(end - base, entry.stored) - (start - base)
    if entry.location and stored > 0:
        content[:stored] = await space.read(entry.location, stored, start - base)
    key = chunk_key(snapshot.pg, snapshot.chunk)
    for patch in record.patches:
        if patch.offset < end and start < patch.offset + patch.length:
            low, high = max(start, patch.offset), min(end, patch.offset + patch.length)
            data = keyvalue.get(PATCH, patch_key(key, patch.serial))
            if data is None or len(data) != patch.length:
                raise CorruptData(f"patch {patch.serial} of chunk {tuple(snapshot.chunk)} is missing")
            content[low - start : high - start] = memoryview(data)[low - patch.offset : high - patch.offset]
    return content


def _runs(record: ChunkRecord, first: int, last: int, per_segment: int) -> list[_Run]:
    patched = {patch.offset // BLOCK_SIZE for patch in record.patches}
    runs: list[_Run] = []
    previous = -1
    for index in range(first, last):
        entry = record.blocks[index]
        plain = bool(entry.location) and index not in patched and entry.stored == record.valid_length(index)
        follows = entry.location == previous + 1 and (entry.location - 1) % per_segment != 0
        if runs and runs[-1].plain and plain and follows:
            runs[-1] = _Run(runs[-1].first, index + 1, True)
        else:
            runs.append(_Run(index, index + 1, plain))
        previous = entry.location
    return runs


def cut(data: Buffer, checksums: Sequence[int], length: int) -> tuple[Buffer, tuple[int, ...]]:
    """The first `length` bytes with their checksums, of which only the last can differ."""
    if len(data) <= length:
        return data, tuple(checksums)
    shorter = memoryview(data)[:length]
    whole = (length - 1) // BLOCK_SIZE
    return shorter, (*checksums[:whole], zlib.crc32(shorter[whole * BLOCK_SIZE :]))


def verify_stored(data: Buffer, checksums: Sequence[int], chunk: ChunkId) -> None:
    """What comes from this disk; `data` begins at a block boundary. Raises CorruptData."""
    if block_checksums(data) != (tuple(checksums) if len(data) else ()):
        raise CorruptData(f"stored bytes of chunk {tuple(chunk)} fail their checksum")


def whole_extent(data: Buffer) -> list[tuple[int, int]]:
    """Of all the bytes of a chunk."""
    return [(0, len(data))] if len(data) else []


def verify_pieces(data: Buffer, extents: Sequence[tuple[int, int]], checksums: Sequence[int]) -> list[Piece]:
    """What comes over the network, before anything is stored: cut at block boundaries. Raises BadChecksum, and
    InvalidArgument for extents that are not ascending and apart or do not add up to the bytes."""
    reached = size = 0
    for offset, length in extents:
        if offset < reached or length <= 0:
            raise InvalidArgument(f"{length} bytes at {offset}, behind others up to {reached}")
        reached = offset + length
        size += length
    if size != len(data):
        raise InvalidArgument(f"{len(data)} bytes came for extents of {size}")
    cut = cut_pieces(data, extents)
    check_sums([piece for _, piece in cut], checksums)
    return [Piece(offset, piece, checksum) for (offset, piece), checksum in zip(cut, checksums, strict=True)]


def check_sums(pieces: Sequence[Buffer], checksums: Sequence[int]) -> None:
    if [zlib.crc32(piece) for piece in pieces] != list(checksums):
        raise BadChecksum(f"{len(pieces)} pieces do not have the {len(checksums)} checksums that came with them")
