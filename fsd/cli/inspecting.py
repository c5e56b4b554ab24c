"""What `fsd leases PATH` and `fsd locks PATH` share: the metadata server is asked about one inode of a mounted volume."""

import argparse
import json
from collections.abc import Callable
from typing import Any, TypeVar

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.place import Place, place_of, volume_of
from fsd.core.config import Option
from fsd.core.ids import Ino, LayerId

R = TypeVar("R")

OPTIONS: tuple[Option, ...] = (*(option for option in CLUSTER_OPTIONS if option.name == "timeout_s"), JSON)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a path on a mounted volume")


def inspect(
    settings: dict[str, Any],
    question: Callable[[LayerId, Ino], object],
    document: Callable[[Place, R], dict[str, object]],
    table: Callable[[Place, R], str],
) -> int:
    """Ask, and print the answer as JSON or for people. The exit code."""
    place = place_of(str(settings["path"]))

    async def ask(cluster: Cluster) -> R:
        volume = await volume_of(cluster, place.volume)
        return await cluster.ask(question(volume.layer, place.ino))

    reply = run_with_cluster(settings | {"metadata": place.addresses}, ask)
    print(json.dumps(document(place, reply), indent=1) if settings["json"] else table(place, reply))
    return exits.OK
