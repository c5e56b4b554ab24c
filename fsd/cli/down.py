"""Stop a cluster that `fsd up` started: unmount, then the chunkservers, the metadata server last."""

import argparse
import sys
from typing import Any

from fsd.cli import embedded, exits
from fsd.core import config
from fsd.core.config import Option

OPTIONS: tuple[Option, ...] = (Option("data", config.path, "the directory that was given to fsd up", metavar="DIR"),)


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    cluster = embedded.EmbeddedCluster(settings["data"] or embedded.default_directory(), print)
    _ = cluster.plan  # complains if there is none
    with cluster.locked():
        count = sum(process.alive for process in cluster.processes())
        complaints = cluster.stop()
    for line in complaints:
        sys.stderr.write(f"fsd: {line}\n")
    print(
        f"stopped {count} processes; fsd up on {cluster.directory} starts them again"
        if count
        else "nothing was running"
    )
    return exits.FAILED if complaints else exits.OK
