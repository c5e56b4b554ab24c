"""The asking side: a channel to one address that connects when needed, and a pool of them."""

from collections.abc import Callable

import trio

from fsd.core.errors import ProtocolError, Unreachable, error_from_wire
from fsd.rpc.connection import Call, NoService, Peer, Reply, Service
from fsd.runtime import Runtime
from fsd.runtime.network import Connection
from fsd.wire.codec import decode_number, encode, number_of
from fsd.wire.frame import Buffer, Flag, Frame
from fsd.wire.handshake import ErrorReply, Hello, Welcome

CONNECT_TIMEOUT_S = 3.0


class Channel:
    """Connects at the first request and again after a break. Requests are never repeated here: see fsd.rpc.retry."""

    def __init__(
        self,
        runtime: Runtime,
        nursery: trio.Nursery,
        address: str,
        hello: Callable[[], Hello],
        service: Service | None = None,
    ) -> None:
        self.address = address
        self._runtime = runtime
        self._nursery = nursery
        self._hello = hello
        self._service: Service = service or NoService()
        self._connecting = trio.Lock()
        self._peer: Peer | None = None
        self._closed = False

    @property
    def connected(self) -> Peer | None:
        """The live connection, if there is one now."""
        return self._peer if self._peer is not None and not self._peer.closed.is_set() else None

    async def peer(self) -> Peer:
        """The live connection, made if there is none; many may ask at once, one connects.

        Raises Unreachable, ConnectionRefused, ForeignFileSystem, VersionMismatch."""
        peer = self.connected
        if peer is not None:
            return peer
        async with self._connecting:
            peer = self.connected
            if peer is None:
                if self._closed:
                    raise Unreachable(f"channel to {self.address} is closed")
                peer = self._peer = await self._connect()
            return peer

    async def call(self, message: object, payload: Buffer = b"") -> Reply:
        """Ask over the live connection. Errors: those of `peer`, and of Peer.call."""
        return await (await self.peer()).call(message, payload)

    def begin(self, message: object, payload: Buffer = b"") -> Call | None:
        """As Peer.begin, over a connection that is there; None also if there is none."""
        peer = self.connected
        return None if peer is None else peer.begin(message, payload)

    def close(self) -> None:
        """For good."""
        self._closed = True
        if self._peer is not None:
            self._peer.close()

    async def _connect(self) -> Peer:
        connection: Connection | None = None
        with trio.move_on_after(CONNECT_TIMEOUT_S):
            connection = await self._runtime.network.connect(self.address)
            try:
                welcome = await introduce(connection, self._hello())
            except BaseException:
                connection.close()
                raise
            peer = Peer(connection, self._service, welcome)
            self._nursery.start_soon(peer.run)
            return peer
        if connection is not None:
            connection.close()
        raise Unreachable(f"no answer from {self.address} in {CONNECT_TIMEOUT_S:g} s")


async def introduce(connection: Connection, hello: Hello) -> Welcome:
    """Say who we are; the answer, or the error with which the peer refused."""
    connection.send_nowait(Frame(number_of(Hello), Flag.REQUEST, 0, encode(hello)))
    await connection.drain()
    frame = await connection.receive()
    answer = decode_number(frame.type, frame.message)
    if isinstance(answer, ErrorReply):
        raise error_from_wire(answer.number, answer.text)
    if not isinstance(answer, Welcome):
        raise ProtocolError(f"{connection.peer} answered {type(answer).__name__} to Hello")
    return answer


class ChannelPool:
    """One channel for each address."""

    def __init__(
        self, runtime: Runtime, nursery: trio.Nursery, hello: Callable[[], Hello], service: Service | None = None
    ) -> None:
        self._make: Callable[[str], Channel] = lambda address: Channel(runtime, nursery, address, hello, service)
        self._channels: dict[str, Channel] = {}

    def to(self, address: str) -> Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._make(address)
        return channel

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
