"""The bytes of one disk: an index in a key-value store, blocks in segment files.

    change   = prepare (read and verify what stays, allocate) ── commit (write blocks, synced ── guard ── publish) ── durable
    publish  = one index batch: the record, patches, the in-flight entry, entries that are settled

A referenced block is never overwritten: new bytes go to free blocks, and a freed block is used again only when the batch
that freed it is durable. So a torn write hits nothing that anybody reads. Preparing and committing one chunk happens under
its lock (`locked`); reading needs none: a read whose record has changed meanwhile says so, and is done again.

`guard` runs in the same synchronous step as the batch: what it checks still holds when the change becomes visible.
Cancelled before that step, a change leaves nothing; after it, everything.
"""

import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Never

import trio

from chunkserver.blocks import FreeBlocks
from chunkserver.index import (
    CHUNK,
    FAMILIES,
    FLIGHT,
    PATCH,
    BlockEntry,
    ChunkRecord,
    chunk_key,
    decode_order,
    decode_record,
    encode_order,
    encode_record,
    group_range,
    key_after,
    parse_chunk_key,
    patch_key,
    summarize,
    valid_length,
)
from chunkserver.layout import (
    EMPTY,
    Plan,
    begin,
    blocks_needed,
    cut_block,
    plan_truncate,
    plan_whole,
    plan_write,
)
from chunkserver.locks import KeyedLocks
from fsd.core.checksum import block_checksums
from fsd.core.errors import BadChecksum, CorruptData, DiskFailed, FsError, InvalidArgument, NoSpace
from fsd.core.ids import NO_ORDER, ChunkId, Order, PgEpoch, PgId
from fsd.core.units import BLOCK_SIZE, MIB
from fsd.protocol.chunk import AppliedRequest, Change, ChunkList, ChunkSummary
from fsd.runtime.storage import DataDirectory, KeyChange, KeyValue, Segments, SegmentWrite
from fsd.wire.frame import Buffer

log = logging.getLogger(__name__)

SEGMENT_SIZE = 256 * MIB
MAX_WRITE_BYTES = 32 * MIB  # gathered into one synced write of the segments
MAX_QUEUED_WRITES = 256
FORGET_AT_ONCE = 64  # settled in-flight entries removed along with one change
SCAN_PAGE = 1000

Guard = Callable[[], None]


def no_guard() -> None:
    """For changes that are right whatever happens meanwhile."""


class Snapshot(NamedTuple):
    """A chunk as it was at one moment. `record` is None if there was none."""

    pg: PgId
    chunk: ChunkId
    raw: bytes | None
    record: ChunkRecord | None

    @property
    def order(self) -> Order:
        return self.record.order if self.record else NO_ORDER

    @property
    def length(self) -> int:
        return self.record.length if self.record else 0

    @property
    def requests(self) -> tuple[AppliedRequest, ...]:
        return self.record.requests if self.record else ()


class ChunkBytes(NamedTuple):
    data: Buffer
    checksums: tuple[int, ...]


@dataclass(slots=True)
class Prepared:
    """A change with its blocks allocated. `plan` None removes the chunk."""

    before: Snapshot
    plan: Plan | None
    blocks: list[int]


@dataclass(slots=True)
class _Queued:
    writes: list[SegmentWrite]
    size: int
    done: trio.Event = field(default_factory=trio.Event)
    error: FsError | None = None


class ChunkStore:
    """Made by `open_store`; `run` is its writer task."""

    def __init__(self, keyvalue: KeyValue, segments: Segments, reserve_bytes: int) -> None:
        self._keyvalue = keyvalue
        self._segments = segments
        self._reserve_bytes = reserve_bytes
        self._locks = KeyedLocks()
        self._blocks = FreeBlocks(segments.segment_size // BLOCK_SIZE)
        for _ in range(segments.count()):
            self._blocks.add_segment()
        self._growing = trio.Lock()
        self._queue: list[_Queued] = []
        self._queue_room = trio.Semaphore(MAX_QUEUED_WRITES)
        self._work = trio.Event()
        self._freed: list[tuple[int, list[int]]] = []  # (sequence of the batch that freed them, blocks)
        self._stopped = False
        self._failure: DiskFailed | None = None
        self._flight: dict[PgId, dict[ChunkId, Order]] = {}
        self.chunks = 0
        self.read_bytes = 0
        self.written_bytes = 0

    async def load(self) -> None:
        """Read the whole index: which blocks are used, what is in flight. Raises CorruptData if anything does not fit."""
        start, end = b"", b"\xff" * 20
        while True:
            page = self._keyvalue.scan(CHUNK, start, end, SCAN_PAGE)
            for key, value in page:
                self._load_chunk(key, decode_record(value))
            if len(page) < SCAN_PAGE:
                break
            start = page[-1][0] + b"\0"
            await trio.lowlevel.checkpoint()
        self._load_flight(end)

    def _load_chunk(self, key: bytes, record: ChunkRecord) -> None:
        if len(record.blocks) != -(-record.length // BLOCK_SIZE):
            raise CorruptData(
                f"chunk {parse_chunk_key(key)[1]} of {record.length} bytes has {len(record.blocks)} blocks"
            )
        self.chunks += 1
        for entry in record.blocks:
            if entry.location and not self._blocks.mark_used(entry.location - 1):
                raise CorruptData(
                    f"block {entry.location - 1} of chunk {parse_chunk_key(key)[1]} is missing or used twice"
                )

    def _load_flight(self, end: bytes) -> None:
        start = b""
        while True:
            page = self._keyvalue.scan(FLIGHT, start, end, SCAN_PAGE)
            for key, value in page:
                pg, chunk = parse_chunk_key(key)
                self._flight.setdefault(pg, {})[chunk] = decode_order(value)
            if len(page) < SCAN_PAGE:
                return
            start = page[-1][0] + b"\0"

    # --- looking ------------------------------------------------------------------------------------------------------

    def look(self, pg: PgId, chunk: ChunkId) -> Snapshot:
        """The chunk as it is now, durable or not."""
        raw = self._keyvalue.get(CHUNK, chunk_key(pg, chunk))
        return Snapshot(pg, chunk, raw, None if raw is None else decode_record(raw))

    def is_current(self, snapshot: Snapshot) -> bool:
        return self._keyvalue.get(CHUNK, chunk_key(snapshot.pg, snapshot.chunk)) == snapshot.raw

    def page(self, pg: PgId, after: ChunkId, limit: int) -> ChunkList:
        """At most `limit` chunks after `after`, in order."""
        _, end = group_range(pg)
        page = self._keyvalue.scan(CHUNK, key_after(pg, after), end, limit)
        found = [summarize(parse_chunk_key(key)[1], decode_record(value)) for key, value in page]
        return ChunkList(tuple(found), end=len(page) < limit)

    def summary(self, pg: PgId, chunk: ChunkId) -> ChunkSummary | None:
        snapshot = self.look(pg, chunk)
        return summarize(chunk, snapshot.record) if snapshot.record else None

    def in_flight(self, pg: PgId) -> dict[ChunkId, Order]:
        """Chunks whose last change perhaps not all members have. Not to be changed."""
        return self._flight.get(pg, {})

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """R12: the first failure of the disk, whoever meets it, ends `run` and with it the server."""
        try:
            yield
        except DiskFailed as error:
            self._failure = self._failure or error
            self._work.set()
            raise

    async def durable(self) -> None:
        """Everything that is visible now is on stable storage."""
        with self._disk():
            await self._keyvalue.durable()
        self._reuse_freed()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def read(self, snapshot: Snapshot, offset: int, length: int) -> ChunkBytes | None:
        """Verified bytes of [offset, offset + length), as far as the chunk reaches; `offset` a multiple of BLOCK_SIZE.

        None if the chunk changed meanwhile. Raises CorruptData."""
        record = snapshot.record
        if offset % BLOCK_SIZE or length < 0:
            raise InvalidArgument(f"cannot read {length} bytes at {offset}: not at a block boundary")
        if record is None or offset >= record.length:
            return ChunkBytes(b"", ())
        end = min(offset + length, record.length)
        first, last = offset // BLOCK_SIZE, -(-end // BLOCK_SIZE)
        try:
            data = await self._read_blocks(snapshot, record, first, last)
        except CorruptData:
            if self.is_current(snapshot):
                raise
            return None
        if not self.is_current(snapshot):
            return None
        self.read_bytes += end - offset
        checksums = [entry.checksum for entry in record.blocks[first:last]]
        if len(data) > end - offset:
            data = memoryview(data)[: end - offset]
            checksums[-1] = zlib.crc32(data[(last - 1 - first) * BLOCK_SIZE :])
        return ChunkBytes(data, tuple(checksums))

    async def _read_blocks(self, snapshot: Snapshot, record: ChunkRecord, first: int, last: int) -> Buffer:
        runs = _runs(record, first, last, self._blocks.per_segment)
        if len(runs) == 1:
            return await self._read_run(snapshot, record, *runs[0])
        result = bytearray()
        for run_first, run_last, plain in runs:
            result += await self._read_run(snapshot, record, run_first, run_last, plain)
        return result

    async def _read_run(self, snapshot: Snapshot, record: ChunkRecord, first: int, last: int, plain: bool) -> Buffer:
        if not plain:
            return await self._compose(snapshot, record, first)
        segment, offset = self._place(record.blocks[first].location)
        length = (last - 1 - first) * BLOCK_SIZE + record.valid_length(last - 1)
        with self._disk():
            data = await self._segments.read(segment, offset, length)
        verify_blocks(data, [entry.checksum for entry in record.blocks[first:last]], snapshot.chunk)
        return data

    async def _compose(self, snapshot: Snapshot, record: ChunkRecord, index: int) -> bytearray:
        """The bytes of a block that has patches, a zero tail or no place."""
        entry = record.blocks[index]
        content = bytearray(record.valid_length(index))
        if entry.location:
            with self._disk():
                stored = await self._segments.read(*self._place(entry.location), entry.stored)
            if zlib.crc32(stored) != entry.stored_checksum:
                raise CorruptData(f"block {index} of chunk {snapshot.chunk} fails its checksum")
            content[: len(stored)] = stored
        key = chunk_key(snapshot.pg, snapshot.chunk)
        for patch in record.patches:
            if patch.offset // BLOCK_SIZE == index:
                data = self._keyvalue.get(PATCH, patch_key(key, patch.serial))
                if data is None or zlib.crc32(data) != patch.checksum:
                    raise CorruptData(
                        f"patch {patch.serial} of chunk {snapshot.chunk} is missing or fails its checksum"
                    )
                start = patch.offset % BLOCK_SIZE
                content[start : start + len(data)] = data
        if zlib.crc32(content) != entry.checksum:
            raise CorruptData(f"block {index} of chunk {snapshot.chunk} with its patches fails its checksum")
        return content

    def _place(self, location: int) -> tuple[int, int]:
        segment, block = divmod(location - 1, self._blocks.per_segment)
        return segment, block * BLOCK_SIZE

    # --- changing -----------------------------------------------------------------------------------------------------

    def locked(self, pg: PgId, chunk: ChunkId) -> AbstractAsyncContextManager[None]:
        """Hold it over `prepare` and `commit` of this chunk."""
        return self._locks.hold((pg, chunk))

    async def prepare(
        self,
        pg: PgId,
        chunk: ChunkId,
        change: Change | None,
        offset: int = 0,
        length: int = 0,
        data: Buffer = b"",
        checksums: Sequence[int] = (),
        *,
        reserve_share: float = 1.0,
    ) -> Prepared:
        """Everything that can refuse a change: BadChecksum, CorruptData (of what stays), NoSpace. None changes no bytes.

        `reserve_share`: how much of the reserve must stay free; the servers' own changes may go deeper."""
        before = self.look(pg, chunk)
        record = before.record or EMPTY
        match change:
            case Change.REMOVE:
                return Prepared(before, None, [])
            case None:
                return Prepared(before, begin(record) if before.record else None, [])
            case Change.TRUNCATE if length == 0 or before.record is None:
                return Prepared(before, None, [])
            case Change.TRUNCATE:
                cut = cut_block(record, length)
                contents = {} if cut is None else {cut: await self._compose(before, record, cut)}
                plan = plan_truncate(record, contents, length)
                reserve_share = 0.0
            case Change.WHOLE:
                verify_pieces(data, 0, checksums)
                plan = plan_whole(record, data, checksums)
            case Change.WRITE:
                verify_pieces(data, offset, checksums)
                needed = blocks_needed(record, offset, len(data))
                contents = {index: await self._compose(before, record, index) for index in needed}
                plan = plan_write(record, contents, offset, data, checksums)
        return Prepared(before, plan, await self._allocate(plan, reserve_share))

    async def _allocate(self, plan: Plan, reserve_share: float) -> list[int]:
        patch_bytes = sum(len(data) for _, data in plan.patch_data)
        count = len(plan.writes)
        if count or patch_bytes:
            self._check_space(count * BLOCK_SIZE + patch_bytes, reserve_share)
        if not count:
            return []
        while True:
            blocks = self._blocks.allocate(count)
            if blocks is not None:
                break
            self._reuse_freed()
            async with self._growing:
                if self._blocks.free < count:
                    with self._disk():
                        await self._segments.grow()
                    self._blocks.add_segment()
        for (index, _), block in zip(plan.writes, blocks, strict=True):
            plan.blocks[index] = plan.blocks[index]._replace(location=block + 1)
        return blocks

    def _check_space(self, wanted: int, reserve_share: float) -> None:
        """Refuse early (R12): after this nothing may fail for want of space."""
        free = self.free_bytes()
        if free - wanted < self._reserve_bytes * reserve_share:
            raise NoSpace(
                f"{wanted} bytes wanted, {free} free, {int(self._reserve_bytes * reserve_share)} kept in reserve"
            )

    def free_bytes(self) -> int:
        return self._blocks.free * BLOCK_SIZE + self._segments.space().free_bytes

    def total_bytes(self) -> int:
        return self._segments.space().total_bytes

    def abandon(self, prepared: Prepared) -> None:
        """Give the blocks of a change that will not be committed back."""
        for block in prepared.blocks:
            self._blocks.release(block)
        prepared.blocks = []

    async def commit(
        self,
        prepared: Prepared,
        order: Order,
        requests: tuple[AppliedRequest, ...],
        *,
        guard: Guard = no_guard,
        flight: bool = True,
        settled: Order = NO_ORDER,
    ) -> int:
        """Write, then publish; the change is visible on return and durable after `durable()`. Returns its sequence.

        `flight`: remember the chunk as in flight. `settled`: entries of its epoch up to it may be forgotten. Raises what
        `guard` raises; then, as when cancelled, nothing has happened."""
        try:
            if prepared.blocks:
                await self._write_blocks(prepared)
            guard()
        except BaseException:
            self.abandon(prepared)
            raise
        return self._publish(prepared, order, requests, flight, settled)

    async def _write_blocks(self, prepared: Prepared) -> None:
        assert prepared.plan is not None
        writes = [
            SegmentWrite(*self._place(prepared.plan.blocks[index].location), data)
            for index, data in prepared.plan.writes
        ]
        async with self._queue_room:
            if self._stopped:
                raise DiskFailed("the store has stopped")
            queued = _Queued(writes, sum(len(write.data) for write in writes))
            self._queue.append(queued)
            self._work.set()
            await queued.done.wait()
        if queued.error is not None:
            raise queued.error

    def _publish(
        self, prepared: Prepared, order: Order, requests: tuple[AppliedRequest, ...], flight: bool, settled: Order
    ) -> int:
        before, plan = prepared.before, prepared.plan
        key = chunk_key(before.pg, before.chunk)
        changes: list[KeyChange] = []
        if plan is None:
            if before.record:
                changes.append(KeyChange(CHUNK, key, None))
        else:
            record = ChunkRecord(order, plan.length, tuple(plan.blocks), tuple(plan.patches), requests, plan.serial)
            changes.append(KeyChange(CHUNK, key, encode_record(record)))
            changes += [KeyChange(PATCH, patch_key(key, serial), bytes(data)) for serial, data in plan.patch_data]
            self.written_bytes += sum(len(data) for _, data in plan.writes)
        old = before.record or EMPTY
        changes += [KeyChange(PATCH, patch_key(key, serial), None) for serial in _gone_patches(old, plan)]
        if flight:
            changes += self._note_flight(before.pg, before.chunk, order, settled)
        with self._disk():
            sequence = self._keyvalue.apply(changes) if changes else self._keyvalue.applied_sequence
        self.chunks += (plan is not None) - (before.record is not None)
        gone = _gone_blocks(old, plan)
        if gone:
            self._freed.append((sequence, gone))
        return sequence

    def _note_flight(self, pg: PgId, chunk: ChunkId, order: Order, settled: Order) -> list[KeyChange]:
        entries = self._flight.setdefault(pg, {})
        entries.pop(chunk, None)
        changes = [KeyChange(FLIGHT, chunk_key(pg, chunk), encode_order(order))]
        done: list[ChunkId] = []
        for other, at in entries.items():  # oldest first
            if len(done) >= FORGET_AT_ONCE or at.epoch != settled.epoch or at.version > settled.version:
                break
            done.append(other)
        for other in done:
            del entries[other]
            changes.append(KeyChange(FLIGHT, chunk_key(pg, other), None))
        entries[chunk] = order
        return changes

    def forget_flight(self, pg: PgId, below: PgEpoch) -> None:
        """A row of epoch `below` is active: what was in flight before it is settled."""
        entries = self._flight.get(pg, {})
        done = [chunk for chunk, order in entries.items() if order.epoch < below]
        for chunk in done:
            del entries[chunk]
        if done:
            self._keyvalue.apply([KeyChange(FLIGHT, chunk_key(pg, chunk), None) for chunk in done])

    def _reuse_freed(self) -> None:
        durable = self._keyvalue.durable_sequence
        kept: list[tuple[int, list[int]]] = []
        for sequence, blocks in self._freed:
            if sequence <= durable:
                for block in blocks:
                    self._blocks.release(block)
            else:
                kept.append((sequence, blocks))
        self._freed = kept

    # --- the writer ---------------------------------------------------------------------------------------------------

    async def run(self) -> Never:
        """Write what is queued, everything that waits in one synced write. Raises DiskFailed: the service must end (R12)."""
        gathered: list[_Queued] = []
        try:
            while True:
                await self._work.wait()
                if self._failure is not None:
                    raise self._failure
                gathered = self._gather()
                await self._segments.write([write for queued in gathered for write in queued.writes])
                for queued in gathered:
                    queued.done.set()
        finally:
            self._stopped = True
            for queued in gathered + self._queue:
                if not queued.done.is_set():
                    queued.error = DiskFailed("the store stopped before the bytes were written")
                    queued.done.set()

    def _gather(self) -> list[_Queued]:
        size = count = 0
        for queued in self._queue:
            size += queued.size
            if count and size > MAX_WRITE_BYTES:
                break
            count += 1
        gathered, self._queue = self._queue[:count], self._queue[count:]
        if not self._queue:
            self._work = trio.Event()
        return gathered

    async def aclose(self) -> None:
        await self._keyvalue.aclose()
        await self._segments.aclose()


def _runs(record: ChunkRecord, first: int, last: int, per_segment: int) -> list[tuple[int, int, bool]]:
    """(first, last, plain) pieces of [first, last): plain ones lie side by side in one segment just as they are read."""
    patched = set(record.patched())
    runs: list[tuple[int, int, bool]] = []
    previous = -1
    for index in range(first, last):
        entry = record.blocks[index]
        plain = bool(entry.location) and index not in patched and entry.stored == valid_length(record.length, index)
        joins = runs and runs[-1][2] and plain and entry.location == previous + 1 and (entry.location - 1) % per_segment
        if joins:
            runs[-1] = (runs[-1][0], index + 1, True)
        else:
            runs.append((index, index + 1, plain))
        previous = entry.location
    return runs


def _locations(blocks: Iterable[BlockEntry]) -> list[int]:
    return [entry.location - 1 for entry in blocks if entry.location]


def _gone_blocks(old: ChunkRecord, plan: Plan | None) -> list[int]:
    kept = set(_locations(plan.blocks)) if plan else set[int]()
    return [block for block in _locations(old.blocks) if block not in kept]


def _gone_patches(old: ChunkRecord, plan: Plan | None) -> list[int]:
    kept = {patch.serial for patch in plan.patches} if plan else set[int]()
    return [patch.serial for patch in old.patches if patch.serial not in kept]


def verify_blocks(data: Buffer, checksums: Sequence[int], chunk: ChunkId) -> None:
    """`data` begins at a block boundary. Raises CorruptData."""
    if block_checksums(data) != tuple(checksums):
        raise CorruptData(f"stored bytes of chunk {chunk} fail their checksum")


def verify_pieces(data: Buffer, offset: int, checksums: Sequence[int]) -> None:
    """Bytes from outside, before anything is stored. Raises BadChecksum."""
    if block_checksums(data, offset) != tuple(checksums):
        raise BadChecksum(f"{len(data)} bytes for offset {offset} do not have the checksums that came with them")


async def open_store(
    directory: DataDirectory, *, segment_size: int = SEGMENT_SIZE, reserve_bytes: int = 0
) -> tuple[ChunkStore, bool]:
    """The store of a directory, and whether it was damaged: then the old one is set aside and this one is empty (R9)."""
    try:
        return await _open(directory, segment_size, reserve_bytes), False
    except CorruptData as error:
        log.error("the store in %s is damaged and set aside: %s", directory.name, error)
    aside = [await directory.set_aside(name) for name in (INDEX_NAME, SEGMENTS_NAME)]
    log.warning(
        "%s starts empty and is filled by the other members; the old store: %s", directory.name, ", ".join(aside)
    )
    return await _open(directory, segment_size, reserve_bytes), True


INDEX_NAME, SEGMENTS_NAME = "index", "segments"


async def _open(directory: DataDirectory, segment_size: int, reserve_bytes: int) -> ChunkStore:
    keyvalue = await directory.open_keyvalue(INDEX_NAME, FAMILIES)
    try:
        segments = await directory.open_segments(SEGMENTS_NAME, segment_size)
        try:
            store = ChunkStore(keyvalue, segments, reserve_bytes)
            await store.load()
        except BaseException:
            await segments.aclose()
            raise
    except BaseException:
        with trio.CancelScope(shield=True):
            await keyvalue.aclose()
        raise
    return store
