"""How a change of a chunk becomes new blocks and patches. Pure.

    needed = blocks_needed(record, ...)          which blocks' present bytes must be read (and so verified) first
    plan = plan_write(record, contents, ...)     the new record without its places on the disk, the new blocks' bytes
    ... the store allocates, fills in the locations, writes, publishes

A block that the write covers is new whatever was there. A small write into a block becomes a patch, unless the chunk has
too many of them: then every patched block is written anew. Bytes appended to a block need no reading: CRC-32 goes on
where it stopped. A full block of zeros becomes a hole.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chunkserver.index import NO_BLOCK, BlockEntry, ChunkRecord, PatchEntry, valid_length
from fsd.core.checksum import split_at_blocks
from fsd.core.ids import NO_ORDER
from fsd.core.units import BLOCK_SIZE, KIB
from fsd.wire.frame import Buffer

PATCH_LIMIT = 32 * KIB  # a write shorter than this rides in the index batch
MAX_PATCHES = 64  # of one chunk
MAX_PATCH_BYTES = 512 * KIB  # of one chunk

EMPTY = ChunkRecord(NO_ORDER, 0, (), (), (), 0)
_ZEROS = bytes(BLOCK_SIZE)
ZERO_CHECKSUM = zlib.crc32(_ZEROS)

Contents = Mapping[int, bytes | bytearray]  # block index -> its bytes as they are read now


@dataclass(slots=True)
class Plan:
    """A chunk's new state. `writes`: bytes for blocks, whose entries have location 0 until the store places them."""

    length: int
    blocks: list[BlockEntry]
    patches: list[PatchEntry]
    serial: int
    writes: list[tuple[int, Buffer]] = field(default_factory=lambda: list[tuple[int, Buffer]]())
    patch_data: list[tuple[int, Buffer]] = field(default_factory=lambda: list[tuple[int, Buffer]]())

    def put_block(self, index: int, data: Buffer, checksum: int) -> None:
        """Block `index` becomes `data`, all that is valid of it."""
        self.drop_patches(index)
        if checksum == ZERO_CHECKSUM and len(data) == BLOCK_SIZE and data == _ZEROS:
            self.blocks[index] = BlockEntry(0, 0, 0, checksum)
        else:
            self.blocks[index] = BlockEntry(0, len(data), checksum, checksum)
            self.writes.append((index, data))

    def put_patch(self, index: int, offset: int, data: Buffer, data_checksum: int, checksum: int) -> None:
        """`data` lies over block `index` from now on, which then has `checksum`."""
        self.patches.append(PatchEntry(self.serial, offset, len(data), data_checksum))
        self.patch_data.append((self.serial, data))
        self.serial += 1
        self.blocks[index] = self.blocks[index]._replace(checksum=checksum)

    def drop_patches(self, index: int) -> None:
        if self.patches:
            self.patches = [patch for patch in self.patches if patch.offset // BLOCK_SIZE != index]

    def extend(self, length: int) -> None:
        """Grow to `length`; what was not there reads as zeros."""
        if length <= self.length:
            return
        if self.blocks:
            last = len(self.blocks) - 1
            grown = valid_length(length, last) - valid_length(self.length, last)
            entry = self.blocks[last]
            self.blocks[last] = entry._replace(checksum=_zeros_after(entry.checksum, grown))
        for index in range(len(self.blocks), -(-length // BLOCK_SIZE)):
            size = valid_length(length, index)
            self.blocks.append(BlockEntry(0, 0, 0, ZERO_CHECKSUM if size == BLOCK_SIZE else zlib.crc32(_ZEROS[:size])))
        self.length = length


def _zeros_after(checksum: int, count: int) -> int:
    return zlib.crc32(memoryview(_ZEROS)[:count], checksum) if count else checksum


def begin(record: ChunkRecord) -> Plan:
    """The plan that changes nothing."""
    return Plan(record.length, list(record.blocks), list(record.patches), record.serial)


def is_small(record: ChunkRecord, offset: int, length: int) -> bool:
    """Whether a write becomes patches."""
    pieces = (offset + length - 1) // BLOCK_SIZE - offset // BLOCK_SIZE + 1
    return (
        length < PATCH_LIMIT
        and len(record.patches) + pieces <= MAX_PATCHES
        and sum(patch.length for patch in record.patches) + length <= MAX_PATCH_BYTES
    )


def _covers(record: ChunkRecord, start: int, end: int, index: int) -> bool:
    """Whether a piece [start, end) of block `index` leaves nothing of what was there."""
    return start == 0 and end >= record.valid_length(index)


def blocks_needed(record: ChunkRecord, offset: int, length: int) -> list[int]:
    """The blocks whose present bytes `plan_write` needs, ascending."""
    small = is_small(record, offset, length)
    needed: list[int] = []
    for index in range(offset // BLOCK_SIZE, (offset + length - 1) // BLOCK_SIZE + 1):
        start = max(0, offset - index * BLOCK_SIZE)
        end = min(BLOCK_SIZE, offset + length - index * BLOCK_SIZE)
        present = record.valid_length(index)
        if present and not _covers(record, start, end, index) and not (small and start >= present):
            needed.append(index)
    return needed if small else sorted({*needed, *_to_fold(record, offset, length)})


def _to_fold(record: ChunkRecord, offset: int, length: int) -> list[int]:
    """Patched blocks that a write which is no patch itself takes the occasion to write anew."""
    if length >= PATCH_LIMIT:
        return []
    first, last = offset // BLOCK_SIZE, (offset + length - 1) // BLOCK_SIZE
    return [index for index in record.patched() if not first <= index <= last]


def plan_write(record: ChunkRecord, contents: Contents, offset: int, data: Buffer, checksums: Sequence[int]) -> Plan:
    """`data` at `offset`; `checksums` are those of its pieces between block boundaries, already verified."""
    plan = begin(record)
    small = is_small(record, offset, len(data))
    fold = [] if small else _to_fold(record, offset, len(data))
    plan.extend(offset)
    _extend_for(plan, offset + len(data))
    for (piece_offset, piece), checksum in zip(split_at_blocks(data, offset), checksums, strict=True):
        index, start = divmod(piece_offset, BLOCK_SIZE)
        if small:
            _patch(plan, record, contents, index, start, piece, checksum)
        elif _covers(record, start, start + len(piece), index):
            plan.put_block(index, piece, checksum)
        else:
            merged = _merge(contents.get(index, b""), start, piece)
            plan.put_block(index, merged, zlib.crc32(merged))
    for index in fold:
        content = contents[index]
        merged = bytes(content) + _ZEROS[: valid_length(plan.length, index) - len(content)]
        plan.put_block(index, merged, zlib.crc32(merged))
    return plan


def _extend_for(plan: Plan, length: int) -> None:
    """Grow without zeros for the bytes that the write itself brings: entries are set by its pieces."""
    if length > plan.length:
        plan.blocks += [NO_BLOCK] * (-(-length // BLOCK_SIZE) - len(plan.blocks))
        plan.length = length


def _patch(
    plan: Plan, record: ChunkRecord, contents: Contents, index: int, start: int, piece: memoryview, checksum: int
) -> None:
    present = record.valid_length(index)
    offset = index * BLOCK_SIZE + start
    if _covers(record, start, start + len(piece), index):
        plan.drop_patches(index)
        plan.blocks[index] = NO_BLOCK
        plan.put_patch(index, offset, piece, checksum, checksum)
    elif start >= present:  # the gap's zeros are in the entry's checksum since `extend`
        plan.put_patch(index, offset, piece, checksum, zlib.crc32(piece, plan.blocks[index].checksum))
    else:
        plan.put_patch(index, offset, piece, checksum, zlib.crc32(_merge(contents[index], start, piece)))


def _merge(content: bytes | bytearray, start: int, piece: Buffer) -> bytearray:
    merged = bytearray(max(len(content), start + len(piece)))
    merged[: len(content)] = content
    merged[start : start + len(piece)] = piece
    return merged


def plan_whole(record: ChunkRecord, data: Buffer, checksums: Sequence[int]) -> Plan:
    """The chunk becomes `data`, whatever was there; patch serials are not used again."""
    fresh = ChunkRecord(record.order, 0, (), (), (), record.serial)
    return plan_write(fresh, {}, 0, data, checksums)


def cut_block(record: ChunkRecord, length: int) -> int | None:
    """The block that a cut to `length` goes through, whose bytes `plan_truncate` needs."""
    return length // BLOCK_SIZE if length < record.length and length % BLOCK_SIZE else None


def plan_truncate(record: ChunkRecord, contents: Contents, length: int) -> Plan:
    """Cut to `length`; a shorter chunk stays as it is."""
    plan = begin(record)
    if length >= record.length:
        return plan
    count = -(-length // BLOCK_SIZE)
    patched = record.patched()
    del plan.blocks[count:]
    plan.patches = [patch for patch in plan.patches if patch.offset < count * BLOCK_SIZE]
    plan.length = length
    cut = cut_block(record, length)
    if cut is not None:
        content = memoryview(contents[cut])[: length % BLOCK_SIZE]
        if cut in patched:  # a patch cut short would come back when the chunk grows again
            plan.put_block(cut, content, zlib.crc32(content))
        else:
            entry = plan.blocks[cut]
            stored = min(entry.stored, len(content))
            plan.blocks[cut] = BlockEntry(
                entry.location if stored else 0, stored, zlib.crc32(content[:stored]), zlib.crc32(content)
            )
    return plan
