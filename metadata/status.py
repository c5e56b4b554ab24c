"""Questions of administrators: figures, the check of the whole tree, what is stored of one inode or layer."""

import contextlib
from collections import Counter
from collections.abc import Iterator

import trio

from fsd import __version__
from fsd.cluster.map import ClusterMap, Node, NodeState, Row, pool_of
from fsd.core.errors import NotFound, SessionUnknown
from fsd.core.ids import Ino, NodeId, SessionId
from fsd.namespace import keys
from fsd.namespace.fsck import steps
from fsd.namespace.records import NO_DATA, Dentry, Inode, Volume
from fsd.protocol.cluster import (
    DataPage,
    FsckReply,
    GetStatus,
    ListData,
    LiveData,
    NodeLoad,
    NodeStatus,
    RunFsck,
    SessionStatus,
    StatusReply,
)
from fsd.protocol.locks import EvictSession, InspectLeases, LeaseRow, LeasesReply
from fsd.protocol.metadata import Entry, InspectInode, LeaseMode, StatVolume, VolumeSpace
from fsd.runtime import Clock
from fsd.runtime.storage import Frozen
from fsd.wire.codec import decode
from fsd.wire.handshake import Done
from metadata.authority import Authority
from metadata.collector import Collector
from metadata.leases import InodeKey
from metadata.live import LiveSession, Sessions
from metadata.locks import LockService
from metadata.space import Space
from metadata.store import Store, scan_pages

MAX_FAULTS = 1000
MAX_PAGE = 1024
TURN = 64  # records read before others have their turn: 0.6 ms (10 us each)


class LayerTree:
    """fsd.namespace.fsck.Tree over one moment of the store: everything is read in pages."""

    def __init__(self, frozen: Frozen, volume: Volume) -> None:
        self._frozen = frozen
        self._volume = volume
        self._start, self._end = keys.layer_range(volume.layer)
        self.inode_count = 0
        self.dentry_count = 0

    def inodes(self) -> Iterator[Inode]:
        for _, value in self._scan("inode"):
            self.inode_count += 1
            yield decode(Inode, value)

    def dentries(self) -> Iterator[tuple[Ino, bytes, Dentry]]:
        for key, value in self._scan("dentry"):
            self.dentry_count += 1
            _, parent, _, name = keys.split_dentry_key(key)
            yield parent, name, decode(Dentry, value)

    def xattrs(self) -> Iterator[tuple[Ino, bytes]]:
        for key, _ in self._scan("xattr"):
            _, ino, name = keys.split_layer_ino(key)
            yield ino, name

    def orphans(self) -> Iterator[Ino]:
        for key, _ in self._scan("orphan"):
            yield keys.split_layer_ino(key)[1]

    def volume(self) -> Volume:
        return self._volume

    def _scan(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        return scan_pages(self._frozen, family, self._start, self._end, TURN)


async def _check(tree: LayerTree, limit: int) -> list[str]:
    """At most `limit` faults."""
    faults: list[str] = []
    for found in steps(tree, TURN):
        if found is None:
            await trio.lowlevel.checkpoint()
        elif len(faults) < limit:
            faults.append(found)
    return faults


class StatusService:
    """Everything here reads; nothing is changed or repaired."""

    def __init__(
        self,
        clock: Clock,
        store: Store,
        authority: Authority,
        sessions: Sessions,
        collector: Collector,
        space: Space,
        locks: LockService,
    ) -> None:
        self._locks = locks
        self._clock = clock
        self._store = store
        self._authority = authority
        self._sessions = sessions
        self._collector = collector
        self._space = space
        self._started = clock.monotonic()
        self._checking = trio.Lock()  # one check at a time: each remembers something of every inode

    async def status(self, request: GetStatus) -> StatusReply:
        await trio.lowlevel.checkpoint()
        return self.now()

    def now(self) -> StatusReply:
        cluster = self._authority.map
        in_sync, degraded, down = health(cluster)
        locks = self._locks.counts()
        return StatusReply(
            cluster.file_system,
            __version__,
            cluster.epoch,
            tuple(self._node(node) for node in cluster.nodes),
            len(cluster.rows),
            in_sync,
            degraded,
            down,
            tuple(self._session(live, locks) for live in self._sessions.all()),
            tuple(self._store.volumes()),
            self._clock.monotonic() - self._started,
            self._collector.count(),
            self._authority.repairing(),
            self._authority.membership.moves_left(),
            self._authority.progress.left_s(self._clock.monotonic()),
            self._authority.membership.facts.paused,
            single_copies(cluster),
            self._authority.settling(),
        )

    def _node(self, node: Node) -> NodeStatus:
        heard = self._authority.membership.last_heard(node.node)
        silent_s = -1.0 if heard is None else self._clock.monotonic() - heard
        return NodeStatus(node, self._authority.loads.get(node.node, NodeLoad()), silent_s)

    def _session(self, live: LiveSession, locks: Counter[SessionId]) -> SessionStatus:
        state = live.state
        volume = self._store.volume(state.layer)
        return SessionStatus(
            state.session,
            state.record.client,
            "" if volume is None else volume.name,
            state.address,
            self._clock.monotonic() - state.heard,
            self._sessions.leases.count(state.session),
            self._clock.monotonic() - state.since,
            locks[state.session],
        )

    async def fsck(self, request: RunFsck) -> FsckReply:
        """All volumes as they were at one moment. Others work meanwhile: no turn takes longer than TURN records."""
        faults: list[str] = []
        inodes = dentries = used = 0
        async with self._checking:
            volumes = self._store.volumes()
            with contextlib.closing(self._store.freeze()) as frozen:
                for volume in volumes:
                    tree = LayerTree(frozen, volume)
                    faults += [
                        f"volume {volume.name}: {fault}" for fault in await _check(tree, MAX_FAULTS - len(faults))
                    ]
                    inodes, dentries = inodes + tree.inode_count, dentries + tree.dentry_count
                    used += volume.used_bytes
        return FsckReply(len(volumes), inodes, dentries, used, tuple(faults))

    async def inspect(self, request: InspectInode) -> Entry:
        await self._store.durable()
        return Entry(self._store.inode(request.layer, request.ino), ())

    async def inspect_leases(self, request: InspectLeases) -> LeasesReply:
        """Holders in the order in which they came, then those that only have the inode open."""
        await trio.lowlevel.checkpoint()
        key = InodeKey(request.layer, request.ino)
        leases, now = self._sessions.leases, self._clock.monotonic()
        rows: list[LeaseRow] = []
        for session in dict.fromkeys([*leases.holders(key), *leases.openers(key)]):
            live = self._sessions.live(session)
            mode = leases.mode(key, session)
            age_s = now - leases.held_since(key, session) if mode is not LeaseMode.NONE else -1.0
            client, address = ("", "") if live is None else (live.state.record.client, live.state.address)
            rows.append(LeaseRow(session, client, address, mode, age_s, leases.has_open(session, key)))
        return LeasesReply(tuple(rows))

    async def evict(self, request: EvictSession) -> Done:
        """Raises SessionUnknown."""
        live = self._sessions.live(request.session)
        if live is None:
            raise SessionUnknown(f"there is no session {request.session}")
        await self._sessions.evict(live, "an administrator said so")
        return Done()

    async def list_data(self, request: ListData) -> DataPage:
        await self._store.durable()
        limit = max(1, min(request.limit, MAX_PAGE))
        _, end = keys.layer_range(request.layer)
        start = keys.inode_key(request.layer, Ino(request.after + 1))
        page = self._store.page("inode", start, end, limit)
        inodes = [decode(Inode, value) for _, value in page]
        data = [live_data(inode) for inode in inodes if inode.data != NO_DATA]
        if len(page) == limit and (not data or data[-1].ino != inodes[-1].ino):
            data.append(live_data(inodes[-1]))  # so that the asker goes on after the last inode that was seen
        return DataPage(tuple(data), len(page) < limit)

    async def stat_volume(self, live: LiveSession, request: StatVolume) -> VolumeSpace:
        await self._store.durable()
        volume = self._store.volume(live.state.layer)
        if volume is None:
            raise NotFound("the volume is being deleted")
        return self._space.of(volume)


def live_data(inode: Inode) -> LiveData:
    return LiveData(inode.ino, inode.data, inode.size, inode.trim_end)


def health(cluster: ClusterMap) -> tuple[int, int, int]:
    """How many rows are (in sync, degraded, down)."""
    pools = {pool.pool: pool for pool in cluster.pools}
    alive = {(node.node, node.incarnation) for node in cluster.nodes if node.state is NodeState.UP}
    counts = {"in_sync": 0, "degraded": 0, "down": 0}
    for row in cluster.rows:
        counts[health_of(row, alive, pools[pool_of(row.pg)].replicas, len(cluster.nodes))] += 1
    return counts["in_sync"], counts["degraded"], counts["down"]


def single_copies(cluster: ClusterMap) -> int:
    """Rows with one living copy in sync, of more that are wanted."""
    pools = {pool.pool: pool for pool in cluster.pools}
    alive = {(node.node, node.incarnation) for node in cluster.nodes if node.state is NodeState.UP}
    return sum(
        pools[pool_of(row.pg)].replicas > 1 and sum(member in alive for member in row.in_sync) == 1
        for row in cluster.rows
    )


def health_of(row: Row, alive: set[tuple[NodeId, int]], replicas: int, nodes: int) -> str:
    """One row: "in_sync", "degraded" or "down"."""
    if not row.active or row.primary not in alive:
        return "down"
    good = sum(member in alive for member in row.in_sync)
    return "in_sync" if good >= min(replicas, nodes) else "degraded"
