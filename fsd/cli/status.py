"""Health, nodes, placement groups, sessions and volumes of a cluster."""

import argparse
import json
from typing import Any

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.health import OK, reasons, word
from fsd.cluster.map import Node, NodeState
from fsd.core.config import Option
from fsd.core.units import format_size
from fsd.namespace.records import Volume
from fsd.protocol.cluster import GetStatus, NodeStatus, StatusReply

OPTIONS: tuple[Option, ...] = (*CLUSTER_OPTIONS, JSON)


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    status = run_with_cluster(settings, get_status)
    print(json.dumps(document(status), indent=1) if settings["json"] else table(status))
    return exits.OK


async def get_status(cluster: Cluster) -> StatusReply:
    return await cluster.ask(GetStatus())


def health(status: StatusReply) -> tuple[str, str]:
    """("ok" | "degraded" | "down", one line for people)."""
    found = reasons(status)
    state = word(found)
    if state == OK:
        return state, f"ok: {len(status.nodes)} nodes up, all copies in sync"
    return state, f"{state}: {'; '.join(reason.text for reason in found if reason.severity != OK)}"


def work_line(status: StatusReply) -> str:
    """What is being repaired and moved, and for how long; empty if nothing is."""
    work = [f"{status.repairing} to repair"] if status.repairing else []
    work += [f"{status.moving} to move"] if status.moving else []
    if not work:
        return ""
    left = "unknown time" if status.left_s < 0 else f"about {period(status.left_s)}"
    return f"; {', '.join(work)}, {left} left"


def node_row(status: NodeStatus) -> dict[str, object]:
    """One entry of `nodes` in the JSON output; also that of `fsd node list`."""
    node, load = status.node, status.load
    return {
        "node": node.node,
        "incarnation": node.incarnation,
        "address": node.address,
        "zone": node.zone,
        "state": node.state.name.lower(),
        "weight": node.weight,
        "draining": node.draining,
        "full": node.full,
        "fixed_weight": node.fixed_weight,
        "total_bytes": load.total_bytes,
        "free_bytes": load.free_bytes,
        "chunks": load.chunks,
        "stored_bytes": load.stored_bytes,
        "resynced_bytes": load.resynced_bytes,
        "rotten": load.rotten,
        "repaired": load.repaired,
        "lost": load.lost,
        "light_scrub_s": _age(load.light_scrub_s),
        "deep_scrub_s": _age(load.deep_scrub_s),
        "version": load.version,
        "cpu_percent": load.cpu_percent,
        "memory_percent": load.memory_percent,
        "last_heartbeat_s": round(status.last_heartbeat_s, 3),
    }


def _age(seconds: float) -> float | None:
    return None if seconds < 0 else round(seconds)


def volume_row(volume: Volume) -> dict[str, object]:
    """One entry of `volumes` in the JSON output; also that of `fsd volume list`."""
    return {
        "name": volume.name,
        "replicas": volume.replicas,
        "min_replicas": volume.min_replicas,
        "quota_bytes": volume.quota_bytes,
        "quota_inodes": volume.quota_inodes,
        "used_bytes": volume.used_bytes,
        "used_inodes": volume.used_inodes,
        "access": volume.access.name.lower(),
        "created_ns": volume.created_ns,
        "labels": dict(volume.labels),
    }


def document(status: StatusReply) -> dict[str, object]:
    """The JSON output; its fields are told in docs/cli.md."""
    state, line = health(status)
    return {
        "health": state,
        "summary": line,
        "reasons": [{"code": r.code, "severity": r.severity, "text": r.text} for r in reasons(status)],
        "file_system": status.file_system,
        "version": status.version,
        "map_epoch": status.map_epoch,
        "uptime_s": round(status.uptime_s, 3),
        "nodes": [node_row(node) for node in status.nodes],
        "placement_groups": {
            "total": status.total,
            "in_sync": status.in_sync,
            "degraded": status.degraded,
            "down": status.down,
            "one_copy": status.single,
            "repairing": status.repairing,
            "moving": status.moving,
            "paused": status.paused,
            "left_s": None if status.left_s < 0 else round(status.left_s, 1),
        },
        "sessions": [
            {
                "session": s.session,
                "client": s.client,
                "volume": s.volume,
                "address": s.address,
                "idle_s": round(s.idle_s, 3),
                "leases": s.leases,
            }
            for s in status.sessions
        ],
        "volumes": [volume_row(volume) for volume in status.volumes],
        "collecting": status.collecting,
    }


def table(status: StatusReply) -> str:
    """For people."""
    lines = [
        f"health      {health(status)[1]}",
        f"cluster     {status.file_system}, map epoch {status.map_epoch}, up {status.uptime_s:.0f} s",
        f"groups      {status.total}: {status.in_sync} in sync, {status.degraded} degraded, {status.down} down"
        + work_line(status),
        *(f"{reason.code:<11} {reason.text}" for reason in reasons(status)),
        "",
        *node_table(status.nodes),
        "",
        *volume_table(status.volumes),
        "",
        f"{len(status.sessions)} sessions",
    ]
    lines += [
        f"  {s.session:<6} {s.client}  {s.volume}  {s.address}  idle {s.idle_s:.1f} s  {s.leases} leases"
        for s in status.sessions
    ]
    return "\n".join(lines)


def node_table(nodes: tuple[NodeStatus, ...]) -> list[str]:
    lines = [
        f"{'NODE':<5} {'STATE':<6} {'ZONE':<10} {'ADDRESS':<22} {'USED':>10} {'FREE':>10} {'CHUNKS':>8}  HEARTBEAT"
    ]
    for status in nodes:
        node, load = status.node, status.load
        heard = "never" if status.last_heartbeat_s < 0 else f"{status.last_heartbeat_s:.1f} s ago"
        used = format_size(max(0, load.total_bytes - load.free_bytes))
        lines.append(
            f"{node.node:<5} {node_state(node):<6} {node.zone:<10} {node.address:<22} "
            f"{used:>10} {format_size(load.free_bytes):>10} {load.chunks:>8}  {heard}"
        )
    return lines


def node_state(node: Node) -> str:
    """One word for people; `state` in the JSON output tells of life alone."""
    if node.state is not NodeState.UP:
        return node.state.name.lower()
    return "drain" if node.draining else "full" if node.full else "up"


def period(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def volume_table(volumes: tuple[Volume, ...]) -> list[str]:
    lines = [f"{'VOLUME':<20} {'COPIES':>6} {'MIN':>4} {'USED':>12} {'QUOTA':>12} {'INODES':>10}"]
    for volume in volumes:
        quota = format_size(volume.quota_bytes) if volume.quota_bytes else "none"
        lines.append(
            f"{volume.name:<20} {volume.replicas:>6} {volume.min_replicas:>4} "
            f"{format_size(volume.used_bytes):>12} {quota:>12} {volume.used_inodes:>10}"
        )
    return lines
