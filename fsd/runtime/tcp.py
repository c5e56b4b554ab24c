"""The real network: frames over TCP with `sendmsg` and `recv_into`; bulk bytes are copied once."""

import logging
import socket

import trio

from fsd.core.errors import ConfigurationError, ConnectionRefused, Unreachable
from fsd.runtime.network import Connection, Listener
from fsd.wire.frame import HEADER_SIZE, Frame, Header, decode_header, encode_header

log = logging.getLogger(__name__)

_RECEIVE_BUFFER = 64 * 1024
_BACKLOG = 1024
_KEEPALIVE_IDLE_S = 5
_KEEPALIVE_PROBES = 3


def split_address(address: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port". Raises ConfigurationError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"{address!r} is not an address; write HOST:PORT, such as 127.0.0.1:7400")
    return host, int(port)


class TcpNetwork:
    async def connect(self, address: str) -> Connection:
        host, port = split_address(address)
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Unreachable(f"cannot resolve {host}: {error.strerror or error}") from None
        failure: OSError | None = None
        for family, kind, proto, _, target in found:
            sock = trio.socket.socket(family, kind, proto)
            try:
                await sock.connect(target)
                return TcpConnection(sock, address)
            except OSError as error:
                failure = error
                sock.close()
            except BaseException:
                sock.close()
                raise
        kind_of_failure = ConnectionRefused if isinstance(failure, ConnectionRefusedError) else Unreachable
        raise kind_of_failure(f"cannot connect to {address}: {failure.strerror if failure else 'no address'}")

    async def listen(self, address: str) -> Listener:
        host, port = split_address(address)
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, proto, _, target = found[0]
            sock = trio.socket.socket(family, kind, proto)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await sock.bind(target)
            sock.listen(_BACKLOG)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {address}: {error.strerror or error}") from None
        bound = sock.getsockname()
        return TcpListener(sock, f"{host}:{bound[1]}")


class TcpListener:
    def __init__(self, sock: trio.socket.SocketType, address: str) -> None:
        self._sock = sock
        self.address = address

    async def accept(self) -> Connection:
        while True:
            try:
                sock, peer = await self._sock.accept()
                return TcpConnection(sock, f"{peer[0]}:{peer[1]}")
            except OSError as error:  # the peer was gone before we came to it, or no descriptors are left
                log.warning("accept on %s: %s", self.address, error.strerror)
                await trio.sleep(0.05)

    def close(self) -> None:
        self._sock.close()


class TcpConnection:
    def __init__(self, sock: trio.socket.SocketType, peer: str) -> None:
        self.peer = peer
        self._sock = sock
        self._buffer = bytearray(_RECEIVE_BUFFER)
        self._start = self._end = 0
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)

    async def send(self, frame: Frame) -> None:
        parts = [encode_header(frame), frame.message]
        if len(frame.payload):
            parts.append(frame.payload)  # pyright: ignore[reportArgumentType]
        left = HEADER_SIZE + len(frame.message) + len(frame.payload)
        try:
            sent = await self._sock.sendmsg(parts)
            while sent < left:
                left -= sent
                parts = _drop_front(parts, sent)
                sent = await self._sock.sendmsg(parts)
        except (OSError, trio.ClosedResourceError) as error:
            raise Unreachable(f"connection to {self.peer} broke: {error}") from None

    async def receive(self) -> Frame:
        try:
            header = decode_header(await self._take(HEADER_SIZE))
            message = bytes(await self._take(header.message_length))
            return Frame(header.type, header.flags, header.request_id, message, await self._payload(header))
        except (OSError, trio.ClosedResourceError) as error:
            raise Unreachable(f"connection to {self.peer} broke: {error}") from None

    async def _payload(self, header: Header) -> bytes | memoryview:
        if not header.payload_length:
            return b""
        payload = memoryview(bytearray(header.payload_length))
        have = min(self._end - self._start, header.payload_length)
        payload[:have] = self._buffer[self._start : self._start + have]
        self._start += have
        while have < header.payload_length:
            got = await self._sock.recv_into(payload[have:])
            if not got:
                raise Unreachable(f"connection to {self.peer} ended in the middle of a frame")
            have += got
        return payload

    async def _take(self, size: int) -> bytes | bytearray:
        """The next `size` bytes, read ahead into one buffer so that a small frame costs one system call."""
        if size > len(self._buffer):
            return await self._take_long(size)
        while self._end - self._start < size:
            if self._start and (self._start == self._end or self._start + size > len(self._buffer)):
                self._buffer[: self._end - self._start] = self._buffer[self._start : self._end]
                self._end -= self._start
                self._start = 0
            got = await self._sock.recv_into(memoryview(self._buffer)[self._end :])
            if not got:
                middle = " in the middle of a frame" if self._end > self._start else ""
                raise Unreachable(f"connection to {self.peer} ended{middle}")
            self._end += got
        taken = self._buffer[self._start : self._start + size]
        self._start += size
        return taken

    async def _take_long(self, size: int) -> bytearray:
        taken = bytearray(size)
        have = self._end - self._start
        taken[:have] = self._buffer[self._start : self._end]
        self._start = self._end = 0
        while have < size:
            got = await self._sock.recv_into(memoryview(taken)[have:])
            if not got:
                raise Unreachable(f"connection to {self.peer} ended in the middle of a frame")
            have += got
        return taken

    def close(self) -> None:
        self._sock.close()


def _drop_front(parts: list[bytes], count: int) -> list[bytes]:
    """What is left of `parts` after their first `count` bytes, without copying."""
    rest: list[memoryview] = []
    for part in parts:
        if count >= len(part):
            count -= len(part)
        else:
            rest.append(memoryview(part)[count:])
            count = 0
    return rest  # pyright: ignore[reportReturnType]
