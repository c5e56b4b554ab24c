"""The store against a bytearray; then crashes, torn writes, full disks and flipped bits."""

from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkserver.index import encode_record
from chunkserver.layout import MAX_PATCHES
from chunkserver.opening import open_store
from fsd.core.checksum import block_checksums
from fsd.core.errors import BadChecksum, CorruptData, DiskFailed, FormatError, InvalidArgument, NoSpace
from fsd.core.ids import NO_ORDER, ChunkId, DataId, Order, PgEpoch, PgId
from fsd.core.units import BLOCK_SIZE
from fsd.protocol.chunk import Change
from tests.fakes import MemoryDirectory

PG = PgId(65536)
A, B = ChunkId(DataId(5), 0), ChunkId(DataId(5), 1)
CHUNK_SIZE = 5 * BLOCK_SIZE


class Versions:
    def __init__(self):
        self.version = 0

    def next(self):
        self.version += 1
        return Order(PgEpoch(1), self.version)


VERSIONS = Versions()


@asynccontextmanager
async def opened(directory, *, reserve=0):
    store, damaged = await open_store(directory.open(), segment_size=8 * BLOCK_SIZE, reserve_bytes=reserve)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        yield store, damaged
        nursery.cancel_scope.cancel()
    directory.crash()


async def change(store, chunk, kind, offset=0, length=0, data=b"", *, durable=True, **options):
    sums = sums_of(options["extents"], data) if "extents" in options else block_checksums(data, offset)
    async with store.locked(PG, chunk):
        prepared = await store.prepare(PG, chunk, kind, offset, length, data, sums, **options)
        order = VERSIONS.next()
        await store.commit(prepared, order, ())
    if durable:
        await store.durable()
    return order


def sums_of(extents, data):
    sums, start = (), 0
    for offset, length in extents:
        sums += block_checksums(data[start : start + length], offset)
        start += length
    return sums


async def content(store, chunk):
    snapshot = store.look(PG, chunk)
    found = await store.read(snapshot, 0, CHUNK_SIZE)
    assert found is not None
    assert snapshot.record is None or snapshot.raw == encode_record(snapshot.record)
    assert found.checksums == block_checksums(found.data)
    return bytes(found.data)


# --- against an oracle ------------------------------------------------------------------------------------------------

OFFSETS = st.one_of(
    st.integers(0, CHUNK_SIZE - 1),
    st.sampled_from([0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE, 3 * BLOCK_SIZE]),
)
SIZES = st.one_of(st.integers(1, 300), st.integers(1, CHUNK_SIZE), st.sampled_from([BLOCK_SIZE, 2 * BLOCK_SIZE]))
SCATTERED = st.lists(st.tuples(st.integers(1, 20_000), st.one_of(st.integers(1, 5000), SIZES)), min_size=1, max_size=40)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("scatter"), SCATTERED, st.integers(0, 255)),
        st.tuples(st.just("write"), OFFSETS, SIZES, st.integers(0, 255)),
        st.tuples(st.just("whole"), SIZES, st.integers(0, 255)),
        st.tuples(st.just("cut"), OFFSETS),
        st.tuples(st.just("remove")),
        st.tuples(st.just("again")),
        st.tuples(st.just("restart")),
        st.tuples(st.just("read"), st.integers(0, 4), SIZES),
    ),
    max_size=25,
)


def pattern(seed, size):
    return bytes(size) if seed == 0 else bytes((seed * 7 + i) & 255 for i in range(min(size, 251))) * (size // 251 + 1)


def fill(seed, size):
    return pattern(seed, size)[:size]


async def run_program(program):
    directory = MemoryDirectory(segment_limit=20)
    oracle = None
    position = 0
    while position < len(program) or position == 0:
        async with opened(directory) as (store, damaged):
            assert not damaged
            assert await content(store, A) == bytes(oracle or b"")
            while position < len(program):
                name, *arguments = program[position]
                position += 1
                if name == "restart":
                    break
                oracle = await one_step(store, oracle, name, arguments)
                assert await content(store, A) == bytes(oracle or b"")
            position = position or 1
            assert_blocks_add_up(store)


async def one_step(store, oracle, name, arguments):
    if name == "write":
        offset, size, seed = arguments
        data = fill(seed, min(size, CHUNK_SIZE - offset))
        await change(store, A, Change.WRITE, offset, data=data)
        oracle = oracle or bytearray()
        oracle.extend(bytes(max(0, offset + len(data) - len(oracle))))
        oracle[offset : offset + len(data)] = data
    elif name == "scatter":
        extents, position = [], 0
        for gap, size in arguments[0]:
            size = min(size, CHUNK_SIZE - position - gap)
            if size > 0:
                extents.append((position + gap, size))
                position += gap + size
        data = fill(arguments[1], sum(size for _, size in extents))
        await change(store, A, Change.WRITE, data=data, extents=extents)
        oracle, start = oracle or bytearray(), 0
        for offset, size in extents:
            oracle.extend(bytes(max(0, offset + size - len(oracle))))
            oracle[offset : offset + size] = data[start : start + size]
            start += size
    elif name == "whole":
        oracle = bytearray(fill(arguments[1], arguments[0]))
        await change(store, A, Change.WHOLE, data=bytes(oracle))
    elif name == "cut":
        await change(store, A, Change.TRUNCATE, length=arguments[0])
        oracle = oracle[: arguments[0]] if oracle and arguments[0] else None
    elif name == "remove":
        await change(store, A, Change.REMOVE)
        oracle = None
    elif name == "again":
        await change(store, A, None)
    elif name == "read":
        offset, size = arguments[0] * BLOCK_SIZE, arguments[1]
        found = await store.read(store.look(PG, A), offset, size)
        assert bytes(found.data) == bytes(oracle or b"")[offset : offset + size]
        assert found.checksums == block_checksums(found.data)
    return oracle


def assert_blocks_add_up(store):
    store._space.reuse(store._keyvalue.durable_sequence)
    snapshot = store.look(PG, A)
    records = [record for record in (snapshot.record, snapshot.pending and snapshot.pending.after) if record]
    free = store._space._free
    assert free.total - free.free == len({entry.location for r in records for entry in r.blocks if entry.location})
    patches = store._keyvalue.scan("patch", b"", b"\xff" * 30, 1000)
    assert len(patches) == len({patch.serial for r in records for patch in r.patches})
    assert all(len(record.patches) <= MAX_PATCHES for record in records)
    assert len(store._keyvalue.scan("pending", b"", b"\xff" * 30, 10)) == (snapshot.pending is not None)


@settings(max_examples=150, deadline=None)
@given(OPERATIONS)
def test_any_program_reads_as_from_a_bytearray(program):
    trio.run(run_program, program)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.just("write"), OFFSETS, st.integers(1, 300), st.integers(1, 255)), min_size=280, max_size=290)
)
def test_many_small_writes_are_folded_into_blocks(program):
    trio.run(run_program, program)


def test_a_page_that_is_written_again_and_again_leaves_one_patch():
    async def main():
        async with opened(MemoryDirectory()) as (store, _):
            await change(store, A, Change.WRITE, data=b"1" * 3 * BLOCK_SIZE)
            for number in range(MAX_PATCHES + 10):
                await change(store, A, Change.WRITE, 70_000, data=bytes([number % 251]) * 4096)
            assert len(store.look(PG, A).record.patches) == 1
            assert_blocks_add_up(store)

    trio.run(main)


@pytest.mark.parametrize("extents", [[(10, 5), (14, 5)], [(10, 5), (3, 5)], [(10, 5), (20, 0)], [(10, 5), (20, 9)]])
def test_extents_that_overlap_or_do_not_add_up_are_refused(extents):
    async def main():
        async with opened(MemoryDirectory()) as (store, _):
            with pytest.raises(InvalidArgument):
                await store.prepare(PG, A, Change.WRITE, 0, 0, b"x" * 10, (0, 0), extents=extents)

    trio.run(main)


def test_zeros_take_no_space():
    async def main():
        async with opened(MemoryDirectory()) as (store, _):
            await change(store, A, Change.WRITE, data=bytes(4 * BLOCK_SIZE))
            assert store._space._free.total == 0
            assert await content(store, A) == bytes(4 * BLOCK_SIZE)

    trio.run(main)


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("size", [100, 100_000])
def test_what_was_durable_survives_a_crash_and_the_rest_is_all_or_nothing(size, durable):
    async def main():
        directory = MemoryDirectory()
        async with opened(directory) as (store, _):
            await change(store, A, Change.WRITE, data=b"1" * 150_000)
            await change(store, A, Change.WRITE, 10, data=b"2" * size, durable=durable)
        expected = bytearray(b"1" * 150_000)
        if durable:
            expected[10 : 10 + size] = b"2" * size
        async with opened(directory) as (store, damaged):
            assert not damaged
            assert await content(store, A) == expected

    trio.run(main)


def test_a_freed_block_is_not_used_again_before_its_freeing_is_durable():
    async def main():
        directory = MemoryDirectory(segment_limit=1)  # 8 blocks
        async with opened(directory) as (store, _):
            await change(store, A, Change.WRITE, data=b"1" * 4 * BLOCK_SIZE)
            await change(store, A, Change.REMOVE, durable=False)
            await change(store, B, Change.WRITE, data=b"2" * 4 * BLOCK_SIZE, durable=False)
            with pytest.raises(NoSpace):
                await change(store, B, Change.WRITE, data=b"3" * 4 * BLOCK_SIZE, durable=False)
        async with opened(directory) as (store, _):
            assert await content(store, A) == b"1" * 4 * BLOCK_SIZE

    trio.run(main)


class TornSegments:
    """The write number `at` is torn in the middle and fails."""

    def __init__(self, inner, at):
        self.inner = inner
        self.left = at

    def __getattr__(self, name):
        return getattr(self.inner, name)

    async def write(self, writes):
        self.left -= 1
        if self.left < 0:
            for segment, offset, data in writes:
                await self.inner.write([(segment, offset, bytes(data)[: len(data) // 2])])
            raise DiskFailed("torn")
        await self.inner.write(writes)


@pytest.mark.parametrize("at", range(6))
def test_a_torn_write_ends_the_store_and_hurts_nothing_that_was_durable(at):
    async def main():
        directory = MemoryDirectory()
        durable = {}
        with pytest.RaisesGroup(DiskFailed):
            async with opened(directory) as (store, _):
                store._space._segments = TornSegments(store._space._segments, at)
                for number in range(10):
                    data = bytes([number + 1]) * (BLOCK_SIZE * 2 + number)
                    try:
                        await change(store, A, Change.WRITE, 1000 * number, data=data)
                    except DiskFailed:
                        break
                    durable[number] = await content(store, A)
                await trio.sleep(1)
        directory.crash()
        assert len(durable) == at
        async with opened(directory) as (store, damaged):
            assert not damaged
            assert await content(store, A) == (durable[at - 1] if at else b"")

    trio.run(main)


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_refused_guard_leaves_nothing(size):
    class Refused(Exception):
        pass

    def refuse():
        raise Refused

    async def main():
        async with opened(MemoryDirectory()) as (store, _):
            await change(store, A, Change.WRITE, data=b"1" * 70_000)
            before = store.look(PG, A)
            data = b"2" * size
            prepared = await store.prepare(PG, A, Change.WRITE, 5, 0, data, block_checksums(data, 5))
            with pytest.raises(Refused):
                await store.commit(prepared, VERSIONS.next(), (), guard=refuse)
            assert store.look(PG, A) == before
            assert_blocks_add_up(store)

    trio.run(main)


# --- full disks -------------------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_early_and_deleting_still_works():
    async def main():
        directory = MemoryDirectory(segment_limit=2)  # 16 blocks
        async with opened(directory, reserve=2 * BLOCK_SIZE) as (store, _):
            await change(store, A, Change.WRITE, data=b"1" * 5 * BLOCK_SIZE)
            await change(store, B, Change.WRITE, data=b"2" * 5 * BLOCK_SIZE)
            with pytest.raises(NoSpace):
                await change(store, ChunkId(DataId(9), 0), Change.WRITE, data=b"3" * 5 * BLOCK_SIZE)
            await change(store, ChunkId(DataId(9), 0), Change.WRITE, data=b"3" * 5 * BLOCK_SIZE, reserve_share=0.5)
            with pytest.raises(NoSpace):
                await change(store, B, Change.WRITE, 5, data=b"x")
            await change(store, B, Change.TRUNCATE, length=100)
            await change(store, A, Change.REMOVE)
            await change(store, A, Change.WRITE, data=b"4" * 5 * BLOCK_SIZE)
            assert await content(store, B) == b"2" * 100
            assert await content(store, A) == b"4" * 5 * BLOCK_SIZE

    trio.run(main)


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_block_is_told_and_never_laundered_by_a_partial_write():
    async def main():
        directory = MemoryDirectory()
        async with opened(directory) as (store, _):
            await change(store, A, Change.WRITE, data=b"1" * 150_000)
            directory._segments["segments"][0][BLOCK_SIZE + 77] ^= 4
            with pytest.raises(CorruptData):
                await content(store, A)
            with pytest.raises(CorruptData):
                await change(store, A, Change.WRITE, BLOCK_SIZE + 500, data=b"2" * 40_000)
            for offset in (
                BLOCK_SIZE + 500,
                BLOCK_SIZE + 70,
            ):  # patches beside the damage and over it do not look at it
                await change(store, A, Change.WRITE, offset, data=b"2" * 10)
                with pytest.raises(CorruptData):
                    await content(store, A)
            with pytest.raises(CorruptData):
                await change(store, A, Change.TRUNCATE, length=BLOCK_SIZE + 500)
            await change(store, A, Change.WRITE, BLOCK_SIZE, data=b"3" * BLOCK_SIZE)  # leaves nothing of the damage
            assert await content(store, A) == b"1" * BLOCK_SIZE + b"3" * BLOCK_SIZE + b"1" * (150_000 - 2 * BLOCK_SIZE)

    trio.run(main)


def test_a_lost_or_flipped_patch_is_told():
    async def main():
        for damage in (None, b"x" * 100):
            directory = MemoryDirectory()
            async with opened(directory) as (store, _):
                await change(store, A, Change.WRITE, data=b"1" * 100)
                store._keyvalue._data["patch"].update(dict.fromkeys(store._keyvalue._data["patch"], damage))
                with pytest.raises(CorruptData):
                    await content(store, A)

    trio.run(main)


def test_bytes_that_were_damaged_on_the_way_are_not_stored():
    async def main():
        async with opened(MemoryDirectory()) as (store, _):
            with pytest.raises(BadChecksum):
                await store.prepare(PG, A, Change.WRITE, 0, 0, b"abc", block_checksums(b"abd"))
            assert store.look(PG, A).order == NO_ORDER

    trio.run(main)


@pytest.mark.parametrize("family", ["chunk", "flight"])
def test_a_damaged_index_is_set_aside_and_told(family):
    async def main():
        directory = MemoryDirectory()
        async with opened(directory) as (store, _):
            await change(store, A, Change.WRITE, data=b"1" * 100_000)
        records = directory._stores["index"].durable[family]
        for key, value in records.items():
            records[key] = value[:-1]
        async with opened(directory) as (store, damaged):
            assert damaged
            assert await content(store, A) == b""

    trio.run(main)


def test_an_index_that_is_gone_is_damage():
    async def main():
        store, damaged = await open_store(MemoryDirectory().open(), made=True, segment_size=8 * BLOCK_SIZE)
        assert damaged
        await store.aclose()
        directory = MemoryDirectory()
        for _ in range(2):
            store, damaged = await open_store(directory.open(), segment_size=8 * BLOCK_SIZE)
            assert not damaged
            await store.aclose()
            directory.crash()

    trio.run(main)


def test_an_index_from_the_future_is_refused():
    async def main():
        directory = MemoryDirectory()
        async with opened(directory):
            pass
        directory._stores["index"].durable["store"][b"format"] = b"3"
        with pytest.raises(FormatError):
            await open_store(directory.open(), segment_size=8 * BLOCK_SIZE)

    trio.run(main)


def test_a_block_with_two_owners_is_damage():
    async def main():
        directory = MemoryDirectory()
        async with opened(directory) as (store, _):
            await change(store, A, Change.WRITE, data=b"1" * 100_000)
        records = directory._stores["index"].durable["chunk"]
        (key,) = records
        records[key[:-1] + b"\7"] = records[key]
        async with opened(directory) as (_, damaged):
            assert damaged

    trio.run(main)


# --- in flight --------------------------------------------------------------------------------------------------------


def test_in_flight_entries_are_durable_with_the_change_and_forgotten_when_settled():
    async def main():
        directory = MemoryDirectory()
        async with opened(directory) as (store, _):
            first = await change(store, A, Change.WRITE, data=b"1")
            removed = await change(store, B, Change.REMOVE)
        async with opened(directory) as (store, _):
            assert store.in_flight(PG) == {A: first, B: removed}
            third = ChunkId(DataId(9), 9)
            prepared = await store.prepare(PG, third, Change.WRITE, 0, 0, b"3", block_checksums(b"3"))
            order = VERSIONS.next()
            await store.commit(prepared, order, (), settled=first)
            assert store.in_flight(PG) == {B: removed, third: order}
            store.forget_flight(PG, PgEpoch(1))
            assert len(store.in_flight(PG)) == 2
            store.forget_flight(PG, PgEpoch(2))
            assert store.in_flight(PG) == {}

    trio.run(main)


def test_pages_list_the_chunks_of_one_group_in_order():
    async def main():
        async with opened(MemoryDirectory()) as (store, _):
            chunks = [ChunkId(DataId(data), index) for data in (300, 2) for index in (1, 0)]
            for chunk in chunks:
                await change(store, chunk, Change.WRITE, data=b"x")
            page = store.page(PG, ChunkId(DataId(0), 0), 3)
            assert [summary.chunk for summary in page.chunks] == sorted(chunks)[:3]
            assert not page.end
            rest = store.page(PG, page.chunks[-1].chunk, 3)
            assert [summary.chunk for summary in rest.chunks] == sorted(chunks)[3:]
            assert rest.end
            assert store.page(PgId(PG + 1), ChunkId(DataId(0), 0), 3).chunks == ()

    trio.run(main)
