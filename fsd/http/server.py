"""An HTTP/1.1 server: h11 says what the bytes mean, this says how long and how large they may be.

A connection is served by one task, one request after the other. Whatever cannot be understood is answered once and the
connection is closed. When all `Limits.connections` are taken, nobody is accepted until one ends (an idle one does after
`idle_s`). The handler knows paths and methods; an exception of its own is a bug: logged, 500, the connection goes on.
"""

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Never

import h11
import trio

from fsd.core.units import KIB, MIB

log = logging.getLogger(__name__)

RECEIVE_BYTES = 64 * KIB
ACCEPT_PAUSE_S = 0.1  # when there is no descriptor or memory for one more connection
CLOSE_S = 1.0  # how long a refused sender may still talk before its connection is cut
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Limits:
    head_bytes: int = 16 * KIB
    body_bytes: int = MIB
    idle_s: float = 60.0  # until a request begins
    request_s: float = 20.0  # from its first byte to its last; the same again for the answer's way out
    connections: int = 64


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str  # as sent, before the question mark
    query: str
    headers: Mapping[str, str]  # names in lower case; of one that is there twice the last
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes = b""
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Awaitable[Response]]


class _Refused(Exception):
    """This request gets `response`, and its connection ends."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.response = Response(status, f"{why}\n".encode())


async def serve_http(
    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
    handler: Handler,
    limits: Limits | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> Never:
    """Serve until cancelled; then the listeners are closed."""
    limits = limits or Limits()
    places = trio.Semaphore(limits.connections)
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_accept, listener, handler, limits, places, nursery)
        task_status.started()
        await trio.sleep_forever()
    raise AssertionError("a nursery that sleeps for ever has ended")


async def _accept(
    listener: trio.abc.Listener[trio.abc.Stream],
    handler: Handler,
    limits: Limits,
    places: trio.Semaphore,
    nursery: trio.Nursery,
) -> Never:
    async with listener:
        while True:
            await places.acquire()
            try:
                stream = await listener.accept()
            except OSError as error:
                places.release()
                if error.errno not in _OUT_OF:
                    raise
                log.warning("no further HTTP connection for now: %s", error.strerror)
                await trio.sleep(ACCEPT_PAUSE_S)
                continue
            nursery.start_soon(_serve_and_leave, stream, handler, limits, places)


async def _serve_and_leave(stream: trio.abc.Stream, handler: Handler, limits: Limits, places: trio.Semaphore) -> None:
    try:
        await serve_connection(stream, handler, limits)
    finally:
        places.release()


async def serve_connection(stream: trio.abc.Stream, handler: Handler, limits: Limits) -> None:
    """Until the client goes, is refused, or is silent for too long."""
    connection = _Connection(stream, limits)
    try:
        while await connection.serve_one(handler):
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        log.debug("an HTTP client has gone in the middle of a request")
    finally:
        with trio.move_on_after(CLOSE_S, shield=True):
            await stream.aclose()


class _Connection:
    def __init__(self, stream: trio.abc.Stream, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)

    async def serve_one(self, handler: Handler) -> bool:
        """Whether another request may follow."""
        refused: _Refused | None = None
        try:
            request = await self._request()
            if request is None:
                return False
            await self._send(request.method, await _answer(handler, request))
        except h11.RemoteProtocolError as error:
            refused = _Refused(error.error_status_hint, str(error))
        except _Refused as error:
            refused = error
        if refused is not None:
            await self._refuse(refused.response)
            return False
        if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        return True

    async def _request(self) -> Request | None:
        """None: the client has gone, or began nothing in time."""
        if not self._h11.trailing_data[0] and not await self._first_bytes():
            return None
        with trio.move_on_after(self._limits.request_s):
            head = await self._event()
            if not isinstance(head, h11.Request):
                return None
            if self._h11.they_are_waiting_for_100_continue:
                await self._stream.send_all(
                    self._h11.send(h11.InformationalResponse(status_code=100, headers=[])) or b""
                )
            return _plain(head, await self._body())
        raise _Refused(HTTPStatus.REQUEST_TIMEOUT, "the request did not end in time")

    async def _first_bytes(self) -> bool:
        with trio.move_on_after(self._limits.idle_s):
            received = bytes(await self._stream.receive_some(RECEIVE_BYTES))
            self._h11.receive_data(received)
            return bool(received)
        return False

    async def _body(self) -> bytes:
        body = bytearray()
        while isinstance(event := await self._event(), h11.Data):
            body += event.data
            if len(body) > self._limits.body_bytes:
                raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {self._limits.body_bytes} bytes")
        return bytes(body)

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(bytes(await self._stream.receive_some(RECEIVE_BYTES)))
        return event

    async def _send(self, method: str, response: Response) -> None:
        headers = [("content-type", response.content_type), ("content-length", str(len(response.body)))]
        if self._h11.their_state is h11.ERROR:
            headers.append(("connection", "close"))
        head = h11.Response(
            status_code=response.status,
            reason=HTTPStatus(response.status).phrase.encode(),
            headers=[*headers, *response.headers],
        )
        sent = self._h11.send(head) or b""
        if method != "HEAD":
            sent += self._h11.send(h11.Data(data=response.body)) or b""
        sent += self._h11.send(h11.EndOfMessage()) or b""
        with trio.move_on_after(self._limits.request_s) as scope:
            await self._stream.send_all(sent)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("the client does not take its answer")

    async def _refuse(self, response: Response) -> None:
        """Answer if that is possible still, then hear the sender out for a moment: a reset would take the answer with it."""
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        closing = Response(response.status, response.body, headers=(("connection", "close"),))
        await self._send("GET", closing)
        with trio.move_on_after(CLOSE_S):
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
            while await self._stream.receive_some(RECEIVE_BYTES):
                pass


async def _answer(handler: Handler, request: Request) -> Response:
    try:
        return await handler(request)
    except Exception:
        log.exception("%s %s: bug", request.method, request.path)
        return Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error: the server's log has the details\n")


def _plain(head: h11.Request, body: bytes) -> Request:
    path, _, query = head.target.decode("latin-1").partition("?")
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in head.headers}
    return Request(head.method.decode("latin-1"), path, query, headers, body)
