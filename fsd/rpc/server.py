"""The answering side: accept connections, shake hands, run the service."""

import logging
from collections.abc import Callable
from typing import Never

import trio

from fsd.core.errors import FsError, ProtocolError, Unreachable
from fsd.rpc.connection import Peer, Service
from fsd.runtime.network import Connection, Listener
from fsd.wire.codec import decode_number, encode, number_of
from fsd.wire.frame import Flag, Frame
from fsd.wire.handshake import ErrorReply, Hello, Welcome

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 4096


async def serve(listener: Listener, service: Service, welcome: Callable[[Hello], Welcome]) -> Never:
    """Accept until cancelled. `welcome` makes the answer to a Hello, or raises the FsError with which to refuse it."""
    free = trio.CapacityLimiter(MAX_CONNECTIONS)
    async with trio.open_nursery() as nursery:
        while True:
            await _wait_for_room(free)
            connection = await listener.accept()
            nursery.start_soon(_serve_connection, connection, service, welcome, free)
    raise AssertionError("unreachable")


async def _wait_for_room(free: trio.CapacityLimiter) -> None:
    if free.available_tokens == 0:
        log.warning("%d connections are open: waiting before the next is accepted", MAX_CONNECTIONS)
    marker = object()
    await free.acquire_on_behalf_of(marker)
    free.release_on_behalf_of(marker)


async def _serve_connection(
    connection: Connection, service: Service, welcome: Callable[[Hello], Welcome], free: trio.CapacityLimiter
) -> None:
    async with free:
        try:
            hello = await _shake_hands(connection, welcome)
        except FsError as error:
            log.warning("refused %s: %s", connection.peer, error)
            connection.close()
            return
        await Peer(connection, service, hello).run()


async def _shake_hands(connection: Connection, welcome: Callable[[Hello], Welcome]) -> Hello:
    with trio.move_on_after(HANDSHAKE_TIMEOUT_S):
        frame = await connection.receive()
        hello = decode_number(frame.type, frame.message)
        if not isinstance(hello, Hello):
            raise ProtocolError(f"began with {type(hello).__name__} instead of Hello")
        try:
            answer = welcome(hello)
        except FsError as error:
            refusal = encode(ErrorReply(error.number, str(error)))
            connection.send_nowait(Frame(number_of(ErrorReply), Flag.REPLY | Flag.ERROR, frame.request_id, refusal))
            await connection.drain()
            raise
        connection.send_nowait(Frame(number_of(Welcome), Flag.REPLY, frame.request_id, encode(answer)))
        await connection.drain()
        return hello
    raise Unreachable(f"no handshake in {HANDSHAKE_TIMEOUT_S:g} s")
