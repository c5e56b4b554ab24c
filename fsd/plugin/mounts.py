"""Mounts of volumes on this host: made and ended by `fsd mount` and `fsd umount`, judged by what the kernel says.

A path is handed out only if it is the root of a living FUSE mount of the right volume: a container must never write into
the directory below.
"""

import logging
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from fsd.core.errors import Busy, DeadlineExceeded, MissingOnHost
from fsd.mount import mountinfo
from fsd.mount.mountpoint import is_dead

log = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_S = 20.0  # how long the root of a mount may take to answer
COMMAND_S = 100.0  # `fsd mount` and `fsd umount` have shorter bounds of their own
_ERROR_LINES = 4


@dataclass(frozen=True, slots=True)
class Mounts:
    """`command`: how to call fsd. `directory`: a mount point in there for each volume. `options`: for `fsd mount -o`."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    addresses: tuple[str, ...]
    directory: str
    options: str = ""

    def path(self, volume: str) -> str:
        return os.path.join(self.directory, volume)

    def source(self, volume: str) -> str:
        return f"{','.join(self.addresses)}:/{volume}"

    def mounted(self, volume: str) -> mountinfo.Mount | None:
        """What is mounted at the volume's path, living or dead. Raises Busy if it is something else than this volume."""
        mount = mountinfo.mounted_at(self.path(volume))
        if mount is None:
            return None
        if not mount.is_fsd or not mount.source.endswith(f":/{volume}"):
            raise Busy(f"{mount.source} ({mount.kind}) is mounted on {self.path(volume)}")
        return mount

    def all_mounted(self) -> list[str]:
        """The volumes that are mounted in our directory."""
        inside = [
            m.mountpoint for m in mountinfo.mounts() if m.is_fsd and os.path.dirname(m.mountpoint) == self.directory
        ]
        return sorted({os.path.basename(path) for path in inside})

    async def mount(self, volume: str) -> str:
        """The path, mounted and answering. Raises MissingOnHost, Busy, DeadlineExceeded."""
        path = self.path(volume)
        if self.mounted(volume) is None or await trio.to_thread.run_sync(is_dead, path):
            try:
                os.makedirs(path, mode=0o700, exist_ok=True)
            except FileExistsError:  # a dead mount, which `fsd mount` takes away
                log.debug("%s is there and does not answer", path)
            except OSError as error:
                raise MissingOnHost(f"cannot make the mount point {path}: {error.strerror}") from None
            words = ["mount", self.source(volume), path]
            await self._run(*words, *(["-o", self.options] if self.options else []))
        await self.check(volume)
        return path

    async def check(self, volume: str) -> None:
        """Raises unless the volume is mounted at its path and answers."""
        path = self.path(volume)
        mount = self.mounted(volume)
        if mount is None:
            raise MissingOnHost(f"{path} is not mounted although fsd mount succeeded")
        found = await _answered(path, lambda: os.stat(path))
        if mount.device != f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}":
            raise MissingOnHost(f"{path} is not the root of the mounted volume")

    async def set_root(self, volume: str, uid: int | None, gid: int | None, mode: int | None) -> None:
        """Owner and mode of the root as they were asked for: Docker's copy-up gives it those of the image's directory."""
        if (uid, gid, mode) == (None, None, None):
            return

        def change() -> None:
            os.chown(self.path(volume), -1 if uid is None else uid, -1 if gid is None else gid)
            if mode is not None:
                os.chmod(self.path(volume), mode)

        await _answered(self.path(volume), change)

    async def unmount(self, volume: str) -> None:
        """Returns when everything is written back. The mount point is removed if that is possible."""
        path = self.path(volume)
        if self.mounted(volume) is not None:
            await self._run("umount", path)
        try:
            os.rmdir(path)
        except OSError as error:
            log.debug("the mount point %s stays: %s", path, error.strerror)

    async def held(self, volume: str) -> bool:
        """Whether a container has the mount, by the kernel's word."""
        mount = self.mounted(volume)
        return mount is not None and await trio.to_thread.run_sync(is_held, mount)

    async def _run(self, *words: str) -> None:
        """One fsd command. Raises MissingOnHost with its lines."""
        done: subprocess.CompletedProcess[bytes] | None = None
        with trio.move_on_after(COMMAND_S):
            done = await trio.run_process(
                [*self.command, *words],
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=dict(self.environment),
            )
        if done is None:
            raise DeadlineExceeded(f"fsd {' '.join(words)} did not end within {COMMAND_S:g} s")
        if done.returncode:
            raise MissingOnHost(explanation(words, done.returncode, done.stderr))


async def _answered(path: str, call: Callable[[], T]) -> T:
    """The mount's answer to a system call. Raises DeadlineExceeded, MissingOnHost."""
    found: list[T] = []
    try:
        with trio.move_on_after(ANSWER_S):
            found.append(await trio.to_thread.run_sync(call, abandon_on_cancel=True))
    except OSError as error:
        raise MissingOnHost(f"the mount {path} cannot be used: {error.strerror}") from None
    if not found:
        raise DeadlineExceeded(f"the mount {path} does not answer within {ANSWER_S:g} s")
    return found[0]


def explanation(words: Sequence[str], code: int, said: bytes) -> str:
    """What a failed command said, without the prefix that ours begin with."""
    lines = said.decode(errors="replace").strip().splitlines()[-_ERROR_LINES:]
    return "\n".join(line.removeprefix("fsd: ") for line in lines) or f"fsd {words[0]} ended with exit code {code}"


def is_held(mount: mountinfo.Mount, proc: str = "/proc") -> bool:
    """Whether another mount namespace has this file system elsewhere than at our path. (At our path it is a copy of ours, as
    every namespace has that was made of the host's; it goes when ours goes.)"""
    seen = {_namespace(f"{proc}/self")}
    with os.scandir(proc) as entries:
        pids = [entry.name for entry in entries if entry.name.isdecimal()]
    for pid in pids:
        namespace = _namespace(f"{proc}/{pid}")
        if namespace is None or namespace in seen:
            continue
        seen.add(namespace)
        if any(m.device == mount.device and m.mountpoint != mount.mountpoint for m in _mounts_of(f"{proc}/{pid}")):
            return True
    return False


def _namespace(process: str) -> str | None:
    """None: it has ended."""
    try:
        return os.readlink(f"{process}/ns/mnt")
    except OSError:
        return None


def _mounts_of(process: str) -> list[mountinfo.Mount]:
    try:
        with open(f"{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return [mountinfo.parse_line(line) for line in file if re.search(r" - fuse", line)]
    except OSError:
        return []
