"""Weighted rendezvous hashing: which nodes should hold a placement group.

Every node draws a number for every group from a hash; a node's chance to draw the highest is its share of the weights
(Schindelhauer and Schomaker 2005: -w / ln(u)). Adding a node only ever takes groups from the others, about its share.
Replicas go to different zones while there are zones, then to different hosts, then to different nodes.
"""

import math
from collections.abc import Iterable, Sequence

from fsd.cluster.map import Node, hash64
from fsd.core.ids import PgId


def score(pg: PgId, node: Node) -> float:
    """What `node` draws for `pg`: higher wins. 0 for a node without weight."""
    uniform = (hash64(pg, node.node) + 1) / (2.0**64 + 2)
    return -node.weight / math.log(uniform) if node.weight > 0 else 0.0


def host_of(node: Node) -> str:
    return node.address.rpartition(":")[0]


def place(pg: PgId, nodes: Iterable[Node], replicas: int) -> tuple[Node, ...]:
    """The ideal replicas of `pg`, best first: as many as asked for, or as there are nodes."""
    return spread([], sorted(nodes, key=lambda node: (-score(pg, node), node.node)), replicas)


def spread(chosen: Sequence[Node], ranked: Iterable[Node], replicas: int) -> tuple[Node, ...]:
    """Add nodes of `ranked`, best first, to `chosen` until there are `replicas`, preferring unused zones, then hosts."""
    result = list(chosen)
    pool = [node for node in ranked if node not in result and node.weight > 0]
    while pool and len(result) < replicas:
        best = min(pool, key=lambda node: _crowding(node, result))  # min keeps the first of equals: the best ranked
        pool.remove(best)
        result.append(best)
    return tuple(result)


def _crowding(node: Node, chosen: Sequence[Node]) -> tuple[int, int]:
    zones = sum(other.zone == node.zone for other in chosen)
    hosts = sum(host_of(other) == host_of(node) for other in chosen)
    return zones, hosts
