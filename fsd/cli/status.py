"""Health, nodes, placement groups, sessions and volumes of a cluster."""

import argparse
import json
from typing import Any

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
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
    away = sum(node.node.state is not NodeState.UP for node in status.nodes)
    facts: list[str] = []
    if not status.nodes:
        facts.append("no chunkserver has registered")
    if away:
        facts.append(f"{away} of {len(status.nodes)} nodes not up")
    if status.down:
        facts.append(f"{status.down} of {status.total} placement groups not served")
    if status.degraded:
        facts.append(f"{status.degraded} of {status.total} placement groups with too few copies")
    word = "down" if status.down or not status.nodes else "degraded" if facts else "ok"
    return word, f"{word}: {', '.join(facts)}" if facts else f"ok: {len(status.nodes)} nodes up, all copies in sync"


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
        "cpu_percent": load.cpu_percent,
        "memory_percent": load.memory_percent,
        "last_heartbeat_s": round(status.last_heartbeat_s, 3),
    }


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
    }


def document(status: StatusReply) -> dict[str, object]:
    """The JSON output; its fields are told in docs/cli.md."""
    word, line = health(status)
    return {
        "health": word,
        "summary": line,
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
        f"groups      {status.total}: {status.in_sync} in sync, {status.degraded} degraded, {status.down} down",
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
