"""What an administrator changes: nodes drained, weighed and forgotten, moves paused, orphaned chunks collected."""

from collections.abc import Callable

import trio

from fsd import __version__
from fsd.core.errors import InvalidArgument
from fsd.core.ids import NodeId
from fsd.namespace import keys
from fsd.namespace.records import DeadData
from fsd.protocol.cluster import (
    CollectOrphans,
    DrainReply,
    GetDrain,
    GetPlan,
    NodeBalance,
    NodeChanged,
    Orphan,
    OrphansCollected,
    PauseMoves,
    Ping,
    PlanReply,
    Pong,
    RemoveNode,
    SetNode,
)
from fsd.runtime import Clock
from fsd.runtime.storage import KeyChange
from fsd.wire.handshake import Done
from metadata.authority import Authority
from metadata.live import Sessions
from metadata.moving import balances, future_members
from metadata.store import Store, put

MAX_WEIGHT = 1 << 60
MAX_END = 1 << 50
MAX_ORPHANS = 4096  # of one request


class AdministrationService:
    """Each method answers one message of fsd.protocol.cluster."""

    def __init__(
        self, clock: Clock, store: Store, authority: Authority, sessions: Sessions, collect: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._store = store
        self._authority = authority
        self._sessions = sessions
        self._collect = collect

    async def ping(self, request: Ping) -> Pong:
        await trio.lowlevel.checkpoint()
        return Pong(self._clock.time_ns(), __version__)

    # --- nodes --------------------------------------------------------------------------------------------------------

    async def set_node(self, request: SetNode) -> NodeChanged:
        if request.weight is not None and not 0 <= request.weight <= MAX_WEIGHT:
            raise InvalidArgument(f"a weight of {request.weight} bytes is not from 0 to {MAX_WEIGHT}")
        node = await self._authority.submit(
            lambda membership, now: membership.set_node(request.node, draining=request.draining, weight=request.weight)
        )
        return NodeChanged(node)

    async def remove_node(self, request: RemoveNode) -> Done:
        await self._authority.submit(lambda membership, now: membership.remove_node(request.node, force=request.force))
        self._authority.loads.pop(request.node, None)
        return Done()

    async def pause(self, request: PauseMoves) -> Done:
        await self._authority.submit(lambda membership, now: membership.pause(request.paused))
        return Done()

    # --- what will move -----------------------------------------------------------------------------------------------

    async def plan(self, request: GetPlan) -> PlanReply:
        """Also what is under way; nothing is changed by asking."""
        await trio.lowlevel.checkpoint()
        now = self._clock.monotonic()
        membership = self._authority.membership
        facts = membership.facts
        now_held: dict[NodeId, int] = {}
        for row in facts.rows.values():
            for member in row.in_sync:
                now_held[member.node] = now_held.get(member.node, 0) + 1
        share: dict[NodeId, float] = {}
        planned: dict[NodeId, int] = {}
        moves = len(facts.leaving)
        for balance in balances(facts, membership.counted(now)):
            moves += len(balance.plan(limit=len(facts.rows) * 8))
            for node in balance.held:
                share[node] = share.get(node, 0.0) + balance.share.get(node, 0.0)
                planned[node] = planned.get(node, 0) + len(balance.held[node])
        nodes = tuple(
            NodeBalance(node, now_held.get(node, 0), planned.get(node, 0), share.get(node, 0.0))
            for node in sorted(facts.nodes)
        )
        copies = sum(now_held.values())
        return PlanReply(
            moves,
            copies,
            moves * self._copy_bytes(copies),
            nodes,
            len(facts.leaving),
            facts.paused,
            membership.mover.waiting_s(now),
        )

    def _copy_bytes(self, copies: int) -> int:
        """What one copy of a group holds, on the average, by the nodes' last word."""
        stored = sum(load.stored_bytes for load in self._authority.loads.values())
        return stored // copies if copies else 0

    async def drain(self, request: GetDrain) -> DrainReply:
        await trio.lowlevel.checkpoint()
        now = self._clock.monotonic()
        membership, node = self._authority.membership, request.node
        known = membership.node(node)
        facts = membership.facts
        rows = [row for row in facts.rows.values() if any(m.node == node for m in (*row.members(), *row.base))]
        blocked = 0
        if known.draining:
            for balance in balances(facts, membership.counted(now)):
                balance.plan(limit=len(facts.rows) * 8)
                blocked += len(balance.held.get(node, ()))
        staying = sum(node in future_members(row, facts.leaving.get(row.pg)) for row in rows)
        safe = membership.obstacle(node, force=False) is None
        left_s = 0.0 if safe else self._authority.progress.left_s(now)
        return DrainReply(known, len(rows), min(blocked, staying), safe, left_s)

    # --- orphans ------------------------------------------------------------------------------------------------------

    async def collect_orphans(self, request: CollectOrphans) -> OrphansCollected:
        """What no live session owns and no file refers to (the asker looked, after the chunks) never comes to life again:
        ids are used once."""
        if len(request.orphans) > MAX_ORPHANS:
            raise InvalidArgument(f"{len(request.orphans)} orphans are asked for, {MAX_ORPHANS} are possible at once")
        await self._sessions.settled.wait()
        taken = [orphan for orphan in request.orphans if self._is_nobodys(orphan)]
        await self._store.durable(self._store.apply([_dead(orphan) for orphan in taken]))
        self._collect()
        return OrphansCollected(tuple(orphan.data for orphan in taken))

    def _is_nobodys(self, orphan: Orphan) -> bool:
        counters = self._store.counters()
        assert counters is not None
        if self._store.raw("collect", keys.collect_key(orphan.data, 0)) is not None:
            return False  # it is being removed already
        given = 0 < orphan.data < counters.next_id and 0 < orphan.end <= MAX_END
        return given and not any(live.state.owns(orphan.data) for live in self._sessions.all())


def _dead(orphan: Orphan) -> KeyChange:
    dead = DeadData(orphan.data, orphan.pool, 0, orphan.end)
    return put("collect", keys.collect_key(dead.data, dead.start), dead)
