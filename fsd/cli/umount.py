"""Unmount, and wait until the daemon has written everything back.

The mount point, which refuses writes while nothing is mounted there, is an ordinary directory again afterwards.
"""

import argparse
import os
import signal
from typing import Any

from fsd.cli import exits
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import ConfigurationError, DeadlineExceeded

OPTIONS: tuple[Option, ...] = (
    Option("lazy", config.switch, "detach even if files are open", default=False, switch=True),
    Option("keep_closed", config.switch, "the mount point goes on refusing writes", default=False, switch=True),
    Option("timeout_s", config.seconds, "how long to wait for the write-back", default=90.0, metavar="S"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")


def run(settings: dict[str, Any]) -> int:
    from fsd.cli.processes import wait_end
    from fsd.mount import closed, mountinfo, serving
    from fsd.runtime.process import start_time

    mountpoint = mountinfo.normalize(settings["mountpoint"])
    mount = mountinfo.mounted_at(mountpoint)
    if mount is None and not settings["keep_closed"] and closed.is_closed(mountpoint):
        _open(mountpoint)
        return exits.OK
    if mount is None or not mount.is_fsd:
        raise ConfigurationError(f"no fsd volume is mounted on {mountpoint}")
    told = serving.of(mount)
    mountinfo.unmount(mountpoint, lazy=settings["lazy"])
    if told is not None:
        supervisor = told.supervisor
        if start_time(supervisor.pid) == supervisor.started:
            os.kill(supervisor.pid, signal.SIGTERM)  # other mount namespaces may still have it: it ends all the same
        if not wait_end(supervisor.pid, supervisor.started, settings["timeout_s"]):
            raise DeadlineExceeded(
                f"{mountpoint} is unmounted, but process {supervisor.pid} still writes back or has files open"
            )
    if not settings["keep_closed"] and mountinfo.mounted_at(mountpoint) is None:
        _open(mountpoint)
    return exits.OK


def _open(mountpoint: str) -> None:
    from fsd.mount import closed

    try:
        closed.reopen(mountpoint)
    except OSError as error:
        raise ConfigurationError(f"{mountpoint} still refuses writes: {error.strerror}") from None
