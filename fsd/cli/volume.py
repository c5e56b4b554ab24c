"""Create, list, set and delete volumes: fsd volume create|list|set|delete [NAME]."""

import argparse
import json
from typing import Any

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.status import volume_row, volume_table
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import ConfigurationError
from fsd.namespace.records import Volume
from fsd.protocol.cluster import CreateVolume, DeleteVolume, ListVolumes, SetVolume

DEFAULT_REPLICAS = 2
DEFAULT_MIN_REPLICAS = 1

OPTIONS: tuple[Option, ...] = (
    Option("quota", config.size, "most bytes; 0 is no limit", metavar="SIZE"),
    Option("quota_inodes", config.integer(0, 1 << 60), "most files and directories; 0 is no limit", metavar="N"),
    Option("replicas", config.integer(1, 7), f"copies of every chunk (create: {DEFAULT_REPLICAS})", metavar="N"),
    Option(
        "min_replicas",
        config.integer(1, 7),
        f"durable copies without which a write waits (create: {DEFAULT_MIN_REPLICAS})",
        metavar="N",
    ),
    Option("force", config.switch, "delete even if it is not empty", default=False, switch=True),
    *CLUSTER_OPTIONS,
    JSON,
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["create", "list", "set", "delete"])
    parser.add_argument("name", nargs="?", metavar="NAME")


def run(settings: dict[str, Any]) -> int:
    message = request(settings)

    async def ask(cluster: Cluster) -> Any:
        return await cluster.ask(message)

    answer = run_with_cluster(settings, ask)
    if settings["action"] == "list":
        _show_all(answer.volumes, settings["json"])
    elif settings["action"] != "delete":
        _show(answer.volume, settings["json"])
    return exits.OK


def request(settings: dict[str, Any]) -> object:
    """The message for the metadata server. Raises ConfigurationError."""
    if settings["action"] == "list":
        return ListVolumes()
    if settings["name"] is None:
        raise ConfigurationError(f"fsd volume {settings['action']} needs the NAME of a volume")
    try:
        name = config.volume_name(settings["name"])
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    if settings["action"] == "delete":
        return DeleteVolume(name, settings["force"])
    if settings["action"] == "set":
        return _set_request(name, settings)
    replicas = settings["replicas"] or DEFAULT_REPLICAS
    least = settings["min_replicas"] or DEFAULT_MIN_REPLICAS
    if least > replicas:
        raise ConfigurationError(
            f"--min-replicas {least} is above --replicas {replicas}: no write could be acknowledged"
        )
    return CreateVolume(name, replicas, least, settings["quota"] or 0, settings["quota_inodes"] or 0)


def _set_request(name: str, settings: dict[str, Any]) -> SetVolume:
    message = SetVolume(
        name, settings["quota"], settings["quota_inodes"], settings["replicas"], settings["min_replicas"]
    )
    if message == SetVolume(name):
        raise ConfigurationError("nothing to set: --quota, --quota-inodes, --replicas or --min-replicas")
    return message


def _show(volume: Volume, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"volume": volume_row(volume)}, indent=1))
    else:
        print("\n".join(volume_table((volume,))))


def _show_all(volumes: tuple[Volume, ...], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"volumes": [volume_row(volume) for volume in volumes]}, indent=1))
    else:
        print("\n".join(volume_table(volumes)))
