"""A chunkserver: one data directory, put together and run.

begin_life (R1) ─> open the store ─> listen ─> register ─> fetch the map (R14) ─> beat, serve, lead
                                                                                   └ DiskFailed ends it all (R12)
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import trio

from chunkserver import metrics
from chunkserver.carrier import Carrier
from chunkserver.figures import MachineFigures, machine_figures
from chunkserver.flushes import Flushes
from chunkserver.follower import Follower
from chunkserver.identity import Identity, begin_life, check_file_system, save
from chunkserver.leader import Leader
from chunkserver.members import Members
from chunkserver.opening import SEGMENT_SIZE, open_store
from chunkserver.probe import Prober
from chunkserver.report import Membership, Registration
from chunkserver.scrub import DEEP, LIGHT, Scrubber
from chunkserver.service import ChunkService
from chunkserver.serving import Serving
from chunkserver.store import ChunkStore
from chunkserver.sweeper import Sweeper
from fsd import __version__
from fsd.cluster.map import ClusterMap
from fsd.core.errors import ConfigurationError, ForeignFileSystem, NotServing
from fsd.core.ids import NodeId
from fsd.core.units import BLOCK_SIZE, GIB, MIB
from fsd.http.exposition import Family
from fsd.http.face import Check
from fsd.protocol.cluster import NodeLoad
from fsd.rpc.client import ChannelPool
from fsd.rpc.connection import only_error
from fsd.rpc.measured import Measured, RequestFigures
from fsd.rpc.server import serve
from fsd.runtime import Runtime
from fsd.runtime.storage import DataDirectory
from fsd.wire.handshake import Hello, Welcome

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
MAP_RETRY_S = 0.2
EVERYWHERE = ("0.0.0.0", "[::]")


@dataclass(frozen=True, slots=True)
class ChunkServerOptions:
    """`advertise`: the address that others use, if not the one that was bound. `weight`: capacity in bytes, if not the
    disk's. `member_timeout_s`: how long a member may be silent before it is dropped from a row (R5). `resync_bytes_per_s`
    and `scrub_bytes_per_s` bound what copying to other nodes and looking for rot may take; 0 is no bound."""

    listen: str
    metadata: tuple[str, ...]
    zone: str = "default"
    advertise: str | None = None
    weight: int | None = None
    reserve_bytes: int = GIB
    segment_size: int = SEGMENT_SIZE
    member_timeout_s: float = 1.5
    resync_bytes_per_s: int = 128 * MIB
    scrub_bytes_per_s: int = 32 * MIB


class ChunkServer:
    """`measure`: the machine's figures; the default asks psutil."""

    def __init__(
        self,
        runtime: Runtime,
        directory: DataDirectory,
        options: ChunkServerOptions,
        *,
        measure: Callable[[], MachineFigures] = machine_figures,
    ) -> None:
        if not options.advertise and options.listen.rpartition(":")[0] in EVERYWHERE:
            raise ConfigurationError(f"{options.listen} is no address for others: tell one, --advertise HOST:PORT")
        if not options.metadata:
            raise ConfigurationError("a chunkserver needs the address of a metadata server")
        if options.segment_size <= 0 or options.segment_size % BLOCK_SIZE:
            raise ConfigurationError(f"a segment of {options.segment_size} bytes is no multiple of {BLOCK_SIZE}")
        self._runtime = runtime
        self._directory = directory
        self._options = options
        self._measure = measure
        self._identity = Identity()
        self._store: ChunkStore | None = None
        self._membership: Membership | None = None
        self._carrier: Carrier | None = None
        self._leader: Leader | None = None
        self._scrubber: Scrubber | None = None
        self.requests = RequestFigures()

    @property
    def node(self) -> NodeId:
        """0 until the first registration."""
        return NodeId(self._identity.node)

    @property
    def incarnation(self) -> int:
        return self._identity.incarnation

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve until cancelled; `started` with the address when it listens (registration goes on in the background).

        Raises FormatError, ForeignFileSystem, VersionMismatch, ConfigurationError, DiskFailed."""
        self._identity = await begin_life(self._directory, self._options.segment_size)
        store, damaged = await open_store(
            self._directory,
            made=self._identity.has_store,
            segment_size=self._identity.segment_size,
            reserve_bytes=self._options.reserve_bytes,
        )
        self._store = store
        try:
            if not self._identity.has_store:
                self._identity = await save(self._directory, replace(self._identity, has_store=True))
            await self._run_parts(store, damaged, task_status)
        except BaseExceptionGroup as group:
            error = only_error(group)
            if error is not None:
                raise error from None
            raise
        finally:
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await store.aclose()
        raise AssertionError("unreachable")

    async def _run_parts(self, store: ChunkStore, damaged: bool, task_status: trio.TaskStatus[str]) -> None:
        listener = await self._runtime.network.listen(self._options.listen)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.run)
                service = self._put_together(nursery, store)
                address = self._options.advertise or listener.address
                weight = self._options.weight if self._options.weight is not None else store.total_bytes()
                registration = Registration(self.incarnation, address, self._options.zone, weight, damaged)
                nursery.start_soon(self._belong, registration)
                task_status.started(listener.address)
                await serve(listener, Measured(service, self.requests, self._runtime.clock), self._welcome)
        finally:
            listener.close()

    def _put_together(self, nursery: trio.Nursery, store: ChunkStore) -> ChunkService:
        runtime = self._runtime
        peers = ChannelPool(runtime, nursery, self._hello)

        def on_map(cluster_map: ClusterMap) -> None:
            leader.adopt(cluster_map)

        membership = Membership(
            runtime,
            nursery,
            self._options.metadata,
            self._hello,
            on_map,
            authority=self._identity.authority,
            remember_authority=self._remember_authority,
        )
        membership.me = self._identity.member
        members = Members(runtime, membership, peers, self._options.member_timeout_s)
        carrier = Carrier(nursery, store, membership, members)
        leader = Leader(nursery, store, membership, members, carrier, self._options.resync_bytes_per_s)
        scrubber = Scrubber(
            runtime, store, membership, members, carrier, leader, peers, self._options.scrub_bytes_per_s
        )
        self._membership, self._carrier, self._leader, self._scrubber = membership, carrier, leader, scrubber
        nursery.start_soon(scrubber.run)
        nursery.start_soon(Sweeper(store, membership, leader).run)
        flushes = Flushes(store, membership, leader, carrier)
        nursery.start_soon(flushes.run)
        serving = Serving(runtime, store, membership, members, leader, carrier, flushes)
        prober = Prober(runtime, self._directory, membership, peers)
        return ChunkService(membership, serving, Follower(store, membership, leader), scrubber, prober)

    async def _remember_authority(self, epoch: int) -> None:
        self._identity = replace(self._identity, authority=epoch)
        await save(self._directory, self._identity)

    async def _belong(self, registration: Registration) -> None:
        """Register, learn who we are, fetch the map; then heartbeats for ever."""
        membership = self._membership
        assert membership is not None
        registered = await membership.register(registration)
        check_file_system(self._identity, registered.file_system, self._directory.name)
        if (self._identity.node, self._identity.file_system) != (registered.node, registered.file_system):
            known = replace(self._identity, node=registered.node, file_system=registered.file_system)
            self._identity = await save(self._directory, known)
        membership.me = self._identity.member
        membership.registered = True
        log.info(
            "node %d incarnation %d of file system %s serves at %s",
            self.node,
            self.incarnation,
            registered.file_system,
            registration.address,
        )
        while membership.map is None:
            try:
                await membership.refresh()
            except NotServing as error:
                log.info("%s", error)
                await trio.sleep(MAP_RETRY_S)
        await membership.beat_for_ever(registration, self._load)

    def _load(self) -> NodeLoad:
        store, carrier, leader, scrubber = self._store, self._carrier, self._leader, self._scrubber
        assert store is not None
        assert carrier is not None
        assert leader is not None
        assert scrubber is not None
        met_by_readers = carrier.repaired - scrubber.repairs_of_carrier
        machine = self._measure()
        return NodeLoad(
            total_bytes=store.total_bytes(),
            free_bytes=store.free_bytes(),
            chunks=store.chunks,
            cpu_percent=machine.cpu_percent,
            memory_percent=machine.memory_percent,
            read_bytes=store.read_bytes,
            written_bytes=store.written_bytes,
            stored_bytes=store.stored_bytes(),
            resynced_bytes=leader.resynced_bytes,
            rotten=scrubber.figures.rotten + met_by_readers,
            repaired=scrubber.figures.repaired + met_by_readers,
            lost=len(scrubber.lost),
            light_scrub_s=scrubber.age_s(LIGHT),
            deep_scrub_s=scrubber.age_s(DEEP),
            version=__version__,
        )

    def checks(self) -> Sequence[Check]:
        """Whether it serves, for /readyz."""
        return metrics.checks(self._membership, self._runtime.clock)

    def families(self) -> list[Family]:
        """For /metrics; none before the store is open."""
        if self._membership is None:
            return []
        return metrics.families(self._load(), self._membership, self._runtime.clock)

    def _hello(self) -> Hello:
        identity = self._identity
        return Hello(
            "chunkserver",
            self._directory.name,
            __version__,
            identity.file_system,
            NodeId(identity.node),
            identity.incarnation,
        )

    def _welcome(self, hello: Hello) -> Welcome:
        identity = self._identity
        if hello.file_system and identity.file_system and hello.file_system != identity.file_system:
            raise ForeignFileSystem(
                f"this node belongs to file system {identity.file_system}, {hello.name} to {hello.file_system}"
            )
        return Welcome("chunkserver", __version__, identity.file_system, NodeId(identity.node), identity.incarnation)

    def set_rates(self, *, resync_bytes_per_s: int, scrub_bytes_per_s: int) -> None:
        """Other bounds from now on, 0: none."""
        self._options = replace(
            self._options, resync_bytes_per_s=resync_bytes_per_s, scrub_bytes_per_s=scrub_bytes_per_s
        )
        if self._leader is not None and self._scrubber is not None:
            self._leader.rate.set(resync_bytes_per_s)
            self._scrubber.rate.set(scrub_bytes_per_s)

    async def goodbye(self) -> None:
        """Before a clean stop: serve nothing any more and tell the metadata server. Bounded."""
        if self._membership is not None:
            await self._membership.goodbye()
