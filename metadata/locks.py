"""Locks of all sessions, and to whom the deciding is delegated. The rules are fsd.namespace.locks; docs of the protocol:
fsd.protocol.locks.

    another session has the lease exclusively?  it is recalled first: the holder hands its locks over before it releases
    then one synchronous step: decide, grant the lease and delegate if nobody else is concerned

Nothing here is durable: after a restart no lock is decided about before every session has resumed, with its locks, or is gone
(Sessions.settled), and a session whose end is not fenced yet keeps what it has (Sessions.end).
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import trio

from fsd.core.errors import FsError, InvalidArgument, NotServing, StaleHandle
from fsd.core.ids import Ino, LayerId, SessionId
from fsd.namespace.locks import RANGE_END, LockedRange, LockSpace, LockTable, Ticket, Verdict
from fsd.protocol.locks import (
    CancelLock,
    HandOverLocks,
    InspectLocks,
    LockFound,
    LockGranted,
    LockReply,
    LockRow,
    LocksReply,
    LocksTold,
    SetLock,
    TellLocks,
    TestLock,
    Unlock,
)
from fsd.protocol.metadata import Grant, HeldLock, LeaseMode
from fsd.rpc.connection import Peer
from fsd.runtime import Clock
from fsd.wire.handshake import Done
from metadata.guards import Guards
from metadata.leases import InodeKey
from metadata.live import LiveSession, Sessions
from metadata.recalls import Recaller
from metadata.store import Store

log = logging.getLogger(__name__)

TELL_S = 2.0  # how long an administrator's question waits for the client that decides


class Owner(NamedTuple):
    """Who holds a lock: a lock owner of one client's kernel."""

    session: SessionId
    owner: int


class Place(NamedTuple):
    """A waiter's ticket."""

    session: SessionId
    number: int


class Note(NamedTuple):
    """Of an owner in a file: for those who ask, and for a client's next process."""

    since: float
    handle: int


Told = Callable[[Peer], Awaitable[None]]


class LockService:
    """See the module. `before_telling`: what must have happened before a client hears of what others have done."""

    def __init__(
        self,
        clock: Clock,
        nursery: trio.Nursery,
        store: Store,
        sessions: Sessions,
        recaller: Recaller,
        guards: Guards,
        before_telling: Told,
    ) -> None:
        self._clock = clock
        self._nursery = nursery
        self._store = store
        self._sessions = sessions
        self._recaller = recaller
        self._guards = guards
        self._before_telling = before_telling
        self._tables: dict[LayerId, LockTable] = {}
        self._notes: dict[tuple[InodeKey, LockSpace, Owner], Note] = {}
        self._telling: Counter[tuple[SessionId, InodeKey]] = Counter()
        self._places: dict[Place, InodeKey] = {}
        sessions.ended.append(self.drop_session)
        sessions.leases.dropped = self.drop_inode

    def table(self, layer: LayerId) -> LockTable:
        if layer not in self._tables:
            self._tables[layer] = LockTable()
        return self._tables[layer]

    # --- requests -----------------------------------------------------------------------------------------------------

    async def set(self, live: LiveSession, request: SetLock) -> LockReply:
        lock = request.lock
        check_range(lock)
        key = InodeKey(live.state.layer, lock.ino)
        await self._gather(live, key)
        if self._store.inode(*key) is None:
            raise StaleHandle(f"inode {lock.ino} is gone")
        table, place = self.table(key.layer), Place(live.state.session, request.ticket)
        if table.is_waiting(place):
            return LockReply(request.ticket, Verdict.WAITING, False, ())
        wanted = range_of(live.state.session, lock)
        outcome = table.acquire(lock.space, lock.ino, wanted, place if request.wait else None)
        if outcome.verdict in (Verdict.GRANTED, Verdict.WAITING):
            self._note(key, lock.space, wanted.owner, lock.handle)
        if outcome.verdict is Verdict.WAITING:
            self._places[place] = key
        self._wake(key.layer, outcome.woken)
        grants = self._delegate(live, key) if request.delegate and outcome.verdict is Verdict.GRANTED else ()
        return LockReply(request.ticket, outcome.verdict, bool(grants), grants)

    async def unlock(self, live: LiveSession, request: Unlock) -> Done:
        await trio.lowlevel.checkpoint()
        key, owner = InodeKey(live.state.layer, request.ino), Owner(live.state.session, request.owner)
        woken = self.table(key.layer).release(request.space, request.ino, owner, request.start, request.end)
        self._forget_notes(key, request.space, owner)
        self._wake(key.layer, woken)
        return Done()

    async def cancel(self, live: LiveSession, request: CancelLock) -> Done:
        await trio.lowlevel.checkpoint()
        lock, session = request.lock, live.state.session
        key, owner = InodeKey(live.state.layer, lock.ino), Owner(session, lock.owner)
        table, place = self.table(key.layer), Place(session, request.ticket)
        self._places.pop(place, None)
        if table.is_waiting(place):
            woken = table.cancel(place)
        else:
            before = [range_of(session, held) for held in request.before]
            woken = table.take_back(lock.space, lock.ino, owner, lock.start, lock.end, before)
        self._forget_notes(key, lock.space, owner)
        self._wake(key.layer, woken)
        return Done()

    async def test(self, live: LiveSession, request: TestLock) -> LockFound:
        lock = request.lock
        check_range(lock)
        key = InodeKey(live.state.layer, lock.ino)
        await self._gather(live, key)
        found = self.table(key.layer).conflict(lock.space, lock.ino, range_of(live.state.session, lock))
        return LockFound(None if found is None else self._told(key, lock.space, found))

    async def hand_over(self, live: LiveSession, request: HandOverLocks) -> Done:
        """Waits for nothing: somebody who holds a guard waits for this."""
        await trio.lowlevel.checkpoint()
        self.restate(live, request.locks, request.ino)
        return Done()

    # --- deciding -----------------------------------------------------------------------------------------------------

    async def _gather(self, live: LiveSession, key: InodeKey) -> None:
        """Return when nobody but the server decides about the inode's locks. What the asker does then at once comes before
        anybody else gets the lease. Raises NotServing if the asker's connection ended meanwhile: its locks were told anew."""
        peer, session = live.peer, live.state.session
        await trio.lowlevel.checkpoint()
        while not self._sessions.leases.is_free(key, session, LeaseMode.SHARED):
            async with self._guards.hold([key]):
                await self._recaller.clear(session, [key], LeaseMode.SHARED)
        live.check()
        if live.peer is not peer:
            raise NotServing(f"session {session} has gone on over another connection")

    def _delegate(self, live: LiveSession, key: InodeKey) -> tuple[Grant, ...]:
        """The exclusive lease, if the session may decide about this inode's locks from now on."""
        session, leases = live.state.session, self._sessions.leases
        if not self.is_alone(session, key):
            return ()
        if self._guards.is_held(key) or not leases.is_free(key, session, LeaseMode.EXCLUSIVE):
            return ()
        return (leases.grant(key, session, LeaseMode.EXCLUSIVE, self._clock.monotonic()),)

    def is_alone(self, session: SessionId, key: InodeKey) -> bool:
        """Whether no other session has a lock on the inode, and nobody waits or is about to hear that its waiting is over."""
        table = self.table(key.layer)
        return not self._telling[session, key] and not any(
            table.waiting(space, key.ino) or any(session_of(held) != session for held in table.held(space, key.ino))
            for space in LockSpace
        )

    def restate(self, live: LiveSession, locks: Iterable[HeldLock], only: Ino | None = None) -> None:
        """What the session says that it holds is what it holds, and it waits for nothing."""
        session, layer = live.state.session, live.state.layer
        told = list(locks)
        stated = [(lock.space, range_of(session, lock), lock.ino) for lock in told]
        notes = {at: note for at, note in self._notes.items() if at[2].session == session and only in (None, at[0].ino)}
        for at in notes:
            del self._notes[at]
        for lock in told:
            at = (InodeKey(layer, lock.ino), lock.space, Owner(session, lock.owner))
            since = notes[at].since if at in notes else self._clock.monotonic()
            self._notes[at] = Note(since, lock.handle)
        for place in [place for place in self._places if place.session == session]:
            if only in (None, self._places[place].ino):
                del self._places[place]
        restated = self.table(layer).restate(lambda owner: is_of(owner, session), stated, only)
        for space, held, ino in restated.refused:
            log.error("session %d says that it holds a %s lock of inode %d: %s, others do", session, space, ino, held)
        self._wake(layer, restated.woken)

    def counts(self) -> Counter[SessionId]:
        """How many ranges each session holds, as far as the server knows."""
        return Counter(session_of(held) for table in self._tables.values() for _, held, _ in table.everything())

    def claims(self, live: LiveSession) -> tuple[HeldLock, ...]:
        """What the session holds, for its client's next process."""
        layer, session = live.state.layer, live.state.session
        return tuple(
            self._told(InodeKey(layer, ino), space, held)
            for space, held, ino in self.table(layer).everything()
            if session_of(held) == session
        )

    def drop_session(self, session: SessionId, layer: LayerId) -> None:
        """The session is over, and fenced."""
        if layer not in self._tables:
            return
        for at in [at for at in self._notes if at[2].session == session]:
            del self._notes[at]
        for place in [place for place in self._places if place.session == session]:
            del self._places[place]
        self._wake(layer, self._tables[layer].drop_owners(lambda owner: is_of(owner, session)))

    def drop_inode(self, key: InodeKey) -> None:
        """The inode is gone for good."""
        if key.layer in self._tables:
            table = self._tables[key.layer]
            for space in LockSpace:
                for held in table.held(space, key.ino):
                    self._notes.pop((key, space, Owner(*owner_of(held))), None)
            table.drop_file(key.ino)

    # --- telling ------------------------------------------------------------------------------------------------------

    def _wake(self, layer: LayerId, woken: Iterable[Ticket]) -> None:
        for place in woken:
            assert isinstance(place, Place)
            key, live = self._places.pop(place), self._sessions.live(place.session)
            if live is not None and live.peer is not None:  # else it asks again when it resumes
                self._telling[place.session, key] += 1
                self._nursery.start_soon(self._tell, place, key, live.peer)

    async def _tell(self, place: Place, key: InodeKey, peer: Peer) -> None:
        try:
            await self._before_telling(peer)
            await peer.call(LockGranted(place.session, place.number))
        except FsError as error:
            log.debug("session %d will ask again for its lock of inode %d: %s", place.session, key.ino, error)
        finally:
            self._telling[place.session, key] -= 1
            if not self._telling[place.session, key]:
                del self._telling[place.session, key]

    # --- for administration -------------------------------------------------------------------------------------------

    async def inspect(self, request: InspectLocks) -> LocksReply:
        """As it is now; a client that decides by itself is asked."""
        await trio.lowlevel.checkpoint()
        key = InodeKey(request.layer, request.ino)
        told, delegate = await self._ask_delegate(key)
        table = self.table(key.layer)
        rows: list[LockRow] = []
        for space in LockSpace:
            locks = [
                self._told(key, space, held) for held in table.held(space, key.ino) if session_of(held) != delegate
            ]
            locks += [lock for lock in told if lock.space is space]
            sessions = [session_of(held) for held in table.held(space, key.ino) if session_of(held) != delegate]
            sessions += [delegate] * (len(locks) - len(sessions))
            rows += [self._row(key, session, lock, False) for session, lock in zip(sessions, locks, strict=True)]
            rows += [
                self._row(key, session_of(wanted), self._told(key, space, wanted), True)
                for wanted in table.waiters(space, key.ino)
            ]
        return LocksReply(tuple(rows), delegate)

    async def _ask_delegate(self, key: InodeKey) -> tuple[tuple[HeldLock, ...], SessionId]:
        for session in self._sessions.leases.holders(key):
            live = self._sessions.live(session)
            if self._sessions.leases.mode(key, session) is LeaseMode.EXCLUSIVE and live is not None and live.peer:
                try:
                    with trio.move_on_after(TELL_S):
                        told: LocksTold = (await live.peer.call(TellLocks(session, key.ino))).message
                        if told.delegated:
                            return told.locks, session
                except FsError as error:
                    log.debug("session %d does not tell its locks: %s", session, error)
        return (), SessionId(0)

    def _row(self, key: InodeKey, session: SessionId, lock: HeldLock, waiting: bool) -> LockRow:
        live = self._sessions.live(session)
        note = self._notes.get((key, lock.space, Owner(session, lock.owner)))
        age_s = -1.0 if note is None else self._clock.monotonic() - note.since
        return LockRow(session, "" if live is None else live.state.record.client, lock, waiting, age_s)

    # --- small things -------------------------------------------------------------------------------------------------

    def _note(self, key: InodeKey, space: LockSpace, owner: object, handle: int) -> None:
        assert isinstance(owner, Owner)
        self._notes.setdefault((key, space, owner), Note(self._clock.monotonic(), handle))

    def _forget_notes(self, key: InodeKey, space: LockSpace, owner: Owner) -> None:
        table = self.table(key.layer)
        if not table.holds(space, key.ino, owner) and not any(
            wanted.owner == owner for wanted in table.waiters(space, key.ino)
        ):
            self._notes.pop((key, space, owner), None)

    def _told(self, key: InodeKey, space: LockSpace, held: LockedRange) -> HeldLock:
        owner = Owner(*owner_of(held))
        note = self._notes.get((key, space, owner))
        handle = 0 if note is None else note.handle
        return HeldLock(key.ino, space, owner.owner, held.kind, held.start, held.end, held.pid, handle)


def range_of(session: SessionId, lock: HeldLock) -> LockedRange:
    return LockedRange(Owner(session, lock.owner), lock.kind, lock.start, lock.end, lock.pid)


def check_range(lock: HeldLock) -> None:
    if not 0 <= lock.start < lock.end <= RANGE_END:
        raise InvalidArgument(f"bytes {lock.start} to {lock.end} of inode {lock.ino} cannot be locked")


def owner_of(held: LockedRange) -> Owner:
    assert isinstance(held.owner, Owner)
    return held.owner


def session_of(held: LockedRange) -> SessionId:
    return owner_of(held).session


def is_of(owner: object, session: SessionId) -> bool:
    return isinstance(owner, Owner) and owner.session == session
