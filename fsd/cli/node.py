"""List the chunkservers of a cluster."""

import argparse
import json
from typing import Any

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, run_with_cluster
from fsd.cli.status import get_status, node_row, node_table
from fsd.core.config import Option

OPTIONS: tuple[Option, ...] = (*CLUSTER_OPTIONS, JSON)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list"])


def run(settings: dict[str, Any]) -> int:
    status = run_with_cluster(settings, get_status)
    if settings["json"]:
        print(json.dumps({"nodes": [node_row(node) for node in status.nodes]}, indent=1))
    else:
        print("\n".join(node_table(status.nodes)))
    return exits.OK
