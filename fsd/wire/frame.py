"""Frames: a fixed header, a msgpack message, a payload beside it.

    offset  size  field
    0       4     magic "fsd\\xf5"
    4       2     protocol version
    6       2     message type (see fsd.wire.codec: the number of the message's class)
    8       2     flags
    10      2     zero
    12      8     request id (chosen by the asker, unique among its unanswered requests on this connection)
    20      4     message length, at most MAX_MESSAGE
    24      4     payload length, at most MAX_PAYLOAD
    28            message bytes, then payload bytes

All numbers are big-endian. Every length is checked before anything is allocated.
"""

import struct
from typing import NamedTuple

from fsd.core.errors import ProtocolError, VersionMismatch
from fsd.core.units import MIB

MAGIC = b"fsd\xf5"
PROTOCOL_VERSION = 1
MAX_MESSAGE = 4 * MIB
MAX_PAYLOAD = 4 * MIB + 64 * 1024

_HEADER = struct.Struct(">4sHHHHQII")
HEADER_SIZE = _HEADER.size

Buffer = bytes | bytearray | memoryview


class Flag:
    """Bits of a frame's flags. Plain numbers: looking at an IntFlag takes longer than unpacking the header."""

    REQUEST = 0
    REPLY = 1  # answers the request of the same id
    ERROR = 2  # with REPLY: the message is an ErrorReply
    CANCEL = 4  # the asker no longer waits; type 0, no message
    ONE_WAY = 8  # no answer is expected; id 0


_UNKNOWN_FLAGS = 0xFFFF ^ (Flag.REPLY | Flag.ERROR | Flag.CANCEL | Flag.ONE_WAY)


class Header(NamedTuple):
    type: int
    flags: int
    request_id: int
    message_length: int
    payload_length: int


class Frame(NamedTuple):
    type: int
    flags: int
    request_id: int
    message: bytes
    payload: Buffer = b""


def encode_header(frame: Frame) -> bytes:
    """The 28 bytes that go before `frame.message` and `frame.payload`. Raises ProtocolError if these are too long."""
    if len(frame.message) > MAX_MESSAGE or len(frame.payload) > MAX_PAYLOAD:
        raise ProtocolError(
            f"message type {frame.type} of {len(frame.message)} + {len(frame.payload)} bytes does not fit into a frame"
        )
    return _HEADER.pack(
        MAGIC, PROTOCOL_VERSION, frame.type, frame.flags, 0, frame.request_id, len(frame.message), len(frame.payload)
    )


def decode_header(data: Buffer) -> Header:
    """Check the 28 bytes of a header. Raises ProtocolError or VersionMismatch with the fault in one line."""
    magic, version, kind, flags, zero, request_id, message_length, payload_length = _HEADER.unpack(data)
    if magic != MAGIC:
        raise ProtocolError(f"not an fsd frame: begins with {magic!r}")
    if version != PROTOCOL_VERSION:
        raise VersionMismatch(f"peer speaks protocol version {version}, this is version {PROTOCOL_VERSION}")
    if zero or flags & _UNKNOWN_FLAGS:
        raise ProtocolError(f"unknown flags {flags:#x} in a frame")
    if message_length > MAX_MESSAGE:
        raise ProtocolError(f"message of {message_length} bytes, at most {MAX_MESSAGE} are allowed")
    if payload_length > MAX_PAYLOAD:
        raise ProtocolError(f"payload of {payload_length} bytes, at most {MAX_PAYLOAD} are allowed")
    return Header(kind, flags, request_id, message_length, payload_length)
