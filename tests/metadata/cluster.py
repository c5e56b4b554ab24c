"""One metadata server over fakes, and clients and nodes that speak the protocol by hand."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import trio

from fsd.core.errors import FsError, Unreachable
from fsd.core.ids import ROOT_INO, Ino, LayerId, RequestNumber
from fsd.namespace.operations import Create, Mkdir, Operation, Unlink, WriteInline
from fsd.protocol import cluster as c
from fsd.protocol import metadata as m
from fsd.rpc.client import Channel
from fsd.rpc.connection import Peer
from fsd.wire.handshake import Hello
from metadata.server import MetadataOptions, MetadataServer
from tests.fakes import MemoryDirectory, MemoryNetwork, memory_runtime

ADDRESS = "metadata:9000"
OPTIONS = MetadataOptions(ADDRESS, pg_count=8)


class Server:
    """Restartable. `check` runs fsck."""

    def __init__(self, nursery: trio.Nursery, network: MemoryNetwork, options: MetadataOptions = OPTIONS) -> None:
        self.nursery = nursery
        self.network = network
        self.runtime = memory_runtime(network)
        self.directory = MemoryDirectory()
        self.options = options
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    async def start(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        await self.nursery.start(self._run)

    async def _run(self, *, task_status: Any) -> None:
        self.directory.open()
        with self.scope:
            await MetadataServer(self.runtime, self.directory, self.options).run(task_status=task_status)
        self.ended.set()

    async def crash(self) -> None:
        """Ends at once; what was not durable is lost."""
        self.network.kill(ADDRESS)
        self.directory.crash()
        self.scope.cancel()
        await self.ended.wait()

    async def restart(self) -> None:
        await self.crash()
        await self.start()

    async def ask(self, message: Any) -> Any:
        channel = Channel(self.runtime, self.nursery, ADDRESS, lambda: Hello("cli", "test", "0"))
        try:
            return (await channel.call(message)).message
        finally:
            channel.close()

    async def check(self) -> None:
        faults = (await self.ask(c.RunFsck())).faults
        assert faults == ()


class FakeClient:
    """A session whose leases are dictionaries. Recalls are answered by `on_recall` (default: give everything back)."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.held: dict[Ino, m.Grant] = {}
        self.open: set[Ino] = set()
        self.recalls: list[m.RecallItem] = []
        self.map_epochs: list[int] = []
        self.on_recall: Callable[[m.Recall], Any] | None = None
        self.session: Any = None
        self.writing_back = False
        self.evicted = False
        self.number = 0
        self.next_id = 0
        self.channel = Channel(server.runtime, server.nursery, ADDRESS, lambda: Hello("client", name, "0"), self)

    # --- fsd.rpc Service ----------------------------------------------------------------------------------------------

    async def handle(self, peer: Peer, message: Any, payload: Any) -> Any:
        if isinstance(message, m.MapChanged):
            self.map_epochs.append(message.map_epoch)
            return None
        if isinstance(message, m.Evicted):
            self.evicted = True
            return None
        assert isinstance(message, m.Recall)
        self.recalls.extend(message.items)
        if self.on_recall is not None:
            await self.on_recall(message)
        return m.Recalled(tuple(self.release(item.ino, item.keep, item.serial) for item in message.items))

    def release(self, ino: Ino, keep: m.LeaseMode = m.LeaseMode.NONE, serial: int = 0) -> m.Release:
        grant = self.held.pop(ino, None)
        if grant is not None and keep is not m.LeaseMode.NONE:
            self.held[ino] = replace(grant, mode=keep)
        return m.Release(ino, max(serial, grant.serial if grant else 0), keep, ino in self.open)

    def arrived(self, peer: Peer, message: Any) -> None:
        for grant in getattr(message, "grants", ()):
            self.held[grant.ino] = grant

    def disconnected(self, peer: Peer) -> None:
        pass

    # --- requests -----------------------------------------------------------------------------------------------------

    async def connect(self, volume: str = "default") -> "FakeClient":
        self.session = await self.ask(m.OpenSession(self.name, volume))
        self.next_id = self.session.first_id
        return self

    async def resume(self) -> m.SessionResumed:
        held = [m.HeldLease(i, g.mode, i in self.open) for i, g in self.held.items()]
        held += [m.HeldLease(i, m.LeaseMode.NONE, True) for i in sorted(self.open) if i not in self.held]
        self.held.clear()
        request = m.ResumeSession(self.id, self.session.secret, tuple(held))
        while True:
            try:
                return await self.ask(request)
            except Unreachable:
                await trio.sleep(0.1)

    async def ask(self, message: Any) -> Any:
        return (await self.channel.call(message)).message

    @property
    def id(self) -> Any:
        return self.session.session

    @property
    def layer(self) -> LayerId:
        return self.session.volume.layer

    def new_id(self) -> Ino:
        self.next_id += 1
        return Ino(self.next_id - 1)

    def base(self) -> tuple[Any, ...]:
        return self.layer, self.server.runtime.clock.time_ns(), 0, 0

    async def keep_alive(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            with suppress(FsError):  # the server restarts, or the session is gone
                await self.ask(m.KeepAlive(self.id, self.writing_back))
            await trio.sleep(1)

    async def execute(
        self,
        operation: Operation,
        *,
        lease: m.LeaseMode = m.LeaseMode.NONE,
        keep_open: bool = False,
        number: int = 0,
        write_back: bool = False,
    ) -> m.Executed:
        if not number:
            self.number += 1
            number = self.number
        request = m.Execute(
            self.id, RequestNumber(number), RequestNumber(1), operation, lease, keep_open, write_back=write_back
        )
        return await self.ask(request)

    async def create(self, name: bytes, *, parent: Ino = ROOT_INO, lease: m.LeaseMode = m.LeaseMode.NONE) -> Ino:
        ino = self.new_id()
        await self.execute(Create(*self.base(), parent, name, ino, 0o644), lease=lease)
        return ino

    async def mkdir(self, name: bytes, *, parent: Ino = ROOT_INO) -> Ino:
        ino = self.new_id()
        await self.execute(Mkdir(*self.base(), parent, name, ino, 0o755))
        return ino

    async def unlink(self, name: bytes, *, parent: Ino = ROOT_INO, keep_open: bool = False) -> m.Executed:
        return await self.execute(Unlink(*self.base(), parent, name), keep_open=keep_open)

    async def write(self, ino: Ino, contents: bytes) -> m.Executed:
        return await self.execute(WriteInline(*self.base(), ino, contents))

    async def lookup(self, name: bytes, *, parent: Ino = ROOT_INO) -> m.Entry:
        return await self.ask(m.Lookup(self.id, parent, name))

    async def get(self, ino: Ino, lease: m.LeaseMode = m.LeaseMode.SHARED) -> m.Entry:
        return await self.ask(m.GetInode(self.id, ino, lease))

    def mode(self, ino: Ino) -> m.LeaseMode:
        return self.held[ino].mode if ino in self.held else m.LeaseMode.NONE


@asynccontextmanager
async def running(options: MetadataOptions = OPTIONS) -> AsyncIterator[Server]:
    """A metadata server that is checked by fsck and stopped at the end."""
    async with trio.open_nursery() as nursery:
        server = Server(nursery, MemoryNetwork(), options)
        await server.start()
        yield server
        await server.check()
        nursery.cancel_scope.cancel()


async def client(server: Server, name: str, *, alive: bool = True) -> FakeClient:
    """A connected session, kept alive unless that is the test."""
    made = await FakeClient(server, name).connect()
    if alive:
        await server.nursery.start(made.keep_alive)
    return made
