"""Listening on what is not the cluster's network: unix sockets, and sockets that systemd has opened for us."""

import contextlib
import os
import socket
import stat

import trio

from fsd.core.errors import Busy, ConfigurationError
from fsd.runtime import notify
from fsd.runtime.discovery import split_address

BACKLOG = 128


def inherited_listeners() -> list[trio.SocketListener]:
    """What systemd listens on for us, told once; none if it does not."""
    return [_listener(fd) for fds in notify.passed().values() for fd in fds]


def _listener(fd: int) -> trio.SocketListener:
    return trio.SocketListener(trio.socket.from_stdlib_socket(socket.socket(fileno=fd)))


def unix_listener(path: str, mode: int = 0o600) -> trio.SocketListener:
    """Listen at `path`, whose directory is made (0700) if there is none. A socket that nobody listens on is replaced.

    Raises Busy if somebody does, ConfigurationError if it cannot be."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        _remove_dead(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listening.bind(path)
            os.chmod(path, mode)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        raise ConfigurationError(f"cannot listen at {path}: {error.strerror or error}") from None
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))


def _remove_dead(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigurationError(f"cannot listen at {path}: there is something else than a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        try:
            asking.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
    raise Busy(f"somebody listens at {path} already")


async def tcp_listeners(address: str) -> tuple[list[trio.SocketListener], str]:
    """Listen at "host:port", port 0 a free one; the address that it became. Raises ConfigurationError."""
    host, port = split_address(address)
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, target = found[0]
        listening = trio.socket.socket(family, kind, proto)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await listening.bind(target)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {address}: {error.strerror or error}") from None
    shown = f"[{host}]" if ":" in host else host
    return [trio.SocketListener(listening)], f"{shown}:{listening.getsockname()[1]}"
