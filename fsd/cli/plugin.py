"""Run Docker's volume plugin on this host: docker volume create -d fsd -o size=10G NAME; docker run -v NAME:/data.

The driver's name is that of the socket. Takes its socket from systemd if that has opened one.
"""

import argparse
import os
import sys
from typing import Any

from fsd.cli import administration, exits, logs, readiness
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import ConfigurationError

OPTIONS: tuple[Option, ...] = (
    Option("metadata", config.addresses, "the cluster's metadata server", metavar="HOST:PORT[,HOST:PORT]"),
    Option("data", config.path, "or the directory of a cluster that `fsd up --data DIR` made", metavar="DIR"),
    Option("socket", config.path, "where dockerd looks", default="/run/docker/plugins/fsd.sock", metavar="PATH"),
    Option("volumes", config.path, "where volumes are mounted", default="/var/lib/fsd/volumes", metavar="DIR"),
    Option("options", config.text, "mount options (docs/operations.md)", default="", metavar="LIST", short="-o"),
    *logs.LOG_OPTIONS,
    readiness.READY_FD,
)
_OURS = ("NOTIFY_", "WATCHDOG_", "LISTEN_")  # what systemd says to us is not for the mounts' daemons


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    import trio

    from fsd.cli.processes import child_environment
    from fsd.mount import serving
    from fsd.mount.options import parse
    from fsd.plugin.mounts import Mounts
    from fsd.plugin.serve import PluginRequest, run_plugin
    from fsd.runtime.local import real_runtime

    if os.geteuid() != 0:
        raise ConfigurationError("the plugin mounts for containers of any user and must run as root")
    parse(settings["options"], "")  # what is wrong is told now, not at the first container's start
    addresses = administration.addresses_of(settings)
    logs.set_up(settings["log"], settings["log_level"])
    environment = {name: value for name, value in child_environment().items() if not name.startswith(_OURS)}
    command = (sys.executable, "-m", "fsd.cli")
    mounts = Mounts(command, environment, addresses, settings["volumes"], settings["options"])
    name = os.path.basename(settings["socket"]).removesuffix(".sock")
    uses = os.path.join(serving.directory(), "plugin", f"{name}.json")
    request = PluginRequest(settings["socket"], uses, mounts)
    fd = settings["ready_fd"]

    def ready(where: str) -> None:
        readiness.report_ready(fd, where)

    trio.run(run_plugin, real_runtime(), request, ready)
    return exits.OK
