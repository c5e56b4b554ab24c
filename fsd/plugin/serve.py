"""The plugin as a process: its socket (systemd's or its own), its signals, its end."""

import contextlib
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

import trio

from fsd.http.server import Limits, serve_http
from fsd.plugin.docker import DockerPlugin
from fsd.plugin.driver import Driver
from fsd.plugin.mounts import Mounts
from fsd.plugin.uses import Uses
from fsd.plugin.volumes import Volumes
from fsd.runtime import Runtime, notify
from fsd.runtime.listening import inherited_listeners, unix_listener

log = logging.getLogger(__name__)

LIMITS = Limits(idle_s=3600.0, connections=256)  # dockerd keeps its connections
END_S = 120.0  # for calls that are under way when we are told to end


@dataclass(frozen=True, slots=True)
class PluginRequest:
    socket: str  # unless systemd gives one
    uses: str  # the file of `Uses`
    mounts: Mounts


async def run_plugin(runtime: Runtime, request: PluginRequest, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; calls under way are brought to their end. Mounts stay."""
    listeners = inherited_listeners()
    where = "the sockets of systemd" if listeners else request.socket
    own = not listeners
    listeners = listeners or [unix_listener(request.socket)]
    async with trio.open_nursery() as nursery:
        volumes = Volumes(runtime, nursery, request.mounts.addresses)
        driver = Driver(nursery, volumes, request.mounts, Uses(request.uses))
        plugin = DockerPlugin(driver)
        serving = await nursery.start(_serve, listeners, plugin)
        await nursery.start(_end_on_signal, nursery, serving, plugin)
        log.info("serving on %s, volumes on %s, pid %d", where, request.mounts.directory, os.getpid())
        ready(where)
        nursery.start_soon(driver.sweep)
        nursery.start_soon(_feed_watchdog)
    if own:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(request.socket)


async def _feed_watchdog() -> None:
    interval = notify.watchdog_s()
    while interval is not None:
        notify.feed_watchdog()
        await trio.sleep(interval)


async def _serve(
    listeners: list[trio.SocketListener], plugin: DockerPlugin, *, task_status: trio.TaskStatus[trio.CancelScope]
) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_http, listeners, plugin.handle, LIMITS)
            task_status.started(scope)


async def _end_on_signal(
    nursery: trio.Nursery,
    serving: trio.CancelScope,
    plugin: DockerPlugin,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: ending", signal.Signals(number).name)
            break
        notify.notify("STOPPING=1", "STATUS=finishing the calls under way")
        with trio.move_on_after(END_S):
            await plugin.idle()
    serving.cancel()
    nursery.cancel_scope.cancel()
