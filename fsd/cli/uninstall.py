"""Take away what fsd install has put into the system. Data, settings that were changed, and the programs stay."""

import argparse
import os
import subprocess
from typing import Any

from fsd.cli import exits
from fsd.cli.install import DRY_RUN, PREFIX, tell_systemd
from fsd.core.config import Option
from fsd.core.errors import Busy

OPTIONS: tuple[Option, ...] = (PREFIX, DRY_RUN)


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    from fsd.cli import installing

    here = settings["prefix"] == "/" and os.path.isdir("/run/systemd/system")
    units = [
        os.path.basename(path)
        for path in installing.read_manifest(settings["prefix"]).files
        if path.startswith(installing.UNITS)
    ]
    if here and units:
        check_nothing_runs()
        tell_systemd((("systemctl", "disable", "--quiet", *sorted(units)),), dry_run=settings["dry_run"])
    for line in installing.uninstall(settings["prefix"], dry_run=settings["dry_run"]):
        print(line)
    if here and units:
        tell_systemd((("systemctl", "daemon-reload"),), dry_run=settings["dry_run"])
    return exits.OK


def check_nothing_runs() -> None:
    """Raises Busy that names the units of fsd that run."""
    states = ("--state=active", "--state=activating", "--state=reloading")
    command = ("systemctl", "list-units", "--plain", "--no-legend", *states, "fsd-*.service")
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    running = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    if running:
        raise Busy(f"{', '.join(running)} still run; first: systemctl stop fsd.target {' '.join(running)}")
