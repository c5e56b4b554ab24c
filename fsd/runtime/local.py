"""The real storage and clock: a directory on a local file system, segment files, this machine's clocks."""

import errno
import fcntl
import os
import random
import time
from collections.abc import Sequence

import trio

from fsd.core.errors import ConfigurationError, CorruptData, DirectoryInUse, DiskFailed, NoSpace
from fsd.core.histogram import Histogram
from fsd.runtime import Runtime
from fsd.runtime.rocks import RocksKeyValue
from fsd.runtime.storage import KeyValue, Segments, SegmentWrite, Space
from fsd.runtime.tcp import TcpNetwork
from fsd.wire.frame import Buffer

_LOCK = "lock"
SPACE_AGE_S = 0.05  # of a segment directory's free space


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def time_ns(self) -> int:
        return time.time_ns()


def real_runtime() -> Runtime:
    """The world as it is."""
    return Runtime(TcpNetwork(), SystemClock(), random.Random(int.from_bytes(os.urandom(8), "big")))


class LocalDirectory:
    """Implements fsd.runtime.storage.DataDirectory on a local directory, under an exclusive flock(2) until `aclose`."""

    def __init__(self, path: str) -> None:
        """Make the directory if needed and lock it. Raises DirectoryInUse, ConfigurationError."""
        self.name = os.path.abspath(path)
        self.syncs: dict[str, Histogram] = {}  # by store
        try:
            os.makedirs(self.name, mode=0o700, exist_ok=True)
            self._lock_fd = os.open(os.path.join(self.name, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(f"cannot use {self.name} as a data directory: {error.strerror}") from None
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._lock_fd, 32, 0).decode(errors="replace").strip()
            os.close(self._lock_fd)
            raise DirectoryInUse(
                f"{self.name} is in use by another server (process {owner or 'unknown'}); stop that one first"
            ) from None
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, b"%d\n" % os.getpid(), 0)

    def read_file(self, name: str) -> bytes | None:
        try:
            with open(os.path.join(self.name, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DiskFailed(f"cannot read {self.name}/{name}: {error.strerror}") from None

    async def write_file(self, name: str, data: bytes) -> None:
        await trio.to_thread.run_sync(self._replace, name, data)

    def _replace(self, name: str, data: bytes) -> None:
        path = os.path.join(self.name, name)
        try:
            with open(path + ".new", "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(path + ".new", path)
            _sync_directory(self.name)
        except OSError as error:
            raise _translate(error, path) from None

    async def set_aside(self, name: str) -> str:
        """Rename a damaged store so that a new one can take its place; the new name."""
        return await trio.to_thread.run_sync(self._set_aside, name)

    def _set_aside(self, name: str) -> str:
        number = 1
        while os.path.exists(os.path.join(self.name, f"{name}.damaged-{number}")):
            number += 1
        aside = f"{name}.damaged-{number}"
        if os.path.exists(os.path.join(self.name, name)):
            os.rename(os.path.join(self.name, name), os.path.join(self.name, aside))
            _sync_directory(self.name)
        return aside

    async def open_keyvalue(self, name: str, families: Sequence[str]) -> KeyValue:
        return RocksKeyValue(os.path.join(self.name, name), families, self._timed(name))

    async def open_segments(self, name: str, segment_size: int) -> Segments:
        return LocalSegments(os.path.join(self.name, name), segment_size, self._timed(name))

    def space(self) -> Space:
        try:
            stats = os.statvfs(self.name)
        except OSError as error:
            raise DiskFailed(f"cannot ask for the space of {self.name}: {error.strerror}") from None
        return Space(stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize)

    def _timed(self, name: str) -> Histogram:
        return self.syncs.setdefault(name, Histogram())

    async def aclose(self) -> None:
        os.close(self._lock_fd)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _translate(error: OSError, path: str) -> NoSpace | DiskFailed:
    kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else DiskFailed
    return kind(f"{path}: {error.strerror}")


class LocalSegments:
    """Implements fsd.runtime.storage.Segments with files `00000000`, `00000001`, … of `segment_size` bytes.

    Reads of cached pages are answered in the event loop (preadv2 with RWF_NOWAIT, a few microseconds), others by a
    thread. After the first failure everything raises DiskFailed (R12)."""

    def __init__(self, path: str, segment_size: int, syncs: Histogram | None = None) -> None:
        self._syncs = syncs or Histogram()
        self._path = path
        self.segment_size = segment_size
        self._failed: DiskFailed | None = None
        self._writer = trio.CapacityLimiter(1)
        self._readers = trio.CapacityLimiter(4)
        self._files: list[int] = []
        self._space = Space(0, 0)
        self._space_until = 0.0
        os.makedirs(path, mode=0o700, exist_ok=True)
        while os.path.exists(self._file_name(len(self._files))):
            name = self._file_name(len(self._files))
            if os.path.getsize(name) != segment_size:
                if os.path.exists(self._file_name(len(self._files) + 1)):
                    raise CorruptData(f"{name} has {os.path.getsize(name)} bytes instead of {segment_size}")
                os.unlink(name)  # a crash in the middle of `grow`: nothing was promised
                break
            self._files.append(os.open(name, os.O_RDWR | os.O_CLOEXEC))

    def _file_name(self, segment: int) -> str:
        return os.path.join(self._path, f"{segment:08d}")

    def count(self) -> int:
        return len(self._files)

    async def grow(self) -> int:
        self._check()
        fd = await trio.to_thread.run_sync(self._allocate, len(self._files), limiter=self._writer)
        self._files.append(fd)
        self._space_until = 0.0
        return len(self._files) - 1

    def _allocate(self, segment: int) -> int:
        name = self._file_name(segment)
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self.segment_size)
            os.fsync(fd)
            _sync_directory(self._path)
            return fd
        except OSError as error:
            os.close(fd)
            os.unlink(name)
            raise _translate(error, name) from None

    async def read(self, segment: int, offset: int, length: int) -> Buffer:
        self._check()
        fd = self._files[segment]
        buffer = bytearray(length)
        try:
            if os.preadv(fd, [buffer], offset, os.RWF_NOWAIT) == length:
                return buffer
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL):
                raise self._fail(DiskFailed(f"{self._file_name(segment)}: {error.strerror}")) from None
        return await trio.to_thread.run_sync(self._read_cold, segment, offset, length, limiter=self._readers)

    def _read_cold(self, segment: int, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._files[segment], length, offset)
        except OSError as error:
            raise self._fail(DiskFailed(f"{self._file_name(segment)}: {error.strerror}")) from None
        if len(data) != length:
            raise self._fail(DiskFailed(f"{self._file_name(segment)}: {len(data)} of {length} bytes read at {offset}"))
        return data

    async def write(self, writes: Sequence[SegmentWrite]) -> None:
        self._check()
        if writes:
            with trio.CancelScope(shield=True):  # a write that was begun is finished: its thread cannot be stopped
                began = time.monotonic()
                await trio.to_thread.run_sync(self._write_all, writes, limiter=self._writer)
                self._syncs.add(time.monotonic() - began)

    def _write_all(self, writes: Sequence[SegmentWrite]) -> None:
        touched: set[int] = set()
        try:
            for segment, offset, data in writes:
                touched.add(segment)
                written = os.pwrite(self._files[segment], data, offset)
                if written != len(data):
                    raise self._fail(DiskFailed(f"{self._file_name(segment)}: wrote {written} of {len(data)} bytes"))
            for segment in sorted(touched):
                os.fdatasync(self._files[segment])
        except OSError as error:
            raise self._fail(DiskFailed(f"{self._path}: {error.strerror}")) from None

    def space(self) -> Space:
        """As it was at most SPACE_AGE_S ago: every write asks, and the answer takes 20 us."""
        now = time.monotonic()
        if now >= self._space_until:
            stats = os.statvfs(self._path)
            self._space = Space(stats.f_blocks * stats.f_frsize, stats.f_bavail * stats.f_frsize)
            self._space_until = now + SPACE_AGE_S
        return self._space

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _fail(self, error: DiskFailed) -> DiskFailed:
        if self._failed is None:
            self._failed = error
        return error

    async def aclose(self) -> None:
        for fd in self._files:
            os.close(fd)
