"""Everything that comes before a change of a chunk is committed: what can refuse it, what stays of the chunk, new places.

A plan is made for the chunk as it is shown, and one for its pending state where there is one (`chunkserver.pending`).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from chunkserver.index import ChunkRecord
from chunkserver.layout import (
    EMPTY,
    Found,
    Needs,
    Piece,
    Plan,
    begin,
    cut_block,
    needs_of,
    plan_truncate,
    plan_whole,
    plan_write,
)
from chunkserver.pending import Extents, Pending, merged
from chunkserver.reader import Snapshot, compose, read_hidden, verify_pieces, whole_extent
from chunkserver.space import BlockSpace
from fsd.core.errors import InvalidArgument
from fsd.core.units import BLOCK_SIZE
from fsd.protocol.chunk import Change, FlushId, PendingPart, Resolve
from fsd.runtime.storage import KeyValue
from fsd.wire.frame import Buffer


class Wish(NamedTuple):
    """What a change says; the fields are those of Replicate. `change` None changes nothing."""

    change: Change | None
    offset: int = 0
    length: int = 0
    data: Buffer = b""
    checksums: Sequence[int] = ()
    extents: Sequence[tuple[int, int]] = ()
    flush: FlushId | None = None
    resolve: Resolve = Resolve.KEEP
    pending: PendingPart | None = None


@dataclass(slots=True)
class PendingPlan:
    flush: FlushId
    extents: Extents
    plan: Plan


@dataclass(slots=True)
class Prepared:
    """A change with its blocks allocated. `plan` None removes the chunk."""

    before: Snapshot
    plan: Plan | None
    pending: PendingPlan | None
    locations: list[int]

    def plans(self) -> list[Plan]:
        """Whose new blocks and patches go to the disk, in the order of `locations`."""
        return [] if self.plan is None else [self.plan] if self.pending is None else [self.plan, self.pending.plan]

    def blocks(self) -> list[tuple[int, Buffer]]:
        """(location, bytes) of all new blocks."""
        data = [data for plan in self.plans() for _, data in plan.writes]
        return list(zip(self.locations, data, strict=True))


class Planner:
    def __init__(self, keyvalue: KeyValue, space: BlockSpace, watch: AbstractContextManager[None]) -> None:
        self._keyvalue = keyvalue
        self._space = space
        self._watch = watch

    async def prepare(self, before: Snapshot, wish: Wish, reserve_share: float) -> Prepared:
        """Raises BadChecksum, CorruptData (of what stays), NoSpace, InvalidArgument."""
        record, kept = resolved(before, wish.resolve)
        match wish.change:
            case Change.REMOVE:
                return Prepared(before, None, None, [])
            case None | Change.RESOLVE:
                return Prepared(before, begin(record) if before.record else None, kept, [])
            case Change.WHOLE:
                return await self._whole(before, record, wish, reserve_share)
            case Change.PREPARE:
                return await self._pending(before, record, kept, wish, reserve_share)
            case Change.TRUNCATE if wish.length == 0 or before.record is None:
                return Prepared(before, None, None, [])
            case Change.TRUNCATE:
                check_resolved(before, kept)
                plan = await self._truncate(before, record, wish.length)
                return Prepared(before, plan, None, await self._allocate(plan, 0.0))
            case Change.WRITE:
                check_resolved(before, kept)
                pieces = verify_pieces(wish.data, wish.extents or [(wish.offset, len(wish.data))], wish.checksums)
                plan = await self._write(before, record, pieces)
                return Prepared(before, plan, None, await self._allocate(plan, reserve_share))

    # --- the kinds of change ------------------------------------------------------------------------------------------

    async def _truncate(self, before: Snapshot, record: ChunkRecord, length: int) -> Plan:
        block = cut_block(record, length)
        return plan_truncate(record, await self._compose(before, record, [] if block is None else [block]), length)

    async def _write(self, before: Snapshot, record: ChunkRecord, pieces: list[Piece]) -> Plan:
        return plan_write(record, await self._find(before, record, needs_of(record, pieces)), pieces)

    async def _pending(
        self, before: Snapshot, record: ChunkRecord, kept: PendingPlan | None, wish: Wish, reserve_share: float
    ) -> Prepared:
        """Bytes for a flush, on top of what it has prepared already."""
        if wish.flush is None:
            raise InvalidArgument("bytes are to be prepared for no flush")
        extents = tuple(wish.extents) or ((wish.offset, len(wish.data)),)
        pieces = verify_pieces(wish.data, extents, wish.checksums)
        base = record
        if kept is not None and before.pending is not None and kept.flush == wish.flush:
            base, extents = before.pending.after, (*kept.extents, *extents)
        else:
            check_resolved(before, kept)
        plan = await self._write(before, base, pieces)
        locations = await self._allocate(plan, reserve_share)
        return Prepared(before, begin(record), PendingPlan(wish.flush, merged(extents), plan), locations)

    async def _whole(self, before: Snapshot, record: ChunkRecord, wish: Wish, reserve_share: float) -> Prepared:
        """All of the chunk, what is pending for it included."""
        part = wish.pending
        data = memoryview(wish.data)
        size = len(data) - (part.size if part else 0)
        if size < 0:
            raise InvalidArgument(f"{len(data)} bytes came for a chunk with more than that pending")
        shown = data[:size]
        plan = plan_whole(record, verify_pieces(shown, whole_extent(shown), wish.checksums))
        locations = await self._allocate(plan, reserve_share)
        if part is None:
            return Prepared(before, plan, None, locations)
        try:
            pieces = verify_pieces(data[size:], part.pieces, part.checksums)
            base = ChunkRecord(before.order, plan.length, tuple(plan.blocks), tuple(plan.patches), (), plan.serial)
            after = plan_write(base, _found_in(shown, needs_of(base, pieces)), pieces)
            locations = locations + await self._allocate(after, reserve_share)
        except BaseException:
            self._space.release(locations)
            raise
        return Prepared(before, plan, PendingPlan(part.flush, part.pieces, after), locations)

    # --- present bytes, new places ------------------------------------------------------------------------------------

    async def _compose(self, before: Snapshot, record: ChunkRecord, indices: list[int]) -> dict[int, bytearray]:
        with self._watch:
            return {index: await compose(self._space, self._keyvalue, before, record, index) for index in indices}

    async def _find(self, before: Snapshot, record: ChunkRecord, needs: Needs) -> Found:
        blocks = await self._compose(before, record, needs.blocks) if needs.blocks else {}
        with self._watch:
            return Found(
                blocks,
                {
                    start: await read_hidden(self._space, self._keyvalue, before, record, start, end)
                    for start, end in needs.ranges
                },
            )

    async def _allocate(self, plan: Plan, reserve_share: float) -> list[int]:
        """Give the plan's new blocks their places."""
        wanted = len(plan.writes) * BLOCK_SIZE + sum(len(data) for _, data in plan.patch_data)
        if wanted:
            self._space.check(wanted, reserve_share)
        if not plan.writes:
            return []
        with self._watch:
            locations = await self._space.allocate(len(plan.writes), self._keyvalue.durable_sequence)
        for (index, _), location in zip(plan.writes, locations, strict=True):
            plan.blocks[index] = plan.blocks[index]._replace(location=location)
        return locations


def resolved(before: Snapshot, resolve: Resolve) -> tuple[ChunkRecord, PendingPlan | None]:
    """The state that a change is laid over, and what stays pending."""
    shown, pending = before.record or EMPTY, before.pending
    if pending is None or resolve is Resolve.DROP:
        return shown, None
    if resolve is Resolve.APPLY:
        return pending.after, None
    return shown, keep(pending)


def keep(pending: Pending) -> PendingPlan:
    return PendingPlan(pending.flush, pending.extents, begin(pending.after))


def check_resolved(before: Snapshot, kept: PendingPlan | None) -> None:
    """Nothing is laid over a pending state whose fate was not asked for. Raises InvalidArgument."""
    if kept is not None:
        raise InvalidArgument(f"chunk {tuple(before.chunk)} holds what {kept.flush} has prepared")


def _found_in(data: memoryview, needs: Needs) -> Found:
    """What is needed of a chunk whose bytes are all here."""
    blocks = {index: bytes(data[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]) for index in needs.blocks}
    return Found(blocks, {start: bytes(data[start:end]) for start, end in needs.ranges})
