"""Put fsd into the system: the command on the path, man pages, completions; on request units and the mount helper.

Tells each file. Doing it again changes nothing; files that are not fsd's are never overwritten. fsd uninstall undoes it.
"""

import argparse
import os
import subprocess
import sys
from typing import Any

from fsd.cli import exits
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import MissingOnHost

PREFIX = Option("prefix", config.path, "the root of the system to change, for packages and images", "/", metavar="DIR")
DRY_RUN = Option("dry_run", config.switch, "only tell what would be done", default=False, switch=True)
OPTIONS: tuple[Option, ...] = (
    Option("systemd", config.switch, "units, the servers' user, /etc/fsd", default=False, switch=True),
    Option("mount_helper", config.switch, "mount -t fsd, /etc/fstab", default=False, switch=True),
    Option("plugin", config.switch, "units of the Docker volume plugin", default=False, switch=True),
    PREFIX,
    Option("program", config.path, "where fsd will be, if not where it is now (for packages)", metavar="PATH"),
    DRY_RUN,
)
_AFTER_UNITS = (
    ("systemd-sysusers", "fsd.conf"),
    ("systemd-tmpfiles", "--create", "fsd.conf"),
    ("systemctl", "daemon-reload"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    from fsd.cli import installing

    program = settings["program"] or installing.own_program()
    units = settings["systemd"] or settings["plugin"]
    here = settings["prefix"] == "/"
    if units and here and not settings["program"]:
        installing.check_services_see(program)
    wanted = {"systemd": settings["systemd"], "helper": settings["mount_helper"], "plugin": settings["plugin"]}
    groups = [group for group, asked in wanted.items() if asked]
    found = {piece.path: piece for piece in installing.pieces(groups, program, settings["prefix"])}
    for line in installing.install(list(found.values()), settings["prefix"], dry_run=settings["dry_run"]):
        print(line)
    if units and here:
        tell_systemd(_AFTER_UNITS, dry_run=settings["dry_run"])
    if settings["systemd"] and here:
        sys.stdout.write(
            "next      settings in /etc/fsd/fsd.toml, then: systemctl enable --now fsd.target fsd-servers.target and"
            " fsd-metadata, fsd-chunkserver@DISK or fsd-mount@NAME\n"
        )
    return exits.OK


def tell_systemd(commands: tuple[tuple[str, ...], ...], *, dry_run: bool) -> None:
    """Run them if systemd runs here. Raises MissingOnHost."""
    if not os.path.isdir("/run/systemd/system"):
        return
    for command in commands:
        print(f"run       {' '.join(command)}")
        if dry_run:
            continue
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise MissingOnHost(f"{' '.join(command)} failed: {' '.join(done.stderr.split())}")
