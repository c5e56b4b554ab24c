"""How a change of a chunk becomes new blocks and patches. Pure.

    needs = needs_of(record, pieces)             which present bytes must be read first
    plan = plan_write(record, found, pieces)     the new record without its places on the disk, the new blocks' bytes
    ... the store allocates, fills in the locations, writes, publishes

A write is a list of pieces, none across a block boundary. A block of which it brings a good part (with the patches that lie
there already) is written anew; smaller pieces become patches. If the chunk had too many patches then, all patched blocks
are written anew. A block that is written anew in part is read whole, and so verified. A patch needs no more than the bytes
it hides, unverified: CRC-32 is linear, so the block's new checksum is the old one changed by the difference; if the hidden
bytes were rotten the new checksum fits nothing, as the old one did. Bytes appended to a block need no reading: CRC-32 goes
on where it stopped. A full block of zeros becomes a hole.
"""

import zlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from chunkserver.index import BlockEntry, ChunkRecord, PatchEntry, valid_length
from fsd.core.checksum import patched_checksum, split_at_blocks
from fsd.core.ids import NO_ORDER
from fsd.core.units import BLOCK_SIZE, KIB
from fsd.wire.frame import Buffer

PATCH_LIMIT = 32 * KIB  # of one block: from here on it is written anew
MAX_PATCHES = 256  # of one chunk
MAX_PATCH_BYTES = 1024 * KIB  # of one chunk

EMPTY = ChunkRecord(NO_ORDER, 0, (), (), (), 0)
_ZEROS = bytes(BLOCK_SIZE)
ZERO_CHECKSUM = zlib.crc32(_ZEROS)


class Piece(NamedTuple):
    """New bytes of one block, with the checksum that came with them."""

    offset: int  # in the chunk
    data: memoryview
    checksum: int


class Needs(NamedTuple):
    """What `plan_write` must know of the present bytes: whole blocks, verified, and ranges [offset, end) as they are."""

    blocks: list[int]
    ranges: list[tuple[int, int]]


class Found(NamedTuple):
    """What was needed: blocks by index, ranges by their offset."""

    blocks: Mapping[int, bytes | bytearray]
    ranges: Mapping[int, bytes | bytearray]


NOTHING = Found({}, {})


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

    def put_patch(self, index: int, piece: Piece, checksum: int) -> None:
        """`piece` lies over block `index` from now on, which then has `checksum`."""
        self.patches.append(PatchEntry(self.serial, piece.offset, len(piece.data), piece.checksum))
        self.patch_data.append((self.serial, piece.data))
        self.serial += 1
        entry = self.blocks[index]
        self.blocks[index] = BlockEntry(entry.location, entry.stored, entry.stored_checksum, checksum)

    def drop_patches(self, index: int) -> None:
        if self.patches:
            self.patches = [patch for patch in self.patches if patch.offset // BLOCK_SIZE != index]

    def hide_patches(self, index: int, parts: Sequence[Piece]) -> None:
        """Patches of block `index` of which nothing will be seen under one of `parts` are not kept."""
        if not self.patches:
            return
        spans = [(part.offset, part.offset + len(part.data)) for part in parts]
        gone = {
            patch.serial
            for patch in self.patches
            if patch.offset // BLOCK_SIZE == index
            and any(start <= patch.offset and patch.offset + patch.length <= end for start, end in spans)
        }
        if gone:
            self.patches = [patch for patch in self.patches if patch.serial not in gone]

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


def cut_pieces(data: Buffer, extents: Sequence[tuple[int, int]]) -> list[tuple[int, memoryview]]:
    """`data` is the extents (chunk offset, length), one behind the other: the parts of each between block boundaries."""
    if len(extents) == 1:
        return split_at_blocks(data, extents[0][0])
    view = memoryview(data)
    pieces: list[tuple[int, memoryview]] = []
    start = 0
    for offset, length in extents:
        pieces += split_at_blocks(view[start : start + length], offset)
        start += length
    return pieces


def by_block(pieces: Sequence[Piece]) -> dict[int, list[Piece]]:
    """Of ascending pieces, those of each block, ascending."""
    found: dict[int, list[Piece]] = {}
    for piece in pieces:
        index = piece.offset // BLOCK_SIZE
        if index in found:
            found[index].append(piece)
        else:
            found[index] = [piece]
    return found


def _patches_of(record: ChunkRecord, wanted: Container[int]) -> dict[int, list[PatchEntry]]:
    """The patches of some blocks."""
    found: dict[int, list[PatchEntry]] = {}
    for patch in record.patches:
        index = patch.offset // BLOCK_SIZE
        if index in wanted:
            found.setdefault(index, []).append(patch)
    return found


def _written_anew(record: ChunkRecord, pieces: dict[int, list[Piece]]) -> set[int]:
    """The blocks that a write replaces; all patched ones if it would leave too many patches."""
    patches = _patches_of(record, pieces)
    count, size = len(record.patches), sum([patch.length for patch in record.patches])
    anew: set[int] = set()
    for index, parts in pieces.items():
        there = patches.get(index, ())
        before = sum([patch.length for patch in there]) if there and not _covers(record, index, parts) else 0
        brought = sum([len(part.data) for part in parts])
        if brought + before >= PATCH_LIMIT:
            anew.add(index)
            count -= len(there)
            size -= before
        else:
            count += len(parts)
            size += brought
    if count > MAX_PATCHES or size > MAX_PATCH_BYTES:
        return anew.union(pieces, record.patched())
    return anew


def _covers(record: ChunkRecord, index: int, parts: Sequence[Piece]) -> bool:
    """Whether ascending pieces of block `index` leave nothing of what was there."""
    reached = index * BLOCK_SIZE
    end = reached + record.valid_length(index)
    for part in parts:
        if part.offset > reached:
            break
        reached = part.offset + len(part.data)
    return reached >= end


def needs_of(record: ChunkRecord, pieces: Sequence[Piece]) -> Needs:
    """What of the present bytes `plan_write` needs, ascending."""
    parts = by_block(pieces)
    anew = _written_anew(record, parts)
    blocks = [
        index
        for index in sorted(anew)
        if record.valid_length(index) and not _covers(record, index, parts.get(index, ()))
    ]
    ranges: list[tuple[int, int]] = []
    for index, those in parts.items():
        if index not in anew and not _covers(record, index, those):
            end = min(record.length, (index + 1) * BLOCK_SIZE)
            ranges += [(part.offset, min(part.offset + len(part.data), end)) for part in those if part.offset < end]
    return Needs(blocks, ranges)


def plan_write(record: ChunkRecord, found: Found, pieces: Sequence[Piece]) -> Plan:
    """The pieces, ascending, over what is there; their checksums are already verified."""
    parts = by_block(pieces)
    anew = _written_anew(record, parts)
    plan = begin(record)
    plan.extend(pieces[-1].offset + len(pieces[-1].data))
    for index in sorted(anew):
        _write_anew(plan, found, index, parts.get(index, ()))
    for index, those in parts.items():
        if index not in anew:
            _patch_block(plan, record, found, index, those)
    return plan


def _write_anew(plan: Plan, found: Found, index: int, parts: Sequence[Piece]) -> None:
    size = valid_length(plan.length, index)
    if len(parts) == 1 and len(parts[0].data) == size:
        plan.put_block(index, parts[0].data, parts[0].checksum)
        return
    merged = bytearray(size)
    content = found.blocks.get(index, b"")
    merged[: len(content)] = content
    for part in parts:
        start = part.offset - index * BLOCK_SIZE
        merged[start : start + len(part.data)] = part.data
    plan.put_block(index, merged, zlib.crc32(merged))


def _patch_block(plan: Plan, record: ChunkRecord, found: Found, index: int, parts: Sequence[Piece]) -> None:
    size = valid_length(plan.length, index)
    if _covers(record, index, parts):
        plan.drop_patches(index)
        plan.blocks[index] = BlockEntry(0, 0, 0, zlib.crc32(memoryview(_ZEROS)[:size]))
    else:
        plan.hide_patches(index, parts)
    for part in parts:
        if len(part.data) == size:
            checksum = part.checksum
        else:
            hidden = found.ranges.get(part.offset, b"")
            hidden_checksum = _zeros_after(zlib.crc32(hidden), len(part.data) - len(hidden))
            after = index * BLOCK_SIZE + size - part.offset - len(part.data)
            checksum = patched_checksum(plan.blocks[index].checksum, hidden_checksum, part.checksum, after)
        plan.put_patch(index, part, checksum)


def plan_whole(record: ChunkRecord, pieces: Sequence[Piece]) -> Plan:
    """The chunk becomes the pieces, which follow one another from 0 on; patch serials are not used again."""
    fresh = ChunkRecord(record.order, 0, (), (), (), record.serial)
    return plan_write(fresh, NOTHING, pieces) if pieces else begin(fresh)


def cut_block(record: ChunkRecord, length: int) -> int | None:
    """The block that a cut to `length` goes through, whose bytes `plan_truncate` needs."""
    return length // BLOCK_SIZE if length < record.length and length % BLOCK_SIZE else None


def plan_truncate(record: ChunkRecord, contents: Mapping[int, bytes | bytearray], length: int) -> Plan:
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
