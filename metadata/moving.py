"""When groups move, and how many at once: the mover. Pure.

    topology changes ──quiet_s──> plan (metadata.balance) ──> start moves within the budget ──> … ──> plan again ──> none left

A move is a row with one syncing member too many and a note which one leaves (membership.Facts.leaving); it ends when the new
one is promoted. Mere moves wait while any group is being repaired; what lies on a draining node does not wait for quiet.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from fsd.cluster.map import Node, NodeState, Pool, Row, pool_of
from fsd.core.ids import NodeId, PgId, PoolId, SessionId
from metadata.balance import Balance, Move, may_receive

MOVES_PER_NODE = 2  # groups that a node sends or takes at once, as mere moves
MAX_PLANNED = 256  # moves that are planned at once; the rest when these are done


@dataclass(slots=True)
class Facts:
    """The map as it will be after this round."""

    nodes: dict[NodeId, Node] = field(default_factory=dict[NodeId, Node])
    pools: dict[PoolId, Pool] = field(default_factory=dict[PoolId, Pool])
    rows: dict[PgId, Row] = field(default_factory=dict[PgId, Row])
    former: dict[PgId, tuple[NodeId, ...]] = field(default_factory=dict[PgId, tuple[NodeId, ...]])
    leaving: dict[PgId, NodeId] = field(default_factory=dict[PgId, NodeId])
    evicted: tuple[SessionId, ...] = ()
    oldest_session: SessionId = SessionId(1)
    next_node: NodeId = NodeId(1)
    paused: bool = False


def future_members(row: Row, leaving: NodeId | None) -> list[NodeId]:
    """Who will hold the group when its present move is done."""
    return [member.node for member in row.members() if member.node != leaving]


def balances(facts: Facts, counted: Iterable[NodeId]) -> list[Balance]:
    """Each pool's copies as they are; `counted`: nodes that have a share (up, or expected back soon)."""
    nodes = {node: facts.nodes[node] for node in counted}
    receivers = {n for n, node in nodes.items() if node.state is NodeState.UP and may_receive(node)}
    members: dict[PoolId, dict[PgId, list[NodeId]]] = {}
    for pg, row in facts.rows.items():
        held = [node for node in future_members(row, facts.leaving.get(pg)) if node in facts.nodes]
        members.setdefault(pool_of(pg), {})[pg] = held
    known = nodes | {n: facts.nodes[n] for groups in members.values() for held in groups.values() for n in held}
    return [
        Balance(_weightless(known, nodes), receivers, facts.pools[pool].replicas, members[pool])
        for pool in sorted(members)
    ]


def _weightless(known: dict[NodeId, Node], counted: dict[NodeId, Node]) -> dict[NodeId, Node]:
    """Nodes that still hold something but have no share are as good as drained."""
    return {n: node if n in counted else _drained(node) for n, node in sorted(known.items())}


def _drained(node: Node) -> Node:
    return Node(node.node, node.incarnation, node.address, node.zone, 0, node.state, draining=True)


def plan_all(facts: Facts, counted: Iterable[NodeId], limit: int) -> list[Move]:
    """Every move that is wanted now, at most `limit` for each pool."""
    return [move for balance in balances(facts, counted) for move in balance.plan(limit)]


def is_repair(row: Row, pool: Pool) -> bool:
    """Somebody is filled because the group has too few copies, not because it moves."""
    return bool(row.syncing) and len(row.in_sync) < pool.replicas


def may_move(facts: Facts, move: Move) -> bool:
    """Only a whole, quiet group moves: redundancy never falls for a move."""
    row, source, target = facts.rows[move.pg], move.source, facts.nodes.get(move.target)
    if target is None or target.state is not NodeState.UP or not may_receive(target):
        return False
    nodes = [member.node for member in row.members()]
    whole = len(row.in_sync) == facts.pools[pool_of(move.pg)].replicas and row.active and not row.syncing
    alive = all(_is_up(facts, member.node, member.incarnation) for member in row.in_sync)
    return whole and alive and source in nodes and move.target not in nodes and move.pg not in facts.leaving


def is_obsolete(facts: Facts, move: Move) -> bool:
    """What was planned does not fit the row or the nodes any more."""
    nodes = [member.node for member in facts.rows[move.pg].members()]
    target = facts.nodes.get(move.target)
    able = target is not None and target.state is NodeState.UP and may_receive(target)
    return move.source not in nodes or move.target in nodes or not able


def _is_up(facts: Facts, node: NodeId, incarnation: int) -> bool:
    known = facts.nodes.get(node)
    return known is not None and known.state is NodeState.UP and known.incarnation == incarnation


class Mover:
    """Chooses the moves to start now. `quiet_s`: how long the set of nodes must have been the same for mere balancing."""

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._topology: object = None
        self._changed_at = 0.0
        self._plan: list[Move] | None = None
        self._started = False

    def is_idle(self) -> bool:
        """Nothing will come of asking again while no node and no row changes."""
        return self._plan is not None and not self._plan and not self._started

    def planned(self) -> int:
        return len(self._plan or ())

    def waiting_s(self, now: float) -> float:
        """How long until mere balancing may begin."""
        return max(0.0, self._changed_at + self._quiet_s - now)

    def choose(self, facts: Facts, counted: list[NodeId], now: float) -> list[Move]:
        """Moves to be started now, within the budget."""
        self._look(facts, counted, now)
        if facts.paused or any(is_repair(row, facts.pools[pool_of(pg)]) for pg, row in facts.rows.items()):
            return []
        quiet = self.waiting_s(now) <= 0
        if not quiet and not any(node.draining for node in facts.nodes.values()):
            return []
        if self._plan is None or (not self._plan and self._started and not facts.leaving):
            self._plan, self._started = plan_all(facts, counted, MAX_PLANNED), False
        return self._within_budget(facts, quiet)

    def _look(self, facts: Facts, counted: list[NodeId], now: float) -> None:
        nodes = [(n.node, n.zone, n.weight, n.draining, n.full, n.state is NodeState.UP) for n in facts.nodes.values()]
        topology = (sorted(nodes), counted, sorted(facts.pools), len(facts.rows), facts.paused)
        if topology != self._topology:
            self._changed_at = now if self._topology is not None else now - self._quiet_s
            self._topology, self._plan = topology, None

    def _within_budget(self, facts: Facts, quiet: bool) -> list[Move]:
        assert self._plan is not None
        busy: dict[NodeId, int] = {}
        for pg, node in facts.leaving.items():
            for each in (node, *(member.node for member in facts.rows[pg].syncing)):
                busy[each] = busy.get(each, 0) + 1
        chosen: list[Move] = []
        kept: list[Move] = []
        for move in self._plan:
            ends = (move.source, move.target)
            source = facts.nodes.get(move.source)
            early = not quiet and (source is None or not source.draining)
            if early or any(busy.get(node, 0) >= MOVES_PER_NODE for node in ends):
                kept.append(move)
            elif may_move(facts, move):
                chosen.append(move)
                for node in ends:
                    busy[node] = busy.get(node, 0) + 1
            elif is_obsolete(facts, move):
                self._started = True  # plan again
            else:
                kept.append(move)
        self._plan = kept
        self._started = self._started or bool(chosen)
        return chosen
