"""Mount a volume: fsd mount HOST:PORT[,HOST:PORT]:/VOLUME MOUNTPOINT.

Returns when the mount is usable, or runs in the foreground with --foreground. Ended by fsd umount or SIGTERM, with
everything written back.
"""

import argparse
import os
import sys
from typing import Any

from fsd.cli import embedded, exits, logs, readiness
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import ConfigurationError

OPTIONS: tuple[Option, ...] = (
    Option("options", config.text, "mount options (docs/operations.md)", default="", metavar="LIST", short="-o"),
    Option("foreground", config.switch, "stay in the foreground", default=False, switch=True),
    Option("connect_timeout_s", config.seconds, "give up if the cluster does not answer", default=20.0, metavar="S"),
    # Called for mount(8): fsd/cli/helper.py
    Option("helper", config.switch, "", default=False, switch=True, hidden=True),
    *logs.LOG_OPTIONS,
    readiness.READY_FD,
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="HOST:PORT[,HOST:PORT]:/VOLUME", help="metadata server and volume")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an existing directory")


def run(settings: dict[str, Any]) -> int:
    from fsd.mount import mountinfo
    from fsd.mount.options import parse

    try:
        metadata, volume = config.mount_source(settings["source"])
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    mountpoint = mountinfo.normalize(settings["mountpoint"])
    options = parse(settings["options"], f"{os.uname().nodename}:{mountpoint}")
    if not settings["foreground"]:
        mountinfo.check_free(mountpoint)
        return _in_background(settings, mountpoint)
    from fsd.mount.daemon import MountRequest

    return _serve(settings, MountRequest(metadata, volume, mountpoint, options, settings["connect_timeout_s"]))


def _serve(settings: dict[str, Any], request: Any) -> int:
    import trio

    from fsd.mount.daemon import run_mount
    from fsd.runtime.local import real_runtime

    logs.set_up(settings["log"], settings["log_level"])
    fd = settings["ready_fd"]

    def ready(source: str) -> None:
        readiness.report_ready(fd, source)

    trio.run(run_mount, real_runtime(), request, ready)
    return exits.OK


def _in_background(settings: dict[str, Any], mountpoint: str) -> int:
    """Start ourselves in the foreground mode, in a session of its own, and wait until that one is ready."""
    from fsd.cli.processes import ProcessFailed, start

    name = "mount" + "".join(c if c.isalnum() else "-" for c in mountpoint)[-100:]
    log = settings["log"] or os.path.join(embedded.default_directory(), "log", f"{name}.log")
    arguments = ["mount", settings["source"], mountpoint, "--foreground", "--log-level", settings["log_level"]]
    arguments += ["--connect-timeout-s", str(settings["connect_timeout_s"])]
    if settings["options"]:
        arguments += ["-o", settings["options"]]
    try:
        start(arguments, log, settings["connect_timeout_s"] + 15)
    except ProcessFailed as error:
        sys.stderr.write("".join(f"fsd: {line}\n" for line in str(error).splitlines()))
        return error.exit_code
    return exits.OK
