"""List the processes of a cluster that `fsd up` started."""

import argparse
import json
from typing import Any

from fsd.cli import embedded, exits
from fsd.cli.administration import JSON
from fsd.core import config
from fsd.core.config import Option

OPTIONS: tuple[Option, ...] = (
    Option("data", config.path, "the directory that was given to fsd up", metavar="DIR"),
    JSON,
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    cluster = embedded.EmbeddedCluster(settings["data"] or embedded.default_directory(), print)
    _ = cluster.plan  # complains if there is none
    processes = cluster.shown()
    if settings["json"]:
        print(json.dumps({"processes": [row(process) for process in processes if process.alive]}, indent=1))
        return exits.OK
    print(f"{'ROLE':<12} {'NODE':<5} {'PID':<8} {'ADDRESS':<32} DATA")
    for process in processes:
        state = "" if process.alive else "   (not running)"
        if process.alive and process.mountpoint is not None and not mounted(process.mountpoint):
            state = "   (unmounted, ending)"
        node = "-" if process.node is None else process.node
        where = process.data or process.mountpoint
        print(f"{process.role:<12} {node!s:<5} {process.pid:<8} {process.address:<32} {where}{state}")
    return exits.OK


def mounted(mountpoint: str) -> bool:
    from fsd.mount import mountinfo

    return mountinfo.mounted_at(mountpoint) is not None


def row(process: Any) -> dict[str, object]:
    """One entry of `processes` in the JSON output."""
    return {
        "role": process.role,
        "node": process.node,
        "pid": process.pid,
        "address": process.address,
        "data": process.data,
        "mountpoint": process.mountpoint,
    }
