"""Whatever bytes come over TCP: that connection ends with a logged reason, everybody else's goes on."""

import logging
import random
import socket
import struct

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsd.core.ids import SessionId
from fsd.protocol.metadata import GetXattr, XattrValue
from fsd.rpc.client import Channel
from fsd.rpc.connection import NoService
from fsd.rpc.server import serve
from fsd.runtime import Runtime
from fsd.runtime.tcp import TcpNetwork, split_address
from fsd.wire.codec import encode, number_of
from fsd.wire.frame import MAGIC, Flag, Frame, encode_header
from fsd.wire.handshake import Hello, Welcome
from tests.fakes import TrioClock

HELLO = Hello("cli", "test", "0")


def raw(message, flags=Flag.REQUEST, request_id=1, payload=b"") -> bytes:
    frame = Frame(number_of(type(message)), flags, request_id, encode(message), payload)
    return encode_header(frame) + frame.message + payload


GOOD = raw(HELLO) + b"".join(raw(GetXattr(SessionId(1), 1, b"n"), request_id=i, payload=b"p" * 50) for i in range(3))


class Echo(NoService):
    async def handle(self, peer, message, payload):
        return XattrValue(b"ok")


async def attack(pieces: list[bytes]) -> None:
    """Send pieces on fresh connections while a well-behaved channel works; it must not notice."""
    runtime = Runtime(TcpNetwork(), TrioClock(), random.Random(0))
    async with trio.open_nursery() as nursery:
        listener = await runtime.network.listen("127.0.0.1:0")
        nursery.start_soon(serve, listener, Echo(), lambda hello: Welcome("metadata", "0", "fs"))
        good = Channel(runtime, nursery, listener.address, lambda: HELLO)
        await good.call(GetXattr(SessionId(1), 1, b"before"))
        for piece in pieces:
            sock = trio.socket.socket()
            await sock.connect(split_address(listener.address))
            try:
                await sock.send(piece)
                sock.shutdown(socket.SHUT_WR)
                with trio.fail_after(5):
                    while await sock.recv(65536):
                        pass
            except OSError:
                pass  # the server may have closed first: that is the point
            finally:
                sock.close()
        assert (await good.call(GetXattr(SessionId(1), 1, b"after"))).message == XattrValue(b"ok")
        nursery.cancel_scope.cancel()


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_random_bytes(pieces):
    trio.run(attack, pieces)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, len(GOOD)), min_size=1, max_size=5))
def test_frames_that_are_cut_anywhere(cuts):
    trio.run(attack, [GOOD[:cut] for cut in cuts])


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_frames_with_changed_bytes(changes):
    pieces = []
    for place, byte in changes:
        damaged = bytearray(GOOD)
        damaged[place] = byte
        pieces.append(bytes(damaged))
    trio.run(attack, pieces)


def test_huge_lengths_and_wrong_versions(caplog):
    huge = struct.pack(">4sHHHHQII", MAGIC, 1, 1, 0, 0, 1, 0xFFFFFFFF, 0xFFFFFFFF)
    future = struct.pack(">4sHHHHQII", MAGIC, 9, 1, 0, 0, 1, 0, 0)
    with caplog.at_level(logging.WARNING):
        trio.run(attack, [raw(HELLO) + huge, raw(HELLO) + future, b"GET / HTTP/1.1\r\n\r\n" + bytes(40)])
    assert "message of 4294967295 bytes" in caplog.text
    assert "protocol version 9" in caplog.text
    assert "not an fsd frame" in caplog.text
