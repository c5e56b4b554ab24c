"""What all processes that serve have in common: log, signals, readiness, the watchdog, a clean stop.

SIGTERM, SIGINT   stop cleanly
SIGHUP            read the settings again; the log level and what `reconfigure` takes change at once, of the others it is
                  told that they wait for a restart. In a foreground process of a terminal it is the terminal's end: stop.
"""

import logging
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from fsd.cli import logs, readiness, watching
from fsd.core.config import Option
from fsd.core.errors import ConfigurationError
from fsd.http.face import Face
from fsd.runtime import Runtime, memory, notify
from fsd.runtime.local import LocalDirectory, real_runtime

log = logging.getLogger(__name__)

GOODBYE_TIMEOUT_S = 5.0
SERVE_OPTIONS: tuple[Option, ...] = (watching.HTTP, *logs.LOG_OPTIONS, readiness.READY_FD)


class Server(Protocol):
    async def run(self, *, task_status: trio.TaskStatus[str]) -> None: ...


async def no_goodbye() -> None:
    """For servers that need not say that they stop."""


def keep(settings: dict[str, Any]) -> None:
    """For servers of which nothing but the log level changes while they run."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A server, what it shows by HTTP, how it says goodbye, and which settings it takes while it runs, by `reconfigure`."""

    server: Server
    face: Face
    goodbye: Callable[[], Awaitable[None]] = no_goodbye
    live: tuple[str, ...] = ()
    reconfigure: Callable[[dict[str, Any]], None] = keep


Make = Callable[[Runtime, LocalDirectory], Serving]


def serve(settings: dict[str, Any], make: Make) -> int:
    """Run the server that `make` gives on its data directory until SIGTERM or SIGINT."""
    logs.set_up(settings["log"], settings["log_level"])
    memory.settle()
    trio.run(_serve, settings, make)
    return 0


async def _serve(settings: dict[str, Any], make: Make) -> None:
    directory = LocalDirectory(settings["data"])
    try:
        serving = make(real_runtime(), directory)
        async with trio.open_nursery() as nursery:
            await nursery.start(_obey_signals, nursery, serving, settings)
            nursery.start_soon(feed_watchdog)
            http = await nursery.start(watching.show, serving.face, settings["http"], settings["listen"])
            address = await nursery.start(serving.server.run)
            log.info("serving on %s, data in %s, pid %d", address, settings["data"], os.getpid())
            readiness.report_ready(settings["ready_fd"], address, http)
    finally:
        with trio.CancelScope(shield=True):
            await directory.aclose()
    log.info("stopped")


async def feed_watchdog() -> None:
    """As long as this loop runs, systemd hears of it; one that hangs is killed and started again."""
    interval = notify.watchdog_s()
    while interval is not None:
        notify.feed_watchdog()
        await trio.sleep(interval)


async def _obey_signals(
    nursery: trio.Nursery, serving: Serving, settings: dict[str, Any], *, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP and not os.isatty(0):
                settings = reload(serving, settings)
                continue
            log.info("%s: stopping", signal.Signals(number).name)
            break
    notify.notify("STOPPING=1", "STATUS=stopping")
    with trio.move_on_after(GOODBYE_TIMEOUT_S):
        await serving.goodbye()
    nursery.cancel_scope.cancel()


def reload(serving: Serving, old: dict[str, Any]) -> dict[str, Any]:
    """Take what may change live; the settings now in force. Bad ones are told, and nothing changes."""
    notify.reloading()
    try:
        wanted = old["read_again"]()
    except ConfigurationError as error:
        log.error("settings stay as they are: %s", "; ".join(str(error).splitlines()))
        notify.notify("READY=1", "STATUS=serving; the last reload was refused, see the log")
        return old
    live = ("log_level", *serving.live)
    changed = sorted(name for name, value in wanted.items() if name != "read_again" and old[name] != value)
    logs.set_level(wanted["log_level"])
    serving.reconfigure(wanted)
    for name in changed:
        if name in live:
            log.info("%s is now %s", name, wanted[name])
        else:
            log.warning("%s is %s until the next restart", name, old[name])
    log.info("settings were read again, %d changed", sum(name in live for name in changed))
    notify.notify("READY=1", "STATUS=serving, settings read again")
    return old | {name: wanted[name] for name in live}
