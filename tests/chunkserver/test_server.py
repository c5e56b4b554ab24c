"""Two and three chunkservers under a small authority: writing, death, takeover, return, fences."""

import logging

import pytest
import trio

from fsd.core.checksum import block_checksums
from fsd.core.errors import CorruptData, ForeignFileSystem, NotServing, SessionEvicted, StaleMap
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


async def test_takeover_settles_what_was_in_flight(monkeypatch, autojump_clock):
    """The secondary has a change that was never acknowledged, or has not: after the takeover it is there for all."""
    async with cluster("a", "b", "c", replicas=3) as c:
        await c.write(CHUNK, 0, b"old " * 1000)
        primary = c.primary(CHUNK)
        seconds = [name for name in "abc" if name != primary]
        real = c.servers[seconds[0]]._membership  # one secondary hears nothing of the change
        follower_row = real.row
        monkeypatch.setattr(real, "row", lambda pg: None)
        monkeypatch.setattr(real, "refresh", _never)
        with trio.move_on_after(0.5):
            await c.write(CHUNK, 0, b"new!")
        monkeypatch.setattr(real, "row", follower_row)
        monkeypatch.undo()
        c.kill(primary)
        await c.settle(members=2)
        data = await c.read(CHUNK)
        assert data in (b"old " * 1000, b"new!" + b"old " * 999)
        await c.check_equal(*seconds)


async def _never():
    await trio.sleep_forever()


async def test_an_interrupted_write_is_mended_without_anybody_asking(monkeypatch, autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"old " * 1000)
        second = next(name for name in "ab" if name != c.primary(CHUNK))
        membership = c.servers[second]._membership
        row = membership.row
        monkeypatch.setattr(membership, "row", lambda pg: None)
        with trio.move_on_after(0.2):
            await c.write(CHUNK, 0, b"new!")
        monkeypatch.setattr(membership, "row", row)
        await trio.sleep(3)
        await c.settle()
        await c.check_equal("a", "b")


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
