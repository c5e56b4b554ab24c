"""StateDirectory on a local file system, best on a tmpfs: files mapped into memory, so that a record costs a copy and no system
call. Their blocks are allocated beforehand: a full file system is an error here and not a SIGBUS later.

The owner is told by pid and start time and not by a lock: a process that was killed while one of its threads is blocked in the
kernel keeps its locks until that thread ends, which may need the next process; yet none of its code runs any more.
"""

import contextlib
import errno
import mmap
import os

from fsd.core.errors import ConfigurationError, DirectoryInUse, DiskFailed, NoSpace
from fsd.runtime.process import own_start_time, start_time
from fsd.runtime.state import SEGMENT_BYTES

_OWNER = "owner"
_SUFFIX = ".state"


class LocalState:
    """Implements fsd.runtime.state.StateDirectory."""

    def __init__(self, path: str) -> None:
        """Make the directory if needed. Raises DirectoryInUse while another process has it, ConfigurationError."""
        self._path = os.path.abspath(path)
        self._maps: dict[int, tuple[mmap.mmap, memoryview]] = {}
        try:
            os.makedirs(self._path, mode=0o700, exist_ok=True)
            self._check_owner()
            with open(self._owner_file + ".new", "w", encoding="ascii") as file:
                file.write(f"{os.getpid()} {own_start_time()}\n")
            os.rename(self._owner_file + ".new", self._owner_file)
        except OSError as error:
            raise ConfigurationError(f"cannot keep state in {self._path}: {error.strerror}") from None

    @property
    def _owner_file(self) -> str:
        return os.path.join(self._path, _OWNER)

    def _check_owner(self) -> None:
        try:
            with open(self._owner_file, encoding="ascii") as file:
                pid, started = map(int, file.read().split())
        except (FileNotFoundError, ValueError):
            return
        if start_time(pid) == started:
            raise DirectoryInUse(f"{self._path} is in use by process {pid}")

    def segments(self) -> list[int]:
        try:
            found = os.listdir(self._path)
        except FileNotFoundError:
            return []  # somebody has removed the directory: nothing will outlive this process
        names = [name.removesuffix(_SUFFIX) for name in found if name.endswith(_SUFFIX)]
        return sorted(int(name) for name in names if name.isdigit())

    def open(self, number: int) -> memoryview:
        return self._map(number, os.O_RDWR)

    def make(self, number: int) -> memoryview:
        return self._map(number, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def _map(self, number: int, flags: int) -> memoryview:
        path = self._name(number)
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, SEGMENT_BYTES)
                mapped = mmap.mmap(fd, SEGMENT_BYTES)
            except OSError:
                if flags & os.O_CREAT:
                    os.unlink(path)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else DiskFailed
            raise kind(f"{path}: {error.strerror}") from None
        view = memoryview(mapped)
        self._maps[number] = (mapped, view)
        return view

    def rename(self, number: int, new: int) -> None:
        try:
            os.rename(self._name(number), self._name(new))
        except OSError as error:
            raise DiskFailed(f"{self._name(number)}: {error.strerror}") from None
        self._maps[new] = self._maps.pop(number)

    def remove(self, number: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name(number))
        self._unmap(number)

    def _unmap(self, number: int) -> None:
        mapped, view = self._maps.pop(number, (None, None))
        if mapped is not None and view is not None:  # else it was never opened in this life
            view.release()
            mapped.close()

    def close(self) -> None:
        for number in list(self._maps):
            self._unmap(number)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._owner_file)

    def _name(self, number: int) -> str:
        return os.path.join(self._path, f"{number:012d}{_SUFFIX}")
