"""One live connection on which both ends may ask and answer.

    asker                                   answerer
    REQUEST id ───────────────────────────> a task runs Service.handle
    CANCEL id  ───────────────────────────> (the asker no longer waits: that task is cancelled)
               <─────────────────────────── REPLY id, or REPLY|ERROR id with an ErrorReply
    ONE_WAY    ───────────────────────────> a task runs Service.handle, nothing comes back

Requests are answered in any order. When a connection ends, every unanswered request raises Unreachable: whether it was
carried out is unknown, and only a request number makes it safe to ask again. Bounds: MAX_RUNNING requests are worked on
at once for one connection; more are refused with Overloaded (not left unread: an answer that one of the running ones
waits for may be behind them). A message that does not decode ends the connection, and nothing else.
"""

import itertools
import logging
from typing import Any, NamedTuple, Protocol, cast

import trio

from fsd.core.errors import FsError, InternalError, Overloaded, ProtocolError, Unreachable, error_from_wire
from fsd.core.units import KIB
from fsd.runtime.network import Connection
from fsd.wire.codec import decode_number, encode, number_of_message
from fsd.wire.frame import Buffer, Flag, Frame
from fsd.wire.handshake import Done, ErrorReply, Hello, Welcome

log = logging.getLogger(__name__)

MAX_RUNNING = 1024
MAX_WAITING = 65_536
MAX_BEGUN_BYTES = 64 * KIB  # of a payload that is sent without a task to wait with


class Reply(NamedTuple):
    """A message of a @wire class and the bytes beside it."""

    message: Any
    payload: Buffer = b""


class Service(Protocol):
    """What one end of a connection offers to the other."""

    async def handle(self, peer: "Peer", message: Any, payload: Buffer) -> Any:
        """Answer a request: a message, or a Reply with a payload. An FsError is reported to the asker; any other exception is
        a bug: logged, and reported as InternalError."""
        ...

    def arrived(self, peer: "Peer", message: Any) -> None:
        """Called for every request and every answer in the order of arrival, before its handler or its waiter runs."""
        ...

    def disconnected(self, peer: "Peer") -> None:
        """The connection is gone."""
        ...


class NoService:
    """Of an end that only asks."""

    async def handle(self, peer: "Peer", message: Any, payload: Buffer) -> Any:
        raise ProtocolError(f"this end answers no requests, got {type(message).__name__}")

    def arrived(self, peer: "Peer", message: Any) -> None:
        pass

    def disconnected(self, peer: "Peer") -> None:
        pass


class _Waiter:
    """One task that waits for one answer; half the cost of a trio.Event."""

    __slots__ = ("done", "error", "reply", "task")

    def __init__(self) -> None:
        self.task: trio.lowlevel.Task | None = None
        self.done = False
        self.reply: Reply | None = None
        self.error: FsError | None = None

    def finish(self) -> None:
        self.done = True
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)
            self.task = None

    async def wait(self) -> None:
        if self.done:
            await trio.lowlevel.checkpoint()
            return
        self.task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, raise_cancel: Any) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def answer(self) -> Reply:
        if self.error is not None:
            raise self.error
        assert self.reply is not None
        return self.reply


class Call:
    """A request on its way. Whoever has begun it waits for the answer or gives it up."""

    __slots__ = ("_peer", "_request_id", "_waiter")

    def __init__(self, peer: "Peer", request_id: int, waiter: _Waiter) -> None:
        self._peer = peer
        self._request_id = request_id
        self._waiter = waiter

    async def reply(self) -> Reply:
        """As Peer.call."""
        try:
            await self._waiter.wait()
        finally:
            self.give_up()
        return self._waiter.answer()

    def give_up(self) -> None:
        """Wait no longer; nothing if the answer is there."""
        self._peer.give_up(self._request_id)


class Peer:
    """The other end of a live connection. Made by Channel and `serve`, which also run `run`."""

    def __init__(self, connection: Connection, service: Service, remote: Hello | Welcome) -> None:
        self.remote = remote
        self.address = connection.peer
        self.state: Any = None
        self.closed = trio.Event()
        self._connection = connection
        self._service = service
        self._send_lock = trio.Lock()
        self._ids = itertools.count(1)
        self._waiting: dict[int, _Waiter] = {}
        self._running: dict[int, trio.CancelScope] = {}
        self._tasks = 0
        self._cancelled: list[int] = []
        self._left_over = False  # of a frame of `begin`
        self._errand = trio.Event()

    async def call(self, message: Any, payload: Buffer = b"") -> Reply:
        """Ask and wait for the answer. Raises the error that the peer reported, or Unreachable (unknown result)."""
        request_id, waiter, frame = self._prepare(message, payload)
        try:
            await self._send(frame)
            await waiter.wait()
        finally:
            self.give_up(request_id)
        return waiter.answer()

    def begin(self, message: Any, payload: Buffer = b"") -> "Call | None":
        """Ask now and wait later, without a task for it. `payload` must not change until then. None if that cannot be,
        because others wait to send or the payload is large. Raises Unreachable, Overloaded."""
        if self._send_lock.locked() or len(payload) > MAX_BEGUN_BYTES:
            return None
        request_id, waiter, frame = self._prepare(message, payload)
        try:
            if not self._connection.send_nowait(frame):
                self._left_over = True
                self._errand.set()
        except Unreachable as error:
            self._shut(error)
            raise
        return Call(self, request_id, waiter)

    def _prepare(self, message: Any, payload: Buffer) -> tuple[int, _Waiter, Frame]:
        if self.closed.is_set():
            raise Unreachable(f"connection to {self.address} is closed")
        if len(self._waiting) >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} requests to {self.address} are unanswered")
        request_id = next(self._ids)
        frame = Frame(number_of_message(message), Flag.REQUEST, request_id, encode(message), payload)
        waiter = self._waiting[request_id] = _Waiter()
        return request_id, waiter, frame

    def give_up(self, request_id: int) -> None:
        """Nobody waits for this answer any more."""
        if self._waiting.pop(request_id, None) is not None and not self.closed.is_set():
            self._cancelled.append(request_id)
            self._errand.set()

    async def notify(self, message: Any) -> None:
        """Send one way. Raises Unreachable if the connection is known to be gone."""
        await self._send(Frame(number_of_message(message), Flag.ONE_WAY, 0, encode(message)))

    def close(self) -> None:
        """End the connection at once."""
        self._shut(Unreachable(f"connection to {self.address} was closed"))

    async def run(self) -> None:
        """Read until the connection ends; then everything that waits or runs for it is ended too."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_errands)
                reason = await self._read(nursery)
                self._shut(reason)
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    async def _read(self, nursery: trio.Nursery) -> FsError:
        try:
            while True:
                self._dispatch(await self._connection.receive(), nursery)
        except Unreachable as error:
            return error
        except FsError as error:
            log.warning("closing connection to %s: %s", self.address, error)
            return Unreachable(f"connection to {self.address} closed: {error}")

    async def _send(self, frame: Frame) -> None:
        if self._send_lock.locked():
            async with self._send_lock:
                await self._send_whole(frame)
        else:
            await self._send_whole(frame)

    async def _send_whole(self, frame: Frame) -> None:
        """No await at all while the peer keeps up: what is sent first arrives first."""
        if self.closed.is_set():
            raise Unreachable(f"connection to {self.address} is closed")
        try:
            if self._connection.send_nowait(frame):
                return
            if self._send_lock.statistics().owner is trio.lowlevel.current_task():
                await self._connection.drain()
            else:
                async with self._send_lock:
                    await self._connection.drain()
        except Unreachable as error:
            self._shut(error)
            raise
        except trio.Cancelled:  # in the middle of a frame whose buffers are the caller's: the stream cannot go on
            self._shut(Unreachable(f"sending to {self.address} was broken off"))
            raise

    def _dispatch(self, frame: Frame, nursery: trio.Nursery) -> None:
        if frame.flags & Flag.CANCEL:
            scope = self._running.get(frame.request_id)
            if scope is not None:
                scope.cancel()
            return
        message = decode_number(frame.type, frame.message)
        if frame.flags & Flag.REPLY:
            self._deliver(frame, message)
        elif self._tasks >= MAX_RUNNING:
            nursery.start_soon(self._refuse, frame)
        elif frame.request_id in self._running:
            raise ProtocolError(f"request id {frame.request_id} is in use")
        else:
            self._service.arrived(self, message)
            self._tasks += 1
            scope = trio.CancelScope()
            if not frame.flags & Flag.ONE_WAY:
                self._running[frame.request_id] = scope
            nursery.start_soon(self._work, frame, message, scope)

    def _deliver(self, frame: Frame, message: Any) -> None:
        waiter = self._waiting.pop(frame.request_id, None)
        if frame.flags & Flag.ERROR:
            if not isinstance(message, ErrorReply):
                raise ProtocolError(f"{type(message).__name__} is not an error")
            if waiter is not None:
                waiter.error = error_from_wire(message.number, message.text)
        else:
            self._service.arrived(self, message)
            if waiter is not None:
                waiter.reply = Reply(message, frame.payload)
        if waiter is not None:
            waiter.finish()

    async def _work(self, frame: Frame, message: Any, scope: trio.CancelScope) -> None:
        try:
            with scope:
                answer = await self._answer(message, frame.payload)
                if not frame.flags & Flag.ONE_WAY:
                    await self._reply(frame.request_id, answer)
        finally:
            self._tasks -= 1
            self._running.pop(frame.request_id, None)

    async def _answer(self, message: Any, payload: Buffer) -> Any:
        try:
            answer = await self._service.handle(self, message, payload)
            return Done() if answer is None else answer
        except Exception as raised:
            error = only_error(raised)
            if error is None:
                log.exception("%s from %s met a bug", type(message).__name__, self.address)
                error = InternalError(f"{type(message).__name__} met a bug, see the log")
            return ErrorReply(error.number, str(error)[:1000])

    async def _reply(self, request_id: int, answer: Any) -> None:
        message, payload = answer if isinstance(answer, Reply) else (answer, b"")
        flags = Flag.REPLY | Flag.ERROR if isinstance(message, ErrorReply) else Flag.REPLY
        try:
            await self._send(Frame(number_of_message(message), flags, request_id, encode(message), payload))
        except Unreachable as error:
            log.debug("answer %d to %s is lost: %s", request_id, self.address, error)

    async def _refuse(self, frame: Frame) -> None:
        error = Overloaded(f"{MAX_RUNNING} requests of this connection are running")
        await self._reply(frame.request_id, ErrorReply(error.number, str(error)))

    async def _run_errands(self) -> None:
        """What has no task of its own: telling the peer of requests that nobody waits for, and the rest of a begun one."""
        while True:
            await self._errand.wait()
            self._errand = trio.Event()
            wanted, self._cancelled = self._cancelled, []
            try:
                if self._left_over:
                    self._left_over = False
                    async with self._send_lock:
                        await self._connection.drain()
                for request_id in wanted:
                    await self._send(Frame(0, Flag.CANCEL, request_id, b""))
            except Unreachable:
                return  # with the connection every request ends anyway

    def _shut(self, reason: FsError) -> None:
        if self.closed.is_set():
            return
        self.closed.set()
        self._connection.close()
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            waiter.error = reason if isinstance(reason, Unreachable) else Unreachable(str(reason))
            waiter.finish()
        self._service.disconnected(self)


def only_error(raised: BaseException) -> FsError | None:
    """The FsError in an exception, or in a group of nothing but FsErrors (what a nursery makes of them)."""
    if isinstance(raised, FsError):
        return raised
    if isinstance(raised, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", raised)
        errors = [only_error(inner) for inner in group.exceptions]
        return errors[0] if all(error is not None for error in errors) else None
    return None
