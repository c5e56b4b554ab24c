"""Chunkservers over fakes, a small authority, and a client that writes and reads through the real protocol."""

from contextlib import asynccontextmanager

import trio

from chunkserver.figures import MachineFigures
from chunkserver.server import ChunkServer, ChunkServerOptions
from fsd.cluster.map import pg_of
from fsd.core.checksum import block_checksums
from fsd.core.errors import DiskFailed, FsError, Retry
from fsd.core.ids import ChunkId, DataId, Ino, LayerId, MapEpoch, PgId, RequestNumber, SessionId
from fsd.core.units import BLOCK_SIZE
from fsd.protocol.chunk import (
    ApplyFlush,
    FlushId,
    InspectGroup,
    ReadChunk,
    ReadCopy,
    TruncateChunk,
    Where,
    WriteChunk,
)
from fsd.rpc.client import ChannelPool
from fsd.wire.handshake import Hello
from tests.chunkserver.authority import ADDRESS, POOL, Authority
from tests.fakes import MemoryDirectory, MemoryNetwork, memory_runtime


class Cluster:
    def __init__(self, nursery, **options):
        self.network = MemoryNetwork()
        self.runtime = memory_runtime(self.network)
        self.authority = Authority(self.runtime, **options)
        self.nursery = nursery
        self.directories = {}
        self.servers = {}
        self.addresses = {}
        self.scopes = {}
        self.failed = []
        self.pool = ChannelPool(self.runtime, nursery, lambda: Hello("client", "test", "1"))
        self.session = SessionId(7)
        self.number = 0

    async def start(self, name, *, segments=40, reserve_bytes=0):
        directory = self.directories.setdefault(name, MemoryDirectory(name, segment_limit=segments))
        directory.open()
        options = ChunkServerOptions(
            listen=f"{name}:9",
            metadata=(ADDRESS,),
            zone=name,
            reserve_bytes=reserve_bytes,
            segment_size=32 * BLOCK_SIZE,
        )
        server = self.servers[name] = ChunkServer(
            self.runtime, directory, options, measure=lambda: MachineFigures(0.0, 0.0)
        )
        scope = self.scopes[name] = trio.CancelScope()
        self.addresses[name] = await self.nursery.start(self._run, server, scope)
        return server

    async def _run(self, server, scope, task_status):
        with scope:
            try:
                await server.run(task_status=task_status)
            except DiskFailed as error:
                self.failed.append(str(error))

    def kill(self, name, *, noticed=True):
        """Like kill -9; `noticed`: the authority sees the refused connection at once."""
        self.network.kill(self.addresses[name])
        self.scopes[name].cancel()
        self.directories[name].crash()
        if noticed:
            self.authority.died(self.servers[name].node)

    async def settle(self, *, members=None, timeout_s=60.0):
        """Wait until every row is active with nobody syncing (and has as many members as asked)."""
        with trio.fail_after(timeout_s):
            while True:
                rows = self.authority.map.rows
                if rows and all(
                    row.active and not row.syncing and (members is None or len(row.in_sync) == members) for row in rows
                ):
                    return
                await trio.sleep(0.1)

    # --- a client -----------------------------------------------------------------------------------------------------

    def pg(self, chunk):
        return pg_of(POOL, chunk, self.authority.map.pg_count)

    def where(self, chunk, **changes):
        row = self.authority.row(self.pg(chunk))
        return Where(**({"pg": row.pg, "pg_epoch": row.epoch, "min_map_epoch": MapEpoch(0)} | changes))

    def primary(self, chunk):
        row = self.authority.row(self.pg(chunk))
        return next(n for n in self.servers if self.servers[n].node == row.primary.node)

    async def ask_primary(self, chunk, make, payload=b""):
        while True:
            try:
                row = self.authority.row(self.pg(chunk))
                address = self.authority.nodes[row.primary.node].address
                return await self.pool.to(address).call(make(), payload)
            except FsError as error:
                if error.retry is Retry.NEVER:
                    raise
            await trio.sleep(0.05)

    async def write(self, chunk, offset, data, number=None, *, flush=None, committed=0):
        if number is None:
            self.number += 1
            number = self.number
        sums = block_checksums(data, offset)

        def make():
            return WriteChunk(
                self.where(chunk), self.session, RequestNumber(number), chunk, offset, sums, (), flush, committed
            )

        return (await self.ask_primary(chunk, make, data)).message

    def flush(self, number, session=None):
        return FlushId(LayerId(1), Ino(5), session or self.session, number)

    async def apply(self, chunk, flush):
        return (
            await self.ask_primary(chunk, lambda: ApplyFlush(self.where(chunk), self.session, chunk, flush))
        ).message

    async def truncate(self, chunk, length, session=None):
        self.number += 1
        number = self.number
        who = self.session if session is None else session

        def make():
            return TruncateChunk(self.where(chunk), who, RequestNumber(number), chunk, length)

        return (await self.ask_primary(chunk, make)).message

    async def read(self, chunk, offset=0, length=1 << 20):
        reply = await self.ask_primary(chunk, lambda: ReadChunk(self.where(chunk), self.session, chunk, offset, length))
        assert block_checksums(reply.payload) == reply.message.checksums
        return bytes(reply.payload)

    async def copy(self, name, chunk):
        return await self.pool.to(self.addresses[name]).call(ReadCopy(self.pg(chunk), chunk))

    async def listing(self, name, pg):
        reply = await self.pool.to(self.addresses[name]).call(InspectGroup(PgId(pg), ChunkId(DataId(0), 0), 1000))
        return reply.message.chunks

    async def check_equal(self, *names):
        for row in self.authority.map.rows:
            lists = [await self.listing(name, row.pg) for name in names]
            assert all(other == lists[0] for other in lists), lists


@asynccontextmanager
async def cluster(*names, **options):
    async with trio.open_nursery() as nursery:
        made = Cluster(nursery, **options)
        await nursery.start(made.authority.run)
        for name in names:
            await made.start(name)
        await made.settle()
        yield made
        nursery.cancel_scope.cancel()
