"""The last minutes of a cluster's traffic, from the nodes' counters: rates for people to look at. Bounded."""

from collections import deque
from typing import NamedTuple

from fsd.core.ids import NodeId
from fsd.protocol.cluster import NodeLoad, StatusReply

EVERY_S = 2.0
KEPT = 150  # five minutes


class Rates(NamedTuple):
    """Bytes a second."""

    read: float
    written: float
    resynced: float


NOTHING = Rates(0.0, 0.0, 0.0)


class Traffic:
    def __init__(self) -> None:
        self.history: deque[Rates] = deque(maxlen=KEPT)  # of all nodes
        self.nodes: dict[NodeId, Rates] = {}  # the last ones
        self._loads: dict[NodeId, NodeLoad] = {}
        self._at = 0.0

    def add(self, now: float, status: StatusReply) -> None:
        """A look at the nodes' counters, of which the next one tells the difference."""
        spent_s, loads = now - self._at, {entry.node.node: entry.load for entry in status.nodes}
        if self._loads and spent_s > 0:
            self.nodes = {node: _rates(self._loads.get(node), load, spent_s) for node, load in loads.items()}
            self.history.append(Rates(*(sum(column) for column in zip(NOTHING, *self.nodes.values(), strict=True))))
        self._at, self._loads = now, loads


def _rates(before: NodeLoad | None, load: NodeLoad, spent_s: float) -> Rates:
    """A node that started again counts from 0: nothing is told for that moment."""
    if before is None:
        return NOTHING
    pairs = (
        (load.read_bytes, before.read_bytes),
        (load.written_bytes, before.written_bytes),
        (load.resynced_bytes, before.resynced_bytes),
    )
    return Rates(*(max(0, new - old) / spent_s for new, old in pairs))
