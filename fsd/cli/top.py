"""The cluster at a glance, again every few seconds: nodes, rates, what is being repaired and moved. Ctrl-C ends it."""

import argparse
import sys
import time
from typing import Any

import trio

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, Cluster, run_with_cluster
from fsd.cli.status import health, node_state, work_line
from fsd.core import config
from fsd.core.config import Option
from fsd.core.ids import NodeId
from fsd.core.units import format_size
from fsd.protocol.cluster import GetStatus, NodeLoad, StatusReply

FOR_EVER_S = 1e9
OPTIONS: tuple[Option, ...] = (
    *(option for option in CLUSTER_OPTIONS if option.name != "timeout_s"),
    Option("interval_s", config.seconds, "time between two looks", default=2.0, metavar="S"),
    Option("count", config.integer(1, 1_000_000), "looks before it ends (default: until Ctrl-C)", metavar="N"),
)
HOME = "\x1b[H\x1b[J"


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    async def watch(cluster: Cluster) -> None:
        before: tuple[float, StatusReply] | None = None
        looks = 0
        while True:
            status: StatusReply = await cluster.ask(GetStatus())
            now = time.monotonic()
            screen = page(status, before[1] if before else None, now - before[0] if before else 0.0)
            print((HOME if sys.stdout.isatty() else "") + screen, flush=True)
            before = (now, status)
            looks += 1
            if settings["count"] and looks >= settings["count"]:
                return
            await trio.sleep(settings["interval_s"])

    run_with_cluster(settings | {"timeout_s": FOR_EVER_S}, watch)
    return exits.OK


def page(status: StatusReply, before: StatusReply | None, spent_s: float) -> str:
    """One screen."""
    loads = {entry.node.node: entry.load for entry in before.nodes} if before else {}
    lines = [
        f"{status.file_system}  map {status.map_epoch}  {len(status.sessions)} sessions  {health(status)[1]}",
        f"groups {status.total}: {status.in_sync} in sync, {status.degraded} degraded, {status.down} down"
        + work_line(status),
        "",
        f"{'NODE':<5} {'STATE':<6} {'FREE':>10} {'CHUNKS':>8} {'READ/s':>10} {'WRITE/s':>10} {'RESYNC/s':>10} "
        f"{'CPU':>5} {'ROT':>4}  BEAT",
    ]
    for entry in status.nodes:
        node, load = entry.node, entry.load
        read, written, sent = _rates(load, loads.get(NodeId(node.node)), spent_s)
        lines.append(
            f"{node.node:<5} {node_state(node):<6} {format_size(load.free_bytes):>10} {load.chunks:>8} {read:>10} "
            f"{written:>10} {sent:>10} {load.cpu_percent:>4.0f}% {load.rotten:>4}  {entry.last_heartbeat_s:.1f} s"
        )
    return "\n".join(lines)


def _rates(load: NodeLoad, before: NodeLoad | None, spent_s: float) -> tuple[str, str, str]:
    if before is None or spent_s <= 0:
        return "-", "-", "-"
    pairs = (
        (load.read_bytes, before.read_bytes),
        (load.written_bytes, before.written_bytes),
        (load.resynced_bytes, before.resynced_bytes),
    )
    read, written, sent = (format_size(int(max(0, now - then) / spent_s)) for now, then in pairs)
    return read, written, sent
