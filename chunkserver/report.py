"""A chunkserver's tie to the metadata server: registration, heartbeats and the lease they bring, the cluster map.

    register ──> beat every second ──SessionUnknown──> register again (the same incarnation)
                     └ lease until send time + lease_s * 0.97 on this machine's own clock (R2)

The map is fetched when a beat, a push (MapChanged) or a message from anybody names a newer epoch; one fetch at a time
serves all who wait. Before the first map nothing is served (R14).
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Never

import trio

from fsd.cluster.map import ClusterMap, Pool, Row, pool_of
from fsd.core.errors import (
    DiskFailed,
    ForeignFileSystem,
    FormatError,
    FsError,
    NotServing,
    SessionUnknown,
    VersionMismatch,
)
from fsd.core.ids import Incarnation, MapEpoch, Member, NodeId, PgId, PoolId
from fsd.protocol.cluster import (
    Activate,
    Beat,
    DropMember,
    GetMap,
    Goodbye,
    Heartbeat,
    MapReply,
    NodeLoad,
    NodeRegistered,
    Promote,
    RegisterNode,
    RowReply,
)
from fsd.protocol.metadata import MapChanged
from fsd.rpc.client import Channel, ChannelPool
from fsd.rpc.connection import Peer
from fsd.rpc.retry import pause_s
from fsd.runtime import Runtime
from fsd.wire.frame import Buffer
from fsd.wire.handshake import Hello

log = logging.getLogger(__name__)

BEAT_S = 1.0
LEASE_SHARE = 0.97  # of the granted time: the clocks' rates may differ by that much (R2)
CALL_TIMEOUT_S = 3.0  # of one attempt; every call here is repeated
GOODBYE_TIMEOUT_S = 3.0
LONGEST_PAUSE_S = 0.5
FATAL = (ForeignFileSystem, VersionMismatch, FormatError)

Load = Callable[[], NodeLoad]


@dataclass(frozen=True, slots=True)
class Registration:
    """What this life says of itself."""

    incarnation: int
    address: str
    zone: str
    weight: int
    damaged: bool


class Membership:
    """`on_map` is told of every newer map, synchronously. `authority`: the highest epoch of a metadata server that was followed
    so far; a higher one is remembered, durably, before it is followed (R14)."""

    def __init__(
        self,
        runtime: Runtime,
        nursery: trio.Nursery,
        addresses: Sequence[str],
        hello: Callable[[], Hello],
        on_map: Callable[[ClusterMap], None],
        *,
        authority: int,
        remember_authority: Callable[[int], Awaitable[None]],
    ) -> None:
        self._runtime = runtime
        self._nursery = nursery
        self._pool = ChannelPool(runtime, nursery, hello, _MapListener(self))
        self._addresses = tuple(addresses)
        self._current = 0
        self._on_map = on_map
        self.authority = authority
        self._remember_authority = remember_authority
        self._disk_error: DiskFailed | None = None
        self._fetching: trio.Event | None = None
        self._wanted = MapEpoch(0)
        self._rows: dict[PgId, Row] = {}
        self._pools: dict[PoolId, Pool] = {}
        self._node_addresses: dict[Member, str] = {}
        self.map: ClusterMap | None = None
        self.me = Member(NodeId(0), Incarnation(0))
        self.lease_until = -1.0
        self._in_contact = True
        self.registered = False
        self.stopping = False

    # --- what is known ------------------------------------------------------------------------------------------------

    def row(self, pg: PgId) -> Row | None:
        return self._rows.get(pg)

    def pool(self, pg: PgId) -> Pool | None:
        return self._pools.get(pool_of(pg))

    def address_of(self, member: Member) -> str | None:
        """None if that life is not in the map (any more)."""
        return self._node_addresses.get(member)

    def known_map(self) -> ClusterMap:
        """Raises NotServing before the first one (R14)."""
        if self.map is None:
            raise NotServing("this node has not fetched the cluster map yet")
        return self.map

    # --- the map ------------------------------------------------------------------------------------------------------

    def hear_of(self, epoch: MapEpoch) -> None:
        """Somebody says that there is a map of this epoch: fetch it in the background if it is news."""
        if self.registered and (self.map is None or epoch > self.map.epoch) and epoch > self._wanted:
            self._wanted = epoch
            self._nursery.start_soon(self._fetch_quietly)

    async def at_least(self, epoch: MapEpoch) -> ClusterMap:
        """The map, at least as new as `epoch` (R14). Raises NotServing if it cannot be had now."""
        if self.map is None or self.map.epoch < epoch:
            await self.refresh()
        if self.known_map().epoch < epoch:
            raise NotServing(f"map epoch {epoch} is wanted, the metadata server gave {self.known_map().epoch}")
        return self.known_map()

    async def refresh(self) -> None:
        """Ask for the newest map once. Raises NotServing if the metadata server does not answer.

        Not before this life is registered: a map that does not name it yet must not be taken for the truth about it."""
        if not self.registered:
            raise NotServing("this node is not registered yet")
        waiting = self._fetching
        if waiting is not None:
            await (
                waiting.wait()
            )  # it may have been asked before our reason arose: then ask again, once, with the others
        if self._fetching is not None and self._fetching is not waiting:
            await self._fetching.wait()
            return
        done = self._fetching = trio.Event()
        try:
            known = self.map.epoch if self.map else MapEpoch(0)
            reply = await self.call_once(GetMap(known))
            if isinstance(reply, MapReply) and reply.map is not None:
                self._adopt(reply.map)
        except FsError as error:
            raise NotServing(f"the metadata server does not give the map: {error}") from None
        finally:
            self._fetching = None
            done.set()

    async def _fetch_quietly(self) -> None:
        attempt = 0
        while self.map is None or self.map.epoch < self._wanted:
            try:
                await self.refresh()
            except NotServing as error:
                log.debug("map %d is not here yet: %s", self._wanted, error)
            if self.map is None or self.map.epoch < self._wanted:
                await self._pause(attempt)
                attempt += 1

    def _adopt(self, cluster_map: ClusterMap) -> None:
        if self.map is not None and cluster_map.epoch <= self.map.epoch:
            return
        self.map = cluster_map
        self._rows = {row.pg: row for row in cluster_map.rows}
        self._pools = {pool.pool: pool for pool in cluster_map.pools}
        self._node_addresses = {
            Member(node.node, Incarnation(node.incarnation)): node.address for node in cluster_map.nodes
        }
        self._on_map(cluster_map)

    # --- asking the metadata server -----------------------------------------------------------------------------------

    def _channel(self) -> Channel:
        return self._pool.to(self._addresses[self._current % len(self._addresses)])

    async def call_once(self, message: Any) -> Any:
        """One attempt, bounded; the next one goes to the next address. Raises FsError."""
        try:
            with trio.fail_after(CALL_TIMEOUT_S):
                peer = await self._channel().peer()
                await self._follow(peer)
                reply = (await peer.call(message)).message
                await self._follow(peer)  # a successor may have been met meanwhile
                return reply
        except trio.TooSlowError:
            self._current += 1
            raise NotServing(f"no answer from the metadata server in {CALL_TIMEOUT_S:g} s") from None
        except FsError as error:
            if error.retry.value != "never":
                self._current += 1
            raise

    async def _follow(self, peer: Peer) -> None:
        """R14: the newest authority that was ever met; remembered before anything that it says is done."""
        epoch = peer.remote.incarnation
        try:
            check_authority(self.authority, epoch)
        except NotServing:
            peer.close()  # its successor may answer at the same address
            raise
        if epoch > self.authority:
            self.authority = epoch
            try:
                await self._remember_authority(epoch)
            except DiskFailed as error:
                self._disk_error = error
                raise

    async def change_row(self, message: DropMember | Activate | Promote) -> Row | None:
        """Ask for a change of a row (DropMember, Activate, Promote); when the answer is here, so is its map.

        The row as it is now if the metadata server answered; None after a failed attempt (and a pause)."""
        try:
            reply = await self.call_once(message)
            assert isinstance(reply, RowReply)
            if reply.map_epoch > self.known_map().epoch:
                await self.at_least(reply.map_epoch)
        except FsError as error:
            log.info("%s for placement group %d epoch %d: %s", type(message).__name__, message.pg, message.epoch, error)
            await self._pause(2)
            return None
        return reply.row

    async def _pause(self, attempt: int) -> None:
        await trio.sleep(pause_s(attempt, self._runtime.random, 0.02, LONGEST_PAUSE_S))

    # --- registration and heartbeats ----------------------------------------------------------------------------------

    async def register(self, registration: Registration) -> NodeRegistered:
        """Repeat until the metadata server answers. Raises what trying again cannot help."""
        attempt = 0
        while True:
            request = RegisterNode(
                self.me.node,
                registration.incarnation,
                registration.address,
                registration.zone,
                registration.weight,
                registration.damaged,
            )
            try:
                reply = await self.call_once(request)
                assert isinstance(reply, NodeRegistered)
                return reply
            except FATAL:
                raise
            except FsError as error:
                self._check_disk()
                if attempt % 20 == 0:
                    log.warning("cannot register yet: %s", error)
            await self._pause(attempt)
            attempt += 1

    async def beat_for_ever(self, registration: Registration, load: Load) -> Never:
        """Heartbeats until cancelled."""
        while True:
            sent_at = trio.current_time()
            try:
                await self._beat(load())
            except SessionUnknown:
                if not self.stopping:
                    log.warning("the metadata server does not know this node any more: registering again")
                    await self.register(registration)
            except FsError as error:
                self._check_disk()
                self._note_contact(error)
            await trio.sleep(max(0.0, sent_at + BEAT_S - trio.current_time()))

    def _check_disk(self) -> None:
        """R12: what could not be remembered ends the service; a DiskFailed that a server says is of its own disk."""
        if self._disk_error is not None:
            raise self._disk_error

    def _note_contact(self, error: FsError | None) -> None:
        """Log when contact with the metadata server is lost and when it is back, not every second between."""
        if error is not None and self._in_contact:
            left = max(0.0, self.lease_until - self._runtime.clock.monotonic())
            log.warning("no heartbeat, the lease lasts for another %.1f s: %s", left, error)
        elif error is None and not self._in_contact:
            log.info("the metadata server answers again")
        self._in_contact = error is None

    async def _beat(self, load: NodeLoad) -> None:
        sent_at = self._runtime.clock.monotonic()
        known = self.map.epoch if self.map else MapEpoch(0)
        reply = await self.call_once(Heartbeat(self.me.node, self.me.incarnation, known, load))
        assert isinstance(reply, Beat)
        self._note_contact(None)
        if reply.lease_s > 0 and not self.stopping:
            self.lease_until = max(self.lease_until, lease_end(sent_at, reply.lease_s))
        self.hear_of(reply.map_epoch)

    async def goodbye(self) -> None:
        """Serve nothing any more and say so: the rows change without waiting for anybody's grace."""
        self.stopping = True
        self.lease_until = -1.0
        if self.me.node == 0:
            return
        with trio.move_on_after(GOODBYE_TIMEOUT_S):
            try:
                await self.call_once(Goodbye(self.me.node, self.me.incarnation))
            except FsError as error:
                log.warning("stopping without a goodbye: %s", error)


def check_authority(followed: int, epoch: int) -> None:
    """R14: nothing that a predecessor says counts. Raises NotServing."""
    if epoch < followed:
        raise NotServing(f"this metadata server is of epoch {epoch}, one of epoch {followed} has taken its place")


def lease_end(sent_at: float, lease_s: float) -> float:
    """R2: counted from the heartbeat's sending, never from its answer's arrival."""
    return sent_at + lease_s * LEASE_SHARE


class _MapListener:
    """What the metadata server says unasked."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    async def handle(self, peer: Peer, message: Any, payload: Buffer) -> Any:
        return None

    def arrived(self, peer: Peer, message: Any) -> None:
        if isinstance(message, MapChanged):
            self._membership.hear_of(message.map_epoch)

    def disconnected(self, peer: Peer) -> None:
        pass
