"""Two and three chunkservers under a small authority: writing, death, takeover, return, fences."""

import logging
from contextlib import asynccontextmanager

import pytest
import trio

from chunkserver.follower import Follower
from fsd.core.checksum import block_checksums
from fsd.core.errors import CorruptData, DiskFailed, ForeignFileSystem, NoSpace, NotServing, SessionEvicted, StaleMap
from fsd.core.ids import ChunkId, DataId, MapEpoch, PgEpoch, RequestNumber, SessionId
from fsd.core.units import BLOCK_SIZE
from fsd.protocol.chunk import ReadChunk, WriteChunk
from tests.chunkserver.cluster import Cluster, cluster

CHUNKS = [ChunkId(DataId(10), index) for index in range(6)]
CHUNK = CHUNKS[0]


async def test_what_was_written_is_read_and_both_copies_are_equal(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"x" * 100_000)
        await c.write(CHUNK, 50_000, b"y" * 1000)
        await c.write(CHUNK, 150_000, b"z" * 40_000)
        expected = b"x" * 50_000 + b"y" * 1000 + b"x" * 49_000 + bytes(50_000) + b"z" * 40_000
        assert await c.read(CHUNK) == expected
        assert await c.read(CHUNK, BLOCK_SIZE, 100) == expected[BLOCK_SIZE : BLOCK_SIZE + 100]
        await c.check_equal("a", "b")
        await c.truncate(CHUNK, 50_500)
        assert await c.read(CHUNK) == expected[:50_500]
        await c.truncate(CHUNK, 0)
        assert await c.read(CHUNK) == b""
        await c.check_equal("a", "b")


async def test_a_secondary_that_dies_costs_a_pause_and_no_error(autojump_clock):
    async with cluster("a", "b") as c:
        for chunk in CHUNKS:
            await c.write(chunk, 0, b"1" * 70_000)
        c.kill("b")
        with trio.fail_after(30):
            for chunk in CHUNKS:
                await c.write(chunk, 10, b"2" * 10)
        for chunk in CHUNKS:
            assert await c.read(chunk) == b"1" * 10 + b"2" * 10 + b"1" * (70_000 - 20)


async def test_a_silent_secondary_is_dropped_before_a_write_is_acknowledged(autojump_clock):
    async with cluster("a", "b") as c:
        chunk = next(chunk for chunk in CHUNKS if c.primary(chunk) == "a")
        await c.write(chunk, 0, b"1" * 70_000)
        c.kill("b", noticed=False)
        with trio.fail_after(5):
            await c.write(chunk, 10, b"2" * 10)
        assert len(c.authority.row(c.pg(chunk)).in_sync) == 1
        assert await c.read(chunk) == b"1" * 10 + b"2" * 10 + b"1" * (70_000 - 20)


async def test_a_node_that_returns_is_filled_and_promoted(autojump_clock):
    async with cluster("a", "b") as c:
        for chunk in CHUNKS[:4]:
            await c.write(chunk, 0, b"1" * 70_000)
        c.kill("b")
        await c.write(CHUNKS[0], 10, b"2" * 10)
        await c.truncate(CHUNKS[1], 0)
        await c.write(CHUNKS[4], 0, b"new")
        await c.start("b")
        await c.settle(members=2)
        await c.check_equal("a", "b")
        c.kill("a")
        assert await c.read(CHUNKS[0]) == b"1" * 10 + b"2" * 10 + b"1" * (70_000 - 20)
        assert await c.read(CHUNKS[1]) == b""
        assert await c.read(CHUNKS[4]) == b"new"


async def test_writes_go_on_while_a_member_is_filled(autojump_clock):
    async with cluster("a", "b") as c:
        for chunk in CHUNKS:
            await c.write(chunk, 0, b"1" * 200_000)
        c.kill("b")
        for chunk in CHUNKS:
            await c.write(chunk, 0, b"2" * 100)
        await c.start("b")
        for round_ in range(5):
            for chunk in CHUNKS:
                await c.write(chunk, 100 * round_, bytes([round_]) * 100)
        await c.settle(members=2)
        await c.check_equal("a", "b")


def make_deaf(monkeypatch, server):
    """`server` gets no change from its primaries until the returned event is set."""
    hears = trio.Event()
    replicate = Follower.replicate

    async def heard(self, message, payload):
        if self._membership is server._membership:
            await hears.wait()
        return await replicate(self, message, payload)

    monkeypatch.setattr(Follower, "replicate", heard)
    return hears


@pytest.mark.parametrize("who_heard", [0, 1])
async def test_takeover_settles_what_was_in_flight(monkeypatch, autojump_clock, who_heard):
    """One secondary has a change that was never acknowledged, the other has not: after the takeover they are equal."""
    async with cluster("a", "b", "c", replicas=3) as c:
        await c.write(CHUNK, 0, b"old " * 1000)
        primary = c.primary(CHUNK)
        seconds = [name for name in "abc" if name != primary]
        hears = make_deaf(monkeypatch, c.servers[seconds[who_heard]])
        with trio.move_on_after(0.5):
            await c.write(CHUNK, 0, b"new!")
        c.kill(primary)
        await trio.sleep(0.1)  # what it had asked for dies with its connections
        hears.set()
        await c.settle(members=2)
        assert await c.read(CHUNK) in (b"old " * 1000, b"new!" + b"old " * 999)
        await c.check_equal(*seconds)


async def test_what_a_returning_node_alone_had_is_overwritten(monkeypatch, autojump_clock):
    """Its copy has the higher order, of a change that nobody acknowledged and that the others never saw."""
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"old " * 1000)
        neighbour = next(chunk for chunk in CHUNKS if chunk != CHUNK and c.pg(chunk) == c.pg(CHUNK))
        await c.write(neighbour, 0, b"so that nothing of the first is in flight any more")
        primary = c.primary(CHUNK)
        second = next(name for name in "ab" if name != primary)
        make_deaf(monkeypatch, c.servers[second])
        with trio.move_on_after(0.2):
            await c.write(CHUNK, 0, b"new!")
        c.kill(primary)
        monkeypatch.undo()
        with trio.fail_after(20):
            assert await c.read(CHUNK) == b"old " * 1000
            await c.start(primary)
            await c.settle(members=2)
        await c.check_equal("a", "b")


async def test_an_interrupted_write_is_mended_without_anybody_asking(monkeypatch, autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"old " * 1000)
        primary = c.primary(CHUNK)
        second = next(name for name in "ab" if name != primary)
        hears = make_deaf(monkeypatch, c.servers[second])
        with trio.move_on_after(0.2):
            await c.write(CHUNK, 0, b"new!")
        assert await c.listing(primary, c.pg(CHUNK)) != await c.listing(second, c.pg(CHUNK))
        hears.set()
        await trio.sleep(1)
        await c.check_equal("a", "b")
        assert len(c.authority.row(c.pg(CHUNK)).in_sync) == 2


async def test_a_repeated_request_number_is_carried_out_once(autojump_clock):
    async with cluster("a", "b") as c:
        first = await c.write(CHUNK, 0, b"one", number=1)
        assert await c.write(CHUNK, 0, b"one", number=1) == first
        await c.write(CHUNK, 0, b"two", number=2)
        await c.write(CHUNK, 0, b"one", number=1)
        assert await c.read(CHUNK) == b"two"
        c.kill(c.primary(CHUNK))
        await c.write(CHUNK, 0, b"one", number=1)
        assert await c.read(CHUNK) == b"two"


async def test_a_late_write_does_not_bring_a_removed_chunk_back(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"one", number=1)
        c.number = 1
        await c.truncate(CHUNK, 0)
        await c.write(CHUNK, 0, b"one", number=1)
        assert await c.read(CHUNK) == b""


async def test_the_collector_removes_without_a_session(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"one" * 30_000)
        await c.truncate(CHUNK, 0, session=SessionId(0))
        assert [await c.listing(name, c.pg(CHUNK)) for name in "ab"] == [(), ()]


async def test_stale_askers_are_refused(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"one")
        channel = c.pool.to(c.addresses[c.primary(CHUNK)])
        other = c.pool.to(c.addresses[next(name for name in "ab" if name != c.primary(CHUNK))])
        sums = block_checksums(b"two")
        stale = WriteChunk(c.where(CHUNK, pg_epoch=PgEpoch(0)), c.session, RequestNumber(9), CHUNK, 0, sums)
        with pytest.raises(StaleMap):
            await channel.call(stale, b"two")
        with pytest.raises(StaleMap):
            await other.call(ReadChunk(c.where(CHUNK), c.session, CHUNK, 0, 10))
        with pytest.raises(NotServing):
            await channel.call(ReadChunk(c.where(CHUNK, min_map_epoch=MapEpoch(999)), c.session, CHUNK, 0, 10))


async def test_a_deposed_primary_cannot_write_through_its_old_members(autojump_clock, monkeypatch):
    async with cluster("a", "b", "c", replicas=3) as c:
        old = c.primary(CHUNK)
        where = c.where(CHUNK)
        membership = c.servers[old]._membership
        monkeypatch.setattr(membership, "hear_of", lambda epoch: None)  # it does not know yet
        c.authority.died(c.servers[old].node)
        await c.settle(members=2)
        message = WriteChunk(where, c.session, RequestNumber(9), CHUNK, 0, block_checksums(b"late"))
        with pytest.raises(StaleMap):
            await c.pool.to(c.addresses[old]).call(message, b"late")
        assert await c.read(CHUNK) == b""


async def test_an_evicted_session_is_refused(autojump_clock):
    from dataclasses import replace

    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"one")
        c.authority.map = replace(c.authority.map, evicted=(c.session,))
        c.authority.publish()
        fence = c.where(CHUNK, min_map_epoch=c.authority.map.epoch)
        message = WriteChunk(fence, c.session, RequestNumber(50), CHUNK, 0, block_checksums(b"x"))
        with pytest.raises(SessionEvicted):
            await c.pool.to(c.addresses[c.primary(CHUNK)]).call(message, b"x")


async def test_nothing_is_served_after_the_lease(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"one")
        c.authority.thawed = trio.Event()
        await trio.sleep(7)
        channel = c.pool.to(c.addresses[c.primary(CHUNK)])
        with pytest.raises(NotServing):
            await channel.call(ReadChunk(c.where(CHUNK), c.session, CHUNK, 0, 10))
        message = WriteChunk(c.where(CHUNK), c.session, RequestNumber(50), CHUNK, 0, block_checksums(b"x"))
        with pytest.raises(NotServing):
            await channel.call(message, b"x")
        c.authority.thawed.set()
        assert await c.read(CHUNK) == b"one"


async def test_a_rotten_block_is_repaired_from_the_other_member(autojump_clock):
    async with cluster("a", "b") as c:
        data = b"precious" * 20_000
        await c.write(CHUNK, 0, data)
        name = c.primary(CHUNK)
        segments = c.directories[name]._segments["segments"]
        at = segments[0].index(b"precious")
        segments[0][at + 5] ^= 1
        assert await c.read(CHUNK) == data
        assert c.servers[name]._carrier.repaired == 1
        assert bytes((await c.copy(name, CHUNK)).payload) == data
        await c.check_equal("a", "b")


async def test_rot_without_another_copy_is_an_error_and_never_wrong_bytes(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"precious" * 20_000)
        for name in "ab":
            segments = c.directories[name]._segments["segments"]
            segments[0][segments[0].index(b"precious") + 5] ^= 1
        with pytest.raises(CorruptData):
            await c.read(CHUNK)


async def test_a_clean_stop_says_goodbye(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"one")
        await c.servers["b"].goodbye()
        c.kill("b")
        with trio.fail_after(2):
            assert await c.read(CHUNK) == b"one"


async def test_the_incarnation_grows_with_every_start(autojump_clock):
    async with cluster("a", "b") as c:
        assert c.servers["a"].incarnation == 1
        c.kill("a")
        await c.start("a")
        assert c.servers["a"].incarnation == 2
        await c.settle(members=2)


async def test_a_directory_of_another_file_system_is_refused(autojump_clock):
    async with trio.open_nursery() as nursery:
        c = Cluster(nursery, replicas=1)
        await nursery.start(c.authority.run)
        await c.start("a")
        await c.settle()
        c.kill("a")
        text = c.directories["a"].read_file("identity").replace(b'"fs"', b'"other"')
        await c.directories["a"].write_file("identity", text)
        c.directories["a"].open()
        from chunkserver.server import ChunkServer, ChunkServerOptions
        from tests.chunkserver.authority import ADDRESS

        server = ChunkServer(c.runtime, c.directories["a"], ChunkServerOptions("x:1", (ADDRESS,)))
        with trio.fail_after(10), pytest.raises(ForeignFileSystem):
            await server.run()
        nursery.cancel_scope.cancel()


async def test_three_members_all_hold_every_write_through_restarts(caplog, autojump_clock):
    caplog.set_level(logging.ERROR)
    async with cluster("a", "b", "c", replicas=3) as c:
        content = {}
        for round_, name in enumerate("abc"):
            for index, chunk in enumerate(CHUNKS):
                data = bytes([round_ * 10 + index]) * (30_000 * (index + 1))
                await c.write(chunk, 0, data)
                content[chunk] = data
            c.kill(name)
            for chunk in CHUNKS:
                await c.write(chunk, 0, b"head")
                content[chunk] = b"head" + content[chunk][4:]
            await c.start(name)
            await c.settle(members=3)
            await c.check_equal("a", "b", "c")
        for chunk in CHUNKS:
            assert await c.read(chunk) == content[chunk]
    assert not caplog.records


@asynccontextmanager
async def one_small_disk():
    """Node b has 64 blocks, half of them kept in reserve."""
    async with trio.open_nursery() as nursery:
        c = Cluster(nursery)
        await nursery.start(c.authority.run)
        await c.start("a")
        await c.start("b", segments=2, reserve_bytes=32 * BLOCK_SIZE)
        await c.settle()
        yield c
        nursery.cancel_scope.cancel()


async def write_until_refused(c, written):
    for index in range(20):
        chunk = ChunkId(DataId(20), index)
        await c.write(chunk, 0, b"x" * 4 * BLOCK_SIZE)
        written.append(chunk)


async def test_a_full_member_stops_writes_and_not_the_group(autojump_clock):
    async with one_small_disk() as c:
        epochs = {row.pg: row.epoch for row in c.authority.map.rows}
        written = []
        with pytest.raises(NoSpace):
            await write_until_refused(c, written)
        assert 7 <= len(written) <= 16
        assert {row.pg: row.epoch for row in c.authority.map.rows} == epochs
        for chunk in written:
            assert await c.read(chunk) == b"x" * 4 * BLOCK_SIZE
            await c.truncate(chunk, 0)
        await trio.sleep(2)
        await c.write(written[0], 0, b"y" * BLOCK_SIZE)
        await c.check_equal("a", "b")


async def test_a_failing_disk_ends_its_server_and_the_other_goes_on(autojump_clock, monkeypatch):
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"x" * 100_000)
        name = c.primary(CHUNK)
        monkeypatch.setattr(c.servers[name]._store._space._segments, "write", _fail)
        c.nursery.start_soon(c.write, CHUNK, 0, b"y" * 100_000)
        await trio.sleep(1)
        c.kill(name)
        await trio.sleep(2)
        assert c.failed == ["no more"]
        assert await c.read(CHUNK) == b"y" * 100_000


async def _fail(*_):
    raise DiskFailed("no more")


async def test_a_damaged_store_is_filled_again(autojump_clock):
    async with cluster("a", "b") as c:
        for chunk in CHUNKS:
            await c.write(chunk, 0, b"x" * 100_000)
        c.kill("b")
        records = c.directories["b"]._stores["index"].durable["chunk"]
        key = min(records)
        records[key] = records[key][:-3]
        await c.start("b")
        await c.settle(members=2)
        await c.check_equal("a", "b")


async def test_a_reader_waits_for_the_write_under_way(autojump_clock, monkeypatch):
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"old")
        second = next(name for name in "ab" if name != c.primary(CHUNK))
        hears = make_deaf(monkeypatch, c.servers[second])
        read = []

        async def reader():
            await trio.sleep(0.1)
            read.append((await c.read(CHUNK), trio.current_time()))

        start = trio.current_time()
        c.nursery.start_soon(reader)
        c.nursery.start_soon(c.write, CHUNK, 0, b"new")
        await trio.sleep(0.5)
        assert read == []
        hears.set()
        await trio.sleep(3)
        assert read[0][0] == b"new"
        assert read[0][1] - start >= 0.5


@pytest.mark.parametrize(("delay_s", "kept"), [(4, True), (30, False)])
async def test_a_slow_member_is_waited_for_and_a_stuck_one_is_dropped(autojump_clock, monkeypatch, delay_s, kept):
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"old")
        second = next(name for name in "ab" if name != c.primary(CHUNK))
        store = c.servers[second]._store
        durable = store.durable

        async def slow():
            await trio.sleep(delay_s)
            await durable()

        monkeypatch.setattr(store, "durable", slow)
        with trio.fail_after(20):
            await c.write(CHUNK, 0, b"new")
        assert (len(c.authority.row(c.pg(CHUNK)).in_sync) == 2) is kept
