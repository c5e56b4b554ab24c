"""Errors, sizes and checksums."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsd.core import errors
from fsd.core.checksum import block_checksums, split_at_blocks
from fsd.core.errors import FsError, InternalError, NotFound, Retry, error_from_wire
from fsd.core.units import BLOCK_SIZE, format_size, parse_size


def every_error() -> list[type[FsError]]:
    return [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, FsError)]


def test_every_error_comes_back_from_the_wire_as_what_it_was():
    numbered = [cls for cls in every_error() if "number" in cls.__dict__ and cls is not FsError]
    assert len(numbered) > 40
    for cls in numbered:
        error = error_from_wire(cls.number, "the facts")
        assert type(error) is cls
        assert str(error) == "the facts"
        assert cls.errno > 0


def test_an_error_from_the_future_is_an_internal_error():
    assert type(error_from_wire(65_000, "?")) is InternalError


def test_what_is_definite_is_never_tried_again():
    assert NotFound.retry is Retry.NEVER
    assert errors.SessionEvicted.retry is Retry.NEVER
    assert errors.StaleMap.retry is Retry.AFTER_REFRESH


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1048576", 1 << 20), ("10G", 10 << 30), ("512 KiB", 512 << 10), ("1.5m", 3 << 19), ("2TB", 2 << 40)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "ten", "-5", "10X", "1e9", "10 G B"])
def test_what_is_no_size_is_told(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_sizes_are_written_for_people():
    assert [format_size(size) for size in (0, 1023, 1024, 3 << 19, 5 << 40, 1 << 60)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 MiB", "5.0 TiB", "1024.0 PiB",
    ]  # fmt: skip


@given(st.integers(0, 3 * BLOCK_SIZE), st.integers(0, 3 * BLOCK_SIZE))
def test_pieces_end_at_block_boundaries_and_are_all_of_the_data(offset, length):
    data = bytes(length)
    pieces = split_at_blocks(data, offset)
    assert sum(len(piece) for _, piece in pieces) == length
    place = offset
    for start, piece in pieces:
        assert start == place
        assert start // BLOCK_SIZE == (start + len(piece) - 1) // BLOCK_SIZE
        place += len(piece)
    assert block_checksums(data, offset) == tuple(zlib.crc32(piece) for _, piece in pieces)
