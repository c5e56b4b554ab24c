"""What the authority says of a flush in two phases."""

import trio

from fsd.core.ids import DataId, SessionId
from fsd.namespace.operations import CommitSize
from fsd.namespace.records import FlushRecord
from fsd.protocol import cluster as c
from fsd.protocol import metadata as m
from tests.metadata.cluster import FakeClient, client, running


async def commit(one: FakeClient, ino, size, flush=None, data=0, applied=()):
    layer, now, uid, gid = one.base()
    return await one.execute(CommitSize(layer, now, uid, gid, ino, size, now, DataId(data), flush, applied))


async def fate(one: FakeClient, ino, number, session=None):
    return (await one.ask(c.AskFlush(one.layer, ino, session or one.id, number))).fate


async def test_a_flush_is_open_then_committed_then_over(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        ino = await one.create(b"file", lease=m.LeaseMode.EXCLUSIVE)
        data = one.new_id()
        await commit(one, ino, 100_000, data=data)
        assert await fate(one, ino, 5) is c.Fate.OPEN
        record = FlushRecord(one.id, 5, (0, 1))
        await commit(one, ino, 100_000, record)
        assert await fate(one, ino, 5) is c.Fate.COMMITTED
        assert await fate(one, ino, 6) is c.Fate.OPEN
        assert await fate(one, ino, 5, SessionId(one.id + 1)) is c.Fate.OVER
        await commit(one, ino, 100_000, None, applied=((one.id, 5),))
        assert await fate(one, ino, 5) is c.Fate.OPEN


async def test_a_flush_of_a_session_without_the_lease_is_over(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        ino = await one.create(b"file", lease=m.LeaseMode.EXCLUSIVE)
        assert await fate(one, ino, 5) is c.Fate.OPEN
        await two.get(ino, m.LeaseMode.EXCLUSIVE)
        assert await fate(one, ino, 5) is c.Fate.OVER
        assert await fate(one, ino, 5, two.id) is c.Fate.OPEN


async def test_a_flush_of_an_evicted_session_is_over_and_its_commit_is_refused(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one", alive=False), await client(server, "two")
        ino = await one.create(b"file", lease=m.LeaseMode.EXCLUSIVE)
        session = one.id
        await trio.sleep(15)
        assert await fate(two, ino, 5, session) is c.Fate.OVER
