"""One seed: a cluster, its clients, its faults, and the verdict.

set up ──> work under faults ──> heal ──> everybody finishes ──> read all ──> quiet ──> replicas equal, fsck clean
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import trio

from chunkserver.figures import MachineFigures
from chunkserver.server import ChunkServer, ChunkServerOptions
from fsd.client.filesystem import open_filesystem
from fsd.client.options import ClientOptions
from fsd.cluster.map import ClusterMap
from fsd.core.errors import FsError, Unreachable
from fsd.core.ids import ChunkId, DataId, NodeId, PgId
from fsd.protocol.chunk import ChunkList, ChunkSummary, InspectGroup, ReadCopy, WholeChunk
from fsd.protocol.cluster import FsckReply, GetMap, GetStatus, MapReply, PauseMoves, RunFsck, StatusReply
from fsd.rpc.client import ChannelPool
from fsd.wire.handshake import Hello
from metadata.server import MetadataOptions, MetadataServer
from tests.fakes import MemoryState
from tests.simulation.boundary import Flusher, OwnFile
from tests.simulation.boundary import verify as verify_own
from tests.simulation.check import (
    EMPTY_REGION,
    EMPTY_TREE,
    Operation,
    TooHard,
    explain,
    linearizable,
    region_step,
    tree_step,
)
from tests.simulation.counters import COUNTERS, Counted, Locker, check_counters, prepare_counters
from tests.simulation.host import Host, Process
from tests.simulation.kernel import Fault, Kernel, LogWatch, Stuck
from tests.simulation.nemesis import DAEMONS, MIXES, Nemesis
from tests.simulation.network import Fabric
from tests.simulation.observe import Observer
from tests.simulation.workload import CHUNK_SIZE, INLINE_LIMIT, Client, History, Worker, prepare, verify

METADATA = "m:1"
SEGMENT_SIZE = 1024 * 1024
START_WITHIN_S = 60
FINISH_WITHIN_S = 300
QUIET_WITHIN_S = 120


@dataclass(frozen=True)
class Plan:
    """What a seed is about; a test may replace any of it."""

    nodes: int = 3
    clients: int = 2
    workers: int = 2
    steps: int = 20
    think_s: float = 0.3
    cache_bytes: int = 256 * 1024
    inline_limit: int = INLINE_LIMIT
    write_back_age_s: float = 1.0
    readers: bool = False  # hardly anybody writes
    worker: type[Worker] = Worker
    lockers: int = 0  # workers of each client that count under locks
    watchers: bool = False  # one more worker of each client does nothing but read
    replicas: int = 2
    min_replicas: int = 1
    pg_count: int = 4
    faults: tuple[Any, ...] = ()
    strikes: int = 6
    strike_pause_s: float = 1.0
    keeps_state: bool = False  # clients' daemons may die alone
    flushers: bool = False  # each client has a file of its own, looked at for being at a flush boundary
    power_loss_at_end: bool = False  # of all servers at once, when all is quiet; then everything is read again

    @staticmethod
    def of(seed: int) -> "Plan":
        random = Random(f"plan {seed}")
        faults = random.choice(MIXES)
        daemons = Random(f"daemons {seed}").random() < 0.2
        nodes = random.choice((2, 3, 3, 3, 4))
        replicas = random.choice((2, 2, 2, 3)) if nodes > 2 else 2
        return Plan(
            nodes=nodes,
            clients=random.choice((1, 2, 2, 3)),
            workers=random.choice((1, 2)),
            steps=random.choice((10, 20, 40)),
            think_s=random.choice((0.05, 0.3, 1.0)),
            cache_bytes=random.choice((65_536, 262_144, 262_144)),
            readers=random.random() < 0.1,
            watchers=random.random() < 0.2,
            replicas=replicas,
            min_replicas=random.choice((1, 1, 2)),
            pg_count=random.choice((2, 4, 8)),
            faults=(*faults, *DAEMONS) if daemons else tuple(faults),
            keeps_state=daemons,
            strikes=random.randint(1, 8),
            strike_pause_s=random.choice((0.3, 1.0, 2.0)),
            power_loss_at_end=random.random() < 0.3,
            flushers=seed % 4 == 2,
            lockers=random.choice((0, 0, 0, 1, 2)),
        )


@dataclass
class Outcome:
    seed: int
    digest: str
    events: int
    operations: int
    virtual_s: float
    fault: str | None
    history: History | None = field(default=None, repr=False)


class Cluster:
    """The hosts of one run and their programs."""

    def __init__(self, kernel: Kernel, plan: Plan, nursery: trio.Nursery) -> None:
        self.kernel = kernel
        self.plan = plan
        self.nursery = nursery
        self.fabric = Fabric(kernel)
        self.history = History(kernel)
        self.random = Random(f"cluster {kernel.random.random()}")
        self.failure: str | None = None
        Observer(self.fabric, self.fail)
        self.metadata = Host(kernel, self.fabric, nursery, "m", self._run_metadata)
        self.nodes = [
            Host(kernel, self.fabric, nursery, f"s{number}", self.run_node) for number in range(1, plan.nodes + 1)
        ]
        self.clients = [
            Host(kernel, self.fabric, nursery, f"c{number}", self._run_client) for number in range(1, plan.clients + 1)
        ]
        self.admin = Host(kernel, self.fabric, nursery, "admin", self._run_admin)
        self.work: dict[str, list[int]] = {
            host.name: [plan.steps] * plan.workers + [plan.steps * 5] * plan.watchers for host in self.clients
        }
        self.states = {host.name: MemoryState() for host in self.clients}
        self.survivors: dict[str, Client] = {}  # clients whose daemon is dead
        self.own = {host.name: OwnFile(self.history, f"{host.name}.own".encode(), plan.steps) for host in self.clients}
        self.counted = {name: Counted() for name in COUNTERS}
        self.count_steps = {host.name: [plan.steps] * plan.lockers for host in self.clients}
        self.done: dict[str, trio.Event] = {host.name: trio.Event() for host in self.clients}
        self._prepared = trio.Event()
        self._admin_ready = trio.Event()
        self._pool: ChannelPool | None = None
        self._status: StatusReply | None = None
        self.map: ClusterMap | None = None

    def hosts(self) -> list[Host]:
        return [self.metadata, *self.nodes, *self.clients]

    def servers(self) -> list[Host]:
        return [self.metadata, *self.nodes]

    # --- programs ---

    async def _run_metadata(self, process: Process) -> None:
        plan = self.plan
        options = MetadataOptions(
            listen=METADATA,
            chunk_size=CHUNK_SIZE,
            pg_count=plan.pg_count,
            replicas=plan.replicas,
            min_replicas=plan.min_replicas,
            inline_limit=plan.inline_limit,
            rebuild_after_s=20.0,
            rebalance_after_s=5.0,
        )
        process.app = MetadataServer(process.runtime, process.open_directory(), options)
        await process.app.run()

    async def run_node(self, process: Process) -> None:
        name = process.host.name
        options = ChunkServerOptions(
            listen=f"{name}:1",
            metadata=(METADATA,),
            zone=f"zone-{name}",
            advertise=None,
            weight=1 << 30,
            reserve_bytes=SEGMENT_SIZE,
            segment_size=SEGMENT_SIZE,
        )
        directory = process.open_directory()
        process.app = ChunkServer(process.runtime, directory, options, measure=lambda: MachineFigures(0.0, 0.0))
        await process.app.run()

    async def _run_client(self, process: Process) -> None:
        name = process.host.name
        work = self.work[name]
        state = self.states[name].life() if self.plan.keeps_state else None
        async with open_filesystem(
            process.runtime, (METADATA,), "default", self.client_options(process), None, state
        ) as fs:
            if name == "c1" and not self._prepared.is_set():
                await prepare(fs)
                if self.plan.lockers:
                    await prepare_counters(fs)
                self._prepared.set()
            await self._prepared.wait()
            client = self.survivors.pop(name, None)
            if client is not None:
                client.go_on(fs)
                if client.evictions:
                    self.own[name].lost()
            else:
                client = Client(fs, self.history, f"{name}.{process.number}", 0, self.plan.think_s)
            process.app = client
            await client.learn()
            if not client.workers:
                client.workers = [self._worker(client, index) for index in range(len(work))]
            async with trio.open_nursery() as nursery:
                for index, worker in enumerate(client.workers):
                    nursery.start_soon(self._work, worker, work, index)
                if self.plan.flushers:
                    nursery.start_soon(self._flush, client, self.own[name])
                for index in range(self.plan.lockers):
                    nursery.start_soon(self._count, client, self.count_steps[name], index)
        client.closed()
        if client.evictions == 0:
            self.own[name].synced()
        else:
            self.own[name].lost()
        self.done[name].set()

    def client_options(self, process: Process) -> ClientOptions:
        return ClientOptions(
            name=f"{process.host.name}.{process.number}",
            write_back_bytes=512 * 1024,
            write_back_age_s=self.plan.write_back_age_s,
            cache_bytes=self.plan.cache_bytes,
            read_ahead_bytes=256 * 1024,
            metadata_cache_entries=64,
        )

    def _worker(self, client: Client, index: int) -> Worker:
        readers = self.plan.readers or index >= self.plan.workers
        return self.plan.worker(client, Random(f"worker {self.kernel.random.random()}"), readers=readers)

    async def _work(self, worker: Worker, work: list[int], index: int) -> None:
        while work[index] > 0 or worker.waiting is not None:
            steps = min(1, work[index])
            work[index] -= steps
            try:
                await worker.run(steps)
            except Fault as fault:
                self.fail(str(fault))
                return

    async def _flush(self, client: Client, own: OwnFile) -> None:
        try:
            await Flusher(client, own, Random(f"flusher {self.kernel.random.random()}")).run()
        except Fault as fault:
            self.fail(str(fault))

    async def _count(self, client: Client, steps: list[int], index: int) -> None:
        locker = Locker(client, Random(f"locker {self.kernel.random.random()}"), index + 1, self.counted)
        await locker.begin()
        while steps[index] > 0:
            steps[index] -= 1
            try:
                await locker.step()
            except Fault as fault:
                self.fail(str(fault))
                return

    async def _run_admin(self, process: Process) -> None:
        async with trio.open_nursery() as nursery:
            self._pool = ChannelPool(process.runtime, nursery, lambda: Hello("cli", "admin", "0"))
            self._admin_ready.set()
            await trio.sleep_forever()

    def fail(self, fault: str) -> None:
        if self.failure is None:
            self.failure = fault
            self.kernel.trace("FAIL", fault)

    def kill_client(self, host: Host) -> None:
        client = host.process.app if host.process is not None else None
        host.kill()
        self.states[host.name] = MemoryState()
        client = self.survivors.pop(host.name, client)
        if isinstance(client, Client):
            self.own[host.name].lost()
            client.die()

    def kill_daemon(self, host: Host) -> None:
        """kill -9 of the client's process alone: its write-back log is kept, and its calls wait for the next one."""
        client = host.process.app if host.process is not None else None
        if not self.plan.keeps_state:
            self.kill_client(host)
            return
        if isinstance(client, Client):
            client.daemon_died = True
            self.own[host.name].daemon_died()
            self.survivors[host.name] = client
        host.kill()
        self.states[host.name].crash()

    # --- looking ---

    async def busiest_primary(self) -> Host | None:
        """The node that leads most groups."""
        with trio.move_on_after(0.3):
            await self.look_at_map()
        if self.map is None:
            return None
        counts: dict[int, int] = {}
        for row in self.map.rows:
            if row.primary is not None:
                counts[row.primary.node] = counts.get(row.primary.node, 0) + 1
        ranked = sorted(counts, key=lambda node: (-counts[node], node))
        addresses = {node.node: node.address for node in self.map.nodes}
        for node in ranked:
            name = addresses[NodeId(node)].rpartition(":")[0]
            return next(host for host in self.nodes if host.name == name)
        return None

    async def look_at_map(self) -> ClusterMap:
        reply: MapReply = (await self.ask(METADATA, GetMap())).message
        assert reply.map is not None
        self.map = reply.map
        return reply.map

    async def ask(self, address: str, message: Any) -> Any:
        """As an administrator, until there is an answer."""
        await self._admin_ready.wait()
        assert self._pool is not None
        while True:
            with suppress(FsError):
                return await self._pool.to(address).call(message)
            await trio.sleep(0.5)

    async def ask_once(self, message: Any) -> Any:
        """Of the metadata server. Raises FsError, also if it takes too long."""
        await self._admin_ready.wait()
        assert self._pool is not None
        with trio.move_on_after(5):
            return (await self._pool.to(METADATA).call(message)).message
        raise Unreachable("no answer")

    def retire(self, host: Host) -> None:
        """A node that was removed: it never comes back."""
        self.nodes.remove(host)

    # --- the run ---

    async def run(self) -> None:
        for host in (self.metadata, *self.nodes, self.admin):
            host.boot()
        nemesis = Nemesis(self, Random(f"nemesis {self.kernel.random.random()}"))
        with trio.move_on_after(START_WITHIN_S) as scope:
            while True:
                status: StatusReply = (await self.ask(METADATA, GetStatus())).message
                if len(status.nodes) == self.plan.nodes:
                    break
                await trio.sleep(0.2)
            for host in self.clients:
                host.boot()
            await self._prepared.wait()
        if scope.cancelled_caught:
            self.fail("the cluster did not start")
            return
        await nemesis.run(list(self.plan.faults), self.plan.strikes, self.plan.strike_pause_s)
        nemesis.heal()
        with trio.move_on_after(FINISH_WITHIN_S) as scope:
            while not all(self.done[host.name].is_set() for host in self.clients) and not self.failure:
                for host in self.clients:
                    if not host.up and not self.done[host.name].is_set():
                        host.boot()
                await trio.sleep(0.5)
        if scope.cancelled_caught:
            self.fail(f"liveness: clients not done {FINISH_WITHIN_S} s after all was healed: {self.work}")
        if self.failure is None:
            await self._verify(nemesis)

    async def _verify(self, nemesis: Nemesis) -> None:
        await self._within(QUIET_WITHIN_S, "the last reads", self._read_everything)
        await self._within(QUIET_WITHIN_S, "quiet", self._quiet)
        await self._within(QUIET_WITHIN_S, "comparing", lambda: self._compare_replicas(nemesis.flipped))
        if self.plan.power_loss_at_end and self.failure is None:
            for host in self.servers():
                host.power_off()
            await trio.sleep(1)
            for host in self.servers():
                host.boot()
            await self._within(QUIET_WITHIN_S, "the reads after loss of power", self._read_everything)
            await self._within(QUIET_WITHIN_S, "quiet after loss of power", self._quiet)
        if self.failure is None:
            self._check_history()

    async def _within(self, limit_s: float, what: str, call: Callable[[], Awaitable[None]]) -> None:
        if self.failure is None:
            with trio.move_on_after(limit_s) as scope:
                await call()
            if scope.cancelled_caught:
                self.fail(f"liveness: {what}: not done after {limit_s} s; {self._status}")

    async def _quiet(self) -> None:
        """All rows as full as they can be, all dead data removed, the tree sound."""
        while True:
            self._status = status = (await self.ask(METADATA, GetStatus())).message
            if status.paused:
                await self.ask(METADATA, PauseMoves(False))
            elif status.in_sync == status.total and not status.collecting and not status.moving:
                break
            await trio.sleep(1)
        fsck: FsckReply = (await self.ask(METADATA, RunFsck())).message
        if fsck.faults:
            self.fail(f"fsck: {fsck.faults}")

    async def _read_everything(self) -> None:
        host = self.clients[0]
        finished = trio.Event()

        async def reader(process: Process) -> None:
            async with open_filesystem(process.runtime, (METADATA,), "default", self.client_options(process)) as fs:
                client = Client(fs, self.history, "verifier", 0, 0)
                await client.learn()
                try:
                    await verify(client)
                    for own in self.own.values():
                        await verify_own(client, own)
                    if self.plan.lockers:
                        await check_counters(client, self.counted)
                except Fault as fault:
                    self.fail(str(fault))
            finished.set()

        if host.process is not None:
            await host.process.ended.wait()
        host.program = reader
        while not finished.is_set():
            if not host.up:  # it gives up mounting while a restarted metadata server waits for its old sessions
                host.boot()
            await trio.sleep(0.5)

    def _check_history(self) -> None:
        for (file, index), operations in sorted(self.history.regions.items()):
            self._check_object(f"{file.decode()}[{index}]", operations, EMPTY_REGION, region_step)
        mortal = {operation.client for operation in self.history.tree if operation.kind == "lost"}
        self._check_object("tree", self.history.tree, EMPTY_TREE, partial(tree_step, mortal=mortal))

    def _check_object(self, name: str, operations: list[Operation], initial: Any, step: Callable[..., Any]) -> None:
        try:
            if not linearizable(operations, initial, step):
                prefix = "\n  ".join(map(str, explain(operations, initial, step)[-30:]))
                self.fail(f"{name} is not linearizable:\n  {prefix}")
        except TooHard:
            self.kernel.trace("too hard", name, len(operations))

    async def _compare_replicas(self, flipped: Host | None) -> None:
        """I4: all members of a group hold the same chunks, byte for byte."""
        cluster_map = await self.look_at_map()
        addresses = {node.node: node.address for node in cluster_map.nodes}
        for row in cluster_map.rows:
            copies: list[tuple[str, list[ChunkSummary]]] = []
            for member in row.in_sync:
                address = addresses[member.node]
                copies.append((address, await self._list_group(address, row.pg)))
            first_address, first = copies[0]
            for address, other in copies[1:]:
                if first != other:
                    self.fail(f"group {row.pg}: {first_address} has {first}, {address} has {other}")
                    return
            for summary in first:
                await self._compare_copies(row.pg, summary.chunk, [address for address, _ in copies], flipped)

    async def _compare_copies(self, pg: PgId, chunk: ChunkId, addresses: list[str], flipped: Host | None) -> None:
        contents: list[tuple[str, bytes]] = []
        for address in addresses:
            assert self._pool is not None
            try:
                reply = await self._pool.to(address).call(ReadCopy(pg, chunk))
            except FsError as error:
                if flipped is None or not address.startswith(flipped.name + ":"):
                    self.fail(f"{address}: copy of {chunk}: {type(error).__name__}: {error}")
                continue
            assert isinstance(reply.message, WholeChunk)
            contents.append((address, bytes(reply.payload)))
        if len({content for _, content in contents}) > 1:
            self.fail(f"copies of {chunk} in group {pg} differ: {[address for address, _ in contents]}")

    async def _list_group(self, address: str, pg: PgId) -> list[ChunkSummary]:
        found: list[ChunkSummary] = []
        after = ChunkId(DataId(0), 0)
        while True:
            page: ChunkList = (await self.ask(address, InspectGroup(pg, after, 100))).message
            found.extend(page.chunks)
            if page.end:
                return found
            after = page.chunks[-1].chunk


def run_seed(seed: int, plan: Plan | None = None, trace: Callable[[str], None] | None = None) -> Outcome:
    """Run one seed; what is wrong with it, if anything, is in `fault`."""
    kernel = Kernel(seed, trace)
    watch = LogWatch(kernel, logging.INFO if trace else logging.WARNING)
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.handlers[:] = [watch]
    root.setLevel(watch.level)
    cluster: Cluster | None = None

    async def main() -> None:
        nonlocal cluster
        async with trio.open_nursery() as nursery:
            cluster = Cluster(kernel, plan or Plan.of(seed), nursery)
            await cluster.run()
            for host in [*cluster.hosts(), cluster.admin]:
                host.kill()

    fault: str | None = None
    try:
        kernel.run(main)
    except Stuck as stuck:
        fault = f"stuck: {stuck}"
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert cluster is not None
    fault = cluster.failure or fault
    for host in [*cluster.hosts(), cluster.admin]:
        fault = fault or (host.errors[0] if host.errors else None)
    fault = fault or (watch.bugs[0] if watch.bugs else None)
    return Outcome(seed, kernel.digest(), kernel.traced, cluster.history.count, kernel.now(), fault, cluster.history)


def run_quietly(seed: int) -> Outcome:
    """As `run_seed`, without the history: small enough to go to another process."""
    outcome = run_seed(seed)
    outcome.history = None
    return outcome
