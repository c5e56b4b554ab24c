"""Rot found before a reader meets it, and healed from good copies; sweeping what lies elsewhere; budgets."""

import trio

from chunkserver import sweeper
from chunkserver.budget import Rate, Turns
from fsd.core.ids import ChunkId, DataId
from fsd.core.units import MIB
from fsd.protocol.chunk import Change, GetScrub, RunScrub
from tests.chunkserver.cluster import cluster

CHUNKS = [ChunkId(DataId(20), index) for index in range(4)]


def flip(c, name, marker: bytes) -> None:
    segments = c.directories[name]._segments["segments"]
    for segment in segments:
        if marker in segment:
            segment[segment.index(marker) + 3] ^= 1
            return
    raise AssertionError(f"{marker} is not on {name}")


def secondary(c, chunk) -> str:
    return next(name for name in c.servers if name != c.primary(chunk))


async def scrub(c, *names, deep=True):
    """Run a pass on every node and return the sum of (rotten, repaired, lost)."""
    for name in names:
        await c.pool.to(c.addresses[name]).call(RunScrub(deep))
    found = []
    with trio.fail_after(300):
        for name in names:
            found.append(await finished(c, name))
    return tuple(map(sum, zip(*found, strict=True)))


async def finished(c, name):
    while True:
        status = (await c.pool.to(c.addresses[name]).call(GetScrub())).message
        if not status.running:
            return status.rotten, status.repaired, status.lost
        await trio.sleep(0.5)


async def fill(c):
    for chunk in CHUNKS:
        await c.write(chunk, 0, b"chunk %d " % chunk.index * 20_000)


async def test_a_healthy_cluster_has_nothing_to_repair(autojump_clock):
    async with cluster("a", "b") as c:
        await fill(c)
        assert await scrub(c, "a", "b") == (0, 0, 0)
        assert await scrub(c, "a", "b", deep=False) == (0, 0, 0)


async def test_rot_of_the_primary_is_found_and_healed(autojump_clock):
    async with cluster("a", "b") as c:
        await fill(c)
        name = c.primary(CHUNKS[1])
        flip(c, name, b"chunk 1 ")
        assert await scrub(c, "a", "b") == (1, 1, 0)
        assert bytes((await c.copy(name, CHUNKS[1])).payload) == b"chunk 1 " * 20_000
        await c.check_equal("a", "b")
        assert await c.read(CHUNKS[1]) == b"chunk 1 " * 20_000


async def test_rot_of_a_secondary_is_found_and_healed(autojump_clock):
    async with cluster("a", "b") as c:
        await fill(c)
        name = secondary(c, CHUNKS[2])
        flip(c, name, b"chunk 2 ")
        assert await scrub(c, "a", "b") == (1, 1, 0)
        assert bytes((await c.copy(name, CHUNKS[2])).payload) == b"chunk 2 " * 20_000
        await c.check_equal("a", "b")


async def test_a_chunk_without_a_good_copy_is_told_and_counted_and_forgotten_when_written_anew(autojump_clock):
    async with cluster("a", "b") as c:
        await fill(c)
        for name in "ab":
            flip(c, name, b"chunk 3 ")
        _, repaired, lost = await scrub(c, "a", "b")
        assert (repaired, lost >= 1) == (0, True)
        await c.truncate(CHUNKS[3], 0)
        assert (await scrub(c, "a", "b"))[2] == 0


async def test_a_copy_that_is_missing_or_differs_in_the_index_is_found_by_the_light_scrub(autojump_clock):
    async with cluster("a", "b") as c:
        await fill(c)
        store = c.servers[secondary(c, CHUNKS[0])]._store
        pg = c.pg(CHUNKS[0])
        prepared = await store.prepare(pg, CHUNKS[0], Change.REMOVE)
        await store.commit(prepared, prepared.before.order, (), flight=False)
        assert await scrub(c, "a", "b", deep=False) == (1, 1, 0)
        await c.check_equal("a", "b")


async def test_scrubbing_and_writing_at_the_same_time_finds_no_rot(autojump_clock):
    async with cluster("a", "b") as c:
        await fill(c)

        async def keep_writing(scope):
            with scope:
                while True:
                    for chunk in CHUNKS:
                        await c.write(chunk, 5, b"again")
                        await trio.sleep(0.002)

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(keep_writing, scope)
            for _ in range(3):
                assert await scrub(c, "a", "b") == (0, 0, 0)
            scope.cancel()


async def test_what_lies_elsewhere_is_removed_and_nothing_else(autojump_clock):
    async with cluster("a", "b") as c:
        await fill(c)
        c.authority.refuse_join = True
        c.kill("b")
        await c.write(CHUNKS[0], 0, b"more")
        await c.settle(members=1)
        await c.start("b")
        await trio.sleep(2 * sweeper.SWEEP_AFTER_S)
        assert await c.listing("b", c.pg(CHUNKS[0]))  # the group still needs a second copy: this one may become it
        c.authority.map = replaced_pool(c.authority.map, replicas=1)
        c.authority.publish()
        await trio.sleep(2 * sweeper.SWEEP_AFTER_S)
        for row in c.authority.map.rows:
            assert not await c.listing("b", row.pg)
            assert len(await c.listing("a", row.pg)) > 0 or not [ch for ch in CHUNKS if c.pg(ch) == row.pg]


def replaced_pool(cluster_map, *, replicas):
    from dataclasses import replace

    return replace(cluster_map, pools=tuple(replace(pool, replicas=replicas) for pool in cluster_map.pools))


async def test_a_rate_is_kept_over_time_and_allows_a_burst(autojump_clock):
    rate = Rate(10 * MIB)
    began = trio.current_time()
    for _ in range(50):
        await rate.take(MIB)
    assert 4.5 <= trio.current_time() - began <= 5.0
    await Rate(0).take(1 << 40)


async def test_turns_go_to_the_most_urgent_and_a_cancelled_one_is_passed_over(autojump_clock):
    turns = Turns(1)
    order: list[int] = []

    async def work(urgency: int) -> None:
        async with turns.turn(urgency):
            order.append(urgency)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for urgency in (9, 5, 1, 3):
            nursery.start_soon(work, urgency)
            await trio.sleep(0.1)
        with trio.move_on_after(0.1):
            await work(0)
    assert order == [9, 1, 3, 5]
    assert turns._free == 1
