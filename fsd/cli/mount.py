"""Mount a volume: fsd mount HOST:PORT[,HOST:PORT]:/VOLUME MOUNTPOINT.

Returns when the mount is usable, or runs in the foreground with --foreground. Ended by fsd umount or SIGTERM, with
everything written back. The process that stays is a supervisor: it holds the mount, and starts its daemon anew whenever that
one dies.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fsd.cli import embedded, exits, logs, readiness
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import ConfigurationError

if TYPE_CHECKING:
    from fsd.mount.daemon import MountRequest

OPTIONS: tuple[Option, ...] = (
    Option("options", config.text, "mount options (docs/operations.md)", default="", metavar="LIST", short="-o"),
    Option("foreground", config.switch, "stay in the foreground", default=False, switch=True),
    Option("connect_timeout_s", config.seconds, "give up if the cluster does not answer", default=20.0, metavar="S"),
    Option("wait", config.switch, "wait for servers that are not up yet", default=False, switch=True),
    Option(
        "http",
        config.http_of_mount,
        "health and metrics by HTTP: off, or where",
        default="off",
        metavar="off|HOST:PORT",
    ),
    *logs.LOG_OPTIONS,
    readiness.READY_FD,
    Option("new_session", config.switch, "", default=False, switch=True, hidden=True),  # setsid, once mounted
    Option("adopt_fd", config.integer(0, 1 << 20), "", hidden=True),  # go on with this descriptor's mount
    Option("daemon_fd", config.integer(0, 1 << 20), "", hidden=True),  # be a daemon, with a supervisor there
)
_OF_ONE_PROCESS = ("foreground", "ready_fd", "helper", "new_session", "adopt_fd", "daemon_fd")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="HOST:PORT[,HOST:PORT]:/VOLUME", help="metadata server and volume")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an existing directory")


def run(settings: dict[str, Any]) -> int:
    from fsd.mount import mountinfo
    from fsd.mount.mountpoint import check_free
    from fsd.mount.options import parse

    try:
        metadata, volume = config.mount_source(settings["source"])
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    mountpoint = settings["mountpoint"]
    if settings["daemon_fd"] is None:
        mountpoint = mountinfo.normalize(mountpoint)
    options = parse(settings["options"], f"{os.uname().nodename}:{mountpoint}")
    if settings["daemon_fd"] is not None:
        from fsd.mount.daemon import MountRequest

        return _be_a_daemon(
            settings,
            MountRequest(
                metadata, volume, mountpoint, options, settings["connect_timeout_s"], settings["wait"], settings["http"]
            ),
        )
    source = f"{','.join(metadata)}:/{volume}"
    if settings["foreground"]:
        return _supervise(settings, source, mountpoint, options)
    check_free(mountpoint)
    return _in_background(settings, mountpoint)


def words(settings: Mapping[str, Any], mountpoint: str) -> list[str]:
    """The command line that mounts with these settings."""
    line = ["mount", settings["source"], mountpoint]
    for option in OPTIONS:
        value = settings.get(option.name)
        if option.name in _OF_ONE_PROCESS or value is None or value == option.default:
            continue
        line += [option.flag] if option.switch else [option.flag, str(value)]
    return line


def command(settings: Mapping[str, Any], mountpoint: str) -> list[str]:
    return [sys.executable, "-m", "fsd.cli", *words(settings, mountpoint)]


# --- the supervisor -----------------------------------------------------------------------------------------------------


def _supervise(settings: dict[str, Any], source: str, mountpoint: str, options: Any) -> int:
    from fsd.cli.processes import child_environment
    from fsd.mount.attach import MountPlan
    from fsd.mount.mountpoint import check_free
    from fsd.mount.supervisor import MountFailed, Plan, Supervisor
    from fsd.runtime import notify

    logs.set_up(settings["log"], settings["log_level"], rotates=False)
    adopted = _adopted(settings, mountpoint)
    if adopted is None:
        check_free(mountpoint)
    allow_other = os.geteuid() == 0 if options.allow_other is None else options.allow_other
    plan = Plan(
        MountPlan(source, mountpoint, options.kernel, allow_other),
        [*command(settings, mountpoint), "--daemon-fd"],
        {name: value for name, value in child_environment().items() if name != "NOTIFY_SOCKET"},
        settings["new_session"],
        notify.watchdog_s() or 0.0,
        options.fail_closed,
    )

    def ready(what: str) -> None:
        readiness.report_ready(settings["ready_fd"], what)

    try:
        return Supervisor(plan, ready, adopted).run()
    except MountFailed as error:
        sys.stderr.write("".join(f"fsd: {line}\n" for line in str(error).splitlines()))
        if settings["ready_fd"] is not None:
            readiness.report_error(settings["ready_fd"], str(error), error.exit_code)
        return error.exit_code


def _adopted(settings: dict[str, Any], mountpoint: str) -> int | None:
    """The descriptor of a mount that is there already: given by its last daemon, or kept by systemd."""
    from fsd.mount import attach
    from fsd.mount.supervisor import STORED
    from fsd.runtime import notify

    fds = notify.passed().get(STORED, [])
    if settings["adopt_fd"] is not None:
        fds.append(settings["adopt_fd"])
    for fd in fds:
        if attach.is_alive(fd):
            return fd
        os.close(fd)  # unmounted meanwhile
        notify.discard(STORED)
    return None


def _in_background(settings: dict[str, Any], mountpoint: str) -> int:
    """Start a supervisor and wait until the mount is ready."""
    from fsd.cli.processes import ProcessFailed, start

    name = "mount" + "".join(c if c.isalnum() else "-" for c in mountpoint)[-100:]
    log = settings["log"] or os.path.join(embedded.default_directory(), "log", f"{name}.log")
    line = [*words(settings, mountpoint), "--foreground", "--new-session"]
    try:
        start(line, log, settings["connect_timeout_s"] + 15, new_session=False)
    except ProcessFailed as error:
        sys.stderr.write("".join(f"fsd: {line}\n" for line in str(error).splitlines()))
        return error.exit_code
    return exits.OK


# --- the daemon ---------------------------------------------------------------------------------------------------------


def _be_a_daemon(settings: dict[str, Any], request: "MountRequest") -> int:
    import trio

    from fsd.cli import failure
    from fsd.mount.daemon import run_daemon
    from fsd.mount.supervised import Supervisor
    from fsd.runtime import memory
    from fsd.runtime.local import real_runtime

    logs.set_up(settings["log"], settings["log_level"])

    def supervisor_has_gone(fuse_fd: int | None) -> None:
        if fuse_fd is None:
            return
        line = [*command(settings, request.mountpoint), "--foreground", "--adopt-fd", str(fuse_fd)]
        subprocess.Popen(line, pass_fds=(fuse_fd,), stdin=subprocess.DEVNULL, start_new_session=True)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_IGN
        )  # but while it serves: what has to be written back is not left because of them
    supervisor = Supervisor(settings["daemon_fd"], supervisor_has_gone)
    try:
        memory.settle()
        trio.run(run_daemon, real_runtime(), request, supervisor)
    except Exception as error:
        supervisor.fail(*failure.explain(error))
        failure.report(error)
        return failure.explain(error)[1]
    return exits.OK
