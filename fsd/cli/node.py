"""List, drain, undrain, weigh and remove chunkservers. A node is added by starting a chunkserver."""

import argparse
import json
import time
from typing import Any

import trio

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.progress import Progress
from fsd.cli.status import get_status, node_row, node_table, period
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import Busy, ConfigurationError, InvalidArgument
from fsd.core.ids import NodeId
from fsd.core.units import format_size, parse_size
from fsd.protocol.cluster import DrainReply, GetDrain, NodeChanged, RemoveNode, SetNode

OPTIONS: tuple[Option, ...] = (
    *(option for option in CLUSTER_OPTIONS if option.name != "timeout_s"),
    Option("timeout_s", config.seconds, "give up after this many seconds (with --wait: a day)", metavar="S"),
    Option("wait", config.switch, "drain: return when the node is empty", default=False, switch=True),
    Option("force", config.switch, "remove: its disk is lost, other copies will do", default=False, switch=True),
    JSON,
)
POLL_S = 1.0
DAY_S = 86_400.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "drain", "undrain", "weight", "remove"])
    parser.add_argument("node", nargs="?", help="the node's number, as `fsd node list` tells it")
    parser.add_argument("size", nargs="?", help="weight: its share in bytes, such as 2T; 0 for its disk's size")


def run(settings: dict[str, Any]) -> int:
    settings["timeout_s"] = settings["timeout_s"] or (DAY_S if settings["wait"] else 15.0)
    action = settings["action"]
    if action == "list":
        return _list(settings)
    node = _number(settings["node"])
    if action == "weight" and settings["size"] is None:
        raise ConfigurationError("fsd node weight wants a size, such as 2T (0: the disk's)")
    result = run_with_cluster(settings, lambda cluster: _act(cluster, action, node, settings))
    if settings["json"]:
        print(json.dumps(result, indent=1))
    else:
        print(result["summary"])
    return exits.OK if result.get("safe", True) or not settings["wait"] else exits.FAILED


def _list(settings: dict[str, Any]) -> int:
    status = run_with_cluster(settings, get_status)
    if settings["json"]:
        print(json.dumps({"nodes": [node_row(node) for node in status.nodes]}, indent=1))
    else:
        print("\n".join(node_table(status.nodes)))
    return exits.OK


def _number(text: str | None) -> NodeId:
    if text is None or not text.isdecimal() or not int(text):
        raise ConfigurationError(f"{text or 'nothing'} is no node's number; fsd node list tells them")
    return NodeId(int(text))


async def _act(cluster: Cluster, action: str, node: NodeId, settings: dict[str, Any]) -> dict[str, Any]:
    match action:
        case "drain":
            return await _drain(cluster, node, wait=settings["wait"], quiet=settings["json"])
        case "undrain":
            await cluster.ask(SetNode(node, draining=False))
            return {"node": node, "draining": False, "summary": f"node {node} keeps its groups and gets new ones"}
        case "weight":
            changed: NodeChanged = await cluster.ask(SetNode(node, weight=_size(settings["size"])))
            weight = changed.node.weight
            return {"node": node, "weight": weight, "summary": f"node {node} weighs {format_size(weight)}"}
        case _:
            await cluster.ask(RemoveNode(node, settings["force"]))
            return {"node": node, "removed": True, "summary": f"node {node} is forgotten; its disk may be used again"}


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


# --- draining ---------------------------------------------------------------------------------------------------------


async def _drain(cluster: Cluster, node: NodeId, *, wait: bool, quiet: bool) -> dict[str, Any]:
    await cluster.ask(SetNode(node, draining=True))
    began = time.monotonic()
    most = 0
    with Progress(f"drain of node {node}", quiet=quiet) as progress:
        while True:
            reply: DrainReply = await cluster.ask(GetDrain(node))
            if reply.safe or not wait:
                return drain_document(reply, time.monotonic() - began)
            if reply.blocked and reply.blocked == reply.groups:
                raise Busy(f"{drain_line(reply)}; add a node, or lower the volumes' replicas")
            most = max(most, reply.groups)
            left = "" if reply.left_s < 0 else f", about {period(reply.left_s)}"
            progress.show(most - reply.groups, most, f"{reply.groups} groups left{left}")
            await trio.sleep(POLL_S)


def drain_document(reply: DrainReply, spent_s: float) -> dict[str, Any]:
    """The JSON output; its fields are told in docs/cli.md."""
    return {
        "node": reply.node.node,
        "draining": reply.node.draining,
        "groups": reply.groups,
        "blocked": reply.blocked,
        "safe": reply.safe,
        "left_s": None if reply.left_s < 0 else round(reply.left_s, 1),
        "spent_s": round(spent_s, 1),
        "summary": drain_line(reply),
    }


def drain_line(reply: DrainReply) -> str:
    """For people: the one answer that matters first."""
    node = reply.node.node
    if reply.safe:
        return f"node {node} is safe to remove: no placement group names it"
    blocked = f", {reply.blocked} of them have nowhere to go" if reply.blocked else ""
    left = "" if reply.left_s < 0 or reply.blocked else f", about {period(reply.left_s)} left"
    return f"node {node} is NOT yet safe to remove: {reply.groups} placement groups name it{blocked}{left}"
