"""Docker's volume plugin protocol: JSON by POST, errors as {"Err": one line}, which reaches the user word for word.

Source: docs.docker.com/engine/extend/plugin_api and plugins_volume; what dockerd 20.10 sends is in the tests.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, cast

import trio

from fsd.core.errors import ConfigurationError, FsError
from fsd.http.server import Request, Response
from fsd.plugin.driver import Driver, Known
from fsd.plugin.options import shown

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
Document = Mapping[str, Any]


class DockerPlugin:
    """An HTTP handler. `idle` says when no call is under way."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._running = 0
        self._ended = trio.Event()
        self._calls: dict[str, Callable[[Document], Awaitable[Document]]] = {
            "/Plugin.Activate": self._activate,
            "/VolumeDriver.Capabilities": self._capabilities,
            "/VolumeDriver.Create": self._create,
            "/VolumeDriver.Remove": self._remove,
            "/VolumeDriver.Mount": self._mount,
            "/VolumeDriver.Unmount": self._unmount,
            "/VolumeDriver.Path": self._path,
            "/VolumeDriver.Get": self._get,
            "/VolumeDriver.List": self._list,
        }

    async def handle(self, request: Request) -> Response:
        call = self._calls.get(request.path)
        if call is None:
            return _response(HTTPStatus.NOT_FOUND, {"Err": f"fsd: there is no call {request.path}"})
        if request.method != "POST":
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, {"Err": "fsd: calls are made by POST"})
        self._running += 1
        try:
            answer = await call(_document(request.body))
        except FsError as error:
            text = "; ".join(str(error).splitlines()) or type(error).__name__
            log.log(logging.DEBUG if request.path.endswith(".Get") else logging.INFO, "%s: %s", request.path, text)
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR, {"Err": f"fsd: {text}"})
        finally:
            self._running -= 1
            self._ended.set()
        return _response(HTTPStatus.OK, answer)

    async def idle(self) -> None:
        """Return when no call is under way."""
        while self._running:
            self._ended = trio.Event()
            await self._ended.wait()

    async def _activate(self, asked: Document) -> Document:
        await trio.lowlevel.checkpoint()
        return {"Implements": ["VolumeDriver"]}

    async def _capabilities(self, asked: Document) -> Document:
        await trio.lowlevel.checkpoint()
        return {"Capabilities": {"Scope": "global"}}

    async def _create(self, asked: Document) -> Document:
        await self._driver.create(_text(asked, "Name"), _options(asked))
        return {"Err": ""}

    async def _remove(self, asked: Document) -> Document:
        await self._driver.remove(_text(asked, "Name"))
        return {"Err": ""}

    async def _mount(self, asked: Document) -> Document:
        path = await self._driver.mount(_text(asked, "Name"), _text(asked, "ID"))
        return {"Mountpoint": path, "Err": ""}

    async def _unmount(self, asked: Document) -> Document:
        await self._driver.unmount(_text(asked, "Name"), _text(asked, "ID"))
        return {"Err": ""}

    async def _path(self, asked: Document) -> Document:
        return {"Mountpoint": (await self._driver.known(_text(asked, "Name"))).mountpoint, "Err": ""}

    async def _get(self, asked: Document) -> Document:
        known = await self._driver.known(_text(asked, "Name"))
        return {"Volume": _row(known) | {"Status": shown(known.volume)}, "Err": ""}

    async def _list(self, asked: Document) -> Document:
        return {"Volumes": [_row(known) for known in await self._driver.all()], "Err": ""}


def _row(known: Known) -> dict[str, Any]:
    return {"Name": known.volume.name, "Mountpoint": known.mountpoint, "CreatedAt": known.created_at}


def _response(status: HTTPStatus, document: Document) -> Response:
    return Response(status, json.dumps(document).encode(), CONTENT_TYPE)


def _document(body: bytes) -> Document:
    try:
        document = json.loads(body or b"{}")
    except ValueError as error:
        raise ConfigurationError(f"the request is not JSON: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigurationError("the request is not a JSON object")
    return cast("Document", document)


def _text(asked: Document, name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"the request has no {name}")
    return value


def _options(asked: Document) -> dict[str, str]:
    given: Any = asked.get("Opts") or {}
    if not isinstance(given, dict):
        raise ConfigurationError("Opts is not a JSON object")
    return {str(name): str(value) for name, value in cast("dict[Any, Any]", given).items()}
