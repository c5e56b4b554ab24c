"""Who may cache a file (shared) or change it and tell later (exclusive), since when, and who has it open."""

import argparse
import json
from typing import Any

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.place import Place, place_of, volume_of
from fsd.cli.status import period
from fsd.core.config import Option
from fsd.protocol.locks import InspectLeases, LeaseRow, LeasesReply
from fsd.protocol.metadata import LeaseMode

OPTIONS: tuple[Option, ...] = (*(option for option in CLUSTER_OPTIONS if option.name == "timeout_s"), JSON)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a path on a mounted volume")


def run(settings: dict[str, Any]) -> int:
    place = place_of(str(settings["path"]))

    async def ask(cluster: Cluster) -> LeasesReply:
        volume = await volume_of(cluster, place.volume)
        return await cluster.ask(InspectLeases(volume.layer, place.ino))

    reply = run_with_cluster(settings | {"metadata": place.addresses}, ask)
    print(json.dumps(document(place, reply), indent=1) if settings["json"] else table(place, reply))
    return exits.OK


def document(place: Place, reply: LeasesReply) -> dict[str, object]:
    """The JSON output; its fields are told in docs/cli.md."""
    return {
        "path": place.path,
        "volume": place.volume,
        "ino": place.ino,
        "leases": [
            {
                "session": row.session,
                "client": row.client,
                "address": row.address,
                "mode": row.mode.name.lower(),
                "age_s": None if row.mode is LeaseMode.NONE else round(row.age_s, 3),
                "open": row.open,
            }
            for row in reply.rows
        ],
    }


def table(place: Place, reply: LeasesReply) -> str:
    """For people."""
    lines = [f"{place.path}: inode {place.ino} of volume {place.volume}"]
    lines += [_line(row) for row in reply.rows] or ["nobody has a lease on it"]
    return "\n".join(lines)


def _line(row: LeaseRow) -> str:
    held = "no lease" if row.mode is LeaseMode.NONE else f"{row.mode.name.lower()} for {period(row.age_s)}"
    told = ", has it open" if row.open else ""
    return f"session {row.session} of {row.client} at {row.address}: {held}{told}"
