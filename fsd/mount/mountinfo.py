"""What is mounted where (/proc/self/mountinfo), and unmounting."""

import ctypes
import os
import re
import subprocess
from dataclasses import dataclass

from fsd.core.errors import Busy, ConfigurationError, MissingOnHost

SUBTYPE = "fuse.fsd"
AUTOFS = "autofs"  # systemd's automount: it waits for us to mount over it
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
    return Mount(fields[2], unescape(fields[4]), fields[rest + 1], unescape(fields[rest + 2]))


def unescape(text: str) -> str:
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
