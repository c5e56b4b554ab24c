"""Every disk call of a chunkserver fails in turn: nothing acknowledged is lost, the server ends with one line (R12)."""

from contextlib import asynccontextmanager

import pytest
import trio

from fsd.core.errors import NoSpace
from fsd.core.ids import ChunkId, DataId
from tests.chunkserver.cluster import Cluster
from tests.chunkserver.disks import CALLS, Failing, FailingDirectory

CHUNKS = [ChunkId(DataId(30), index) for index in range(3)]
EVERY = 7  # of the calls that scan and get make, one in so many


@asynccontextmanager
async def one_bad_disk(failing: Failing):
    """Node a has the failing disk. It is started again on a healed disk as often as it ends."""
    async with trio.open_nursery() as nursery:
        c = Cluster(nursery)
        await nursery.start(c.authority.run)
        c.directories["a"] = FailingDirectory(failing, "a", segment_limit=40)
        await c.start("b")
        try:
            await c.start("a")
        except RuntimeError:  # it ended before it listened
            assert c.failed
            await restart(c, failing)
        yield c
        nursery.cancel_scope.cancel()


async def restart(c, failing):
    failing.heal()
    for node in c.authority.nodes.values():  # its registration may have come through, and its answer got lost
        if node.address.startswith("a:") and c.servers["a"].node != node.node:
            c.authority.died(node.node)
    if "a" in c.addresses:
        c.kill("a", noticed=c.servers["a"].node != 0)
    else:
        c.directories["a"].crash()
    await c.start("a")


async def work(c, content):
    """Writes of all kinds; `content` holds what was acknowledged."""
    for round_ in range(2):
        for chunk in CHUNKS:
            data = bytes([65 + round_ + chunk.index]) * (70_000 + 1000 * chunk.index)
            await c.write(chunk, 0, data)
            content[chunk] = data
            await c.write(chunk, 100, b"small")
            content[chunk] = data[:100] + b"small" + data[105:]
    await c.truncate(CHUNKS[0], 5000)
    content[CHUNKS[0]] = content[CHUNKS[0]][:5000]
    await c.truncate(CHUNKS[1], 0)
    content[CHUNKS[1]] = b""
    for chunk in CHUNKS:
        assert await c.read(chunk) == content[chunk]


async def watch(c, failing):
    """Start node a again when its disk has ended it."""
    while True:
        seen = len(c.failed)
        while len(c.failed) == seen:
            await trio.sleep(0.05)
        await trio.sleep(1)
        await restart(c, failing)


async def scenario(failing: Failing) -> None:
    with trio.fail_after(300):
        async with one_bad_disk(failing) as c:
            content: dict[ChunkId, bytes] = {}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, c, failing)
                await c.settle(members=2)
                await work(c, content)
                await trio.sleep(3)
                failing.heal()
                await trio.sleep(3)
                if failing.struck:
                    assert c.failed, f"{failing.struck} failed and the server went on"
                    assert all("\n" not in line for line in c.failed)
                await c.settle(members=2)
                for chunk in CHUNKS:
                    assert await c.read(chunk) == content[chunk]
                await c.check_equal("a", "b")
                nursery.cancel_scope.cancel()


async def calls_of(names) -> int:
    counting = Failing(names)
    await scenario(counting)
    return counting.count


@pytest.mark.parametrize("name", CALLS)
async def test_every_call_fails_once(autojump_clock, name):
    count = await calls_of((name,))
    assert count, f"{name} is never called"
    for at in range(1, count + 1, EVERY if count > 60 else 1):
        await scenario(Failing((name,), at))


async def test_a_disk_without_room_refuses_before_it_acknowledges_and_lives(autojump_clock):
    failing = Failing(("grow",), 1, for_ever=True)
    failing.error = NoSpace
    async with one_bad_disk(failing) as c:
        await c.settle(members=2)
        for chunk in CHUNKS:
            if c.primary(chunk) == "a":
                with pytest.raises(NoSpace), trio.fail_after(60):
                    await c.write(chunk, 0, b"x" * 70_000)
            else:
                await c.write(chunk, 0, b"x" * 70_000)  # the member that cannot follow is left out, as the row says
        failing.heal()
        c.kill("a")
        await c.start("a")
        await c.settle(members=2)
        await c.write(CHUNKS[0], 0, b"y" * 70_000)
        assert await c.read(CHUNKS[0]) == b"y" * 70_000
        await c.settle(members=2)
        assert not c.failed
        await c.check_equal("a", "b")


async def test_a_disk_that_fails_for_ever_leaves_the_others_to_serve(autojump_clock):
    failing = Failing(("write",), 2, for_ever=True)
    async with one_bad_disk(failing) as c:
        await c.settle(members=2)

        async def notice():
            while not c.failed:
                await trio.sleep(0.5)
            c.authority.died(c.servers["a"].node)

        c.nursery.start_soon(notice)
        with trio.fail_after(120):
            for chunk in CHUNKS:
                await c.write(chunk, 0, b"z" * 100_000)
                assert await c.read(chunk) == b"z" * 100_000
        assert len(c.failed) == 1
