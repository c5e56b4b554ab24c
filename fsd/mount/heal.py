"""Putting a living mount into running containers that have a dead one of the same volume.

A bind mount without `rslave` is a copy: when the mount on the host was lost (daemon *and* supervisor killed, `umount -f`) and
made anew, the container keeps the dead one. From the host, as root (open_tree(2), move_mount(2), setns(2); Linux 5.2, read-only
binds 5.12):

    open_tree(living mount + the bind's subdirectory, CLONE) ──> a detached mount, read-only if the bind was
    in a child:  setns(container's mount namespace), umount2(path, MNT_DETACH), move_mount(detached mount, path)

Open files and working directories in the container stay on the dead mount; what is opened afterwards is on the living one.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fsd.core.errors import ConfigurationError, MissingOnHost
from fsd.mount import mountinfo
from fsd.mount.mountinfo import Mount
from fsd.mount.mountpoint import answers_not_connected

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_CLONE_NEWNS, _MNT_DETACH, _MOUNT_ATTR_RDONLY = 0x00020000, 2, 1


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead mount of the volume in another mount namespace: where one of its processes sees it."""

    pid: int
    path: str
    subdirectory: str  # of the volume, that is bound there; "/" for its root
    read_only: bool


class _Attributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def dead_copies(living: Mount, proc: str = "/proc") -> Iterator[Dead]:
    """One for each path of each other mount namespace that has a dead mount of the same source."""
    seen = {_namespace(f"{proc}/self")}
    for name in sorted(filter(str.isdecimal, os.listdir(proc)), key=int):
        namespace = _namespace(f"{proc}/{name}")
        if namespace is None or namespace in seen:
            continue
        seen.add(namespace)
        try:
            with open(f"{proc}/{name}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                lines = file.readlines()
        except OSError:
            continue  # it has ended
        for line in lines:
            mount = mountinfo.parse_line(line)
            if not mount.is_fsd or mount.source != living.source or mount.device == living.device:
                continue
            if answers_not_connected(f"{proc}/{name}/root{mount.mountpoint}"):
                fields = line.split()
                subdirectory = mountinfo.unescape(fields[3])
                yield Dead(int(name), mount.mountpoint, subdirectory, "ro" in fields[5].split(","))


def heal(living: Mount, dead: Dead) -> None:
    """Raises MissingOnHost, ConfigurationError with what the kernel said."""
    tree = _clone(living.mountpoint + dead.subdirectory.rstrip("/"), dead.read_only)
    try:
        namespace = os.open(f"/proc/{dead.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        os.close(tree)
        return  # the container has ended
    try:
        failed = _in_a_child(lambda: _put(tree, namespace, dead.path))
    finally:
        os.close(namespace)
        os.close(tree)
    if failed:
        raise ConfigurationError(f"process {dead.pid}: cannot mount on its {dead.path}: {os.strerror(failed).lower()}")


def _clone(path: str, read_only: bool) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    tree = libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    if tree < 0:
        number = ctypes.get_errno()
        hint = " (needs root and Linux 5.2)" if number in (errno.EPERM, errno.ENOSYS) else ""
        raise MissingOnHost(f"cannot clone the mount {path}: {os.strerror(number).lower()}{hint}")
    if read_only:
        wanted = _Attributes(_MOUNT_ATTR_RDONLY, 0, 0, 0)
        size = ctypes.sizeof(wanted)
        if libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(wanted), size) < 0:
            number = ctypes.get_errno()
            os.close(tree)
            raise MissingOnHost(f"cannot make the clone read-only: {os.strerror(number).lower()} (needs Linux 5.12)")
    return tree


def _put(tree: int, namespace: int, path: str) -> int:
    """In the child: 0 or an errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    where = os.fsencode(path)
    if libc.setns(namespace, _CLONE_NEWNS) < 0:
        return ctypes.get_errno()
    libc.umount2(where, _MNT_DETACH)  # if that is not possible the living one goes over the dead one
    if libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, where, _MOVE_MOUNT_F_EMPTY_PATH) < 0:
        return ctypes.get_errno()
    return 0


def _in_a_child(work: Callable[[], int]) -> int:
    """A process that has changed its mount namespace is of no other use."""
    pid = os.fork()
    if pid == 0:
        code = errno.EIO
        try:
            code = work()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else errno.EIO


def _namespace(process: str) -> str | None:
    try:
        return os.readlink(f"{process}/ns/mnt")
    except OSError:
        return None
