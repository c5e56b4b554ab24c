"""How a cluster feels: one word, and reasons with codes that `fsd explain CODE` explains. Pure.

The table CODES is the only place in which a code is told. `down`: some data is not served now, or is lost. `degraded`: all is
served, but look soon. `ok`: nothing to do; an `ok` code is news, not trouble.
"""

from collections.abc import Iterator
from typing import NamedTuple

from fsd.cluster.map import NodeState
from fsd.core.units import format_size
from fsd.protocol.cluster import NodeStatus, StatusReply

OK, DEGRADED, DOWN = "ok", "degraded", "down"
SILENT_S = 3.0
SCRUB_OVERDUE_S = 21 * 86_400.0
QUOTA_NEAR = 0.95


class Code(NamedTuple):
    severity: str
    title: str
    meaning: str
    remedy: str


class Reason(NamedTuple):
    code: str
    text: str

    @property
    def severity(self) -> str:
        return CODES[self.code].severity


CODES: dict[str, Code] = {
    "FSD-N1": Code(
        DEGRADED,
        "a node is down",
        "A chunkserver has not been heard for longer than the grace (8 s), or its machine says that the process is gone. "
        "Others serve its placement groups. After rebuild-after (10 minutes) its copies are made anew elsewhere.",
        "Start it again, or repair its machine. If its disk is lost: fsd node remove N --force, and start a new "
        "chunkserver on a new disk.",
    ),
    "FSD-N2": Code(
        DEGRADED,
        "a node said goodbye",
        "A chunkserver was stopped on purpose. It keeps its place for rebuild-after (10 minutes); when it comes back it is "
        "sent only what was written meanwhile.",
        "Start it again when the maintenance is done; fsd node drain N beforehand if it is to stay away.",
    ),
    "FSD-N3": Code(
        DEGRADED,
        "a node is silent",
        "No heartbeat for some seconds, but not yet for the grace: a slow network, a paused process, an overloaded disk.",
        "Wait a few seconds; then look at the machine.",
    ),
    "FSD-N4": Code(
        DOWN,
        "there is no node",
        "No chunkserver has registered. Names and files up to the inline limit work; larger files wait.",
        "Start chunkservers: fsd chunkserver --data DIR --metadata HOST:PORT.",
    ),
    "FSD-N5": Code(
        OK,
        "a node is drained",
        "Its placement groups move to other nodes; it gets no new ones.",
        "fsd node drain N --wait tells when it is safe to remove; fsd node undrain N takes it back.",
    ),
    "FSD-N6": Code(
        DEGRADED,
        "nodes run different versions",
        "The protocol allows it, for an upgrade node by node; it is not meant to stay so.",
        "Upgrade the others.",
    ),
    "FSD-G1": Code(
        DOWN,
        "placement groups are not served",
        "No in-sync copy of these groups is on a living node, or their new primary has not finished taking over. Reads and "
        "writes of files in them wait.",
        "If it lasts for more than some seconds: start the nodes that hold them; fsd doctor tells which.",
    ),
    "FSD-G2": Code(
        DEGRADED,
        "placement groups have too few copies",
        "They are served. A copy is being filled, or waits for a node to come back, or there is no node to put it on.",
        "See the nodes; fsd status tells how long filling will take.",
    ),
    "FSD-G3": Code(
        DEGRADED,
        "placement groups have one copy left",
        "The loss of one more disk would lose data. These groups are filled before all others.",
        "Bring nodes back, or add one, now. Do not stop any other node: fsd doctor tells what would happen.",
    ),
    "FSD-G4": Code(
        OK,
        "groups are moving",
        "Nodes have come, go, or weigh something else: groups move towards even shares.",
        "None.",
    ),
    "FSD-G5": Code(
        OK,
        "moves are paused",
        "An administrator paused rebalancing; drains do not go on either. Repairs do.",
        "fsd rebalance --resume",
    ),
    "FSD-G6": Code(
        OK,
        "groups change their members",
        "A new or reshaped primary is taking over: requests wait for a fraction of a second.",
        "None. If it lasts, FSD-G1 is told instead.",
    ),
    "FSD-S1": Code(
        DEGRADED,
        "a disk is nearly full",
        "More than 90 % is used. The node gets no new groups and gives some away, until it is below 80 %.",
        "Add nodes, or delete files.",
    ),
    "FSD-S2": Code(
        DEGRADED,
        "a disk is full",
        "The node is down to its reserve. Writes into its groups get ENOSPC (before anything is acknowledged); reading and "
        "deleting work.",
        "Delete files, or add nodes.",
    ),
    "FSD-R1": Code(
        OK,
        "rot was found and repaired",
        "Blocks failed their checksum and were rewritten from another copy. Readers got good bytes.",
        "If one node's count grows, replace its disk: fsd node drain N --wait.",
    ),
    "FSD-R2": Code(
        DOWN,
        "chunks have no good copy",
        "Every copy of these chunks fails its checksum. Reading them gives EIO; the node's log names them.",
        "Restore the files, or delete them. Bring back nodes that are away: they may have a good copy.",
    ),
    "FSD-R3": Code(
        DEGRADED,
        "a deep scrub is overdue",
        "A node has not read all of its bytes for more than three weeks.",
        "fsd scrub --deep; raise its --scrub-rate.",
    ),
    "FSD-V1": Code(
        DEGRADED,
        "a volume is near its quota",
        "More than 95 % of its bytes or inodes are used; at the quota writers get EDQUOT.",
        "fsd volume set NAME --quota SIZE, or delete files.",
    ),
}


def reasons(status: StatusReply) -> list[Reason]:
    """Everything that is worth telling, the worst first."""
    found = [*_of_nodes(status), *_of_groups(status), *_of_volumes(status)]
    rank = {DOWN: 0, DEGRADED: 1, OK: 2}
    return sorted(found, key=lambda reason: (rank[reason.severity], reason.code))


def word(found: list[Reason]) -> str:
    """`ok`, `degraded` or `down`."""
    severities = {reason.severity for reason in found}
    return DOWN if DOWN in severities else DEGRADED if DEGRADED in severities else OK


def _of_nodes(status: StatusReply) -> Iterator[Reason]:
    if not status.nodes:
        yield Reason("FSD-N4", "no chunkserver has registered")
    for entry in status.nodes:
        yield from _of_node(entry)
    versions = sorted({entry.load.version for entry in status.nodes if entry.load.version} | {status.version})
    if len(versions) > 1:
        yield Reason("FSD-N6", f"versions {', '.join(versions)} run side by side")


def _of_node(entry: NodeStatus) -> Iterator[Reason]:
    node, load = entry.node, entry.load
    name = f"node {node.node} at {node.address}"
    if node.state is NodeState.DOWN:
        yield Reason("FSD-N1", f"{name} is down")
    elif node.state is NodeState.AWAY:
        yield Reason("FSD-N2", f"{name} said goodbye")
    elif entry.last_heartbeat_s > SILENT_S:
        yield Reason("FSD-N3", f"{name} has been silent for {entry.last_heartbeat_s:.1f} s")
    if node.draining:
        yield Reason("FSD-N5", f"{name} is drained")
    if load.total_bytes and load.free_bytes <= 0:
        yield Reason("FSD-S2", f"{name} is full")
    elif node.full:
        yield Reason("FSD-S1", f"{name} has {format_size(load.free_bytes)} of {format_size(load.total_bytes)} left")
    if load.lost:
        yield Reason("FSD-R2", f"{load.lost} chunks have no good copy, says node {node.node}")
    if load.repaired:
        yield Reason("FSD-R1", f"{name} had {load.repaired} copies repaired since it started")
    if load.deep_scrub_s > SCRUB_OVERDUE_S:
        yield Reason("FSD-R3", f"{name} was read through {load.deep_scrub_s / 86_400:.0f} days ago")


def _of_groups(status: StatusReply) -> Iterator[Reason]:
    if status.down > status.settling:
        yield Reason("FSD-G1", f"{status.down - status.settling} of {status.total} placement groups are not served")
    if status.settling:
        yield Reason("FSD-G6", f"{status.settling} of {status.total} placement groups change their members just now")
    if status.degraded:
        yield Reason("FSD-G2", f"{status.degraded} of {status.total} placement groups have too few copies")
    if status.single:
        yield Reason("FSD-G3", f"{status.single} of {status.total} placement groups have one copy left")
    if status.moving:
        yield Reason("FSD-G4", f"{status.moving} copies of placement groups are to move")
    if status.paused:
        yield Reason("FSD-G5", "moves of placement groups are paused")


def _of_volumes(status: StatusReply) -> Iterator[Reason]:
    for volume in status.volumes:
        near = volume.quota_bytes and volume.used_bytes >= QUOTA_NEAR * volume.quota_bytes
        if near or (volume.quota_inodes and volume.used_inodes >= QUOTA_NEAR * volume.quota_inodes):
            yield Reason("FSD-V1", f"volume {volume.name} is near its quota")
