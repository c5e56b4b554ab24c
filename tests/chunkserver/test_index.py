"""The records' bytes are pinned; what is not such a record is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkserver.index import (
    BlockEntry,
    ChunkRecord,
    PatchEntry,
    chunk_key,
    decode_order,
    decode_record,
    encode_order,
    encode_record,
    group_range,
    parse_chunk_key,
    summarize,
)
from fsd.core.errors import CorruptData
from fsd.core.ids import ChunkId, DataId, Order, PgEpoch, PgId, RequestNumber, SessionId
from fsd.protocol.chunk import AppliedRequest

RECORD = ChunkRecord(
    order=Order(PgEpoch(3), 7),
    length=70_000,
    blocks=(BlockEntry(5, 65536, 0x11111111, 0x22222222), BlockEntry(0, 0, 0, 0x33333333)),
    patches=(PatchEntry(9, 65536, 100, 0x44444444),),
    requests=(AppliedRequest(SessionId(2), RequestNumber(12)),),
    serial=10,
)
PINNED = (
    "01000000000000000300000000000000070001117000"
    "00000a000200010001"
    "00000005000100001111111122222222"
    "00000000000000000000000033333333"
    "00000009000100000000006444444444"
    "0000000000000002000000000000000c"
)


def test_the_bytes_of_a_record_are_pinned():
    encoded = encode_record(RECORD)
    assert encoded[:-4].hex() == PINNED
    assert decode_record(encoded) == RECORD


def test_keys_sort_by_group_data_and_index():
    chunks = [ChunkId(DataId(2), 300), ChunkId(DataId(1), 5), ChunkId(DataId(2), 1)]
    keys = sorted(chunk_key(PgId(pg), chunk) for pg in (65537, 65536) for chunk in chunks)
    assert [parse_chunk_key(key) for key in keys] == sorted((pg, chunk) for pg in (65536, 65537) for chunk in chunks)
    start, end = group_range(PgId(65536))
    assert [start <= key < end for key in keys] == [True] * 3 + [False] * 3


@given(st.integers(0, len(encode_record(RECORD)) * 8 - 1))
def test_every_flipped_bit_of_a_record_is_told(bit):
    damaged = bytearray(encode_record(RECORD))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptData):
        decode_record(bytes(damaged))


@given(st.binary(max_size=200))
def test_what_is_no_record_is_told(data):
    with pytest.raises(CorruptData):
        decode_record(data)


def test_orders():
    order = Order(PgEpoch(1 << 40), 3)
    assert decode_order(encode_order(order)) == order
    with pytest.raises(CorruptData):
        decode_order(b"short")


def test_a_summary_covers_length_and_bytes_and_not_how_they_are_stored():
    chunk = ChunkId(DataId(1), 0)
    same = ChunkRecord(RECORD.order, 70_000, tuple(b._replace(location=99) for b in RECORD.blocks), (), (), 0)
    assert summarize(chunk, same) == summarize(chunk, RECORD)
    other = ChunkRecord(RECORD.order, 69_999, RECORD.blocks, RECORD.patches, (), 0)
    assert summarize(chunk, other).checksum != summarize(chunk, RECORD).checksum
