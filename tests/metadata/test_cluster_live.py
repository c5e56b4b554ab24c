"""The authority over connections: nodes come and go, maps are told, dead data is collected, volumes are administered."""

import json

import pytest
import trio

from fsd.cluster.map import NodeState, pg_of
from fsd.core.errors import (
    AlreadyExists,
    Busy,
    ConfigurationError,
    ForeignFileSystem,
    FormatError,
    FsError,
    InvalidArgument,
    NoSpace,
    NotEmpty,
    NotFound,
    ProtocolError,
    SessionUnknown,
)
from fsd.core.ids import ChunkId, Incarnation, LayerId, Member, NodeId
from fsd.namespace.operations import CommitSize, Truncate
from fsd.protocol import cluster as c
from fsd.protocol import metadata as m
from fsd.protocol.chunk import ChunkWritten, InspectGroup, TruncateChunk
from fsd.rpc.client import Channel
from fsd.rpc.server import serve
from fsd.wire.handshake import Hello, Welcome
from metadata.server import MetadataOptions, MetadataServer
from tests.fakes import MemoryDirectory, memory_runtime
from tests.metadata.cluster import ADDRESS, OPTIONS, Server, client, running


class FakeNode:
    """A chunkserver that only speaks with the authority; it activates what it leads."""

    def __init__(self, server: Server, n: int) -> None:
        self.server = server
        self.address = f"node{n}:1"
        self.node = NodeId(0)
        self.incarnation = 0
        self.map = None
        self.free_bytes = 1 << 30
        self.removed: list[ChunkId] = []
        self.scope = trio.CancelScope()

    async def start(self) -> None:
        self.incarnation += 1
        self.scope = trio.CancelScope()
        await self.server.nursery.start(self._run)

    async def _run(self, *, task_status) -> None:
        server = self.server
        with self.scope:
            listener = await server.network.listen(self.address)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, listener, self, lambda hello: Welcome("chunkserver", "0", ""))
                self.channel = Channel(server.runtime, nursery, ADDRESS, lambda: Hello("chunkserver", "n", "0"), self)
                answer = await self.ask(
                    c.RegisterNode(self.node, self.incarnation, self.address, f"zone {self.address}", 1 << 30, False)
                )
                self.node = answer.node
                task_status.started()
                while True:
                    await self._beat()
                    await trio.sleep(0.5)

    async def _beat(self) -> None:
        try:
            load = c.NodeLoad(1 << 30, self.free_bytes)
            self.beat = await self.ask(c.Heartbeat(self.node, self.incarnation, 0, load))
            self.map = (await self.ask(c.GetMap())).map
            for row in self.map.rows:
                if row.primary == self.member and not row.active:
                    await self.ask(c.Activate(row.pg, row.epoch, self.member))
        except FsError:
            pass

    @property
    def member(self) -> Member:
        return Member(self.node, Incarnation(self.incarnation))

    async def ask(self, message):
        return (await self.channel.call(message)).message

    def kill(self) -> None:
        self.server.network.kill(self.address)
        self.scope.cancel()
        self.channel.close()

    async def handle(self, peer, message, payload):
        if isinstance(message, TruncateChunk):
            assert (message.session, message.length) == (0, 0)
            self.removed.append(message.chunk)
            return ChunkWritten((1, 1), 0)
        return None

    def arrived(self, peer, message) -> None:
        pass

    def disconnected(self, peer) -> None:
        pass


async def nodes(server: Server, count: int) -> list[FakeNode]:
    made = [FakeNode(server, n) for n in range(1, count + 1)]
    for node in made:
        await node.start()
    return made


async def cluster_map(server: Server):
    return (await server.ask(c.GetMap())).map


async def test_rows_are_placed_when_a_volume_is_opened_and_activated_by_their_primaries(autojump_clock):
    async with running() as server:
        await nodes(server, 3)
        assert (await cluster_map(server)).rows == ()
        await client(server, "one")
        await trio.sleep(2)
        rows = (await cluster_map(server)).rows
        assert len(rows) == OPTIONS.pg_count
        assert all(row.active and len(row.in_sync) == 2 for row in rows)
        status = await server.ask(c.GetStatus())
        assert (status.total, status.in_sync, status.degraded, status.down) == (8, 8, 0, 0)


async def test_a_killed_nodes_rows_are_served_by_others_within_seconds(autojump_clock):
    async with running() as server:
        three = await nodes(server, 3)
        one = await client(server, "one")
        await trio.sleep(2)
        told = len(one.map_epochs)
        three[0].kill()
        await trio.sleep(2)
        cluster = await cluster_map(server)
        assert cluster.nodes[0].state is NodeState.DOWN
        assert all(row.active and three[0].member not in row.members() for row in cluster.rows)
        assert len(one.map_epochs) > told


async def test_a_node_that_comes_back_joins_as_syncing(autojump_clock):
    async with running() as server:
        two = await nodes(server, 2)
        await client(server, "one")
        await trio.sleep(2)
        two[0].kill()
        await trio.sleep(2)
        await two[0].start()
        await trio.sleep(2)
        cluster = await cluster_map(server)
        assert all(row.syncing == (two[0].member,) and row.active for row in cluster.rows)
        row = cluster.rows[0]
        reply = await two[1].ask(c.Promote(row.pg, row.epoch, row.primary, two[0].member))
        assert len(reply.row.in_sync) == 2


async def test_a_silent_node_is_dead_after_the_grace_and_gets_no_lease_meanwhile(autojump_clock):
    async with running() as server:
        two = await nodes(server, 2)
        await client(server, "one")
        await trio.sleep(2)
        assert two[0].beat.lease_s == OPTIONS.lease_s
        two[0].scope.cancel()  # the connection ends; its kernel still listens
        start = trio.current_time()
        while (await cluster_map(server)).nodes[0].state is NodeState.UP:
            await trio.sleep(0.1)
        assert OPTIONS.grace_s - 1 < trio.current_time() - start < OPTIONS.grace_s + 1


async def test_goodbye_returns_when_others_serve(autojump_clock):
    async with running() as server:
        two = await nodes(server, 2)
        await client(server, "one")
        await trio.sleep(2)
        start = trio.current_time()
        await two[0].ask(c.Goodbye(two[0].node, two[0].incarnation))
        assert trio.current_time() - start < 1.5
        assert all(row.in_sync == (two[1].member,) for row in (await cluster_map(server)).rows)
        with pytest.raises(SessionUnknown):
            await two[0].ask(c.Heartbeat(two[0].node, two[0].incarnation, 0, c.NodeLoad()))


async def test_drop_answers_with_the_durable_new_row(autojump_clock):
    async with running() as server:
        two = await nodes(server, 2)
        await client(server, "one")
        await trio.sleep(2)
        row = (await cluster_map(server)).rows[0]
        victim = next(member for member in row.in_sync if member != row.primary)
        asker = two[0] if row.primary == two[0].member else two[1]
        reply = await asker.ask(c.DropMember(row.pg, row.epoch, row.primary, victim))
        assert reply.row.in_sync == (row.primary,)
        assert (reply.row.epoch, reply.row.active) == (row.epoch + 1, False)


async def test_the_map_survives_a_restart_of_the_authority(autojump_clock):
    async with running() as server:
        await nodes(server, 2)
        await client(server, "one")
        await trio.sleep(2)
        before = await cluster_map(server)
        await server.restart()
        await trio.sleep(3)
        after = await cluster_map(server)
        assert after.rows == before.rows
        assert after.nodes == before.nodes


async def test_dead_data_is_removed_at_the_primaries_even_after_a_restart(autojump_clock):
    async with running() as server:
        two = await nodes(server, 2)
        one = await client(server, "one", alive=False)
        await trio.sleep(2)
        ino = await one.create(b"big", lease=m.LeaseMode.EXCLUSIVE)
        data = one.new_id()
        size = 10 * 1024 * 1024
        await one.execute(CommitSize(*one.base(), ino, size, 5, data))
        for node in two:
            node.kill()
        await one.execute(Truncate(*one.base(), ino, 0))
        await trio.sleep(1)
        await server.restart()
        await one.resume()
        server.nursery.start_soon(one.keep_alive)
        for node in two:
            await node.start()
        await trio.sleep(10)
        removed = {chunk for node in two for chunk in node.removed}
        assert removed == {ChunkId(data, index) for index in range(3)}
        assert (await server.ask(c.GetStatus())).collecting == 0
        cluster = await cluster_map(server)
        for node in two:
            for chunk in node.removed:
                pg = pg_of(cluster.pools[0].pool, chunk, cluster.pg_count)
                assert any(row.pg == pg and row.primary.node == node.node for row in cluster.rows)


async def test_growth_is_refused_when_every_node_is_full(autojump_clock):
    async with running() as server:
        two = await nodes(server, 2)
        one = await client(server, "one")
        ino = await one.create(b"file")
        for node in two:
            node.free_bytes = 0
        await trio.sleep(2)
        with pytest.raises(NoSpace):
            await one.create(b"another")
        await one.unlink(b"file")
        assert ino


async def test_volumes_are_made_changed_and_deleted(autojump_clock):
    async with running() as server:
        made = (await server.ask(c.CreateVolume("v", 2, 1))).volume
        with pytest.raises(AlreadyExists):
            await server.ask(c.CreateVolume("v", 2, 1))
        with pytest.raises(InvalidArgument):
            await server.ask(c.CreateVolume("w", 2, 3))
        with pytest.raises(InvalidArgument):
            await server.ask(c.CreateVolume("../w", 2, 1))
        changed = (await server.ask(c.SetVolume("v", quota_bytes=1 << 20, replicas=3))).volume
        assert (changed.replicas, changed.quota_bytes) == (3, 1 << 20)
        assert changed.pool != made.pool
        names = [volume.name for volume in (await server.ask(c.ListVolumes())).volumes]
        assert names == ["default", "v"]
        with pytest.raises(NotFound):
            await server.ask(c.SetVolume("x", quota_bytes=1))


async def test_a_used_volume_keeps_its_replicas_and_is_deleted_by_force_alone(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        ino = await one.create(b"file")
        await one.execute(CommitSize(*one.base(), ino, 100_000, 5, one.new_id()))
        with pytest.raises(InvalidArgument):
            await server.ask(c.SetVolume("default", min_replicas=2))
        with pytest.raises(Busy):
            await server.ask(c.DeleteVolume("default", force=True))
        page = await server.ask(c.ListData(one.layer, 0, 100))
        assert [(live.ino, live.size) for live in page.data] == [(ino, 100_000)]
        assert page.end
        await one.ask(m.CloseSession(one.id))
        with pytest.raises(NotEmpty):
            await server.ask(c.DeleteVolume("default"))
        await server.ask(c.DeleteVolume("default", force=True))
        await trio.sleep(3)
        assert (await server.ask(m.InspectInode(LayerId(1), ino))).inode is None
        await server.restart()
        assert (await server.ask(c.ListVolumes())).volumes == ()
        assert (await server.ask(c.GetStatus())).collecting == 0


async def test_a_message_that_is_not_for_this_server_is_refused(autojump_clock):
    async with running() as server:
        with pytest.raises(ProtocolError):
            await server.ask(InspectGroup(1, ChunkId(0, 0), 1))


# --- the directory ----------------------------------------------------------------------------------------------------


async def start(directory: MemoryDirectory, options: MetadataOptions = OPTIONS) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(MetadataServer(memory_runtime(), directory.open(), options).run)
        nursery.cancel_scope.cancel()
    await directory.aclose()


def only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        assert len(error.exceptions) == 1
        error = error.exceptions[0]
    return error


async def test_a_directory_keeps_its_file_system(autojump_clock):
    directory = MemoryDirectory()
    await start(directory)
    before = directory.read_file("identity")
    await start(directory)
    assert directory.read_file("identity") == before


@pytest.mark.parametrize(
    "identity",
    [
        b"not json",
        b"[]",
        json.dumps({"format": 1, "role": "chunkserver", "file_system": "ab"}).encode(),
        json.dumps({"format": 99, "role": "metadata", "file_system": "ab"}).encode(),
        json.dumps({"format": "x", "role": "metadata"}).encode(),
    ],
)
async def test_a_foreign_damaged_or_future_directory_is_refused(autojump_clock, identity):
    directory = MemoryDirectory()
    await directory.write_file("identity", identity)
    with pytest.raises(BaseException) as caught:
        await start(directory)
    assert isinstance(only(caught.value), FormatError)
    assert "\n" not in str(only(caught.value))


async def test_a_directory_whose_store_is_of_another_file_system_is_refused(autojump_clock):
    directory = MemoryDirectory()
    await start(directory)
    other = {"format": 1, "role": "metadata", "file_system": "0123456789abcdef"}
    await directory.write_file("identity", json.dumps(other).encode())
    with pytest.raises(BaseException) as caught:
        await start(directory)
    assert isinstance(only(caught.value), FormatError)


async def test_a_caller_from_another_file_system_is_refused(autojump_clock):
    async with running() as server:
        hello = Hello("chunkserver", "n", "0", file_system="0123")
        channel = Channel(server.runtime, server.nursery, ADDRESS, lambda: hello)
        with pytest.raises(ForeignFileSystem):
            await channel.call(c.GetMap())


def test_options_that_cannot_be_are_told_all_at_once():
    options = MetadataOptions("x:1", grace_s=1, pg_count=3, replicas=9, chunk_size=5, inline_limit=-1)
    with pytest.raises(ConfigurationError) as caught:
        MetadataServer(memory_runtime(), MemoryDirectory(), options)
    assert len(str(caught.value).splitlines()) == 5
