"""The clients of a cluster: who, where, since when, how many leases and locks."""

import argparse
import json
from typing import Any

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.status import period
from fsd.core.config import Option
from fsd.protocol.cluster import GetStatus, SessionStatus, StatusReply

OPTIONS: tuple[Option, ...] = (*CLUSTER_OPTIONS, JSON)


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    async def ask(cluster: Cluster) -> StatusReply:
        return await cluster.ask(GetStatus())

    sessions = run_with_cluster(settings, ask).sessions
    if settings["json"]:
        print(json.dumps({"sessions": [row(session) for session in sessions]}, indent=1))
    else:
        print(table(sessions))
    return exits.OK


def row(session: SessionStatus) -> dict[str, object]:
    """One entry of `sessions` in the JSON output."""
    return {
        "session": session.session,
        "client": session.client,
        "volume": session.volume,
        "address": session.address,
        "idle_s": round(session.idle_s, 3),
        "age_s": round(session.age_s, 3),
        "leases": session.leases,
        "locks": session.locks,
    }


def table(sessions: tuple[SessionStatus, ...]) -> str:
    """For people."""
    lines = [f"{'SESSION':<8} {'VOLUME':<16} {'SINCE':>9} {'HEARD':>9} {'LEASES':>7} {'LOCKS':>6}  CLIENT"]
    lines += [
        f"{s.session:<8} {s.volume:<16} {period(s.age_s):>9} {period(s.idle_s):>9} {s.leases:>7} {s.locks:>6}  "
        f"{s.client} at {s.address}"
        for s in sessions
    ]
    return "\n".join(lines)
