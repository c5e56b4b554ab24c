"""What all processes that serve have in common: log, signals, readiness, a clean stop."""

import logging
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from fsd.cli import logs, readiness
from fsd.core.config import Option
from fsd.runtime import Runtime
from fsd.runtime.local import LocalDirectory, real_runtime
from fsd.runtime.storage import DataDirectory

log = logging.getLogger(__name__)

GOODBYE_TIMEOUT_S = 5.0
SERVE_OPTIONS: tuple[Option, ...] = (*logs.LOG_OPTIONS, readiness.READY_FD)


class Server(Protocol):
    async def run(self, *, task_status: trio.TaskStatus[str]) -> None: ...


async def no_goodbye() -> None:
    """For servers that need not say that they stop."""


def serve(
    settings: dict[str, Any],
    make: Callable[[Runtime, DataDirectory], tuple[Server, Callable[[], Awaitable[None]]]],
) -> int:
    """Run a server on its data directory until SIGTERM or SIGINT; `make` gives it and how it says goodbye."""
    logs.set_up(settings["log"], settings["log_level"])
    trio.run(_serve, settings, make)
    return 0


async def _serve(
    settings: dict[str, Any],
    make: Callable[[Runtime, DataDirectory], tuple[Server, Callable[[], Awaitable[None]]]],
) -> None:
    directory = LocalDirectory(settings["data"])
    try:
        server, goodbye = make(real_runtime(), directory)
        async with trio.open_nursery() as nursery:
            await nursery.start(_stop_on_signal, nursery, goodbye)
            address = await nursery.start(server.run)
            log.info("serving on %s, data in %s, pid %d", address, settings["data"], os.getpid())
            readiness.report_ready(settings["ready_fd"], address)
    finally:
        with trio.CancelScope(shield=True):
            await directory.aclose()
    log.info("stopped")


async def _stop_on_signal(
    nursery: trio.Nursery, goodbye: Callable[[], Awaitable[None]], *, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: stopping", signal.Signals(number).name)
            break
    with trio.move_on_after(GOODBYE_TIMEOUT_S):
        await goodbye()
    nursery.cancel_scope.cancel()
