"""A mount point fails closed: while nothing is mounted there, nobody writes into the directory below by mistake.

A container that starts before the mount, or goes on after its loss, would fill the host's disk and show an empty volume. So
mounting makes the directory below immutable, or takes its mode away where the host's file system knows no such flag (that stops
ordinary users, not root). It stays so over a crash, a stop by SIGTERM and a reboot; `fsd umount` and `fsd down`, which somebody
calls on purpose, undo it. What was changed is noted in an extended attribute of the directory; where none can be set, nothing
is changed.
"""

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Generator

_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10  # linux/fs.h
_FLAGS = struct.Struct("I")
_FLAG_SET = b"immutable"  # the attribute's value; else the mode that was taken away, in octal
_REFUSED = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL, errno.ENOSYS)


@contextlib.contextmanager
def closing(path: str) -> Generator[list[bool]]:
    """Around mounting on `path`: closes the directory below once the mount is made. The list gets whether that was possible."""
    done: list[bool] = []
    if os.geteuid() != 0:
        reopen(path)  # fusermount3 wants to be allowed to write there
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield done
        done.append(_close(fd))
    finally:
        os.close(fd)


def is_closed(path: str) -> bool:
    """Whether the directory at `path`, with nothing mounted on it, was closed by us."""
    try:
        return _noted(path) is not None
    except OSError:
        return False


def reopen(path: str) -> bool:
    """Undo it; whether there was anything to undo. Nothing may be mounted there. Raises OSError."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    if os.geteuid() != 0 and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0:
        os.chmod(path, 0o700)  # the note cannot be read otherwise
        if _noted(path) is None:
            os.chmod(path, 0)
    note = _noted(path)
    if note is None:
        return False
    if note == _FLAG_SET:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _change_flags(fd, set_it=False)
        finally:
            os.close(fd)
    else:
        os.chmod(path, int(note, 8))
    os.removexattr(path, _note_name())
    return True


def _close(fd: int) -> bool:
    """Whether it is closed now."""
    try:
        if _noted(fd) is not None:
            return True  # since an earlier mount
        if _flags(fd) & _IMMUTABLE:
            return True  # somebody else's doing
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        os.setxattr(fd, _note_name(), _FLAG_SET)
        if os.geteuid() == 0 and _change_flags(fd, set_it=True):
            return True
        os.setxattr(fd, _note_name(), b"%o" % mode)
        os.fchmod(fd, 0)
    except OSError:
        return False
    return True


def _note_name() -> str:
    return "trusted.fsd.closed" if os.geteuid() == 0 else "user.fsd.closed"


def _noted(where: str | int) -> bytes | None:
    try:
        return os.getxattr(where, _note_name())
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT, errno.EACCES):
            return None
        raise


def _flags(fd: int) -> int:
    buffer = bytearray(8)
    try:
        fcntl.ioctl(fd, _GET_FLAGS, buffer)
    except OSError as error:
        if error.errno in _REFUSED:
            return 0
        raise
    return _FLAGS.unpack_from(buffer)[0]


def _change_flags(fd: int, *, set_it: bool) -> bool:
    """Whether this file system has the flag and we may change it."""
    flags = _flags(fd)
    wanted = flags | _IMMUTABLE if set_it else flags & ~_IMMUTABLE
    try:
        fcntl.ioctl(fd, _SET_FLAGS, bytearray(struct.pack("Q", wanted)))
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        raise
    return True
