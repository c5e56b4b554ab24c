"""The real network: frames over TCP with `sendmsg` and `recv_into`; bulk bytes are copied once."""

import errno
import logging
import math
import socket
from collections.abc import Sequence

import trio

from fsd.core.errors import ConfigurationError, ConnectionRefused, Unreachable
from fsd.runtime.discovery import Lookup, ask_dns, split_address, targets
from fsd.runtime.network import Connection, Listener
from fsd.wire.frame import HEADER_SIZE, Buffer, Frame, decode_header, encode_header

log = logging.getLogger(__name__)

_RECEIVE_BUFFER = 64 * 1024
_BACKLOG = 1024
_KEEPALIVE_IDLE_S = 5
_KEEPALIVE_PROBES = 3
_MAX_PARTS = 64  # of one sendmsg
_YIELD_EVERY = 32
_ATTEMPT_S = 0.7  # for an address that is silent, if there is another one


class TcpNetwork:
    """`lookup`: who tells what an SRV record says."""

    def __init__(self, lookup: Lookup = ask_dns) -> None:
        self._lookup = lookup

    async def connect(self, address: str) -> Connection:
        found = await targets(address, self._lookup)
        failure: OSError | None = None
        for number, target in enumerate(found, 1):
            sock = trio.socket.socket(target.family, target.kind, target.protocol)
            try:
                with trio.move_on_after(_ATTEMPT_S if number < len(found) else math.inf):
                    await sock.connect(target.address)
                    return TcpConnection(_raw(sock), address)
                failure = TimeoutError(errno.ETIMEDOUT, "no answer")
                sock.close()
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
                return TcpConnection(_raw(sock), f"{peer[0]}:{peer[1]}")
            except OSError as error:  # the peer was gone before we came to it, or no descriptors are left
                log.warning("accept on %s: %s", self.address, error.strerror)
                await trio.sleep(0.05)

    def close(self) -> None:
        self._sock.close()


def _raw(sock: trio.socket.SocketType) -> socket.socket:
    """The non-blocking socket itself: without trio's two checkpoints a call, a small request costs half."""
    raw = socket.socket(fileno=sock.detach())
    raw.setblocking(False)
    return raw


class TcpConnection:
    """Reads ahead into one buffer, so that a small frame costs one system call or less; yields every _YIELD_EVERY frames."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self.peer = peer
        self._sock = sock
        self._buffer = bytearray(_RECEIVE_BUFFER)
        self._view = memoryview(self._buffer)
        self._start: int = 0
        self._end: int = 0
        self._unsent: list[Buffer] = []
        self._frames = 0
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)

    def send_nowait(self, frame: Frame) -> bool:
        header = encode_header(frame)
        size = HEADER_SIZE + len(frame.message) + len(frame.payload)
        parts: list[Buffer] = [header, frame.message, frame.payload] if len(frame.payload) else [header + frame.message]
        if self._unsent:
            self._unsent.extend(parts)
            return False
        try:
            sent = self._sock.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise self._broken(error) from None
        if sent < size:
            self._unsent = _drop_front(parts, sent)
        return sent == size

    async def drain(self) -> None:
        try:
            while self._unsent:
                await trio.lowlevel.wait_writable(self._sock)
                try:
                    self._unsent = _drop_front(self._unsent, self._sock.sendmsg(self._unsent[:_MAX_PARTS]))
                except BlockingIOError:
                    continue
        except (OSError, trio.ClosedResourceError) as error:
            raise self._broken(error) from None

    async def receive(self) -> Frame:
        self._frames += 1
        if self._frames % _YIELD_EVERY == 0:
            await trio.lowlevel.checkpoint()
        try:
            await self._fill(HEADER_SIZE)
            header = decode_header(self._view[self._start : self._start + HEADER_SIZE])
            self._start += HEADER_SIZE
            message = await self._message(header.message_length)
            payload = await self._take_long(header.payload_length) if header.payload_length else b""
        except (OSError, trio.ClosedResourceError) as error:
            raise self._broken(error) from None
        return Frame(header.type, header.flags, header.request_id, message, payload)

    async def _message(self, size: int) -> bytes:
        if size > len(self._buffer):
            return bytes(await self._take_long(size))
        await self._fill(size)
        self._start += size
        return bytes(self._view[self._start - size : self._start])

    async def _fill(self, size: int) -> None:
        """Have at least `size` bytes in the buffer."""
        while self._end - self._start < size:
            if self._start == self._end:
                self._start = self._end = 0
            elif self._start + size > len(self._buffer):
                self._buffer[: self._end - self._start] = self._buffer[self._start : self._end]
                self._end -= self._start
                self._start = 0
            self._end += await self._receive_into(self._view[self._end :])

    async def _take_long(self, size: int) -> memoryview:
        """The next `size` bytes in a buffer of their own: bulk bytes are copied once, by the kernel."""
        taken = memoryview(bytearray(size))
        have = min(self._end - self._start, size)
        taken[:have] = self._view[self._start : self._start + have]
        self._start += have
        while have < size:
            have += await self._receive_into(taken[have:])
        return taken

    async def _receive_into(self, place: memoryview) -> int:
        while True:
            try:
                got: int = self._sock.recv_into(place)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            if not got:
                raise Unreachable(f"connection to {self.peer} ended")
            return got

    def _broken(self, error: Exception) -> Unreachable:
        return Unreachable(f"connection to {self.peer} broke: {error}")

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


def _drop_front(parts: Sequence[Buffer], count: int) -> list[Buffer]:
    """What is left of `parts` after their first `count` bytes, without copying."""
    rest: list[Buffer] = []
    for part in parts:
        if count >= len(part):
            count -= len(part)
        else:
            rest.append(memoryview(part)[count:])
            count = 0
    return rest
