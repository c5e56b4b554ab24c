"""Which inode of which volume a path on a mount is."""

import os
from dataclasses import dataclass

from fsd.cli.administration import Cluster
from fsd.core import config
from fsd.core.errors import ConfigurationError, NotFound
from fsd.core.ids import Ino
from fsd.mount import mountinfo
from fsd.namespace.records import Volume
from fsd.protocol.cluster import ListVolumes


@dataclass(frozen=True, slots=True)
class Place:
    """`mode` as in stat(2)."""

    path: str
    addresses: tuple[str, ...]
    volume: str
    ino: Ino
    mode: int


def place_of(path: str) -> Place:
    """Raises ConfigurationError if the path is on no mount of fsd."""
    path = os.path.abspath(path)
    path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    mount = mountinfo.containing(path)
    if mount is None or not mount.is_fsd:
        raise ConfigurationError(f"{path} is not on a volume of fsd")
    addresses, volume = config.mount_source(mount.source)
    found = os.lstat(path)
    return Place(path, addresses, volume, Ino(found.st_ino), found.st_mode)


async def volume_of(cluster: Cluster, name: str) -> Volume:
    """Raises NotFound."""
    volumes: tuple[Volume, ...] = (await cluster.ask(ListVolumes())).volumes
    volume = next((volume for volume in volumes if volume.name == name), None)
    if volume is None:
        raise NotFound(f"there is no volume {name}")
    return volume
