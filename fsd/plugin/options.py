"""`docker volume create -o NAME=VALUE`: what is understood, and how it is found again in a volume's labels. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from fsd.core import config
from fsd.core.errors import ConfigurationError
from fsd.core.units import format_size
from fsd.namespace.records import Volume
from fsd.protocol.cluster import CreateVolume

DEFAULT_REPLICAS = 2
DEFAULT_MIN_REPLICAS = 1
DEFAULT_MODE = 0o755
MAX_REPLICAS = 7
MAX_OWNER = 0xFFFF_FFFE
MADE_BY, DOCKER = "made-by", "docker"
ROOT = "docker-"  # docker-uid, docker-gid, docker-mode: what was asked for, to be put back after Docker's copy-up


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise ValueError(f"{text!r} is not a mode in octal, such as 0750")
    return mode


@dataclass(frozen=True, slots=True)
class VolumeOptions:
    """None: not asked for."""

    size: int | None = None
    inodes: int | None = None
    replicas: int | None = None
    min_replicas: int | None = None
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


_PARSE: dict[str, Callable[[str], Any]] = {
    "size": config.size,
    "inodes": config.integer(0, 1 << 60),
    "replicas": config.integer(1, MAX_REPLICAS),
    "min_replicas": config.integer(1, MAX_REPLICAS),
    "uid": config.integer(0, MAX_OWNER),
    "gid": config.integer(0, MAX_OWNER),
    "mode": _mode,
}


def parse(given: Mapping[str, str]) -> VolumeOptions:
    """Raises ConfigurationError that names every unknown option and bad value."""
    faults: list[str] = []
    values: dict[str, Any] = {}
    for name, text in sorted(given.items()):
        if name not in _PARSE:
            faults.append(f"unknown option {name!r}; known are {', '.join(_PARSE)}")
            continue
        try:
            values[name] = _PARSE[name](text)
        except ValueError as error:
            faults.append(f"option {name}: {error}")
    options = VolumeOptions(**values)
    replicas, least = options.replicas or DEFAULT_REPLICAS, options.min_replicas or DEFAULT_MIN_REPLICAS
    if least > replicas:
        faults.append(f"option min_replicas: {least} is above replicas {replicas}: no write could be acknowledged")
    if faults:
        raise ConfigurationError("\n".join(faults))
    return options


def request(name: str, options: VolumeOptions) -> CreateVolume:
    """The message that makes the volume."""
    root = (("uid", options.uid), ("gid", options.gid), ("mode", options.mode))
    return CreateVolume(
        name,
        options.replicas or DEFAULT_REPLICAS,
        options.min_replicas or DEFAULT_MIN_REPLICAS,
        options.size or 0,
        options.inodes or 0,
        ((MADE_BY, DOCKER), *((ROOT + key, str(value)) for key, value in root if value is not None)),
        DEFAULT_MODE if options.mode is None else options.mode,
        options.uid or 0,
        options.gid or 0,
    )


def options_of(volume: Volume) -> VolumeOptions:
    """What it was made with, as far as it counts still."""
    root = {key.removeprefix(ROOT): int(value) for key, value in volume.labels if key.startswith(ROOT)}
    return VolumeOptions(
        volume.quota_bytes,
        volume.quota_inodes,
        volume.replicas,
        volume.min_replicas,
        root.get("uid"),
        root.get("gid"),
        root.get("mode"),
    )


def differences(volume: Volume, asked: VolumeOptions) -> list[str]:
    """The options that were asked for and are not what the volume has."""
    there = options_of(volume)
    names = [field.name for field in fields(VolumeOptions)]
    return [name for name in names if getattr(asked, name) not in (None, getattr(there, name))]


def made_by_docker(volume: Volume) -> bool:
    return (MADE_BY, DOCKER) in volume.labels


def shown(volume: Volume) -> dict[str, object]:
    """For `docker volume inspect`."""
    return {
        "size": format_size(volume.quota_bytes) if volume.quota_bytes else "no limit",
        "used": format_size(volume.used_bytes),
        "inodes": volume.used_inodes,
        "replicas": volume.replicas,
        "min_replicas": volume.min_replicas,
    }
