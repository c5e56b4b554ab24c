"""System calls that Python's os module does not have, by ctypes; errors as OSError."""

import ctypes
import os

AT_FDCWD, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = -100, 0x400, 0x1000
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
KEEP, PUNCH, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
for _name in ("readdir64", "telldir", "rewinddir", "closedir"):
    getattr(_libc, _name).argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class _Entry(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_libc.readdir64.restype = ctypes.POINTER(_Entry)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def rename2(old: str, new: str, flags: int) -> None:
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), "renameat2")


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _checked(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)), "fallocate")


def link_descriptor(fd: int, name: str) -> None:
    """Give a file without a name one."""
    path = f"/proc/self/fd/{fd}".encode()
    _checked(_libc.linkat(AT_FDCWD, path, AT_FDCWD, os.fsencode(name), AT_SYMLINK_FOLLOW), "linkat")


def utimensat(name: str, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    both = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(name), both, 0), "utimensat")


def syncfs(fd: int) -> None:
    _checked(_libc.syncfs(fd), "syncfs")


class Directory:
    """opendir(3) and its friends."""

    def __init__(self, name: str) -> None:
        self._dir = _libc.opendir(os.fsencode(name))
        if not self._dir:
            raise OSError(ctypes.get_errno(), name)

    def next(self) -> tuple[str, int, int] | None:
        """Name, inode, type."""
        entry = _libc.readdir64(self._dir)
        return (os.fsdecode(entry.contents.d_name), entry.contents.d_ino, entry.contents.d_type) if entry else None

    def rest(self) -> list[str]:
        names = []
        while (entry := self.next()) is not None:
            names.append(entry[0])
        return names

    def tell(self) -> int:
        return _libc.telldir(self._dir)

    def seek(self, position: int) -> None:
        _libc.seekdir(self._dir, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._dir)

    def close(self) -> None:
        _libc.closedir(self._dir)
