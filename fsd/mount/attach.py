"""Making the mount: /dev/fuse opened here and mounted by mount(2), or by fusermount3 for ordinary users.

Whoever holds the descriptor that this returns holds the mount: a daemon may come and go on it (control.py). Standard library
only.
"""

import array
import ctypes
import errno
import os
import select
import socket
import subprocess
from dataclasses import dataclass

from fsd.core.errors import MissingOnHost

_SUBTYPE = "fsd"
_FLAGS = {  # mount(2)
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128, "noatime": 1024,
}  # fmt: skip
_OPPOSITES = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "async": "sync", "atime": "noatime"}
_DEFAULTS: tuple[str, ...] = ("nosuid", "nodev")


@dataclass(frozen=True, slots=True)
class MountPlan:
    """`kernel`: options of mount(8) such as ro and noexec, the last of a pair counts."""

    source: str
    mountpoint: str
    kernel: tuple[str, ...]
    allow_other: bool


def check_device() -> None:
    """Raises MissingOnHost with what to do if /dev/fuse cannot be used."""
    os.close(_open_device())


def attach(plan: MountPlan) -> int:
    """Mount; the descriptor of the session with the kernel. `default_permissions`: the kernel checks modes and owners, from
    attributes that leases keep true. Raises MissingOnHost."""
    return _attach_as_root(plan) if os.geteuid() == 0 else _attach_as_user(plan)


def flags_of(kernel: tuple[str, ...]) -> list[str]:
    """The flags by name that are set, in the end."""
    named: dict[str, None] = dict.fromkeys(_DEFAULTS)
    for option in kernel:
        if option in _OPPOSITES:
            named.pop(_OPPOSITES[option], None)
        else:
            named[option] = None
    return list(named)


def is_alive(fd: int) -> bool:
    """Whether the kernel will ever ask anything on this session again: it was not unmounted, nor aborted."""
    poll = select.poll()
    poll.register(fd, 0)
    return not poll.poll(0)


def _attach_as_root(plan: MountPlan) -> int:
    fd = _open_device()
    data = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions"
    if plan.allow_other:
        data += ",allow_other"
    flags = sum(_FLAGS[name] for name in flags_of(plan.kernel))
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(plan.mountpoint)
    if libc.mount(os.fsencode(plan.source), target, b"fuse." + _SUBTYPE.encode(), flags, data.encode()) != 0:
        number = ctypes.get_errno()
        os.close(fd)
        hint = " (in a container: --cap-add SYS_ADMIN)" if number == errno.EPERM else ""
        raise MissingOnHost(f"cannot mount on {plan.mountpoint}: {os.strerror(number).lower()}{hint}")
    return fd


def _attach_as_user(plan: MountPlan) -> int:
    """fusermount3 is set-uid root: it mounts and sends the descriptor."""
    source = plan.source.replace("\\", "\\\\").replace(",", "\\,")
    options = ["default_permissions", f"fsname={source}", f"subtype={_SUBTYPE}", *flags_of(plan.kernel)]
    if plan.allow_other:
        options.append("allow_other")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        try:
            done = subprocess.run(
                ["fusermount3", "-o", ",".join(options), "--", plan.mountpoint],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise MissingOnHost("fusermount3 is missing on this machine: apt-get install fuse3") from None
        theirs.close()
        if done.returncode != 0:
            said = " ".join(done.stderr.split()) or f"fusermount3 ended with exit code {done.returncode}"
            raise MissingOnHost(f"cannot mount on {plan.mountpoint}: {said}")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    for _level, _kind, body in ancillary:
        return array.array("i", body[:4])[0]
    raise MissingOnHost(f"cannot mount on {plan.mountpoint}: fusermount3 sent no descriptor")


def _open_device() -> int:
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            hint = "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
            raise MissingOnHost(f"/dev/fuse is missing on this machine ({hint})") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = "run as root or chmod 666 /dev/fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
            raise MissingOnHost(f"/dev/fuse may not be opened by this user ({hint})") from None
        raise MissingOnHost(f"/dev/fuse cannot be used: {error.strerror} (modprobe fuse)") from None
