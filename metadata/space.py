"""How much room there is: the nodes' figures against a volume's quota and copies."""

import logging
from collections.abc import Callable, Mapping

from fsd.cluster.map import ClusterMap, NodeState
from fsd.core.ids import NodeId
from fsd.core.units import MIB, format_size
from fsd.namespace.records import Volume
from fsd.protocol.cluster import NodeLoad
from fsd.protocol.metadata import VolumeSpace
from metadata.authority import Authority

log = logging.getLogger(__name__)

RESERVE_BYTES = 64 * MIB  # two write buffers of RocksDB
UNLIMITED_INODES = 1 << 40


class Space:
    """Of the whole cluster, from the last heartbeats, and of this server's own disk."""

    def __init__(self, authority: Authority, own_free_bytes: Callable[[], int]) -> None:
        self._authority = authority
        self._own_free_bytes = own_free_bytes
        self._told = False

    def is_full(self) -> bool:
        """Whether nothing new can be promised."""
        return self.full_because() is not None

    def full_because(self) -> str | None:
        """Every node that is up says that it has no room left (nodes that have said nothing do not count), or only the
        reserve is left on this server's disk: it is for deletes, sessions and compaction."""
        own = self._own_free_bytes() < RESERVE_BYTES
        if own != self._told:
            self._told = own
            state = "is full: nothing new is made until there is room" if own else "has room again"
            log.warning("the metadata server's disk %s (it keeps %s in reserve)", state, format_size(RESERVE_BYTES))
        if own:
            return "the metadata server's disk is full"
        if is_full(self._authority.map, self._authority.loads):
            return "no chunkserver has free space"
        return None

    def may_promise(self, volume: Volume | None) -> bool:
        """Whether no operation on names can be refused for want of room."""
        return volume is not None and not volume.quota_bytes and not volume.quota_inodes and not self.is_full()

    def of(self, volume: Volume) -> VolumeSpace:
        return space_of(volume, self._authority.map, self._authority.loads)


def is_full(cluster: ClusterMap, loads: Mapping[NodeId, NodeLoad]) -> bool:
    told = [loads[node.node] for node in cluster.nodes if node.state is NodeState.UP and node.node in loads]
    told = [load for load in told if load.total_bytes > 0]
    return bool(told) and all(load.free_bytes <= 0 for load in told)


def space_of(volume: Volume, cluster: ClusterMap, loads: Mapping[NodeId, NodeLoad]) -> VolumeSpace:
    """For statfs: the smaller of the quota and the cluster's room, all copies counted."""
    known = [node for node in cluster.nodes if node.node in loads]
    total = sum(loads[node.node].total_bytes for node in known) // volume.replicas
    up = [loads[node.node] for node in known if node.state is NodeState.UP]
    free = sum(max(0, load.free_bytes) for load in up) // volume.replicas
    by_quota = False
    if volume.quota_bytes:
        left = max(0, volume.quota_bytes - volume.used_bytes)
        by_quota = left <= free or not up  # before any node has told how full it is, the quota is all that is known
        free = left if by_quota else free
        total = min(total, volume.quota_bytes)
    inodes = volume.quota_inodes or UNLIMITED_INODES
    return VolumeSpace(total, free, inodes, max(0, inodes - volume.used_inodes), by_quota)
