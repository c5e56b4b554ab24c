"""Flushes in two phases, from the client's side: which take that way, what is seen of them, what they leave."""

import os

import pytest
import trio
import trio.testing

from fsd.client.flushes import MAX_PREPARED, chunks_to_prepare, overwritten
from fsd.client.writeback import DirtyMap
from fsd.core.units import KIB, MIB
from fsd.namespace.operations import CommitSize
from fsd.namespace.records import MAX_FLUSHES
from fsd.protocol.chunk import MAX_EXTENTS
from tests.client.cluster import cluster, get, put

Clock = trio.testing.MockClock
CHUNK = 256 * KIB
TWO = "flushes in two phases"


def dirty(*extents: tuple[int, int]) -> DirtyMap:
    made = DirtyMap(100)
    for offset, length in extents:
        made.write(offset, b"x" * length)
    return made


def test_what_is_overwritten_is_what_begins_below_the_size() -> None:
    assert overwritten(dirty((0, 10), (150, 10), (290, 5), (390, 5)), 290) == [0, 1]


@pytest.mark.parametrize(
    ("extents", "before", "after", "expected"),
    [
        ([(0, 10)], 300, 300, []),
        ([(0, 10), (50, 10)], 300, 300, []),  # one chunk, one request
        ([(0, 10), (150, 10)], 300, 300, [0, 1]),
        ([(0, 10), (300, 10)], 300, 310, [0]),
        ([(290, 20)], 300, 310, [2]),
        ([(300, 100), (400, 50)], 300, 450, []),
        ([], 300, 400, []),
    ],
)
def test_only_several_visible_parts_are_prepared(
    extents: list[tuple[int, int]], before: int, after: int, expected: list[int]
) -> None:
    assert chunks_to_prepare(dirty(*extents), before, after) == expected


def test_a_chunk_that_takes_several_requests_is_prepared() -> None:
    made = DirtyMap(MIB)
    for number in range(MAX_EXTENTS + 1):
        made.write(2 * number, b"x")
    assert chunks_to_prepare(made, MIB, MIB) == [0]


def test_a_flush_takes_a_bounded_number_of_chunks() -> None:
    made = dirty(*[(100 * number, 1) for number in range(MAX_PREPARED + 5)])
    assert len(made.take(1 << 30, MAX_PREPARED).chunks()) == MAX_PREPARED
    assert len(made.chunks()) == 5


async def test_an_overwrite_in_two_chunks_takes_two_phases_and_leaves_nothing(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        expected = bytearray(b"x" * (3 * CHUNK))
        ino = await put(a, b"f", bytes(expected))
        await a.sync()
        assert a.statistics().get(TWO, 0) == 0
        handle = await a.open(ino, os.O_RDWR)
        for number in range(3 * MAX_FLUSHES):
            for offset in (100, CHUNK + 100):
                data = bytes([number]) * 1000
                await a.write(handle, offset, data)
                expected[offset : offset + 1000] = data
            await a.fsync(handle)
            assert await a.read(handle, 0, 4 * CHUNK) == expected
        assert a.statistics()[TWO] == 3 * MAX_FLUSHES
        await trio.sleep(3)
        assert await get(b, b"f") == expected
        assert await get(a, b"f") == expected
        await a.write(handle, 0, b"one chunk")
        await a.fsync(handle)
        assert (await a.getattr(ino)).flushes == ()
        await a.release(handle)


async def test_appends_new_files_and_single_chunks_take_the_short_way(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a:
        ino = await put(a, b"f", b"x" * (2 * CHUNK))
        handle = await a.open(ino, os.O_RDWR)
        await a.write(handle, 10, b"in place")
        await a.write(handle, 5000, b"in place, same chunk")
        await a.fsync(handle)
        await a.write(handle, 2 * CHUNK, b"y" * (2 * CHUNK))
        await a.fsync(handle)
        await a.release(handle)
        assert a.statistics().get(TWO, 0) == 0


async def test_a_client_that_dies_before_the_commit_leaves_the_file_as_it_was(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster() as made, made.mount() as b:
        expected = b"x" * (3 * CHUNK)
        async with trio.open_nursery() as nursery:
            reached = trio.Event()

            async def victim() -> None:
                async with made.mount() as a:
                    ino = await put(a, b"f", expected)
                    await a.sync()
                    core = a._core
                    commit = core.commit

                    async def hang(ino, operation, session):
                        if isinstance(operation, CommitSize) and operation.flush is not None:
                            reached.set()
                            await trio.sleep_forever()
                        return await commit(ino, operation, session)

                    monkeypatch.setattr(core, "commit", hang)
                    handle = await a.open(ino, os.O_RDWR)
                    await a.write(handle, 100, b"y" * 1000)
                    await a.write(handle, CHUNK + 100, b"y" * 1000)
                    await a.fsync(handle)

            scope = trio.CancelScope()

            async def run() -> None:
                with scope:
                    await victim()

            nursery.start_soon(run)
            await reached.wait()
            scope.cancel()
        await trio.sleep(15)
        assert await get(b, b"f") == expected
        handle = await b.open((await b.lookup(1, b"f")).ino, os.O_RDWR)
        await b.write(handle, 0, b"zz")
        await b.fsync(handle)
        assert await b.read(handle, 0, 2 * CHUNK) == b"zz" + expected[2 : 2 * CHUNK]
        await b.release(handle)
