import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsd.core.errors import FsError, ProtocolError, VersionMismatch
from fsd.wire import frame as frames
from fsd.wire.frame import Flag, Frame, decode_header, encode_header


def test_a_header_comes_back_as_it_went():
    frame = Frame(223, Flag.REPLY | Flag.ERROR, 2**63, b"abc", b"payload")
    header = decode_header(encode_header(frame))
    assert (header.type, header.flags, header.request_id) == (223, Flag.REPLY | Flag.ERROR, 2**63)
    assert (header.message_length, header.payload_length) == (3, 7)


def test_the_bytes_of_a_header_are_pinned():
    assert encode_header(Frame(1, Flag.REQUEST, 7, b"ab", b"c")).hex() == (
        "667364f5000100010000000000000000000000070000000200000001"
    )


def _header(magic=frames.MAGIC, version=1, kind=1, flags=0, zero=0, request=1, message=0, payload=0) -> bytes:
    return struct.pack(">4sHHHHQII", magic, version, kind, flags, zero, request, message, payload)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (_header(magic=b"GET "), ProtocolError, "not an fsd frame"),
        (_header(version=2), VersionMismatch, "version 2"),
        (_header(flags=0x8000), ProtocolError, "unknown flags"),
        (_header(zero=1), ProtocolError, "unknown flags"),
        (_header(message=frames.MAX_MESSAGE + 1), ProtocolError, "message of"),
        (_header(payload=0xFFFFFFFF), ProtocolError, "payload of 4294967295"),
    ],
)
def test_a_bad_header_is_refused_before_anything_is_allocated(data, error, says):
    with pytest.raises(error, match=says):
        decode_header(data)


def test_what_does_not_fit_is_not_sent():
    with pytest.raises(ProtocolError, match="does not fit"):
        encode_header(Frame(1, Flag.REQUEST, 1, b"", bytes(frames.MAX_PAYLOAD + 1)))


@given(st.binary(min_size=frames.HEADER_SIZE, max_size=frames.HEADER_SIZE))
def test_random_bytes_are_a_header_or_a_clear_error(data):
    try:
        header = decode_header(data)
    except FsError as error:
        assert "\n" not in str(error)
    else:
        assert header.message_length <= frames.MAX_MESSAGE
        assert header.payload_length <= frames.MAX_PAYLOAD
