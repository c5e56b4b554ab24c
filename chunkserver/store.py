"""The bytes of one disk: an index in a key-value store, blocks in segment files.

    change   = prepare (read and verify what stays, allocate) ── commit (write blocks, synced ── guard ── publish) ── durable
    publish  = one index batch: the record, patches, the in-flight entry, entries that are settled

A referenced block is never overwritten: new bytes go to free blocks, and a freed block is used again only when the batch
that freed it is durable. So a torn write hits nothing that anybody reads. Preparing and committing one chunk happens under
its lock (`locked`); reading needs none: a read whose record has changed meanwhile says so, and is done again.

`guard` runs in the same synchronous step as the batch: what it checks still holds when the change becomes visible.
Cancelled before that step, a change leaves nothing; after it, everything. The first DiskFailed ends `run` (R12).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Never

import trio

from chunkserver.index import (
    CHUNK,
    FLIGHT,
    PATCH,
    PENDING,
    STORE,
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
)
from chunkserver.layout import Plan
from chunkserver.locks import Hold, KeyedLocks
from chunkserver.pending import Pending, decode_pending, encode_pending, summarize_with
from chunkserver.planner import PendingPlan, Planner, Prepared, Wish
from chunkserver.reader import Snapshot, cut, read_blocks
from chunkserver.space import BlockSpace
from fsd.core.checksum import block_checksums
from fsd.core.errors import CorruptData, DiskFailed, InvalidArgument
from fsd.core.ids import NO_ORDER, ChunkId, DataId, Order, PgEpoch, PgId
from fsd.core.units import BLOCK_SIZE
from fsd.protocol.chunk import AppliedRequest, Change, ChunkList, ChunkSummary, FlushId, PendingPart, Resolve
from fsd.runtime.storage import KeyChange, KeyValue
from fsd.wire.frame import Buffer

log = logging.getLogger(__name__)

MAX_RECORDS = 1024  # decoded, up to 15 KB each
FORGET_AT_ONCE = 64  # settled in-flight entries removed along with one change
SCAN_PAGE = 1000

Guard = Callable[[], None]


def no_guard() -> None:
    """For changes that are right whatever happens meanwhile."""


class ChunkBytes(NamedTuple):
    data: Buffer
    checksums: tuple[int, ...]


class ChunkStore:
    """Made by `open_store`; `run` is its writer task."""

    def __init__(self, keyvalue: KeyValue, space: BlockSpace) -> None:
        self._keyvalue = keyvalue
        self._space = space
        self._locks = KeyedLocks()
        self._flight: dict[PgId, dict[ChunkId, Order]] = {}
        self._records: dict[bytes, tuple[bytes, ChunkRecord]] = {}  # the least lately used first
        self._watch = _Watch(space)
        self._pending: dict[bytes, Pending] = {}
        self._planner = Planner(keyvalue, space, self._watch)
        self.chunks = 0
        self.read_bytes = 0
        self.written_bytes = 0
        self.free_bytes = space.free_bytes
        self.total_bytes = space.total_bytes
        self.stored_bytes = space.stored_bytes
        self.is_low = space.is_low

    async def run(self) -> Never:
        """Write until cancelled. Raises DiskFailed: the service must end (R12)."""
        await self._space.run()

    async def aclose(self) -> None:
        await self._keyvalue.aclose()
        await self._space.aclose()

    # --- at start -----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read the whole index: which blocks are used, what is in flight. Raises CorruptData if anything does not fit."""
        for page in self._pages(CHUNK):
            for key, value in page:
                self._load_chunk(parse_chunk_key(key)[1], decode_record(value))
            await trio.lowlevel.checkpoint()
        for page in self._pages(PENDING):
            for key, value in page:
                self._load_pending(key, decode_pending(value))
        for page in self._pages(FLIGHT):
            for key, value in page:
                pg, chunk = parse_chunk_key(key)
                self._flight.setdefault(pg, {})[chunk] = decode_order(value)

    def _pages(self, family: str) -> Iterator[list[tuple[bytes, bytes]]]:
        start = b""
        while True:
            page = self._keyvalue.scan(family, start, b"\xff" * 20, SCAN_PAGE)
            yield page
            if len(page) < SCAN_PAGE:
                return
            start = page[-1][0] + b"\0"

    def _load_chunk(self, chunk: ChunkId, record: ChunkRecord) -> None:
        if len(record.blocks) != -(-record.length // BLOCK_SIZE):
            raise CorruptData(f"chunk {tuple(chunk)} of {record.length} bytes has {len(record.blocks)} blocks")
        self.chunks += 1
        for location in _locations(record.blocks):
            if not self._space.mark_used(location):
                raise CorruptData(f"block {location} of chunk {tuple(chunk)} is missing or used twice")

    def _load_pending(self, key: bytes, pending: Pending) -> None:
        pg, chunk = parse_chunk_key(key)
        shown = self.look(pg, chunk).record
        if shown is None:
            raise CorruptData(f"chunk {tuple(chunk)} has something pending and no record")
        known = set(_locations(shown.blocks))
        for location in _locations(pending.after.blocks):
            if location not in known and not self._space.mark_used(location):
                raise CorruptData(f"block {location}, pending for chunk {tuple(chunk)}, is missing or used twice")
        self._pending[key] = pending

    # --- looking ------------------------------------------------------------------------------------------------------

    def look(self, pg: PgId, chunk: ChunkId) -> Snapshot:
        """The chunk as it is now, durable or not."""
        with self._watch:
            key = chunk_key(pg, chunk)
            raw = self._keyvalue.get(CHUNK, key)
            if raw is None:
                return Snapshot(pg, chunk, None, None)
            known = self._records.get(key)
            record = known[1] if known is not None and known[0] == raw else self._decode(raw)
            self._remember(key, raw, record)
            return Snapshot(pg, chunk, raw, record, self._pending.get(key))

    def _remember(self, key: bytes, raw: bytes, record: ChunkRecord) -> None:
        """Decoding a record of 64 blocks takes 50 us, comparing its bytes none."""
        self._records.pop(key, None)
        self._records[key] = raw, record
        if len(self._records) > MAX_RECORDS:
            del self._records[next(iter(self._records))]

    def _decode(self, raw: bytes) -> ChunkRecord:
        try:
            return decode_record(raw)
        except CorruptData as error:  # without the record not even the order is known: the store is filled anew
            raise DiskFailed(f"the index is damaged: {error}") from None

    def is_current(self, snapshot: Snapshot) -> bool:
        with self._watch:
            return self._keyvalue.get(CHUNK, chunk_key(snapshot.pg, snapshot.chunk)) == snapshot.raw

    def page(self, pg: PgId, after: ChunkId, limit: int) -> ChunkList:
        """At most `limit` chunks after `after`, in order."""
        with self._watch:
            found = self._keyvalue.scan(CHUNK, key_after(pg, after), group_range(pg)[1], limit)
            chunks = [self._summarize(key, self._decode(value)) for key, value in found]
        return ChunkList(tuple(chunks), end=len(found) < limit)

    def indices(self, pg: PgId, data: DataId, first: int, limit: int) -> list[int]:
        """At most `limit` of the chunks of `data` from `first` on, ascending."""
        start, stop = chunk_key(pg, ChunkId(data, first)), chunk_key(pg, ChunkId(DataId(data + 1), 0))
        with self._watch:
            found = self._keyvalue.scan(CHUNK, start, stop, limit)
        return [parse_chunk_key(key)[1].index for key, _ in found]

    def summary(self, pg: PgId, chunk: ChunkId) -> ChunkSummary | None:
        snapshot = self.look(pg, chunk)
        return self._summarize(chunk_key(pg, chunk), snapshot.record) if snapshot.record else None

    def _summarize(self, key: bytes, record: ChunkRecord) -> ChunkSummary:
        return summarize_with(parse_chunk_key(key)[1], record, self._pending.get(key))

    def all_pending(self) -> list[tuple[PgId, ChunkId, Pending]]:
        """Every chunk with a pending state, in order."""
        return [(*parse_chunk_key(key), self._pending[key]) for key in sorted(self._pending)]

    def in_flight(self, pg: PgId) -> dict[ChunkId, Order]:
        """Chunks whose last change perhaps not all members have. Not to be changed."""
        return self._flight.get(pg, {})

    async def durable(self) -> None:
        """Everything that is visible now is on stable storage."""
        with self._watch:
            await self._keyvalue.durable()
        self._space.reuse(self._keyvalue.durable_sequence)

    async def read(self, snapshot: Snapshot, offset: int, length: int) -> ChunkBytes | None:
        """Verified bytes of [offset, offset + length), as far as the chunk reaches; `offset` a multiple of BLOCK_SIZE.

        None if the chunk changed meanwhile. Raises CorruptData."""
        record = snapshot.record
        if offset % BLOCK_SIZE or length < 0:
            raise InvalidArgument(f"cannot read {length} bytes at {offset}: not at a block boundary")
        if record is None or offset >= record.length or not length:
            return ChunkBytes(b"", ())
        end = min(offset + length, record.length)
        first, last = offset // BLOCK_SIZE, -(-end // BLOCK_SIZE)
        try:
            with self._watch:
                data = await read_blocks(self._space, self._keyvalue, snapshot, record, first, last)
        except CorruptData:
            if self.is_current(snapshot):
                raise
            return None  # its blocks belong to another chunk by now
        if not self.is_current(snapshot):
            return None
        self.read_bytes += end - offset
        return ChunkBytes(*cut(data, [entry.checksum for entry in record.blocks[first:last]], end - offset))

    async def read_pending(self, snapshot: Snapshot) -> ChunkBytes | None:
        """The bytes that a flush has prepared, extent by extent, verified. None if the chunk changed meanwhile. Raises
        CorruptData."""
        pending = snapshot.pending
        if pending is None:
            return ChunkBytes(b"", ())
        data, sums = bytearray(), list[int]()
        try:
            with self._watch:
                for offset, length in pending.extents:
                    first, last = offset // BLOCK_SIZE, -(-(offset + length) // BLOCK_SIZE)
                    blocks = await read_blocks(self._space, self._keyvalue, snapshot, pending.after, first, last)
                    part = memoryview(blocks)[offset - first * BLOCK_SIZE :][:length]
                    sums += block_checksums(part, offset)
                    data += part
        except CorruptData:
            if self.is_current(snapshot):
                raise
            return None
        return ChunkBytes(data, tuple(sums)) if self.is_current(snapshot) else None

    # --- changing -----------------------------------------------------------------------------------------------------

    def locked(self, pg: PgId, chunk: ChunkId) -> Hold:
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
        extents: Sequence[tuple[int, int]] = (),
        flush: FlushId | None = None,
        resolve: Resolve = Resolve.KEEP,
        pending: PendingPart | None = None,
        reserve_share: float = 1.0,
    ) -> Prepared:
        """Everything that can refuse a change: BadChecksum, CorruptData (of what stays), NoSpace. None changes no bytes.

        The arguments are those of Replicate. `reserve_share`: how much of the reserve must stay free; the servers' own
        changes may go deeper, cutting always."""
        wish = Wish(change, offset, length, data, checksums, extents, flush, resolve, pending)
        return await self._planner.prepare(self.look(pg, chunk), wish, reserve_share)

    def abandon(self, prepared: Prepared) -> None:
        """Give the blocks of a change that will not be committed back."""
        self._space.release(prepared.locations)
        prepared.locations = []

    async def commit(
        self,
        prepared: Prepared,
        order: Order,
        requests: tuple[AppliedRequest, ...],
        *,
        guard: Guard = no_guard,
        flight: bool = True,
        settled: Order = NO_ORDER,
    ) -> None:
        """Write, then publish; the change is visible on return, durable after `durable()`.

        `flight`: remember the chunk as in flight. `settled`: entries of its epoch up to it may be forgotten. Raises what
        `guard` raises; then, as when cancelled, nothing has happened."""
        try:
            if prepared.locations:
                await self._space.write(prepared.blocks())
            guard()
        except BaseException:
            self.abandon(prepared)
            raise
        with self._watch:
            self._publish(prepared, order, requests, flight, settled)

    def _publish(
        self, prepared: Prepared, order: Order, requests: tuple[AppliedRequest, ...], flight: bool, settled: Order
    ) -> None:
        before, plan = prepared.before, prepared.plan
        changes = self._record_changes(prepared, order, requests)
        if flight:
            changes += self._note_flight(before.pg, before.chunk, order, settled)
        if changes:
            sequence = self._keyvalue.apply(changes)
            self._space.free_after(sequence, _gone_blocks(prepared))
        self.chunks += (plan is not None) - (before.record is not None)
        self.written_bytes += sum(len(data) for plan in prepared.plans() for _, data in plan.writes)

    def _record_changes(
        self, prepared: Prepared, order: Order, requests: tuple[AppliedRequest, ...]
    ) -> list[KeyChange]:
        before, plan = prepared.before, prepared.plan
        key = chunk_key(before.pg, before.chunk)
        changes: list[KeyChange] = []
        if plan is not None:
            record = _record(plan, order, requests)
            same = None if before.raw is None or before.record is None else (before.raw, before.record)
            raw = encode_record(record, same)
            self._remember(key, raw, record)
            changes.append(KeyChange(CHUNK, key, raw))
        elif before.record:
            changes.append(KeyChange(CHUNK, key, None))
        for each in prepared.plans():
            changes += [KeyChange(PATCH, patch_key(key, serial), bytes(data)) for serial, data in each.patch_data]
        changes += [KeyChange(PATCH, patch_key(key, serial), None) for serial in _gone_patches(prepared)]
        if prepared.pending is not None or before.pending is not None:
            changes.append(self._note_pending(before, prepared.pending, order))
        return changes

    def _note_pending(self, before: Snapshot, plan: PendingPlan | None, order: Order) -> KeyChange:
        key = chunk_key(before.pg, before.chunk)
        if plan is None:
            del self._pending[key]
            return KeyChange(PENDING, key, None)
        pending = self._pending[key] = Pending(plan.flush, plan.extents, _record(plan.plan, order, ()))
        return KeyChange(PENDING, key, encode_pending(pending))

    # --- when something was done last ----------------------------------------------------------------------------------

    def noted_time(self, what: bytes) -> int | None:
        """In nanoseconds since 1970."""
        with self._watch:
            value = self._keyvalue.get(STORE, what)
        return None if value is None or len(value) != 8 else int.from_bytes(value, "big")

    def note_time(self, what: bytes, time_ns: int) -> None:
        """Durable some time later."""
        with self._watch:
            self._keyvalue.apply([KeyChange(STORE, what, time_ns.to_bytes(8, "big"))])

    # --- in flight ----------------------------------------------------------------------------------------------------

    def _note_flight(self, pg: PgId, chunk: ChunkId, order: Order, settled: Order) -> list[KeyChange]:
        entries = self._flight.setdefault(pg, {})
        entries.pop(chunk, None)
        changes = [KeyChange(FLIGHT, chunk_key(pg, chunk), encode_order(order))]
        for other in _settled_entries(entries, settled):
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
            with self._watch:
                self._keyvalue.apply([KeyChange(FLIGHT, chunk_key(pg, chunk), None) for chunk in done])


def _settled_entries(entries: dict[ChunkId, Order], settled: Order) -> list[ChunkId]:
    """The oldest entries, as far as they are settled, a few at a time."""
    done: list[ChunkId] = []
    for chunk, order in entries.items():
        if len(done) >= FORGET_AT_ONCE or order.epoch != settled.epoch or order.version > settled.version:
            break
        done.append(chunk)
    return done


def _record(plan: Plan, order: Order, requests: tuple[AppliedRequest, ...]) -> ChunkRecord:
    return ChunkRecord(order, plan.length, tuple(plan.blocks), tuple(plan.patches), requests, plan.serial)


def _former(before: Snapshot) -> list[ChunkRecord]:
    """What a chunk referred to: shown and pending."""
    records = [] if before.record is None else [before.record]
    return records if before.pending is None else [*records, before.pending.after]


def _in_place(prepared: Prepared) -> tuple[ChunkRecord, Plan] | None:
    """A change of a chunk that is there, with nothing pending: what it gives up is found without looking at all of it."""
    before = prepared.before
    if before.record is None or prepared.plan is None or before.pending is not None or prepared.pending is not None:
        return None
    return before.record, prepared.plan


def _gone_patches(prepared: Prepared) -> list[int]:
    change = _in_place(prepared)
    if change is not None and len(change[1].patches) - len(change[1].patch_data) == len(change[0].patches):
        return []
    old = {patch.serial for record in _former(prepared.before) for patch in record.patches}
    return sorted(old - {patch.serial for plan in prepared.plans() for patch in plan.patches}) if old else []


def _locations(blocks: Iterable[BlockEntry]) -> list[int]:
    return [entry.location for entry in blocks if entry.location]


def _gone_blocks(prepared: Prepared) -> list[int]:
    change = _in_place(prepared)
    if change is not None:
        old, new = change[0].blocks, change[1].blocks
        replaced = [a for a, b in zip(old, new, strict=False) if a is not b and a.location != b.location]
        return _locations(replaced) + _locations(old[len(new) :])
    kept = {location for plan in prepared.plans() for location in _locations(plan.blocks)}
    gone = dict.fromkeys(location for record in _former(prepared.before) for location in _locations(record.blocks))
    return [location for location in gone if location not in kept]


class _Watch:
    """A failing disk ends the writer, whoever met the failure first."""

    def __init__(self, space: BlockSpace) -> None:
        self._space = space

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, DiskFailed):
            self._space.fail(error)
