"""Sessions: eviction and its fence, restart grace, resuming."""

import pytest
import trio

from fsd.core.errors import DiskFailed, NotFound, NotServing, SessionEvicted, SessionUnknown
from fsd.core.ids import Ino
from fsd.protocol import cluster as c
from fsd.protocol import metadata as m
from fsd.rpc.client import Channel
from fsd.wire.handshake import Hello
from metadata.server import MetadataServer
from tests.fakes import MemoryDirectory, MemoryKeyValue, MemoryNetwork, memory_runtime
from tests.metadata.cluster import ADDRESS, OPTIONS, FakeClient, client, running

EXCLUSIVE, SHARED, NONE = m.LeaseMode.EXCLUSIVE, m.LeaseMode.SHARED, m.LeaseMode.NONE


async def test_a_silent_session_is_fenced_before_its_lease_is_given_on(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one", alive=False), await client(server, "two")
        ino = await one.create(b"file", lease=EXCLUSIVE)

        async def never(recall):
            await trio.sleep_forever()

        one.on_recall = never
        start = trio.current_time()
        epoch = two.session.map_epoch
        await two.get(ino, EXCLUSIVE)
        assert 9 < trio.current_time() - start < 13
        cluster = (await two.ask(c.GetMap())).map
        assert cluster.is_fenced(one.id)
        assert not cluster.is_fenced(two.id)
        assert max(two.map_epochs) > epoch  # told before the answer with the grant
        with pytest.raises(SessionEvicted):
            await one.lookup(b"file")


async def test_a_holder_that_keeps_alive_but_does_not_answer_a_recall_is_evicted(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one", alive=False), await client(server, "two")
        ino = await one.create(b"file", lease=EXCLUSIVE)

        async def never(recall):
            while True:
                await one.ask(m.KeepAlive(one.id))
                await trio.sleep(1)

        one.on_recall = never
        start = trio.current_time()
        await two.get(ino, EXCLUSIVE)
        assert two.mode(ino) is EXCLUSIVE
        assert trio.current_time() - start > 15  # it might have been writing back: that is worth a long wait


async def test_a_holder_that_says_that_it_waits_for_chunkservers_is_waited_for(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        ino = await one.create(b"file", lease=EXCLUSIVE)

        async def slow(recall):
            one.writing_back = True
            await trio.sleep(120)  # a placement group is down
            one.writing_back = False

        one.on_recall = slow
        start = trio.current_time()
        await two.get(ino, EXCLUSIVE)
        assert 119 < trio.current_time() - start < 122
        assert not one.evicted


async def test_a_restarted_server_answers_when_all_sessions_are_back(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one", alive=False), await client(server, "two", alive=False)
        ino = await one.create(b"file", lease=EXCLUSIVE)
        await server.restart()
        await two.resume()
        answered = trio.Event()

        async def read():
            await two.get(ino)
            answered.set()

        server.nursery.start_soon(read)
        await trio.sleep(3)
        await two.ask(m.KeepAlive(two.id))
        assert not answered.is_set()
        resumed = await one.resume()
        assert EXCLUSIVE in [grant.mode for grant in resumed.grants if grant.ino == ino]
        await answered.wait()
        assert one.mode(ino) is SHARED


async def test_a_session_that_does_not_come_back_after_a_restart_is_evicted(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one", alive=False), await client(server, "two", alive=False)
        ino = await one.create(b"file", lease=EXCLUSIVE)
        await server.restart()
        await two.resume()
        server.nursery.start_soon(two.keep_alive)
        await two.get(ino, EXCLUSIVE)
        with pytest.raises(SessionEvicted):
            await one.resume()


async def test_resuming_gives_back_what_was_granted_and_no_more(autojump_clock):
    async with running() as server:
        one = await client(server, "one", alive=False)
        ino = await one.create(b"file")
        one.held[Ino(99)] = m.Grant(Ino(99), EXCLUSIVE, 1)
        server.network.cut("metadata:9000")
        resumed = await one.resume()
        assert {grant.ino: grant.mode for grant in resumed.grants} == {Ino(1): SHARED, ino: SHARED}


async def test_a_wrong_secret_and_an_unknown_session_are_refused(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        with pytest.raises(SessionUnknown):
            await one.ask(m.ResumeSession(one.id, b"guess", ()))
        with pytest.raises(SessionUnknown):
            await one.ask(m.KeepAlive(12345))
        with pytest.raises(NotFound):
            await one.ask(m.OpenSession("one", "no such volume"))


async def test_a_recall_reaches_a_holder_that_was_away_for_a_moment(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one", alive=False), await client(server, "two")
        ino = await one.create(b"file", lease=EXCLUSIVE)
        peer = await one.channel.peer()
        peer.close()
        got = trio.Event()

        async def get():
            await two.get(ino, EXCLUSIVE)
            got.set()

        server.nursery.start_soon(get)
        await trio.sleep(3)
        assert not got.is_set()
        await one.resume()
        await got.wait()
        assert one.mode(ino) is NONE
        assert not (await server.ask(c.GetMap())).map.is_fenced(one.id)


async def test_requests_of_an_old_connection_are_not_those_of_the_session(autojump_clock):
    async with running() as server:
        one = await client(server, "one", alive=False)
        stranger = FakeClient(server, "stranger")
        stranger.session = one.session
        with pytest.raises(NotServing):
            await stranger.lookup(b"file")
        await stranger.resume()
        with pytest.raises(NotServing):  # its connection was closed, and a new one is not the session's
            await one.lookup(b"file")


async def test_a_failed_disk_ends_the_server(autojump_clock, nursery, monkeypatch):
    directory, network = MemoryDirectory(), MemoryNetwork()
    ended: list[BaseException] = []

    async def serve(*, task_status):
        try:
            await MetadataServer(memory_runtime(network), directory.open(), OPTIONS).run(task_status=task_status)
        except DiskFailed as error:
            ended.append(error)

    def broken(self, changes):
        raise DiskFailed("no more writing")

    await nursery.start(serve)
    channel = Channel(memory_runtime(network), nursery, ADDRESS, lambda: Hello("client", "x", "0"))
    opened = (await channel.call(m.OpenSession("x", "default"))).message
    monkeypatch.setattr(MemoryKeyValue, "apply", broken)
    with pytest.raises(DiskFailed):
        await channel.call(m.AllocateIds(opened.session))
    await trio.sleep(5)
    assert len(ended) == 1


async def test_a_closed_session_gives_everything_back(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one", alive=False), await client(server, "two")
        ino = await one.create(b"file", lease=EXCLUSIVE)
        await one.ask(m.CloseSession(one.id))
        start = trio.current_time()
        await two.get(ino, EXCLUSIVE)
        assert trio.current_time() - start < 1
        status = await server.ask(c.GetStatus())
        assert [session.client for session in status.sessions] == ["two"]
