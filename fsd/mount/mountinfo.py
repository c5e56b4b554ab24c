"""What is mounted where: /proc/self/mountinfo, and which daemon serves a mount.

A daemon writes `DIRECTORY/MAJOR:MINOR.json` when it has mounted, so that `fsd umount` can wait until it has written
everything back; asking through the mount itself would hang with the mount.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import subprocess
from dataclasses import dataclass
from typing import NamedTuple

from fsd.core.errors import Busy, ConfigurationError, MissingOnHost
from fsd.runtime.process import own_start_time, start_time

SUBTYPE = "fuse.fsd"
PROBE_S = 2.0
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8  # umount(2)
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    device: str  # "major:minor"
    mountpoint: str
    kind: str
    source: str

    @property
    def is_fsd(self) -> bool:
        return self.kind == SUBTYPE


def mounts() -> list[Mount]:
    """All mounts of this process's namespace, in the order in which they were made."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [parse_line(line) for line in file]


def parse_line(line: str) -> Mount:
    """One line of mountinfo, proc(5)."""
    fields = line.split()
    rest = fields.index("-", 6)
    return Mount(fields[2], _unescape(fields[4]), fields[rest + 1], _unescape(fields[rest + 2]))


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def mounted_at(mountpoint: str) -> Mount | None:
    """The topmost mount exactly there."""
    found = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    return found[-1] if found else None


def containing(path: str) -> Mount | None:
    """The mount that `path` (absolute, normal) lies on."""
    best: Mount | None = None
    for mount in mounts():
        root = mount.mountpoint.rstrip("/")
        if (path == mount.mountpoint or path.startswith(root + "/")) and (
            best is None or len(mount.mountpoint) >= len(best.mountpoint)
        ):
            best = mount
    return best


def normalize(mountpoint: str) -> str:
    """Absolute and without symbolic links, not looking at the last component itself (it may be a dead mount)."""
    path = os.path.abspath(os.path.expanduser(mountpoint))
    if path != "/" and mounted_at(path) is None:
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if os.path.islink(path):
            path = os.path.realpath(path)
    return path


def prepare(mountpoint: str) -> None:
    """Make the directory if there is none, and take away a dead mount of ours. Raises ConfigurationError."""
    if is_dead(mountpoint):
        detach(mountpoint)
    if mounted_at(mountpoint) is None:
        try:
            os.makedirs(mountpoint, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot make the mount point {mountpoint}: {error.strerror}") from None


def check_free(mountpoint: str) -> None:
    """Raises ConfigurationError or Busy unless one can mount there; takes away a dead mount of ours."""
    if is_dead(mountpoint):
        detach(mountpoint)
    mount = mounted_at(mountpoint)
    if mount is not None:
        raise Busy(f"the mount point {mountpoint} is busy: {mount.source} ({mount.kind}) is mounted there")
    try:
        is_directory = os.path.isdir(mountpoint)
    except OSError as error:
        raise ConfigurationError(f"cannot use the mount point {mountpoint}: {error.strerror}") from None
    if not is_directory:
        what = "is not a directory" if os.path.lexists(mountpoint) else "does not exist"
        raise ConfigurationError(f"the mount point {mountpoint} {what}")


def is_dead(mountpoint: str) -> bool:
    """Whether an fsd mount is there whose daemon has gone. A mount that only hangs (no server runs) is not dead."""
    mount = mounted_at(mountpoint)
    if mount is None or not mount.is_fsd:
        return False
    daemon = daemon_of(mount)
    if daemon is not None:
        return start_time(daemon.pid) != daemon.started
    return _answers_not_connected(mountpoint)


def _answers_not_connected(mountpoint: str) -> bool:
    """Ask by a process of its own, which may hang with the mount; nobody waits for it longer than PROBE_S."""
    probe = subprocess.Popen(
        ["stat", "-f", "--", mountpoint], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, said = probe.communicate(timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        probe.kill()
        return False
    return os.strerror(errno.ENOTCONN).encode() in said or os.strerror(errno.ECONNABORTED).encode() in said


def detach(mountpoint: str) -> None:
    """Unmount lazily. Raises MissingOnHost, ConfigurationError."""
    unmount(mountpoint, lazy=True)


def unmount(mountpoint: str, lazy: bool) -> None:
    """Unmount, by the system call for root (umount(8) looks at the mount first, which may hang), else by fusermount3.

    Raises Busy, MissingOnHost, ConfigurationError."""
    failure = _unmount_as_root(mountpoint, lazy) if os.geteuid() == 0 else _unmount_as_user(mountpoint, lazy)
    if failure is None:
        return
    if "busy" in failure:
        hint = "a process has a file open or its working directory there (--lazy detaches all the same)"
        raise Busy(f"{mountpoint} is busy: {hint}")
    raise ConfigurationError(f"cannot unmount {mountpoint}: {failure}")


def _unmount_as_root(mountpoint: str, lazy: bool) -> str | None:
    """umount2(2); what went wrong."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), (_MNT_DETACH if lazy else 0) | _UMOUNT_NOFOLLOW) == 0:
        return None
    return os.strerror(ctypes.get_errno()).lower()


def _unmount_as_user(mountpoint: str, lazy: bool) -> str | None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise MissingOnHost("fusermount3 is missing on this machine: apt-get install fuse3") from None
    if done.returncode == 0:
        return None
    return " ".join(done.stderr.split()).lower() or f"fusermount3 ended with exit code {done.returncode}"


# --- daemons ----------------------------------------------------------------------------------------------------------


class Daemon(NamedTuple):
    pid: int
    started: int  # fsd.runtime.process.start_time


def daemon_directory() -> str:
    """Where daemons of this user leave word."""
    if os.geteuid() == 0:
        return "/run/fsd"
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/fsd-{os.geteuid()}", "fsd")


def remember_daemon(mount: Mount) -> None:
    """Called by the daemon that serves `mount`."""
    os.makedirs(daemon_directory(), mode=0o700, exist_ok=True)
    with open(_daemon_file(mount), "w", encoding="utf-8") as file:
        told = {"pid": os.getpid(), "started": own_start_time(), "mountpoint": mount.mountpoint, "source": mount.source}
        json.dump(told, file)


def forget_daemon(mount: Mount) -> None:
    with contextlib.suppress(OSError):
        os.unlink(_daemon_file(mount))


def daemon_of(mount: Mount) -> Daemon | None:
    """The daemon that serves `mount`, if it left word."""
    try:
        with open(_daemon_file(mount), encoding="utf-8") as file:
            document = json.load(file)
        if document["mountpoint"] != mount.mountpoint or document["source"] != mount.source:
            return None
        return Daemon(int(document["pid"]), int(document["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _daemon_file(mount: Mount) -> str:
    return os.path.join(daemon_directory(), f"{mount.device}.json")
