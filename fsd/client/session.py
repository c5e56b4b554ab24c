"""The session: one registration at the metadata server, kept over broken connections, lost only by eviction.

    open ──> live ──connection breaks──> resuming ──SessionResumed──> live
                                            │
                                            └──SessionEvicted / SessionUnknown──> evicted: drop everything, open a new one

The session's time runs from the *send* time of the last answered renewal (`remaining_s`): a lease is worth something only
while it runs. Numbered requests (`execute`) are sent again with the same number until they are answered; a request whose
result is unknown when the session is lost fails with SessionEvicted. Requests that may wait for a recall of somebody else's
lease are bounded in number, so that there is always room at the server for those that write back under a recall (they are
what the others wait for).
"""

import dataclasses
import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import trio

from fsd.client.state import UNLOGGED, Basis, Unlogged
from fsd.core.errors import FsError, Retry, SessionEvicted, SessionUnknown, Unreachable
from fsd.core.ids import NO_SESSION, Ino, MapEpoch, RequestNumber, SessionId
from fsd.namespace.operations import Operation
from fsd.namespace.records import Volume
from fsd.protocol.locks import LockGranted, LockReply, LocksTold, TellLocks
from fsd.protocol.metadata import (
    ANY_INODE,
    Alive,
    AllocateIds,
    BatchExecuted,
    BatchItem,
    CloseSession,
    Evicted,
    Execute,
    ExecuteBatch,
    Executed,
    Grant,
    HeldLease,
    HeldLock,
    IdRange,
    KeepAlive,
    LeaseMode,
    MapChanged,
    OpenSession,
    PromiseNothing,
    Recall,
    Recalled,
    ResumeSession,
    SessionOpened,
    SessionResumed,
)
from fsd.rpc.client import Channel
from fsd.rpc.connection import Peer
from fsd.rpc.retry import pause_s
from fsd.runtime import Runtime
from fsd.wire.frame import Buffer
from fsd.wire.handshake import Done, Hello

log = logging.getLogger(__name__)
T = TypeVar("T")

KEEP_ALIVE_S = 1.0
MAX_EXECUTES = 256  # numbered requests under way, those of write-back not counted
MAX_QUESTIONS = 512  # others that may wait for a recall; together less than a server works on for one connection
DRIFT = 0.97  # this clock may run slower than the server's
PROTOCOL_ROLE = "client"


class SessionReplaced(Exception):
    """The request was certainly not carried out, and its session is gone: make it again for the new one."""


class Keeper(Protocol):
    """Who holds what lives and dies with the session."""

    def held(self) -> tuple[HeldLease, ...]: ...

    def held_locks(self) -> tuple[HeldLock, ...]:
        """For resuming."""
        ...

    def locks_resumed(self, locks: tuple[HeldLock, ...] | None) -> None:
        """No place in a queue is left. `locks`: what the process before this one has locked."""
        ...

    def lock_answered(self, reply: LockReply | LockGranted) -> None:
        """Synchronous, in the order of arrival, behind its grants."""
        ...

    def tell_locks(self, ino: Ino) -> LocksTold: ...

    def resumed(self, grants: tuple[Grant, ...]) -> None:
        """Synchronous, in the order of arrival."""
        ...

    async def lost_leases(self) -> None:
        """After `resumed`, before anything goes on: what was lost there is dropped everywhere."""
        ...

    async def evicted(self) -> None:
        """Drop everything; what was not written back is lost."""
        ...

    def reopened(self) -> None:
        """After an eviction there is a new session."""
        ...

    def grants(self, grants: tuple[Grant, ...]) -> None: ...

    def recall_arrived(self, recall: Recall) -> None: ...

    async def recall(self, recall: Recall) -> Recalled: ...

    def map_heard(self, epoch: MapEpoch) -> None: ...

    def is_writing_back(self) -> bool:
        """Whether a recall waits for chunkservers."""
        ...


class Session:
    """See the module. Started by `start`, which raises what a user must know; then `run` in the background."""

    def __init__(
        self,
        runtime: Runtime,
        nursery: trio.Nursery,
        addresses: Sequence[str],
        volume: str,
        hello: Callable[[], Hello],
        keeper: Keeper,
        counts: Counter[str],
        state: Unlogged = UNLOGGED,
    ) -> None:
        self.id: SessionId = NO_SESSION
        self.volume: Volume | None = None
        self.file_system = ""
        self._runtime = runtime
        self._channels = [Channel(runtime, nursery, address, hello, self) for address in addresses]
        self._turn = 0
        self._volume_name = volume
        self._name = hello().name
        self._keeper = keeper
        self._counts = counts
        self._state = state
        self._adopting = False  # of what this session has at the server, this process does not know all
        self._secret = b""
        self._ttl_s = 0.0
        self._expires = 0.0
        self._peer: Peer | None = None
        self._live = trio.Event()
        self._renewed = trio.Event()
        self._clock_offset_ns = 0
        self._last_ns = 0
        self._ids: list[tuple[int, int]] = []  # [first, end)
        self._ids_lock = trio.Lock()
        self._numbers = Numbers()
        self._room = trio.CapacityLimiter(MAX_EXECUTES)
        self._questions = trio.CapacityLimiter(MAX_QUESTIONS)
        self.calls = 0
        self._outstanding: OrderedDict[int, None] = OrderedDict()
        self._closing = False
        self._lost = False
        self.may_promise = False  # as the server says in Alive

    # --- time -------------------------------------------------------------------------------------------------------

    @property
    def ttl_s(self) -> float:
        """Without a renewal the session lives no longer."""
        return self._ttl_s

    def remaining_s(self) -> float:
        """How long the leases are still worth something; negative when the time is over."""
        return self._expires - self._runtime.clock.monotonic()

    def is_valid(self) -> bool:
        return self.remaining_s() > 0

    def renewed(self, sent: float, ttl_s: float) -> None:
        """A renewal that was sent at `sent` was answered."""
        if not self._lost:
            self._expires = max(self._expires, sent + ttl_s * DRIFT)
        event, self._renewed = self._renewed, trio.Event()
        event.set()

    def now_ns(self) -> int:
        """The server's clock as far as it is known here: never going back, never ahead of it (the server would correct that,
        and a time that was shown would change when it is written back)."""
        self._last_ns = max(self._last_ns, self._runtime.clock.time_ns() + self._clock_offset_ns)
        return self._last_ns

    async def valid(self) -> None:
        """Wait until the session is live and its time runs."""
        while True:
            await self._live.wait()
            if self.is_valid():
                return
            await self._renewed.wait()

    # --- asking -----------------------------------------------------------------------------------------------------

    async def ask(self, make: Callable[[SessionId], object]) -> Any:
        """The answer to a request that may be repeated freely (it reads, or is its own repetition), and may have to wait for
        somebody else's lease."""
        async with self._questions:
            return await self.ask_urgently(make)

    async def ask_urgently(self, make: Callable[[SessionId], object]) -> Any:
        """As `ask`; what waits for no lease."""
        self._counts[type(make(self.id)).__name__] += 1
        self.calls += 1
        call = self.calls
        self._outstanding[call] = None
        try:
            return await self._until_answered(lambda peer: peer.call(make(self.id)))
        finally:
            del self._outstanding[call]

    async def _until_answered(self, call: Callable[[Peer], Awaitable[Any]]) -> Any:
        attempt = 0
        while True:
            peer = await self._connected()
            try:
                return (await call(peer)).message
            except (SessionEvicted, SessionUnknown):
                self.suspect(peer)
            except FsError as error:
                if error.retry is Retry.NEVER:
                    raise
            await self._pause(attempt)
            attempt += 1

    async def execute(
        self,
        operation: Operation,
        *,
        lease: LeaseMode = LeaseMode.NONE,
        others: LeaseMode = LeaseMode.SHARED,
        keep_open: bool = False,
        removes: Ino = ANY_INODE,
        write_back: bool = False,
        session: SessionId | None = None,
    ) -> Executed:
        """Carry out an operation exactly once. `write_back`: it waits for nobody. `session`: the one for which the operation
        was made. Raises every PosixError, SessionEvicted (unknown result), SessionReplaced."""
        if write_back:
            return await self._execute(operation, lease, others, keep_open, removes, session or self.id, write_back)
        async with self._room:
            return await self._execute(operation, lease, others, keep_open, removes, session or self.id, write_back)

    async def execute_batch(self, items: tuple[BatchItem, ...], sent_as: RequestNumber | None = None) -> BatchExecuted:
        """Carry out a part of the journal, each operation once, for the session of now. `sent_as`: the first one's number
        when another process sent them. Errors as `execute`."""
        session, numbers = self.id, self._numbers
        taken = numbers.take_batch(len(items), sent_as)
        self._state.shipped(taken[0], len(items))
        try:
            return await self._until_carried_out(
                session,
                "ExecuteBatch",
                lambda: ExecuteBatch(session, taken[0], min(numbers.floor(), taken[0]), items),
            )
        except SessionReplaced:
            raise SessionEvicted(f"session {session} was evicted before its journal was shipped") from None
        finally:
            for number in taken:
                numbers.answered(number)

    async def _execute(
        self,
        operation: Operation,
        lease: LeaseMode,
        others: LeaseMode,
        keep_open: bool,
        removes: Ino,
        session: SessionId,
        write_back: bool,
    ) -> Executed:
        if session != self.id:
            raise SessionReplaced
        numbers = self._numbers
        number = numbers.take()
        request = Execute(session, number, numbers.floor(), operation, lease, keep_open, others, removes, write_back)
        self._state.requested(request, write_back)
        return await self.carry_out(request)

    async def carry_out(self, request: Execute) -> Executed:
        """Send a numbered request until it is answered."""
        session, number, numbers = request.session, request.number, self._numbers
        try:
            executed: Executed = await self._until_carried_out(
                session,
                type(request.operation).__name__,
                lambda: dataclasses.replace(request, floor=min(number, numbers.floor())),
            )
        except (FsError, SessionReplaced):
            self._state.answered(number, carried_out=False)
            raise
        finally:
            numbers.answered(number)
        self._state.answered(number, carried_out=True)
        return executed

    async def _until_carried_out(self, session: SessionId, name: str, make: Callable[[], object]) -> Any:
        """The answer to a numbered request, which is sent again until there is one."""
        self._counts[name] += 1
        self.calls += 1
        call = self.calls
        self._outstanding[call] = None
        unknown = False
        attempt = 0
        try:
            while True:
                peer = await self._connected()
                if self.id != session:
                    if unknown:
                        raise SessionEvicted(f"session {session} was evicted while {name} was under way")
                    raise SessionReplaced
                try:
                    return (await peer.call(make())).message
                except (SessionEvicted, SessionUnknown):
                    self.suspect(peer)
                except FsError as error:
                    if error.retry is Retry.NEVER:
                        raise
                    unknown = unknown or isinstance(error, Unreachable)
                await self._pause(attempt)
                attempt += 1
        finally:
            del self._outstanding[call]

    async def _connected(self) -> Peer:
        """The connection on which the session is live; it may be gone again before whoever waited for it runs."""
        while True:
            await self._live.wait()
            if self._peer is not None:
                return self._peer

    async def _pause(self, attempt: int) -> None:
        await trio.sleep(pause_s(attempt, self._runtime.random, 0.01, 1.0))

    def suspect(self, peer: Peer | None = None) -> None:
        """Somebody says that the session is gone: find out by resuming it."""
        if self._peer is not None and peer in (None, self._peer):
            self._peer.close()

    def oldest_call(self) -> int:
        """The counter value of the oldest request under way; `calls + 1` if there is none."""
        return next(iter(self._outstanding), self.calls + 1)

    async def new_id(self) -> int:
        """A number for a new inode or new data, never given twice."""
        while not self._ids:
            async with self._ids_lock:
                if not self._ids:
                    session = self.id
                    reply: IdRange = await self.ask_urgently(AllocateIds)
                    if session == self.id:
                        self._ids.append((reply.first_id, reply.first_id + reply.id_count))
        spare = self.spare_id()
        assert spare is not None
        return spare

    def spare_id(self) -> int | None:
        """As `new_id`; None if the server must be asked for more."""
        if not self._ids:
            return None
        first, end = self._ids[0]
        if first + 1 < end:
            self._ids[0] = (first + 1, end)
        else:
            del self._ids[0]
        return first

    # --- the connection ---------------------------------------------------------------------------------------------

    async def start(self, patience_s: float) -> None:
        """Open the session, or go on with the one that was restored. Raises what the server says, or Unreachable after
        `patience_s`."""
        error: FsError = Unreachable("no metadata server is named")
        attempt = 0
        with trio.move_on_after(patience_s):
            while True:
                for _ in self._channels:
                    try:
                        peer = await self._next_channel().peer()
                        await (self._resume(peer) if self._adopting else self._open(peer))
                        self._go_live(peer)
                        return
                    except FsError as raised:
                        error = raised
                        if error.retry is Retry.NEVER:
                            raise
                await self._pause(attempt)
                attempt += 1
        raise error

    def restore(self, basis: Basis, next_number: int, unanswered: Iterable[RequestNumber]) -> None:
        """Before `start`: this process goes on with another one's session."""
        self.id, self._secret, self._ttl_s = basis.session, basis.secret, basis.ttl_s
        self.file_system, self.volume = basis.file_system, basis.volume
        self._numbers = Numbers(next_number, unanswered)
        self._adopting = True

    async def run(self) -> None:
        """Keep the session until cancelled."""
        while True:
            if self._peer is not None:
                await self._keep_alive(self._peer)
                self._peer.close()
                self._peer = None
                self._live = trio.Event()
            await self._reconnect()

    async def close(self) -> None:
        """Give the session back, if the server can be reached."""
        self._closing = True
        if self._peer is not None and not self._peer.closed.is_set():
            try:
                await self._peer.call(CloseSession(self.id))
            except FsError as error:
                log.warning("session %d was not closed, it will expire: %s", self.id, error)
        for channel in self._channels:
            channel.close()

    def _next_channel(self) -> Channel:
        channel = self._channels[self._turn % len(self._channels)]
        self._turn += 1
        return channel

    async def _reconnect(self) -> None:
        attempt = 0
        self._turn -= 1  # the server that we had comes first
        while True:
            channel = self._next_channel()
            try:
                peer = await channel.peer()
                await self._resume(peer)
                self._go_live(peer)
                return
            except FsError as error:
                level = logging.WARNING if attempt in (3, 30, 300) else logging.DEBUG
                log.log(level, "waiting for the metadata server at %s: %s", channel.address, error)
                if channel.connected is not None:
                    channel.connected.close()
            await self._pause(attempt)
            attempt += 1

    async def _open(self, peer: Peer) -> None:
        self.file_system = getattr(peer.remote, "file_system", "")
        sent = self._runtime.clock.monotonic()
        opened: SessionOpened = (await peer.call(OpenSession(self._name, self._volume_name))).message
        self.id, self._secret, self._ttl_s = opened.session, opened.secret, opened.ttl_s
        self.volume = opened.volume
        self._ids = [(opened.first_id, opened.first_id + opened.id_count)]
        self._numbers = Numbers()
        self._adopting = False
        self._lost = False
        self._expires = 0.0
        self._set_clock(opened.server_time_ns)
        self.renewed(sent, opened.ttl_s)
        self.may_promise = opened.may_promise
        self._keeper.map_heard(opened.map_epoch)
        self._state.session_begins(self.id, self._secret, self._ttl_s, self.file_system, opened.volume)
        log.info("session %d of volume %s is open at %s", self.id, opened.volume.name, peer.address)

    async def _lose(self, why: str) -> None:
        """The session is gone: nothing of it counts any more."""
        if not self._lost:
            self._lost = True
            self._expires = 0.0
            log.error("session %d was evicted: what was not written back is lost (%s)", self.id, why)
            self._counts["evictions"] += 1
        await self._keeper.evicted()

    async def _resume(self, peer: Peer) -> None:
        sent = self._runtime.clock.monotonic()
        try:
            with trio.fail_after(max(self._ttl_s, 1.0) * 3):
                request = ResumeSession(
                    self.id, self._secret, self._keeper.held(), self._adopting, self._keeper.held_locks()
                )
                reply = (await peer.call(request)).message
        except (SessionEvicted, SessionUnknown) as error:
            await self._lose(str(error))
            await self._open(peer)
            self._keeper.reopened()
            return
        except trio.TooSlowError:
            raise Unreachable(f"{peer.address} did not resume session {self.id}") from None
        resumed: SessionResumed = reply
        self._counts["resumes"] += 1
        adopted, self._adopting = self._adopting, False
        self._ttl_s = resumed.ttl_s
        self._set_clock(resumed.server_time_ns)
        await self._keeper.lost_leases()
        self._keeper.locks_resumed(resumed.locks if adopted else None)
        self.renewed(sent, resumed.ttl_s)
        self.may_promise = resumed.may_promise
        self._keeper.map_heard(resumed.map_epoch)
        log.info("session %d goes on at %s", self.id, peer.address)

    def _go_live(self, peer: Peer) -> None:
        self._peer = peer
        self._live.set()

    async def _keep_alive(self, peer: Peer) -> None:
        """Renew until the connection ends or is silent."""
        while not peer.closed.is_set():
            with trio.move_on_after(KEEP_ALIVE_S):
                await peer.closed.wait()
                return
            sent = self._runtime.clock.monotonic()
            with trio.move_on_after(self._ttl_s / 2) as scope:
                try:
                    alive: Alive = (await peer.call(KeepAlive(self.id, self._keeper.is_writing_back()))).message
                except (SessionEvicted, SessionUnknown):
                    return
                except FsError as error:
                    log.debug("keep-alive of session %d: %s", self.id, error)
                    continue
                self.renewed(sent, self._ttl_s)
                self.may_promise = alive.may_promise
                self._keeper.map_heard(alive.map_epoch)
            if scope.cancelled_caught:
                log.warning("%s has been silent for %g s: connecting again", peer.address, self._ttl_s / 2)
                return

    def _set_clock(self, server_time_ns: int) -> None:
        self._clock_offset_ns = server_time_ns - self._runtime.clock.time_ns()  # less by the way back: never ahead

    # --- what the server says (fsd.rpc.connection.Service) ------------------------------------------------------------

    def arrived(self, peer: Peer, message: Any) -> None:
        """Grants, recalls and map epochs, in order of arrival."""
        if peer.closed.is_set():
            return  # of a connection that was given up: the resumed session's leases count
        if isinstance(message, Recall):
            if message.session == self.id:
                self._keeper.recall_arrived(message)
        elif isinstance(message, MapChanged):
            self._keeper.map_heard(message.map_epoch)
        elif isinstance(message, Evicted):
            if message.session == self.id:
                self._expires = 0.0  # act under nothing any more, from this moment
        elif isinstance(message, PromiseNothing):
            self.may_promise = False
        elif isinstance(message, SessionResumed):
            self._keeper.resumed(message.grants)
        else:
            grants: tuple[Grant, ...] = getattr(message, "grants", ())
            if grants:
                self._keeper.grants(grants)
            if isinstance(message, (LockReply, LockGranted)):
                self._keeper.lock_answered(message)

    async def handle(self, peer: Peer, message: Any, payload: Buffer) -> Any:
        """The server's requests."""
        if isinstance(message, Recall):
            if message.session != self.id:
                raise SessionUnknown(f"this client has session {self.id}, not {message.session}")
            return await self._keeper.recall(message)
        if isinstance(message, TellLocks) and message.session == self.id:
            return self._keeper.tell_locks(message.ino)
        if isinstance(message, Evicted) and message.session == self.id:
            await self._lose("the server says so")
        return Done()

    def disconnected(self, peer: Peer) -> None:
        """`run` notices by itself."""


class Numbers:
    """Request numbers of one session and those that are not answered yet."""

    def __init__(self, first: int = 1, unanswered: Iterable[RequestNumber] = ()) -> None:
        self._next = first
        self._unanswered: OrderedDict[int, None] = OrderedDict.fromkeys(sorted(unanswered))

    def take_batch(self, count: int, sent_as: RequestNumber | None) -> list[RequestNumber]:
        """Numbers that follow each other; those from `sent_as` on if these operations have them already (I11)."""
        if sent_as is not None:
            return [RequestNumber(sent_as + at) for at in range(count)]
        return [self.take() for _ in range(count)]

    def take(self) -> RequestNumber:
        number = self._next
        self._next += 1
        self._unanswered[number] = None
        return RequestNumber(number)

    def answered(self, number: RequestNumber) -> None:
        self._unanswered.pop(number, None)

    def floor(self) -> RequestNumber:
        """All answers to lower numbers have arrived."""
        return RequestNumber(next(iter(self._unanswered), self._next))
