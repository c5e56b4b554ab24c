"""What a flush in two phases has prepared for a chunk: the chunk as it will be, beside the chunk as it is. Pure.

    PREPARE   the pending state is made from the present one and the flush's bytes; readers go on seeing the present one
    APPLY     the pending state becomes the present one, in one batch of the index: no byte is moved
    DROP      the pending state goes

Both share the blocks and patches that the flush leaves alone. A chunk has one pending state at most: before any other change
is laid over it, it is resolved. To replication it is a part of the chunk like any other: a prepare, an apply, a drop is a
change with an order of its own, and a whole chunk brings its pending pieces along.

The value in family `pending` under the chunk's key, big-endian:

    size   field
    1      format, 1
    8 8    session, number of the flush
    4 8    layer, inode
    4      how many extents
    8 *    extent: chunk offset u32, length u32
    *      the chunk's record as it will be (`chunkserver.index`; its order is the prepare's, its requests are left out)
    4      CRC-32 of all before
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from chunkserver.index import ChunkRecord, decode_record, encode_record, summarize
from fsd.core.errors import CorruptData
from fsd.core.ids import ChunkId, Ino, LayerId, SessionId
from fsd.protocol.chunk import ChunkSummary, FlushId, PendingPart
from fsd.wire.frame import Buffer

FORMAT = 1
_HEAD = struct.Struct(">BQQIQI")
_EXTENT = struct.Struct(">II")
_CRC = struct.Struct(">I")

Extents = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Pending:
    flush: FlushId
    extents: Extents
    after: ChunkRecord

    @property
    def size(self) -> int:
        """Of the flush's bytes."""
        return sum(length for _, length in self.extents)


def encode_pending(pending: Pending) -> bytes:
    flush = pending.flush
    head = _HEAD.pack(FORMAT, flush.session, flush.number, flush.layer, flush.ino, len(pending.extents))
    body = b"".join([head, *(_EXTENT.pack(*extent) for extent in pending.extents), encode_record(pending.after)])
    return body + _CRC.pack(zlib.crc32(body))


def decode_pending(value: bytes) -> Pending:
    """Raises CorruptData if the bytes are not a whole pending state of this format."""
    if len(value) < _HEAD.size + 4 or zlib.crc32(memoryview(value)[:-4]) != _CRC.unpack_from(value, len(value) - 4)[0]:
        raise CorruptData(f"a pending state of {len(value)} bytes fails its checksum")
    form, session, number, layer, ino, count = _HEAD.unpack_from(value)
    if form != FORMAT:
        raise CorruptData(f"a pending state has format {form}, this version knows {FORMAT}")
    start = _HEAD.size + _EXTENT.size * count
    if start + 4 > len(value):
        raise CorruptData(f"a pending state of {len(value)} bytes has no room for {count} extents")
    extents = tuple(_EXTENT.iter_unpack(memoryview(value)[_HEAD.size : start]))
    flush = FlushId(LayerId(layer), Ino(ino), SessionId(session), number)
    return Pending(flush, extents, decode_record(value[start:-4]))


def merged(extents: Sequence[tuple[int, int]]) -> Extents:
    """Ascending and apart."""
    result: list[tuple[int, int]] = []
    for offset, length in sorted(extents):
        if result and offset <= result[-1][0] + result[-1][1]:
            start, before = result[-1]
            result[-1] = (start, max(before, offset + length - start))
        else:
            result.append((offset, length))
    return tuple(result)


def part_of(pending: Pending | None, checksums: tuple[int, ...]) -> PendingPart | None:
    """As it goes along with the whole chunk."""
    return None if pending is None else PendingPart(pending.flush, pending.extents, checksums)


def shown_part(payload: Buffer, part: PendingPart | None) -> memoryview:
    """Of a whole chunk's bytes those that readers see."""
    view = memoryview(payload)
    return view if part is None else view[: max(0, len(view) - part.size)]


def summarize_with(chunk: ChunkId, record: ChunkRecord, pending: Pending | None) -> ChunkSummary:
    """Equal summaries mean equal bytes, those that are pending included."""
    summary = summarize(chunk, record)
    if pending is None:
        return summary
    head = _HEAD.pack(FORMAT, pending.flush.session, pending.flush.number, pending.flush.layer, pending.flush.ino, 0)
    sums = _CRC.pack(summarize(chunk, pending.after).checksum)
    return ChunkSummary(summary.chunk, summary.order, summary.length, zlib.crc32(head + sums, summary.checksum))
