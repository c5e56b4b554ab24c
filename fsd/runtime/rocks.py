"""RocksDB through rocksdict, with the guards that its recovery needs. The only importer of rocksdict.

Measured with rocksdict 0.3.29: the default WAL recovery opened silently with 500 of 1,000 synced keys after one flipped
bit; with the WAL removed it opened "clean" and empty; `items`, `keys` and `values` end early without an exception on a
damaged block. So:

- recovery mode `tolerate_corrupted_tail_records`: only a torn tail, which was never promised, is dropped;
- every batch carries (sequence, running checksum over all batches) under the key `chain`; the file `floor` beside the
  database holds a sequence that is certainly durable. A database that opens with less than that has lost what it had
  promised, and is refused (CorruptData);
- scans use RdictIter with `status()` and nothing else;
- any error ends the store (R12): a failed sync is never tried again.

Group commit: `apply` writes without a sync, in the event loop (4 us); `durable` lets one waiter sync the WAL in a thread
for all that was applied until then (threads that sync each for themselves did 882 writes a second, grouped ones 3,790).

    floor   magic 8, sequence u64, crc32 of both u32
    chain   sequence u64, running crc32 u32           (key "chain" of the default family)
"""

import os
import struct
import time
import zlib
from collections.abc import Callable, Sequence

import trio
from rocksdict import (
    AccessType,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
)

from fsd.core.errors import CorruptData, DiskFailed
from fsd.core.histogram import Histogram
from fsd.core.units import MIB
from fsd.runtime.storage import KeyChange

_CHAIN_KEY = b"chain"
_CHAIN = struct.Struct(">QI")
_FLOOR = struct.Struct(">8sQI")
_FLOOR_MAGIC = b"fsdfloor"
FLOOR_EVERY_SYNCS = 64
FLOOR_EVERY_S = 1.0

_WRITE_BUFFER = 32 * MIB
_MAX_WAL = 256 * MIB


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
    options.set_paranoid_checks(True)
    options.set_write_buffer_size(_WRITE_BUFFER)
    options.set_max_total_wal_size(_MAX_WAL)
    options.set_keep_log_file_num(2)
    options.set_max_background_jobs(2)
    return options


def _translate(error: Exception, path: str) -> CorruptData | DiskFailed:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    kind = CorruptData if "orruption" in text else DiskFailed
    return kind(f"{path}: {text[:300]}")


def _collect(iterator: RdictIter, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
    """The upper bound of ReadOptions only spares RocksDB work; the end is looked at here."""
    found: list[tuple[bytes, bytes]] = []
    iterator.seek(start)
    while len(found) < limit and iterator.valid():
        key = iterator.key()
        if key >= end:
            break
        found.append((key, iterator.value()))
        iterator.next()
    iterator.status()
    return found


class RocksFrozen:
    """Implements fsd.runtime.storage.Frozen. An iterator of RocksDB sees what was there when it was made; iterators of
    rocksdict's Snapshot do not (0.3.29). They keep the database open, and with it its lock, until `close`."""

    def __init__(self, iterators: dict[str, RdictIter], fail: Callable[[Exception], CorruptData | DiskFailed]) -> None:
        self._iterators = iterators
        self._fail = fail

    def scan(self, family: str, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        try:
            return _collect(self._iterators[family], start, end, limit)
        except Exception as error:
            raise self._fail(error) from None

    def close(self) -> None:
        self._iterators.clear()


class RocksKeyValue:
    """Implements fsd.runtime.storage.KeyValue. One instance, in one process, owns the directory."""

    def __init__(self, path: str, families: Sequence[str], syncs: Histogram | None = None) -> None:
        """Open or create. `syncs` learns how long each sync takes. Raises CorruptData or DiskFailed."""
        self.path = path
        self._sync_times = syncs or Histogram()
        os.makedirs(path, exist_ok=True)
        self._failed: DiskFailed | None = None
        self._syncing: trio.Event | None = None
        self._limiter = trio.CapacityLimiter(1)
        self._syncs = 0
        self._floor_time = 0.0
        try:
            self._db = Rdict(path, _options(), {family: _options() for family in families}, AccessType.read_write())
            self._families = {family: self._db.get_column_family(family) for family in families}
            self._handles = {family: self._db.get_column_family_handle(family) for family in families}
            chain = self._db.get(_CHAIN_KEY)
        except Exception as error:
            raise _translate(error, path) from None
        self._applied, self._sum = _CHAIN.unpack(chain) if isinstance(chain, bytes) else (0, 0)
        self._floor_fd = os.open(os.path.join(path, "floor"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._check_floor()
        except CorruptData:
            self._close()
            raise
        self._durable = self._applied

    def _check_floor(self) -> None:
        data = os.pread(self._floor_fd, _FLOOR.size, 0)
        if not data:
            return
        if len(data) != _FLOOR.size:
            raise CorruptData(f"{self.path}/floor is cut short")
        magic, sequence, checksum = _FLOOR.unpack(data)
        if magic != _FLOOR_MAGIC or checksum != zlib.crc32(data[:16]):
            raise CorruptData(f"{self.path}/floor is damaged")
        if self._applied < sequence:
            raise CorruptData(
                f"{self.path} holds batches up to {self._applied}, but {sequence} was promised to be durable: "
                "part of its write-ahead log is missing"
            )

    def get(self, family: str, key: bytes) -> bytes | None:
        try:
            return self._families[family].get(key)
        except Exception as error:
            raise self._fail(error) from None

    def scan(self, family: str, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """At most `limit` pairs with start <= key < end. Never ends early on damage: that raises CorruptData."""
        try:
            bounds = ReadOptions()
            bounds.set_iterate_upper_bound(end)
            return _collect(self._families[family].iter(bounds), start, end, limit)
        except Exception as error:
            raise self._fail(error) from None

    def freeze(self) -> "RocksFrozen":
        """An iterator of each family; all of one moment, because nothing is applied but by the event loop."""
        if self._failed is not None:
            raise self._failed
        try:
            iterators = {name: self._families[name].iter() for name in self._families}
        except Exception as error:
            raise self._fail(error) from None
        return RocksFrozen(iterators, self._fail)

    def apply(self, changes: Sequence[KeyChange]) -> int:
        """One atomic batch: visible at once, on disk after `durable`."""
        if self._failed is not None:
            raise self._failed
        batch = WriteBatch(raw_mode=True)
        checksum = self._sum
        for family, key, value in changes:
            checksum = zlib.crc32(key, checksum)
            if value is None:
                batch.delete(key, self._handles[family])
            else:
                checksum = zlib.crc32(value, checksum)
                batch.put(key, value, self._handles[family])
        batch.put(_CHAIN_KEY, _CHAIN.pack(self._applied + 1, checksum))
        try:
            self._db.write(batch)
        except Exception as error:
            raise self._fail(error) from None
        self._applied += 1
        self._sum = checksum
        return self._applied

    async def durable(self, sequence: int | None = None) -> None:
        """Return when batch `sequence` (default: the last applied) is on stable storage. One sync serves many waiters."""
        target = self._applied if sequence is None else sequence
        while self._durable < target:
            if self._failed is not None:
                raise self._failed
            if self._syncing is not None:
                await self._syncing.wait()
                continue
            self._syncing = trio.Event()
            covered = self._applied
            try:
                with trio.CancelScope(shield=True):
                    began = time.monotonic()
                    await trio.to_thread.run_sync(self._sync, covered, limiter=self._limiter)
                    self._sync_times.add(time.monotonic() - began)
                self._durable = covered
            except Exception as error:
                raise self._fail(error) from None
            finally:
                self._syncing.set()
                self._syncing = None

    @property
    def applied_sequence(self) -> int:
        return self._applied

    @property
    def durable_sequence(self) -> int:
        return self._durable

    async def aclose(self) -> None:
        """Sync, remember the exact floor, close."""
        with trio.CancelScope(shield=True):
            if self._failed is None:
                await self.durable()
                await trio.to_thread.run_sync(self._write_floor, self._durable, limiter=self._limiter)
            self._families.clear()  # they keep the database, and with it its lock
            self._handles.clear()
            self._close()

    def _close(self) -> None:
        for family in [
            self._families.pop(name) for name in list(self._families)
        ]:  # the database stays locked while one of these is open
            family.close()
        self._db.close()
        os.close(self._floor_fd)

    def _sync(self, covered: int) -> None:
        self._db.flush_wal(True)
        self._syncs += 1
        now = time.monotonic()
        if self._syncs % FLOOR_EVERY_SYNCS == 0 or now - self._floor_time >= FLOOR_EVERY_S:
            self._write_floor(covered)
            self._floor_time = now

    def _write_floor(self, sequence: int) -> None:
        body = struct.pack(">8sQ", _FLOOR_MAGIC, sequence)
        os.pwrite(self._floor_fd, body + struct.pack(">I", zlib.crc32(body)), 0)
        os.fdatasync(self._floor_fd)

    def _fail(self, error: Exception) -> CorruptData | DiskFailed:
        translated = _translate(error, self.path)
        if isinstance(translated, DiskFailed) and self._failed is None:
            self._failed = translated
        return translated
