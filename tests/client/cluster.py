"""A small cluster in memory, in virtual time: one metadata server, chunkservers, clients."""

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
import trio.lowlevel

from chunkserver.server import ChunkServer, ChunkServerOptions
from fsd.client.filesystem import FileSystem, open_filesystem
from fsd.client.options import Caller, ClientOptions
from fsd.core.errors import Unreachable
from fsd.core.units import KIB, MIB
from fsd.protocol.cluster import FsckReply, GetStatus, RunFsck, StatusReply
from fsd.rpc.client import Channel
from fsd.wire.handshake import Hello
from metadata.server import MetadataOptions, MetadataServer
from tests.fakes import MemoryDirectory, MemoryNetwork, MemoryState, memory_runtime

ROOT = Caller(0, 0)
METADATA = "meta:1"
OPTIONS = ClientOptions(name="test", write_back_bytes=4 * MIB, cache_bytes=4 * MIB, read_ahead_bytes=1 * MIB)


class Cluster:
    """`start_…` begin a life of a server on its directory; `kill_…` end it without a word."""

    def __init__(self, nursery: trio.Nursery, nodes: int) -> None:
        self.nursery = nursery
        self.network = MemoryNetwork()
        self.directories = {name: MemoryDirectory(name) for name in ["metadata", *(f"node{i}" for i in range(nodes))]}
        self.lives: dict[str, trio.CancelScope] = {}
        self.seeds = iter(range(1000))

    async def start_metadata(self) -> None:
        runtime = memory_runtime(self.network, next(self.seeds))
        options = MetadataOptions(listen=METADATA, chunk_size=256 * KIB, pg_count=8, session_ttl_s=10.0)
        server = MetadataServer(runtime, self.directories["metadata"].open(), options)
        await self._live("metadata", server)

    async def start_node(self, index: int) -> None:
        name = f"node{index}"
        runtime = memory_runtime(self.network, next(self.seeds))
        options = ChunkServerOptions(
            listen=f"{name}:1", metadata=(METADATA,), zone=f"z{index}", advertise=None, weight=1 << 30, reserve_bytes=0
        )
        await self._live(name, ChunkServer(runtime, self.directories[name].open(), options))

    async def _live(self, name: str, server: MetadataServer | ChunkServer) -> None:
        scope = self.lives[name] = trio.CancelScope()

        async def life(*, task_status: trio.TaskStatus[str]) -> None:
            with scope:
                await server.run(task_status=task_status)

        await self.nursery.start(life)

    async def kill(self, name: str, address: str) -> None:
        self.network.kill(address)
        self.lives.pop(name).cancel()
        await trio.lowlevel.checkpoint()
        self.directories[name].crash()

    @asynccontextmanager
    async def mount(self, **changes: object) -> AsyncGenerator[FileSystem, None]:
        options = ClientOptions(**({name: getattr(OPTIONS, name) for name in OPTIONS.__slots__} | changes))
        async with open_filesystem(
            memory_runtime(self.network, next(self.seeds)), [METADATA], "default", options
        ) as filesystem:
            yield filesystem

    @asynccontextmanager
    async def process(self, state: MemoryState, **changes: object) -> AsyncGenerator[FileSystem, None]:
        """A mount whose process is killed at the end of the block."""
        options = ClientOptions(**({name: getattr(OPTIONS, name) for name in OPTIONS.__slots__} | changes))
        opened = open_filesystem(
            memory_runtime(self.network, next(self.seeds)), [METADATA], "default", options, None, state.life()
        )
        async with opened as filesystem:
            yield filesystem
            self.kill_process(filesystem, state)

    def kill_process(self, filesystem: FileSystem, state: MemoryState) -> None:
        """kill -9: nothing that it does from now on has any effect."""
        state.crash()
        core = filesystem._core
        core.state.freeze()
        filesystem._suspended = True
        for channel in [*core.session._channels, *core.channels._channels.values()]:
            channel.close()

    async def isolate(self, filesystem: FileSystem, seconds: float) -> None:
        """Nobody answers this client for a while."""
        session = filesystem._core.session

        async def refuse(address: str) -> object:
            raise Unreachable(f"{address} is cut off")

        island = MemoryNetwork()
        island.connect = refuse
        normal = session._runtime
        cut = dataclasses.replace(normal, network=island)
        channels = [*session._channels, *filesystem._core.channels._channels.values()]
        for channel in channels:
            channel._runtime = cut
            if channel.connected is not None:
                channel.connected.close()
        await trio.sleep(seconds)
        for channel in channels:
            channel._runtime = normal

    async def ask(self, message: object) -> object:
        channel = Channel(memory_runtime(self.network), self.nursery, METADATA, lambda: Hello("cli", "test", "0.1.0"))
        try:
            return (await channel.call(message)).message
        finally:
            channel.close()

    async def fsck(self) -> None:
        reply = await self.ask(RunFsck())
        assert isinstance(reply, FsckReply)
        assert reply.faults == ()

    async def nodes_up(self, count: int) -> None:
        while True:
            status = await self.ask(GetStatus())
            assert isinstance(status, StatusReply)
            if sum(node.node.state.name == "UP" for node in status.nodes) == count:
                return
            await trio.sleep(0.1)


@asynccontextmanager
async def cluster(nodes: int = 3) -> AsyncGenerator[Cluster, None]:
    """Up and running; checked at the end."""
    async with trio.open_nursery() as nursery:
        made = Cluster(nursery, nodes)
        await made.start_metadata()
        for index in range(nodes):
            await made.start_node(index)
        if nodes:
            await made.nodes_up(nodes)
        yield made
        await made.fsck()
        nursery.cancel_scope.cancel()


async def put(filesystem: FileSystem, name: bytes, data: bytes, parent: int = 1) -> int:
    """Create a file with these bytes and close it; its inode number."""
    inode, handle = await filesystem.create(ROOT, parent, name, 0o644, 2)
    for offset in range(0, len(data), 128 * KIB):
        await filesystem.write(handle, offset, data[offset : offset + 128 * KIB])
    await filesystem.flush(handle)
    await filesystem.release(handle)
    return inode.ino


async def get(filesystem: FileSystem, name: bytes, parent: int = 1) -> bytes:
    """All bytes of a file."""
    inode = await filesystem.lookup(parent, name)
    handle = await filesystem.open(inode.ino, 0)
    data = b""
    while piece := await filesystem.read(handle, len(data), 128 * KIB):
        data += piece
    await filesystem.release(handle)
    return data
