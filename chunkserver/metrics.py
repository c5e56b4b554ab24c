"""What a chunkserver shows of itself: families for Prometheus, and whether it is ready."""

from collections import Counter
from collections.abc import Sequence

from chunkserver.report import Membership
from fsd.cluster.map import ClusterMap
from fsd.core.ids import Member
from fsd.http.exposition import GAUGE, Family, counter, gauge
from fsd.http.face import Check
from fsd.protocol.cluster import NodeLoad
from fsd.runtime import Clock

ROLES = ("primary", "secondary", "syncing")


def checks(membership: Membership | None, clock: Clock) -> Sequence[Check]:
    """Whether clients are served: a node that lost its metadata server is alive, and not ready."""
    if membership is None:
        return (Check("store", False, "is being opened"),)
    leased = membership.lease_until > clock.monotonic()
    known = membership.map is not None
    return (
        Check("store", True, "open"),
        Check("registered", membership.registered, "yes" if membership.registered else "waits for the metadata server"),
        Check("map", known, f"epoch {membership.map.epoch}" if membership.map else "was not fetched yet"),
        Check("lease", leased, "held" if leased else "run out: the metadata server is not heard"),
    )


def families(load: NodeLoad, membership: Membership, clock: Clock) -> list[Family]:
    age = Family("fsd_scrub_age_seconds", GAUGE, "Since the last whole scrub, by pass; negative: never.")
    age.add(load.light_scrub_s, {"pass": "light"}).add(load.deep_scrub_s, {"pass": "deep"})
    left_s = max(0.0, membership.lease_until - clock.monotonic())
    return [
        gauge("fsd_disk_size_bytes", "Disk that the chunkserver lives on.", load.total_bytes),
        gauge("fsd_disk_free_bytes", "Of it free for fsd.", load.free_bytes),
        gauge("fsd_chunks", "Chunks stored here.", load.chunks),
        gauge("fsd_stored_bytes", "Bytes in blocks that chunks refer to.", load.stored_bytes),
        counter("fsd_chunk_read_bytes_total", "Bytes of chunks read for clients and others.", load.read_bytes),
        counter("fsd_chunk_written_bytes_total", "Bytes of chunks written to this disk.", load.written_bytes),
        counter("fsd_resync_sent_bytes_total", "Bytes sent to members that are being filled.", load.resynced_bytes),
        counter("fsd_rotten_copies_total", "Copies that failed their checksum.", load.rotten),
        counter("fsd_repaired_copies_total", "Of these, rewritten from a good copy.", load.repaired),
        gauge("fsd_lost_chunks", "Chunks without any good copy, as last looked at.", load.lost),
        age,
        gauge("fsd_lease_left_seconds", "Until this node may not serve any more.", left_s),
        _groups(membership.map, membership.me),
    ]


def _groups(cluster: ClusterMap | None, me: Member) -> Family:
    """Placement groups that the node serves, by its part in them."""
    counts: Counter[str] = Counter()
    for row in cluster.rows if cluster is not None else ():
        if row.primary == me:
            counts["primary"] += 1
        elif me in row.in_sync:
            counts["secondary"] += 1
        elif me in row.syncing:
            counts["syncing"] += 1
    family = Family("fsd_node_placement_groups", GAUGE, "Placement groups on this node, by its part in them.")
    for role in ROLES:
        family.add(counts[role], {"role": role})
    return family
