"""What would happen if each node died now; one-copy groups; whether disks sync; clocks, latencies, versions, space."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import trio

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.health import CODES, OK, reasons, word
from fsd.cli.status import health
from fsd.cluster.map import ClusterMap, Node, NodeState, Row, pool_of
from fsd.core.config import Option
from fsd.core.errors import FsError
from fsd.core.ids import NodeId
from fsd.core.units import format_size
from fsd.protocol.chunk import NodeProbe, ProbeNode
from fsd.protocol.cluster import GetMap, GetStatus, Ping, Pong, StatusReply

OPTIONS: tuple[Option, ...] = (*CLUSTER_OPTIONS, JSON)
PROBE_TIMEOUT_S = 10.0
QUICK_SYNC_S = 0.00015  # a 4 KiB file written, synced and renamed faster than this was hardly synced
SKEW_S = 0.5
SLOW_PEER_S = 0.05


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    found = run_with_cluster(settings, examine)
    print(json.dumps(found, indent=1) if settings["json"] else table(found))
    return exits.OK if not found["advice"] else exits.FAILED


# --- what if ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """What the death of some nodes would do: groups not served, without enough copies to write, with one copy left."""

    down: int
    read_only: int
    single: int


def if_died(cluster: ClusterMap, dead: set[NodeId]) -> Loss:
    """Groups that are in these states already count as well."""
    alive = {(node.node, node.incarnation) for node in cluster.nodes if node.state is NodeState.UP}
    pools = {pool.pool: pool for pool in cluster.pools}
    down = read_only = single = 0
    for row in cluster.rows:
        left = _left(row, alive, dead)
        pool = pools[pool_of(row.pg)]
        down += left == 0
        read_only += 0 < left < pool.min_replicas
        single += left == 1 and pool.replicas > 1
    return Loss(down, read_only, single)


def _left(row: Row, alive: set[tuple[NodeId, int]], dead: set[NodeId]) -> int:
    return sum(member in alive and member.node not in dead for member in row.in_sync)


# --- examining --------------------------------------------------------------------------------------------------------


async def examine(cluster: Cluster) -> dict[str, Any]:
    """The JSON output; its fields are told in docs/cli.md."""
    began = time.time_ns()
    pong: Pong = await cluster.ask(Ping())
    ended = time.time_ns()
    status: StatusReply = await cluster.ask(GetStatus())
    cluster_map: ClusterMap = (await cluster.ask(GetMap())).map
    up = [node for node in cluster_map.nodes if node.state is NodeState.UP]
    probes = await _probes(cluster, up)
    now = if_died(cluster_map, set())
    nodes = [_node(cluster_map, node, now, probes.get(node.node)) for node in cluster_map.nodes]
    found = reasons(status)
    result: dict[str, Any] = {
        "health": word(found),
        "summary": health(status)[1],
        "reasons": [{"code": reason.code, "text": reason.text} for reason in found],
        "one_copy": now.single,
        "not_served": now.down,
        "metadata": {
            "rtt_s": round((ended - began) / 1e9, 6),
            "clock_ahead_s": round((pong.time_ns - (began + ended) / 2) / 1e9, 4),
            "version": pong.version,
        },
        "space": space_line(status),
        "nodes": nodes,
    }
    result["advice"] = advice(result)
    return result


async def _probes(cluster: Cluster, nodes: Sequence[Node]) -> dict[NodeId, tuple[NodeProbe, float]]:
    """Each node's answer and how far ahead its clock is."""
    found: dict[NodeId, tuple[NodeProbe, float]] = {}

    async def probe(node: Node) -> None:
        with trio.move_on_after(PROBE_TIMEOUT_S):
            try:
                answer: NodeProbe = await cluster.ask_node(node.address, ProbeNode())
                began = time.time_ns()
                pong: Pong = await cluster.ask_node(node.address, Ping())
                found[node.node] = (answer, (pong.time_ns - (began + time.time_ns()) / 2) / 1e9)
            except FsError:
                return  # told as no answer

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(probe, node)
    return found


def _node(cluster: ClusterMap, node: Node, now: Loss, probe: tuple[NodeProbe, float] | None) -> dict[str, Any]:
    then = if_died(cluster, {node.node})
    result: dict[str, Any] = {
        "node": node.node,
        "state": node.state.name.lower(),
        "if_it_died": {
            "not_served": then.down - now.down,
            "no_writes": max(0, then.read_only - now.read_only),
            "one_copy": max(0, then.single - now.single),
        },
        "answers": probe is not None,
    }
    if probe is not None:
        result |= {
            "sync_s": round(probe[0].sync_s, 6),
            "clock_ahead_s": round(probe[1], 4),
            "peers": [{"node": peer.node, "rtt_s": round(peer.seconds, 6)} for peer in probe[0].peers],
        }
    return result


def advice(found: dict[str, Any]) -> list[str]:
    """What somebody should do something about, one line each."""
    lines = [f"{reason['code']}: {reason['text']}" for reason in found["reasons"] if _matters(reason["code"])]
    if abs(found["metadata"]["clock_ahead_s"]) > SKEW_S:
        lines.append(f"this machine's clock and the metadata server's differ by {found['metadata']['clock_ahead_s']} s")
    for node in found["nodes"]:
        lines += _advice_on(node)
    return lines


def _matters(code: str) -> bool:
    return CODES[code].severity != OK


def _advice_on(node: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    if node["state"] == "up" and not node["answers"]:
        return [f"node {node['node']} is up, says the map, but does not answer here"]
    if node["state"] != "up":
        return []
    if node["sync_s"] < QUICK_SYNC_S:
        lines.append(f"node {node['node']}: a sync takes {node['sync_s'] * 1e6:.0f} us: does it reach the disk?")
    if abs(node["clock_ahead_s"]) > SKEW_S:
        lines.append(f"node {node['node']}: its clock is {node['clock_ahead_s']} s ahead of this machine's")
    for peer in node["peers"]:
        if peer["rtt_s"] < 0:
            lines.append(f"node {node['node']} does not reach node {peer['node']}")
        elif peer["rtt_s"] > SLOW_PEER_S:
            lines.append(f"node {node['node']} and node {peer['node']} are {peer['rtt_s'] * 1000:.0f} ms apart")
    return lines


def table(found: dict[str, Any]) -> str:
    """For people."""
    lines = [
        f"health      {found['summary']}",
        f"one copy    {found['one_copy']} placement groups have one copy only, {found['not_served']} are not served",
        f"metadata    {found['metadata']['rtt_s'] * 1000:.1f} ms away, version {found['metadata']['version']}",
        f"space       {found['space']}",
        "",
        f"{'NODE':<5} {'STATE':<6} {'SYNC':>9} {'CLOCK':>9}  IF IT DIED NOW",
    ]
    for node in found["nodes"]:
        loss = node["if_it_died"]
        sync = f"{node['sync_s'] * 1000:.2f} ms" if node["answers"] else "-"
        clock = f"{node['clock_ahead_s']:+.3f} s" if node["answers"] else "-"
        lines.append(f"{node['node']:<5} {node['state']:<6} {sync:>9} {clock:>9}  {_loss(loss)}")
    lines.append("")
    lines += [f"- {line}" for line in found["advice"]] or ["nothing to do"]
    return "\n".join(lines)


def _loss(loss: dict[str, int]) -> str:
    told = [
        f"{loss['not_served']} groups would not be served" if loss["not_served"] else "",
        f"{loss['no_writes']} groups would take no writes" if loss["no_writes"] else "",
        f"{loss['one_copy']} groups would have one copy left" if loss["one_copy"] else "",
    ]
    return "; ".join(part for part in told if part) or "nothing would change"


def space_line(status: StatusReply) -> str:
    """The cluster's room in one line."""
    up = [entry.load for entry in status.nodes if entry.node.state is NodeState.UP]
    total, free = sum(load.total_bytes for load in up), sum(max(0, load.free_bytes) for load in up)
    return f"{format_size(free)} of {format_size(total)} free"
