"""One contract, three worlds: the real storage, the fakes of the unit tests, and the simulator's."""

import functools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from fsd.core.errors import DirectoryInUse, NoSpace
from fsd.runtime.local import LocalDirectory
from fsd.runtime.storage import DataDirectory, KeyChange, SegmentWrite
from tests.fakes import MemoryDirectory
from tests.simulation.kernel import Kernel
from tests.simulation.storage import Disk, SimDirectory

SEGMENT = 256 * 1024
FAMILIES = ("a", "b")


class World:
    """How to open one directory again and again, and how to run a test."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.kernel = Kernel(7)
        self.disk = Disk(self.kernel, random.Random(1), "disk", capacity_bytes=4 * SEGMENT)
        self.memory = MemoryDirectory(segment_limit=4)

    def open(self) -> Any:
        if self.name == "real":
            return LocalDirectory(str(self.path))
        return SimDirectory(self.disk, None) if self.name == "simulated" else self.memory.open()

    def run(self, test: Callable[["World"], Awaitable[None]]) -> None:
        if self.name == "simulated":
            self.kernel.run(functools.partial(test, self))
        else:
            trio.run(test, self)


@pytest.fixture(params=["real", "simulated", "fake"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(request.param, tmp_path)


def contract(test: Callable[[World], Awaitable[None]]) -> Callable[[World], None]:
    def run(world: World) -> None:
        world.run(test)

    run.__name__ = test.__name__
    return run


@contract
async def test_a_batch_is_seen_at_once_and_found_again(world: World) -> None:
    directory: DataDirectory = world.open()
    store = await directory.open_keyvalue("index", FAMILIES)
    first = store.apply([KeyChange("a", b"k1", b"v1"), KeyChange("b", b"k1", b"other")])
    second = store.apply([KeyChange("a", b"k1", None), KeyChange("a", b"k2", b"v2")])
    assert second == first + 1 == store.applied_sequence
    assert store.get("a", b"k1") is None
    assert store.get("a", b"k2") == b"v2"
    await store.durable(second)
    assert store.durable_sequence >= second
    await store.aclose()
    await directory.aclose()
    directory = world.open()
    store = await directory.open_keyvalue("index", FAMILIES)
    assert (store.get("a", b"k1"), store.get("a", b"k2"), store.get("b", b"k1")) == (None, b"v2", b"other")
    assert store.applied_sequence == store.durable_sequence >= second
    await store.aclose()
    await directory.aclose()


@contract
async def test_a_scan_is_ordered_half_open_and_limited(world: World) -> None:
    directory = world.open()
    store = await directory.open_keyvalue("index", FAMILIES)
    for key in (b"c", b"a", b"b", b"\xff\xff", b"b\x00"):
        store.apply([KeyChange("a", key, key)])
    assert [key for key, _ in store.scan("a", b"a", b"c", 10)] == [b"a", b"b", b"b\x00"]
    assert [key for key, _ in store.scan("a", b"a", b"c", 2)] == [b"a", b"b"]
    assert [key for key, _ in store.scan("a", b"", b"\xff\xff\xff", 10)] == [b"a", b"b", b"b\x00", b"c", b"\xff\xff"]
    assert store.scan("b", b"", b"\xff", 10) == []
    await store.aclose()
    await directory.aclose()


@contract
async def test_durable_of_nothing_returns(world: World) -> None:
    directory = world.open()
    store = await directory.open_keyvalue("index", FAMILIES)
    await store.durable()
    await store.durable(store.applied_sequence)
    await store.aclose()
    await directory.aclose()


@contract
async def test_many_waiters_share_a_sync(world: World) -> None:
    directory = world.open()
    store = await directory.open_keyvalue("index", FAMILIES)

    async def write(number: int) -> None:
        sequence = store.apply([KeyChange("a", b"%d" % number, b"x")])
        await store.durable(sequence)
        assert store.durable_sequence >= sequence

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(write, number)
    await store.aclose()
    await directory.aclose()


@contract
async def test_segments_hold_what_was_written(world: World) -> None:
    directory = world.open()
    segments = await directory.open_segments("segments", SEGMENT)
    assert segments.count() == 0
    assert [await segments.grow(), await segments.grow()] == [0, 1]
    await segments.write([SegmentWrite(0, 65536, b"x" * 65536), SegmentWrite(1, 10, memoryview(b"abc"))])
    await segments.write([])
    assert await segments.read(0, 65536, 65536) == b"x" * 65536
    assert await segments.read(1, 9, 5) == b"\0abc\0"
    await segments.aclose()
    await directory.aclose()
    directory = world.open()
    segments = await directory.open_segments("segments", SEGMENT)
    assert segments.count() == 2
    assert await segments.read(1, 10, 3) == b"abc"
    await segments.aclose()
    await directory.aclose()


def test_a_full_disk_says_so(world: World) -> None:
    if world.name == "real":
        pytest.skip("a real full disk takes a file system of its own")

    async def test(world: World) -> None:
        directory = world.open()
        segments = await directory.open_segments("segments", SEGMENT)
        for _ in range(4):
            await segments.grow()
        assert segments.space().free_bytes == 0
        with pytest.raises(NoSpace):
            await segments.grow()
        assert segments.count() == 4
        await segments.write([SegmentWrite(3, 0, b"still works")])

    world.run(test)


@contract
async def test_small_files_are_replaced(world: World) -> None:
    directory = world.open()
    assert directory.read_file("identity") is None
    await directory.write_file("identity", b"one")
    await directory.write_file("identity", b"two")
    assert directory.read_file("identity") == b"two"
    await directory.aclose()


@contract
async def test_a_directory_has_one_user(world: World) -> None:
    directory = world.open()
    with pytest.raises(DirectoryInUse):
        world.open()
    await directory.aclose()
    await world.open().aclose()


@contract
async def test_a_damaged_store_is_set_aside(world: World) -> None:
    directory = world.open()
    store = await directory.open_keyvalue("index", FAMILIES)
    await store.durable(store.apply([KeyChange("a", b"k", b"v")]))
    await store.aclose()
    assert await directory.set_aside("index") != "index"
    store = await directory.open_keyvalue("index", FAMILIES)
    assert store.get("a", b"k") is None
    await store.aclose()
    await directory.aclose()
