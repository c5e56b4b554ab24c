"""Look for rot now: compare the copies of all chunks; --deep reads every byte. What is bad is repaired from good copies."""

import argparse
import json
from typing import Any

import trio

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.progress import Progress
from fsd.cluster.map import Node, NodeState
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import FsError, NotServing
from fsd.core.units import format_size
from fsd.protocol.chunk import GetScrub, RunScrub, ScrubStatus
from fsd.protocol.cluster import GetStatus, StatusReply

OPTIONS: tuple[Option, ...] = (
    *(option for option in CLUSTER_OPTIONS if option.name != "timeout_s"),
    Option("timeout_s", config.seconds, "give up waiting after this many seconds", default=86_400.0, metavar="S"),
    Option("deep", config.switch, "read and verify every byte of every copy", default=False, switch=True),
    Option("wait", config.switch, "return when all nodes are done", default=False, switch=True),
    Option("show", config.switch, "start nothing, tell how far it is", default=False, switch=True),
    JSON,
)
POLL_S = 0.5


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    found = run_with_cluster(settings, lambda cluster: scrub(cluster, settings))
    result = document(found)
    print(json.dumps(result, indent=1) if settings["json"] else table(result))
    return exits.FAILED if result["lost"] else exits.OK


async def scrub(cluster: Cluster, settings: dict[str, Any]) -> list[tuple[Node, ScrubStatus]]:
    """Every node's figures. Raises NotServing if no node is up."""
    status: StatusReply = await cluster.ask(GetStatus())
    nodes = [entry.node for entry in status.nodes if entry.node.state is NodeState.UP]
    if not nodes:
        raise NotServing("no chunkserver is up")
    if not settings["show"]:
        for node in nodes:
            await cluster.ask_node(node.address, RunScrub(settings["deep"]))
    with Progress("scrub", quiet=settings["json"]) as progress:
        while True:
            found = [(node, await _figures(cluster, node)) for node in nodes]
            if not settings["wait"] or not any(figures.running for _, figures in found):
                return found
            done, groups = sum(f.groups_done for _, f in found), sum(f.groups for _, f in found)
            told = f"{done} of {groups} copies of groups, {format_size(_bytes(found))} read"
            progress.show(done, groups, told)
            await trio.sleep(POLL_S)


async def _figures(cluster: Cluster, node: Node) -> ScrubStatus:
    try:
        return await cluster.ask_node(node.address, GetScrub())
    except FsError as error:
        raise NotServing(f"node {node.node} at {node.address} went away: {error}") from None


def _bytes(found: list[tuple[Node, ScrubStatus]]) -> int:
    return sum(figures.bytes for _, figures in found)


def document(found: list[tuple[Node, ScrubStatus]]) -> dict[str, Any]:
    """The JSON output; its fields are told in docs/cli.md."""
    return {
        "running": any(f.running for _, f in found),
        "rotten": sum(f.rotten for _, f in found),
        "repaired": sum(f.repaired for _, f in found),
        "lost": sum(f.lost for _, f in found),
        "nodes": [
            {
                "node": node.node,
                "running": f.running,
                "deep": f.deep,
                "groups_done": f.groups_done,
                "groups": f.groups,
                "chunks": f.chunks,
                "bytes": f.bytes,
                "rotten": f.rotten,
                "repaired": f.repaired,
                "lost": f.lost,
                "spent_s": round(f.spent_s, 3),
            }
            for node, f in found
        ],
    }


def table(result: dict[str, Any]) -> str:
    """For people."""
    lines = [
        f"{'NODE':<5} {'PASS':<6} {'GROUPS':>9} {'CHUNKS':>8} {'READ':>10} {'ROTTEN':>7} {'REPAIRED':>9} {'LOST':>5}"
    ]
    for n in result["nodes"]:
        groups = f"{n['groups_done']}/{n['groups']}"
        kind = "deep" if n["deep"] else "light"
        lines.append(
            f"{n['node']:<5} {kind:<6} {groups:>9} {n['chunks']:>8} {format_size(n['bytes']):>10} "
            f"{n['rotten']:>7} {n['repaired']:>9} {n['lost']:>5}"
        )
    word = "running" if result["running"] else "done"
    lines.append(f"{word}: {result['rotten']} rotten, {result['repaired']} repaired, {result['lost']} lost")
    return "\n".join(lines)
