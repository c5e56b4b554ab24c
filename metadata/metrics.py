"""What a metadata server shows of itself and of its cluster: families for Prometheus, and whether it is ready."""

from collections.abc import Sequence
from dataclasses import dataclass

from fsd.cluster.map import Node, NodeState, pool_of
from fsd.core.ids import NodeId, PgId
from fsd.http.exposition import GAUGE, Family, counter, gauge
from fsd.http.face import Check
from fsd.protocol.cluster import StatusReply
from metadata.authority import Authority
from metadata.live import Sessions
from metadata.recalls import Recaller
from metadata.status import StatusService, health_of


@dataclass(frozen=True, slots=True)
class GroupState:
    """One placement group as a cell of the dashboard. `state`: "in_sync", "degraded" or "down"."""

    pg: PgId
    state: str
    primary: NodeId | None
    copies: int


class Insight:
    """A view on the running parts of one metadata server."""

    def __init__(self, status: StatusService, authority: Authority, sessions: Sessions, recaller: Recaller) -> None:
        self._status = status
        self._authority = authority
        self._sessions = sessions
        self._recaller = recaller

    def status(self) -> StatusReply:
        return self._status.now()

    def groups(self) -> list[GroupState]:
        cluster = self._authority.map
        pools = {pool.pool: pool for pool in cluster.pools}
        alive = {(node.node, node.incarnation) for node in cluster.nodes if node.state is NodeState.UP}
        return [
            GroupState(
                row.pg,
                health_of(row, alive, pools[pool_of(row.pg)].replicas, len(cluster.nodes)),
                row.primary.node if row.primary is not None else None,
                sum(member in alive for member in row.in_sync),
            )
            for row in cluster.rows
        ]

    def checks(self) -> Sequence[Check]:
        """Whether clients are served. That nodes are missing is the cluster's health, not this server's."""
        settled = self._sessions.settled.is_set()
        waiting = sum(not live.state.resumed for live in self._sessions.all())
        return (
            Check("store", True, "open"),
            Check("sessions", settled, "all are here" if settled else f"waits for {waiting} from before the restart"),
        )

    def families(self) -> list[Family]:
        status = self.status()
        return [*_of_groups(status), *_of_nodes(status), *self._of_sessions(status), *_of_volumes(status)]

    def _of_sessions(self, status: StatusReply) -> list[Family]:
        return [
            gauge("fsd_sessions", "Sessions of clients.", len(status.sessions)),
            gauge("fsd_leases", "Leases that clients hold.", sum(session.leases for session in status.sessions)),
            gauge("fsd_locks", "File locks that the server knows.", sum(session.locks for session in status.sessions)),
            counter("fsd_recalls_total", "Recalls sent to holders of leases.", self._recaller.sent),
            counter("fsd_session_evictions_total", "Sessions ended by force.", self._sessions.evictions),
        ]


def _of_groups(status: StatusReply) -> list[Family]:
    states = Family("fsd_placement_groups", GAUGE, "Placement groups by state.")
    for state, count in (("in_sync", status.in_sync), ("degraded", status.degraded), ("down", status.down)):
        states.add(count, {"state": state})
    return [
        states,
        gauge("fsd_placement_groups_one_copy", "Placement groups with one copy left, of more wanted.", status.single),
        gauge("fsd_placement_groups_settling", "Groups whose new primary is about to serve.", status.settling),
        gauge("fsd_placement_groups_repairing", "Groups with fewer copies than there could be.", status.repairing),
        gauge("fsd_placement_group_moves_pending", "Moves under way or planned.", status.moving),
        gauge("fsd_moves_paused", "1 while an administrator has paused moves.", int(status.paused)),
        gauge("fsd_repair_left_seconds", "Until repairs and moves are done; negative: unknown.", status.left_s),
        gauge("fsd_map_epoch", "Epoch of the cluster map.", status.map_epoch),
        gauge("fsd_uptime_seconds", "Since the metadata server began to serve.", status.uptime_s),
        gauge("fsd_data_collecting", "Dead files whose chunks are still to be removed.", status.collecting),
    ]


def _of_nodes(status: StatusReply) -> list[Family]:
    up = Family("fsd_node_up", GAUGE, "1 if the chunkserver is up.")
    draining = Family("fsd_node_draining", GAUGE, "1 if the chunkserver is drained.")
    silence = Family("fsd_node_heartbeat_age_seconds", GAUGE, "Since the last heartbeat; negative: none yet.")
    size = Family("fsd_node_size_bytes", GAUGE, "Disk of the chunkserver.")
    free = Family("fsd_node_free_bytes", GAUGE, "Of it free for fsd.")
    for entry in status.nodes:
        labels = _labels(entry.node)
        up.add(int(entry.node.state is NodeState.UP), labels)
        draining.add(int(entry.node.draining), labels)
        silence.add(entry.last_heartbeat_s, labels)
        size.add(entry.load.total_bytes, labels)
        free.add(entry.load.free_bytes, labels)
    return [up, draining, silence, size, free]


def _labels(node: Node) -> dict[str, str]:
    return {"node": str(node.node), "zone": node.zone, "address": node.address}


def _of_volumes(status: StatusReply) -> list[Family]:
    used = Family("fsd_volume_used_bytes", GAUGE, "Bytes that the volume's files hold, without copies.")
    inodes = Family("fsd_volume_used_inodes", GAUGE, "Inodes of the volume.")
    quota = Family("fsd_volume_quota_bytes", GAUGE, "Most that it may hold; 0: no bound.")
    quota_inodes = Family("fsd_volume_quota_inodes", GAUGE, "Most inodes that it may have; 0: no bound.")
    for volume in status.volumes:
        labels = {"volume": volume.name}
        used.add(volume.used_bytes, labels)
        inodes.add(volume.used_inodes, labels)
        quota.add(volume.quota_bytes, labels)
        quota_inodes.add(volume.quota_inodes, labels)
    return [used, inodes, quota, quota_inodes]
