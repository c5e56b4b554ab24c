"""Put the mount into running containers that have a dead one of the same volume."""

import argparse
import sys
from typing import Any

from fsd.cli import exits
from fsd.core.config import Option
from fsd.core.errors import ConfigurationError, FsError

OPTIONS: tuple[Option, ...] = ()


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where the volume is mounted on this host now")


def run(settings: dict[str, Any]) -> int:
    from fsd.mount import mountinfo
    from fsd.mount.heal import dead_copies, heal
    from fsd.mount.mountpoint import is_dead

    mountpoint = mountinfo.normalize(settings["mountpoint"])
    living = mountinfo.mounted_at(mountpoint)
    if living is None or not living.is_fsd or is_dead(mountpoint):
        raise ConfigurationError(f"no fsd volume is mounted on {mountpoint}")
    healed = failed = 0
    for dead in dead_copies(living):
        try:
            heal(living, dead)
        except FsError as error:
            failed += 1
            sys.stderr.write(f"fsd: {error}\n")
            continue
        healed += 1
        print(f"process {dead.pid}: {dead.path} is {living.source} again{' (read-only)' if dead.read_only else ''}")
    if not healed and not failed:
        print(f"nobody has a dead mount of {living.source}")
    return exits.FAILED if failed else exits.OK
