"""A daemon's end of the link to its supervisor (control.py), in trio."""

import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

import trio

from fsd.mount.control import Kind, Link, Word

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Device:
    """/dev/fuse, mounted; `number` as in /sys/class/bdi, "" if unknown."""

    fd: int
    number: str


class Supervisor:
    """`on_gone` is called with the descriptor of the mount, if we have it, when there is no supervisor any more: for another
    one to be started, which starts another daemon; this one ends like one that was killed."""

    def __init__(self, fd: int, on_gone: Callable[[int | None], None]) -> None:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        self._link = Link(sock)
        self._on_gone = on_gone
        self._device: Device | None = None

    async def say(self, kind: Kind, text: str = "", code: int = 0) -> None:
        """Words are few and small: the socket's buffer always has room, unless nobody reads, and then it does not matter."""
        self._link.say(Word(kind, text, code))
        await trio.lowlevel.checkpoint()

    def fail(self, text: str, code: int) -> None:
        """Why there will be no serving, after the event loop has ended."""
        self._link.say(Word(Kind.FAILED, text, code))

    async def told(self, kind: Kind) -> Word:
        """Wait until the supervisor says that; whatever else it says before is not for now."""
        while True:
            word, fd = await self._hear()
            if fd is not None:
                os.close(fd)
            if word.kind is kind:
                return word

    async def device(self) -> Device | None:
        """None: nothing is mounted any more."""
        while True:
            word, fd = await self._hear()
            if word.kind is Kind.DEVICE and fd is not None:
                self._device = Device(fd, word.text)
                return self._device
            if word.kind is Kind.DRAIN:
                return None

    async def _hear(self) -> tuple[Word, int | None]:
        while True:
            await trio.lowlevel.wait_readable(self._link.socket)
            try:
                heard = self._link.hear()
            except BlockingIOError:
                continue
            if heard is None:
                log.error("the supervisor has gone: another one is started")
                self._on_gone(None if self._device is None else self._device.fd)
                os._exit(128 + signal.SIGHUP)
            return heard
