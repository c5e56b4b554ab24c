"""`--http`: where a daemon shows its health and metrics. A server that cannot have the usual port takes a free one and says
so; one that was told a port must get it."""

import logging

import trio

from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import ConfigurationError
from fsd.http.face import Face
from fsd.http.server import Limits, serve_http
from fsd.runtime.discovery import split_address
from fsd.runtime.listening import tcp_listeners

log = logging.getLogger(__name__)

ABOVE_LISTEN = 1000
HTTP = Option(
    "http",
    config.http_address,
    f"health and metrics by HTTP: auto (the port of --listen + {ABOVE_LISTEN}), off, or where",
    default="auto",
    metavar="auto|off|HOST:PORT",
)
LIMITS = Limits(body_bytes=0)


async def show(
    face: Face, where: str, listen: str, *, task_status: trio.TaskStatus[str | None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve `face` until cancelled; `started` with the address, None if it is off. Raises ConfigurationError."""
    if where == "off":
        task_status.started(None)
        return
    listeners, address = await _listeners(where, listen)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_http, listeners, face.handle, LIMITS)
        nursery.start_soon(face.work)
        log.info("health and metrics at http://%s/", address)
        task_status.started(address)


async def _listeners(where: str, listen: str) -> tuple[list[trio.SocketListener], str]:
    if where != "auto":
        return await tcp_listeners(where)
    host, port = split_address(listen)
    usual = usual_address(listen)
    try:
        return await tcp_listeners(usual)
    except ConfigurationError as error:
        if port == 0 or usual.endswith(":0"):
            raise
        log.warning("%s; taking a free port for health and metrics", error)
    return await tcp_listeners(_joined(host, 0))


def usual_address(listen: str) -> str:
    """Beside the server's own port; a free one if that is free itself or too high."""
    host, port = split_address(listen)
    return _joined(host, port + ABOVE_LISTEN if 0 < port <= 65535 - ABOVE_LISTEN else 0)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
