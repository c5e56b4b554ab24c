"""The authority's shell: takes events for the membership machine, makes what it decides durable, tells everybody.

One task commits. Events that come together are one round: handle them all, `settle` the rows, store what differs as one
batch under one new map epoch, wait until that is durable, and only then publish it (so nobody ever hears of a row that a
restart could forget). Askers wait for the round that their event was in.
"""

import logging
from collections.abc import Callable
from typing import Any

import trio

from fsd.cluster.map import ClusterMap, NodeState, Row
from fsd.core.errors import ConnectionRefused, FsError, NotFound
from fsd.core.ids import MapEpoch, Member, NodeId, PgEpoch, PgId, PoolId, SessionId
from fsd.protocol.cluster import NodeLoad
from fsd.protocol.metadata import MapChanged
from fsd.rpc.connection import Peer
from fsd.runtime import Runtime
from fsd.runtime.storage import KeyChange
from metadata.membership import Membership, is_alive, lease_s_for, map_of
from metadata.progress import Progress
from metadata.records import FileSystemRecord, MapHead, RowRecord
from metadata.store import MAP_KEY, Store, put, row_key

log = logging.getLogger(__name__)

TICK_S = 0.25
SETTLING_S = 3.0  # of a group that is not active: longer than a takeover takes when all is well
PROBES = 3  # a refusal is believed at once; other failures say nothing and are tried again
PROBE_PAUSE_S = 0.3
PROBE_TIMEOUT_S = 3.0
CHANGE_TIMEOUT_S = 3.0  # how long a request waits for a row change that R8 holds back

Event = Callable[[Membership, float], object]


class Audience:
    """Who is told of new maps. One task at most for each peer, so a slow one holds nobody up."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._told: dict[Peer, MapEpoch] = {}
        self._telling: dict[Peer, None] = {}
        self._epoch = MapEpoch(0)

    def add(self, peer: Peer) -> None:
        if not peer.closed.is_set():
            self._told.setdefault(peer, self._epoch)

    def remove(self, peer: Peer) -> None:
        self._told.pop(peer, None)

    def publish(self, epoch: MapEpoch) -> None:
        """Tell everybody, soon."""
        self._epoch = epoch
        for peer in list(self._told):
            if peer not in self._telling:
                self._telling[peer] = None
                self._nursery.start_soon(self._tell, peer)

    async def tell_first(self, peer: Peer) -> None:
        """Make sure that `peer` hears of the newest map before anything that is sent after this (I13: a lease that was
        freed by an eviction comes with a map in which the evicted session is fenced)."""
        while self._told.get(peer, self._epoch) < self._epoch:
            epoch = self._epoch
            await peer.notify(MapChanged(epoch))
            if peer in self._told:
                self._told[peer] = max(self._told[peer], epoch)

    async def _tell(self, peer: Peer) -> None:
        try:
            await self.tell_first(peer)
        except FsError as error:
            log.debug("%s does not hear of map %d: %s", peer.address, self._epoch, error)
        finally:
            self._telling.pop(peer, None)


class Authority:
    """The cluster map: its machine, its storage, its readers. `run` is to be started once."""

    def __init__(
        self,
        runtime: Runtime,
        store: Store,
        file_system: FileSystemRecord,
        audience: Audience,
        *,
        lease_s: float,
        grace_s: float,
        rebuild_after_s: float,
        quiet_s: float = 60.0,
    ) -> None:
        self._runtime = runtime
        self._store = store
        self._file_system = file_system
        self._audience = audience
        self._lease_s = lease_s
        head = store.map_head() or MapHead(MapEpoch(1), (), (), (), SessionId(1), NodeId(1))
        rows = store.rows()
        self.membership = Membership(
            head,
            rows,
            now=runtime.clock.monotonic(),
            grace_s=grace_s,
            rebuild_after_s=rebuild_after_s,
            quiet_s=quiet_s,
        )
        self.loads: dict[NodeId, NodeLoad] = {}
        self.progress = Progress()
        self._inactive_since: dict[PgId, float] = {}
        self._saved_rows = {record.row.pg: record for record in rows}
        self._saved_head = head
        self.map: ClusterMap = self._make_map(head.epoch)
        self._events: list[Event] = []
        self._ticked = False
        self._wanted = trio.Event()
        self._round_done = trio.Event()
        self.oldest_session: Callable[[], SessionId] = lambda: self.membership.facts.oldest_session
        audience.publish(self.map.epoch)

    # --- events -------------------------------------------------------------------------------------------------------

    async def submit(self, event: Event) -> Any:
        """Have `event` handled in the next round; its result, once the round's map is durable and published."""
        results: list[Any] = []
        errors: list[FsError] = []

        def handle(membership: Membership, now: float) -> None:
            try:
                results.append(event(membership, now))
            except FsError as error:
                errors.append(error)

        self._events.append(handle)
        done = self._round_done
        self._wanted.set()
        await done.wait()
        if errors:
            raise errors[0]
        return results[0]

    async def run(self) -> None:
        """Rounds, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick)
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                await self._round()

    async def _tick(self) -> None:
        last = self._runtime.clock.monotonic()
        while True:
            await trio.sleep(TICK_S)
            now = self._runtime.clock.monotonic()
            if now - last > 2 * TICK_S:
                self.membership.forgive(now - last - TICK_S)
            last = now
            self._ticked = True
            self._wanted.set()

    async def _round(self) -> None:
        events, self._events = self._events, []
        done, self._round_done = self._round_done, trio.Event()
        now = self._runtime.clock.monotonic()
        if self._ticked:
            self._ticked = False
            self.membership.tick(now)
        for event in events:
            event(self.membership, now)
        self.membership.forget_fences(self.oldest_session())
        if events or self.membership.is_restless():
            self.membership.settle(self._file_system.pg_count, now)
        self._note_inactive(now)
        self.progress.note(now, self.repairing() + self.membership.moves_left())
        await self._commit()
        done.set()

    async def _commit(self) -> None:
        """Store what differs from what is stored, under the next epoch; durable before it is published."""
        facts = self.membership.facts
        head = MapHead(
            self._saved_head.epoch,
            tuple(facts.nodes[node] for node in sorted(facts.nodes)),
            tuple(facts.pools[pool] for pool in sorted(facts.pools)),
            facts.evicted,
            facts.oldest_session,
            facts.next_node,
            facts.paused,
        )
        changed: dict[PgId, RowRecord] = {}
        for pg, row in facts.rows.items():
            saved = self._saved_rows.get(pg)
            former = facts.former.get(pg, ())
            leaving = facts.leaving.get(pg, NodeId(0))
            if saved is None or saved.row is not row or (saved.former, saved.leaving) != (former, leaving):
                changed[pg] = RowRecord(row, former, leaving)
        if head == self._saved_head and not changed:
            return
        self._log_changes(head, changed)
        head = MapHead(MapEpoch(head.epoch + 1), *_rest(head))
        batch: list[KeyChange] = [put("cluster", row_key(pg), record) for pg, record in changed.items()]
        batch.append(put("cluster", MAP_KEY, head))
        new_map = self._make_map(head.epoch)
        sequence = self._store.apply(batch)
        self._saved_rows.update(changed)
        self._saved_head = head
        await self._store.durable(sequence)
        self.map = new_map
        self._audience.publish(head.epoch)

    def _make_map(self, epoch: MapEpoch) -> ClusterMap:
        record = self._file_system
        return map_of(
            self.membership.facts,
            epoch=epoch,
            file_system=record.file_system,
            chunk_size=record.chunk_size,
            pg_count=record.pg_count,
        )

    def _log_changes(self, head: MapHead, changed: dict[PgId, RowRecord]) -> None:
        before = {node.node: node for node in self._saved_head.nodes}
        for node in head.nodes:
            if node != before.get(node.node):
                log.info("node %d.%d at %s is %s", node.node, node.incarnation, node.address, node.state.name)
        if changed:
            log.info("%d placement groups change in map %d", len(changed), head.epoch + 1)

    def settling(self) -> int:
        """Groups that are not active, but only for a moment, with a living primary."""
        now = self._runtime.clock.monotonic()
        nodes = self.membership.nodes
        recent = [pg for pg, since in self._inactive_since.items() if now - since < SETTLING_S]
        primaries = [self.membership.facts.rows[pg].primary for pg in recent]
        return sum(primary is not None and is_alive(nodes, primary) for primary in primaries)

    def _note_inactive(self, now: float) -> None:
        rows = self.membership.facts.rows
        self._inactive_since = {pg: self._inactive_since.get(pg, now) for pg, row in rows.items() if not row.active}

    def repairing(self) -> int:
        """How many groups have fewer copies than there could be."""
        return self.membership.missing_copies()

    # --- questions and wishes -----------------------------------------------------------------------------------------

    def row(self, pg: PgId) -> Row:
        """The published row. Raises NotFound."""
        index = self._row_index(pg)
        if index is None:
            raise NotFound(f"there is no placement group {pg}")
        return self.map.rows[index]

    def _row_index(self, pg: PgId) -> int | None:
        low, high = 0, len(self.map.rows)
        while low < high:
            middle = (low + high) // 2
            if self.map.rows[middle].pg < pg:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self.map.rows) and self.map.rows[low].pg == pg else None

    def lease_s(self, member: Member) -> float:
        """The lease that a heartbeat of `member` gets now; 0 is none (R2)."""
        return lease_s_for(self.membership.nodes, self.map, member, self._lease_s)

    async def fence(self, session: SessionId, *, closed: bool = False) -> None:
        """Durably refuse everything from a session (I13)."""
        await self.submit(lambda membership, now: membership.fence(session, closed=closed))

    def has_nodes(self) -> bool:
        return any(node.state is NodeState.UP for node in self.map.nodes)

    async def use_pool(self, pool: PoolId) -> None:
        """Have the pool's rows placed, now or as soon as a node is up."""
        if not self.membership.is_placed(pool):
            await self.submit(lambda membership, now: membership.want_pool(pool, now))

    async def pool_for(self, replicas: int, min_replicas: int) -> PoolId:
        return await self.submit(lambda membership, now: membership.pool_for(replicas, min_replicas))

    async def drop(self, pg: PgId, epoch: PgEpoch, primary: Member, victim: Member) -> Row:
        """R5. Returns when the row has changed durably, or after a while as it is."""
        await self.submit(lambda membership, now: membership.drop(pg, epoch, primary, victim, now))
        await self._wait_for(lambda: self.row(pg).epoch != epoch)
        return self.row(pg)

    async def goodbye(self, member: Member) -> None:
        """Returns when others serve what the node served, as far as there are others."""
        await self.submit(lambda membership, now: membership.goodbye(member, now))
        await self._wait_for(lambda: not any(_could_go(row, member) for row in self.map.rows))

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        with trio.move_on_after(CHANGE_TIMEOUT_S):
            while not condition():
                await self._round_done.wait()

    async def probe(self, member: Member) -> None:
        """A node's connection broke: if its own kernel says that nobody listens there, it is dead (R2)."""
        for _ in range(PROBES):
            node = self.membership.nodes.get(member.node)
            if node is None or node.incarnation != member.incarnation:
                return
            if await self._is_refused(node.address):
                await self.submit(lambda membership, now: membership.refused(member, now))
                return
            await trio.sleep(PROBE_PAUSE_S)

    async def _is_refused(self, address: str) -> bool:
        with trio.move_on_after(PROBE_TIMEOUT_S):
            try:
                connection = await self._runtime.network.connect(address)
            except ConnectionRefused:
                return True
            except FsError as error:
                log.debug("probe of %s: %s", address, error)
            else:
                connection.close()
        return False


def _could_go(row: Row, member: Member) -> bool:
    return member in row.members() and any(other != member for other in row.in_sync)


def _rest(head: MapHead) -> tuple[Any, ...]:
    return head.nodes, head.pools, head.evicted, head.oldest_session, head.next_node, head.paused
