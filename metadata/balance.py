"""Which groups should move where: the planner. Pure.

First placement is rendezvous hashing (fsd.cluster.placement), whose balance is that of chance: with 256 groups on ten nodes
some hold a quarter too much. So rows are not moved towards the hash's ideal but towards each node's *share*: by weight,
no node with two copies of a group, no zone with more than its part (`shares`). Three passes, each move of which is a gain:

    evacuate   what lies on a node that is to have nothing (draining, given up)
    spread     two copies in one zone, or on one host, while another has room
    balance    from the node most above its share to the node most below it; the sum of squares falls with each move

A node that joins is the only one below its share, so it takes its share from the others and nothing moves between those.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from fsd.cluster.map import Node
from fsd.cluster.placement import host_of, score
from fsd.core.ids import NodeId, PgId

K = TypeVar("K", bound=Hashable)

FULL_SHARE = 0.9  # of its weight counts for a node that is nearly full
GAIN = 1.0 + 1e-6  # a move pays if the two nodes' deviations differ by more than this


class Move(NamedTuple):
    pg: PgId
    source: NodeId
    target: NodeId


def effective_weight(node: Node) -> float:
    """What counts of a node's weight: nothing while it is drained, less while it is full."""
    if node.draining:
        return 0.0
    return node.weight * FULL_SHARE if node.full else float(node.weight)


def may_receive(node: Node) -> bool:
    """Whether a node may get groups that it had no part in before."""
    return node.weight > 0 and not node.draining and not node.full


def water_fill(total: float, weights: Mapping[K, float], caps: Mapping[K, float]) -> dict[K, float]:
    """`total` divided by weights, nobody above its cap; what is capped goes to the others."""
    filled: dict[K, float] = dict.fromkeys(weights, 0.0)
    left: list[K] = [key for key in weights if weights[key] > 0]
    while left:
        level = max(0.0, total) / sum(weights[key] for key in left)
        capped: list[K] = [key for key in left if level * weights[key] >= caps[key]]
        for key in capped or left:
            filled[key] = min(caps[key], level * weights[key])
            total -= filled[key]
        left = [key for key in left if key not in capped] if capped else []
    return filled


def shares(nodes: Iterable[Node], groups: int, replicas: int) -> dict[NodeId, float]:
    """How many of the `groups * replicas` copies each node should hold: first divided among zones, then among nodes."""
    zones: dict[str, list[Node]] = {}
    for node in nodes:
        zones.setdefault(node.zone, []).append(node)
    weights = {zone: sum(map(effective_weight, members)) for zone, members in sorted(zones.items())}
    used = sum(weight > 0 for weight in weights.values())
    most = groups * math.ceil(replicas / max(1, used))
    caps = {zone: float(min(most, groups * sum(effective_weight(n) > 0 for n in zones[zone]))) for zone in weights}
    result: dict[NodeId, float] = {}
    for zone, share in water_fill(groups * replicas, weights, caps).items():
        members = {node.node: effective_weight(node) for node in sorted(zones[zone], key=lambda node: node.node)}
        result |= water_fill(share, members, dict.fromkeys(members, float(groups)))
    return result


def crowding(nodes: Sequence[Node]) -> tuple[int, int]:
    """Pairs of copies in one zone, and on one host. Lower is better."""
    zones = hosts = 0
    for index, node in enumerate(nodes):
        for other in nodes[:index]:
            zones += node.zone == other.zone
            hosts += host_of(node) == host_of(other)
    return zones, hosts


@dataclass(slots=True)
class Balance:
    """The copies of one pool's groups as they will be when every planned move is done. `receivers` may get more."""

    nodes: dict[NodeId, Node]
    receivers: set[NodeId]
    replicas: int
    members: dict[PgId, list[NodeId]]
    moves: list[Move] = field(default_factory=list[Move])
    held: dict[NodeId, dict[PgId, None]] = field(default_factory=dict[NodeId, dict[PgId, None]])
    share: dict[NodeId, float] = field(default_factory=dict[NodeId, float])

    def __post_init__(self) -> None:
        self.share = shares((self.nodes[node] for node in sorted(self.nodes)), len(self.members), self.replicas)
        self.held = {node: {} for node in sorted(self.nodes)}
        for pg in sorted(self.members):
            for node in self.members[pg]:
                self.held.setdefault(node, {})[pg] = None

    def deviation(self, node: NodeId) -> float:
        return len(self.held[node]) - self.share.get(node, 0.0)

    def plan(self, limit: int) -> list[Move]:
        """The moves, in the order in which they are to be made, at most `limit`."""
        for step in (self._evacuate, self._spread, self._balance):
            step(limit)
        return self.moves

    # --- the passes ---------------------------------------------------------------------------------------------------

    def _evacuate(self, limit: int) -> None:
        for pg in sorted(self.members):
            for node in list(self.members[pg]):
                if len(self.moves) >= limit:
                    return
                if not self.share.get(node):
                    self._move_best(pg, node, self._targets(pg))

    def _spread(self, limit: int) -> None:
        for pg in sorted(self.members):
            before = self._crowding(self.members[pg])
            if before == (0, 0):
                continue
            for node in list(self.members[pg]):
                if len(self.moves) >= limit:
                    return
                better = [t for t in self._targets(pg) if self._swapped(pg, node, t) < before]
                fitting = [t for t in better if self.deviation(t) < 1.0]
                if node in self.members[pg] and self._move_best(pg, node, fitting):
                    break

    def _balance(self, limit: int) -> None:
        while len(self.moves) < limit:
            move = self._best_move()
            if move is None:
                return
            self._carry_out(move)

    def _best_move(self) -> Move | None:
        ranked = sorted(self.held, key=lambda node: (-self.deviation(node), node))
        targets = [node for node in reversed(ranked) if node in self.receivers]
        for source in ranked:
            for target in targets:
                if self.deviation(source) - self.deviation(target) <= GAIN:
                    break
                groups = [pg for pg in self.held[source] if self._fits(pg, source, target)]
                if groups:
                    return Move(max(groups, key=lambda pg: (score(pg, self.nodes[target]), -pg)), source, target)
        return None

    # --- small steps --------------------------------------------------------------------------------------------------

    def _targets(self, pg: PgId) -> list[NodeId]:
        return [node for node in sorted(self.receivers) if node not in self.members[pg]]

    def _fits(self, pg: PgId, source: NodeId, target: NodeId) -> bool:
        members = self.members[pg]
        return target not in members and self._swapped(pg, source, target) <= self._crowding(members)

    def _crowding(self, members: Iterable[NodeId]) -> tuple[int, int]:
        return crowding([self.nodes[node] for node in members if node in self.nodes])

    def _swapped(self, pg: PgId, source: NodeId, target: NodeId) -> tuple[int, int]:
        return self._crowding([target if node == source else node for node in self.members[pg]])

    def _move_best(self, pg: PgId, source: NodeId, targets: Sequence[NodeId]) -> bool:
        if not targets:
            return False

        def rank(node: NodeId) -> tuple[tuple[int, int], float, float, int]:
            relative = self.deviation(node) / max(1.0, self.share.get(node, 0.0))
            return self._swapped(pg, source, node), relative, -score(pg, self.nodes[node]), node

        self._carry_out(Move(pg, source, min(targets, key=rank)))
        return True

    def _carry_out(self, move: Move) -> None:
        self.members[move.pg] = [move.target if node == move.source else node for node in self.members[move.pg]]
        self.held[move.source].pop(move.pg, None)
        self.held[move.target][move.pg] = None
        self.moves.append(move)
