"""Which processes serve a mount: the file `DIRECTORY/MAJOR:MINOR.json`; and the state directory, from daemon to daemon.

Written by the supervisor at every change, so that `fsd umount`, `fsd upgrade` and `fsd ps` find it; asking through the mount
itself would hang with the mount.
"""

import contextlib
import json
import os
import shutil
import stat
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

from fsd.core.errors import ConfigurationError
from fsd.mount import mountinfo
from fsd.mount.mountinfo import Mount
from fsd.runtime.process import start_time

INIT = "init"  # in a state directory: Companion.state()
CONTROL = "control"  # the supervisor's socket
CLIENT = "client"  # the client's own part
GONE = "gone"  # removed directories that the kernel still knows


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    started: int  # fsd.runtime.process.start_time

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class Serving:
    """`daemon` is None while a new one starts."""

    mountpoint: str
    source: str
    supervisor: Process
    daemon: Process | None
    state: str

    @property
    def alive(self) -> bool:
        return self.supervisor.alive or (self.daemon is not None and self.daemon.alive)

    @property
    def control(self) -> str:
        return os.path.join(self.state, CONTROL)


def process(pid: int) -> Process | None:
    """None if there is none."""
    started = start_time(pid)
    return None if started is None else Process(pid, started)


def directory() -> str:
    """Where word of this user's mounts is left."""
    if os.geteuid() == 0:
        return "/run/fsd"
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/fsd-{os.geteuid()}", "fsd")


def make_state_directory() -> str:
    """A new one, in memory if the host has a place for that: what is there need not survive the host, and is written often."""
    base = directory()
    if not _in_memory(base) and _in_memory("/dev/shm"):
        base = f"/dev/shm/fsd-{os.geteuid()}"
    try:
        _make_private(base)
        return tempfile.mkdtemp(prefix="mount-", dir=base)
    except OSError as error:
        raise ConfigurationError(f"cannot make a state directory in {base}: {error.strerror}") from None


def remove_state_directory(path: str) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _in_memory(path: str) -> bool:
    mount = mountinfo.containing(path)
    return mount is not None and mount.kind == "tmpfs"


def _make_private(path: str) -> None:
    os.makedirs(path, mode=0o700, exist_ok=True)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigurationError(f"{path} belongs to somebody else")


def remember(mount: Mount, serving: Serving) -> None:
    """Atomically."""
    os.makedirs(directory(), mode=0o700, exist_ok=True)
    path = _file(mount)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(asdict(serving), file)
    os.rename(f"{path}.new", path)


def forget(mount: Mount) -> None:
    with contextlib.suppress(OSError):
        os.unlink(_file(mount))


def of(mount: Mount) -> Serving | None:
    """Who serves `mount`, if they left word."""
    try:
        with open(_file(mount), encoding="utf-8") as file:
            told: dict[str, Any] = json.load(file)
        daemon = told["daemon"]
        found = Serving(
            str(told["mountpoint"]),
            str(told["source"]),
            Process(**told["supervisor"]),
            None if daemon is None else Process(**daemon),
            str(told["state"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if (found.mountpoint, found.source) == (mount.mountpoint, mount.source) else None


def _file(mount: Mount) -> str:
    return os.path.join(directory(), f"{mount.device}.json")
