"""A machine's disk: what is written is lost, kept or torn at a crash unless it was synced; it can fail, fill up and rot.

The `Disk` outlives processes. A process opens a `SimDirectory` on it; handles of a dead process raise and change nothing.

    key-value   batches since the last sync are kept up to some point and lost after it (a log keeps a prefix)
    segments    a write under way at a crash is torn: each 4 KiB of it is old or new
    files       replaced atomically; a replacement under way happened or did not
"""

import bisect
from collections.abc import Sequence
from random import Random
from typing import Any

import trio

from fsd.core.errors import CorruptData, DirectoryInUse, DiskFailed, NoSpace
from fsd.runtime.storage import KeyChange, SegmentWrite, Space
from tests.simulation.kernel import Bell, Kernel

SECTOR = 4096


class Disk:
    """What survives. `capacity_bytes` bounds the segments; `failing` makes the next writes and syncs fail (EIO)."""

    def __init__(self, kernel: Kernel, random: Random, name: str, capacity_bytes: int = 1 << 40) -> None:
        self.kernel = kernel
        self.random = random
        self.name = name
        self.capacity_bytes = capacity_bytes
        self.failing = False
        self.slowness = 1.0
        self.files: dict[str, bytes] = {}
        self.stores: dict[str, _Store] = {}
        self.segments: dict[str, _SegmentFiles] = {}
        self.holder: Any = None

    def latency(self) -> float:
        return self.random.uniform(0.0002, 0.003) * self.slowness

    def crash(self, *, power: bool) -> None:
        """The process or the machine died. Without loss of power the operating system mostly still writes all."""
        self.failing = False
        self.holder = None
        for store in self.stores.values():
            store.crash(self.random, lose=power or self.random.random() < 0.3)
        for files in self.segments.values():
            files.crash(self.random, lose=power or self.random.random() < 0.3)

    def flip_bit(self) -> str | None:
        """Damage one bit of written segment data; where, or None if there is none yet."""
        candidates = [(name, index) for name, files in sorted(self.segments.items()) for index in sorted(files.touched)]
        if not candidates:
            return None
        name, (segment, sector) = self.random.choice(candidates)
        data = self.segments[name].data[segment]
        offset = sector * SECTOR + self.random.randrange(SECTOR)
        data[offset] ^= 1 << self.random.randrange(8)
        return f"{name}/{segment}+{offset}"

    def damage_store(self) -> str | None:
        """Make one key-value store open as CorruptData from now on."""
        names = sorted(self.stores)
        if not names:
            return None
        name = self.random.choice(names)
        self.stores[name].damaged = True
        return name


class _Store:
    """One key-value store's contents, with what is needed to undo the batches that are not synced."""

    def __init__(self) -> None:
        self.damaged = False
        self.tables: dict[str, dict[bytes, bytes]] = {}
        self.keys: dict[str, list[bytes]] = {}
        self.applied = 0
        self.durable = 0
        self.undo: list[list[tuple[str, bytes, bytes | None]]] = []  # of batches durable + 1 .. applied

    def put(self, family: str, key: bytes, value: bytes | None) -> bytes | None:
        """Returns what was there."""
        table = self.tables[family]
        old = table.get(key)
        if value is None:
            if old is not None:
                del table[key]
                keys = self.keys[family]
                del keys[bisect.bisect_left(keys, key)]
        else:
            if old is None:
                bisect.insort(self.keys[family], key)
            table[key] = value
        return old

    def apply(self, changes: Sequence[KeyChange]) -> int:
        self.undo.append([(family, key, self.put(family, key, value)) for family, key, value in changes])
        self.applied += 1
        return self.applied

    def settle(self, sequence: int) -> None:
        """All up to `sequence` is on disk."""
        if sequence > self.durable:
            del self.undo[: sequence - self.durable]
            self.durable = sequence

    def crash(self, random: Random, *, lose: bool) -> None:
        kept = random.randint(0, len(self.undo)) if lose else len(self.undo)
        while len(self.undo) > kept:
            for family, key, old in reversed(self.undo.pop()):
                self.put(family, key, old)
            self.applied -= 1
        self.settle(self.applied)


class _SegmentFiles:
    def __init__(self, segment_size: int) -> None:
        self.segment_size = segment_size
        self.data: list[bytearray] = []
        self.touched: set[tuple[int, int]] = set()  # (segment, sector) that was ever written
        self.under_way: list[Sequence[tuple[int, int, bytes]]] = []

    def put(self, segment: int, offset: int, data: bytes) -> None:
        self.data[segment][offset : offset + len(data)] = data
        for sector in range(offset // SECTOR, (offset + len(data) + SECTOR - 1) // SECTOR):
            self.touched.add((segment, sector))

    def crash(self, random: Random, *, lose: bool) -> None:
        for writes in self.under_way:
            for segment, offset, data in writes:
                for start in range(0, len(data), SECTOR):
                    if not lose or random.random() < 0.5:
                        self.put(segment, offset + start, data[start : start + SECTOR])
        self.under_way.clear()


class _Handle:
    """What a process holds on the disk; useless once it is dead or the disk failed under it."""

    def __init__(self, disk: Disk, process: Any) -> None:
        self._disk = disk
        self._process = process
        self._broken: str | None = None

    def check(self) -> None:
        if self._process is not None and not self._process.alive:
            raise DiskFailed(f"{self._disk.name}: this process is dead")
        if self._broken:
            raise DiskFailed(self._broken)

    def check_write(self) -> None:
        self.check()
        if self._disk.failing:
            self._broken = f"{self._disk.name}: injected EIO"
            raise DiskFailed(self._broken)

    async def delay(self) -> None:
        await trio.sleep(self._disk.latency())
        self.check()


class SimKeyValue(_Handle):
    def __init__(self, disk: Disk, process: Any, store: _Store) -> None:
        super().__init__(disk, process)
        self._store = store
        self._bell = Bell()
        self._syncing = False

    def get(self, family: str, key: bytes) -> bytes | None:
        self.check()
        return self._store.tables[family].get(bytes(key))

    def scan(self, family: str, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        self.check()
        return _scan(self._store.keys[family], self._store.tables[family], start, end, limit)

    def freeze(self) -> "SimFrozen":
        self.check()
        tables = {name: dict(table) for name, table in self._store.tables.items()}
        return SimFrozen(self, {name: list(keys) for name, keys in self._store.keys.items()}, tables)

    def apply(self, changes: Sequence[KeyChange]) -> int:
        self.check()
        ready = [
            KeyChange(family, bytes(key), None if value is None else bytes(value)) for family, key, value in changes
        ]
        return self._store.apply(ready)

    async def durable(self, sequence: int | None = None) -> None:
        self.check()
        wanted = self._store.applied if sequence is None else sequence
        if wanted <= self._store.durable:
            await trio.lowlevel.checkpoint()
            return
        while wanted > self._store.durable:
            if not self._syncing:
                self._sync()
            await self._bell.wait()
            self.check()

    def _sync(self) -> None:
        self._syncing = True
        self._disk.kernel.after(self._disk.latency(), self._synced, self._store.applied)

    def _synced(self, sequence: int) -> None:
        self._syncing = False
        if self._process is not None and not self._process.alive:
            return
        if self._disk.failing:
            self._broken = f"{self._disk.name}: injected EIO"
        else:
            self._store.settle(sequence)
        self._bell.ring()

    @property
    def applied_sequence(self) -> int:
        return self._store.applied

    @property
    def durable_sequence(self) -> int:
        return self._store.durable

    async def aclose(self) -> None:
        if self._broken is None and (self._process is None or self._process.alive):
            await self.durable()
        self._broken = self._broken or f"{self._disk.name}: closed"


class SimFrozen:
    def __init__(self, of: SimKeyValue, keys: dict[str, list[bytes]], tables: dict[str, dict[bytes, bytes]]) -> None:
        self._of = of
        self._keys = keys
        self._tables = tables

    def scan(self, family: str, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        self._of.check()
        return _scan(self._keys[family], self._tables[family], start, end, limit)

    def close(self) -> None:
        self._keys, self._tables = {}, {}


def _scan(
    keys: list[bytes], table: dict[bytes, bytes], start: bytes, end: bytes, limit: int
) -> list[tuple[bytes, bytes]]:
    first, last = bisect.bisect_left(keys, start), bisect.bisect_left(keys, end)
    return [(key, table[key]) for key in keys[first : min(last, first + limit)]]


class SimSegments(_Handle):
    def __init__(self, disk: Disk, process: Any, files: _SegmentFiles) -> None:
        super().__init__(disk, process)
        self._files = files
        self.segment_size = files.segment_size

    def count(self) -> int:
        return len(self._files.data)

    async def grow(self) -> int:
        self.check_write()
        await self.delay()
        self.check_write()
        if (len(self._files.data) + 1) * self.segment_size > self._disk.capacity_bytes:
            raise NoSpace(f"{self._disk.name}: no room for one more segment")
        self._files.data.append(bytearray(self.segment_size))
        return len(self._files.data) - 1

    async def read(self, segment: int, offset: int, length: int) -> bytes:
        self.check()
        if self._disk.random.random() < 0.2:
            await self.delay()  # not cached
        else:
            await trio.lowlevel.checkpoint()
            self.check()
        assert 0 <= offset <= offset + length <= self.segment_size
        return bytes(self._files.data[segment][offset : offset + length])

    async def write(self, writes: Sequence[SegmentWrite]) -> None:
        self.check_write()
        ready = [(segment, offset, bytes(data)) for segment, offset, data in writes]
        for segment, offset, data in ready:
            assert 0 <= segment < len(self._files.data)
            assert 0 <= offset <= offset + len(data) <= self.segment_size
        self._files.under_way.append(ready)
        try:
            with trio.CancelScope(shield=True):  # as a thread's write: it goes on when its waiter is cancelled
                await trio.sleep(self._disk.latency())
        finally:
            if self._process is None or self._process.alive:
                self._files.under_way.remove(ready)
                if not self._disk.failing:
                    for piece in ready:
                        self._files.put(*piece)
        self.check_write()

    def space(self) -> Space:
        total = self._disk.capacity_bytes
        return Space(total, total - len(self._files.data) * self.segment_size)

    async def aclose(self) -> None:
        self._broken = self._broken or f"{self._disk.name}: closed"


class SimDirectory(_Handle):
    """The DataDirectory of one process. Raises DirectoryInUse while another live process has it."""

    def __init__(self, disk: Disk, process: Any) -> None:
        super().__init__(disk, process)
        if disk.holder is not None:
            raise DirectoryInUse(f"{disk.name} is in use")
        disk.holder = process or self
        self.name = disk.name

    def space(self) -> Space:
        """Of small things; a full disk is one without room for segments."""
        self.check()
        return Space(1 << 40, 1 << 40)

    def read_file(self, name: str) -> bytes | None:
        self.check()
        return self._disk.files.get(name)

    async def write_file(self, name: str, data: bytes) -> None:
        self.check_write()
        if self._disk.random.random() < 0.5:
            await self.delay()
            self._disk.files[name] = bytes(data)
        else:
            self._disk.files[name] = bytes(data)
            await self.delay()
        self.check_write()

    async def set_aside(self, name: str) -> str:
        self.check_write()
        await self.delay()
        number = 1
        while f"{name}.damaged-{number}" in self._disk.stores or f"{name}.damaged-{number}" in self._disk.segments:
            number += 1
        aside = f"{name}.damaged-{number}"
        if name in self._disk.stores:
            self._disk.stores[aside] = self._disk.stores.pop(name)
        if name in self._disk.segments:
            self._disk.segments[aside] = self._disk.segments.pop(name)
        return aside

    async def open_keyvalue(self, name: str, families: Sequence[str]) -> SimKeyValue:
        self.check()
        await self.delay()
        store = self._disk.stores.setdefault(name, _Store())
        if store.damaged:
            raise CorruptData(f"{self._disk.name}/{name} does not hold all that was promised")
        for family in families:
            store.tables.setdefault(family, {})
            store.keys.setdefault(family, [])
        return SimKeyValue(self._disk, self._process, store)

    async def open_segments(self, name: str, segment_size: int) -> SimSegments:
        self.check()
        await self.delay()
        files = self._disk.segments.setdefault(name, _SegmentFiles(segment_size))
        assert files.segment_size == segment_size
        return SimSegments(self._disk, self._process, files)

    async def aclose(self) -> None:
        if self._disk.holder is (self._process or self):
            self._disk.holder = None
        self._broken = self._broken or f"{self._disk.name}: closed"
