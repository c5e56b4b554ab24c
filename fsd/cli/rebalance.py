"""What is to be moved between nodes, before it is done; pause and resume it. Rebalancing starts by itself."""

import argparse
import json
from typing import Any

import trio

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.progress import Progress
from fsd.cli.status import period
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import ConfigurationError
from fsd.core.units import format_size
from fsd.protocol.cluster import GetPlan, PauseMoves, PlanReply

OPTIONS: tuple[Option, ...] = (
    *(option for option in CLUSTER_OPTIONS if option.name != "timeout_s"),
    Option("timeout_s", config.seconds, "give up after this many seconds (with --wait: a day)", metavar="S"),
    Option("dry_run", config.switch, "only tell what would move (the default)", default=False, switch=True),
    Option("pause", config.switch, "start no more moves; repairs go on", default=False, switch=True),
    Option("resume", config.switch, "go on", default=False, switch=True),
    Option("wait", config.switch, "return when nothing is to move any more", default=False, switch=True),
    JSON,
)
POLL_S = 1.0
DAY_S = 86_400.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    if settings["pause"] and settings["resume"]:
        raise ConfigurationError("--pause and --resume exclude each other")

    async def ask(cluster: Cluster) -> PlanReply:
        if settings["pause"] or settings["resume"]:
            await cluster.ask(PauseMoves(settings["pause"]))
        return await until_even(cluster, settings) if settings["wait"] else await cluster.ask(GetPlan())

    limit = settings["timeout_s"] or (DAY_S if settings["wait"] else 15.0)
    plan = run_with_cluster(settings | {"timeout_s": limit}, ask)
    print(json.dumps(document(plan), indent=1) if settings["json"] else table(plan))
    return exits.OK


async def until_even(cluster: Cluster, settings: dict[str, Any]) -> PlanReply:
    """The plan when nothing is to move any more, or moves are paused."""
    most = 0
    with Progress("rebalance", quiet=settings["json"]) as progress:
        while True:
            plan: PlanReply = await cluster.ask(GetPlan())
            left = max(plan.moves, plan.moving)
            if not left or plan.paused:
                return plan
            most = max(most, left)
            progress.show(most - left, most, f"{left} copies of placement groups are to move")
            await trio.sleep(POLL_S)


def document(plan: PlanReply) -> dict[str, Any]:
    """The JSON output; its fields are told in docs/cli.md."""
    return {
        "moves": plan.moves,
        "copies": plan.copies,
        "bytes": plan.bytes,
        "moving": plan.moving,
        "paused": plan.paused,
        "waiting_s": round(plan.waiting_s, 1),
        "nodes": [
            {"node": n.node, "groups": n.groups, "planned": n.planned, "share": round(n.share, 2)} for n in plan.nodes
        ],
    }


def table(plan: PlanReply) -> str:
    """For people."""
    lines = [f"{'NODE':<5} {'GROUPS':>7} {'THEN':>7} {'SHARE':>9}"]
    lines += [f"{n.node:<5} {n.groups:>7} {n.planned:>7} {n.share:>9.1f}" for n in plan.nodes]
    lines.append(f"{plan.moves} of {plan.copies} copies of placement groups move, about {format_size(plan.bytes)}")
    if plan.paused:
        lines.append("paused; fsd rebalance --resume lets it go on")
    elif plan.moves and plan.waiting_s > 0:
        lines.append(f"begins in {period(plan.waiting_s)}, if no node comes or goes before")
    elif plan.moving:
        lines.append(f"{plan.moving} are on their way")
    return "\n".join(lines)
