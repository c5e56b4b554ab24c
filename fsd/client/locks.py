"""Advisory locks of this client, kept across all clients. Docs of the protocol: fsd.protocol.locks.

    is the deciding delegated to us (exclusive lease on the inode)?  decide here, at once
    else, or if somebody must wait:                                  the server decides

`_table` is a copy of what the server has granted, and the truth while the deciding is ours. What a request gives up leaves the
copy before it is sent, what it gains enters when the answer arrives: so what is told when a session is resumed was never given
to anybody else. About one inode there is one request at a time (waiting is none); so a delegation is never crossed by one.

A lock is lost with its session only. Then nobody knows who changed the file meanwhile: every handle of it that is open
answers LockLost until it is closed.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from fsd.client.file import File
from fsd.client.journal import Journal
from fsd.client.leases import LeaseTable
from fsd.client.session import Session
from fsd.client.state import UNLOGGED, Unlogged
from fsd.core.errors import Deadlock, FsError, LockConflict, NoLocks
from fsd.core.ids import Ino, SessionId
from fsd.namespace.locks import RANGE_END, LockedRange, LockKind, LockSpace, LockTable, Verdict
from fsd.protocol.locks import (
    CancelLock,
    HandOverLocks,
    LockFound,
    LockGranted,
    LockReply,
    LocksTold,
    SetLock,
    TestLock,
    Unlock,
)
from fsd.protocol.metadata import HeldLock, LeaseMode
from fsd.runtime import Clock

log = logging.getLogger(__name__)

CONTENDED_S = 1.0  # so long after somebody here waited for somebody here, the server decides
MAX_LOCKS = 20_000  # of one client: they are told in one message when the session is resumed


@dataclass(eq=False, slots=True)
class _Asked:
    """An acquisition that the server decides about. `before`: what the owner had there; `changed`: granted, or to be asked
    again."""

    lock: HeldLock
    before: tuple[HeldLock, ...]
    changed: trio.Event
    sent: bool = False
    granted: bool = False


class Locks:
    """See the module. Every change of the copy is told to `state`, for a next process to go on with it."""

    def __init__(
        self,
        session: Session,
        leases: LeaseTable,
        journal: Journal,
        files: dict[Ino, File],
        nursery: trio.Nursery,
        counts: Counter[str],
        clock: Clock,
        *,
        state: Unlogged = UNLOGGED,
    ) -> None:
        self._session = session
        self._leases = leases
        self._journal = journal
        self._files = files
        self._nursery = nursery
        self._counts = counts
        self._clock = clock
        self._state = state
        self._table = LockTable(MAX_LOCKS)
        self._ours: dict[Ino, None] = {}  # the deciding is delegated to us
        self._handing: dict[Ino, trio.Event] = {}  # and is just being given back
        self._turns: dict[Ino, trio.Semaphore] = {}
        self._turn_users: Counter[Ino] = Counter()
        self._asked: dict[int, _Asked] = {}
        self._next_ticket = clock.time_ns()  # never those of a process before us in the same session
        self._contended: dict[Ino, float] = {}  # when somebody here last had to wait for somebody here
        self._through: dict[int, dict[tuple[LockSpace, Ino, int], None]] = {}  # handle -> what was locked through it
        self._handles: dict[tuple[LockSpace, Ino, int], int] = {}
        self._leaving: dict[tuple[LockSpace, Ino, int], trio.Event] = {}  # being unlocked since their handle is closed

    # --- what a mount asks --------------------------------------------------------------------------------------------

    async def acquire(self, lock: HeldLock, *, wait: bool) -> None:
        """Take a lock, or change the kind of one's own. When cancelled it has not taken it. Raises LockConflict, Deadlock,
        NoLocks, StaleHandle."""
        if lock.space is LockSpace.FLOCK:
            lock = _with(lock, start=0, end=RANGE_END)
        if len(self._table) + 2 > MAX_LOCKS:
            raise NoLocks(f"this client has {len(self._table)} locks")
        while (leaving := self._leaving.get((lock.space, lock.ino, lock.owner))) is not None:
            await leaving.wait()  # the kernel gives a closed file's owner number to the next one
        while not await self._acquire(lock, wait):
            pass
        at = (lock.space, lock.ino, lock.owner)
        if self._table.holds(*at):
            self._took(lock)

    async def _acquire(self, lock: HeldLock, wait: bool) -> bool:
        """False: try again."""
        if self.decides(lock.ino):
            verdict = self._table.acquire(lock.space, lock.ino, _range(lock), None).verdict
            if verdict is not Verdict.CONFLICT or not wait:
                self._counts["locks decided here"] += 1
                return _is_granted(lock, verdict)
            self._contended[lock.ino] = self._clock.monotonic()
            await self.hand_over(lock.ino)
        return await self._ask(lock, wait)

    async def release(self, space: LockSpace, ino: Ino, owner: int, start: int = 0, end: int = RANGE_END) -> None:
        """Unlock [start, end); others may have it on return."""
        done = self._release(space, ino, owner, start, end)
        if done is not None:
            await done.wait()

    def _release(self, space: LockSpace, ino: Ino, owner: int, start: int, end: int) -> trio.Event | None:
        """Unlock, whatever becomes of the caller; None if it is done."""
        if not self._table.holds(space, ino, owner):
            return None
        if self.decides(ino):
            self._table.release(space, ino, owner, start, end)
            self._forget(space, ino, owner)
            self._note(space, ino, owner)
            return None
        done = trio.Event()
        self._nursery.start_soon(self._unlock, space, ino, owner, start, end, done)
        return done

    def closed_here(self, ino: Ino, owner: int) -> bool:
        """`closed`, if that needs no waiting."""
        if self._table.holds(LockSpace.POSIX, ino, owner):
            if not self.decides(ino):
                return False
            self._table.release(LockSpace.POSIX, ino, owner)
            self._forget(LockSpace.POSIX, ino, owner)
            self._note(LockSpace.POSIX, ino, owner)
        return True

    async def closed(self, ino: Ino, owner: int) -> None:
        """A process closed a descriptor of the file: its range locks of the file go."""
        await self.release(LockSpace.POSIX, ino, owner)

    def released(self, handle: int) -> None:
        """The last descriptor of an open file was closed: what was locked through it goes, some time soon."""
        for at in list(self._through.get(handle, {})):
            done = self._release(*at, 0, RANGE_END)
            if done is not None:
                self._leave(at)
                self._leaving[at] = done
                self._nursery.start_soon(self._left, at, done)

    async def _left(self, at: tuple[LockSpace, Ino, int], done: trio.Event) -> None:
        await done.wait()
        if self._leaving.get(at) is done:
            del self._leaving[at]

    async def test(self, lock: HeldLock) -> HeldLock | None:
        """The first lock that is in the way of this one."""
        if self.decides(lock.ino):
            found = self._table.conflict(lock.space, lock.ino, _range(lock))
            return None if found is None else self._told(lock.ino, lock.space, found)
        async with self._turn(lock.ino):
            reply: LockFound = await self._session.ask(lambda session: TestLock(session, lock))
            return reply.lock

    # --- deciding here ------------------------------------------------------------------------------------------------

    def decides(self, ino: Ino) -> bool:
        """Whether this client decides about the inode's locks now. Of an inode that nobody else knows it does."""
        if not self._leases.usable(ino, LeaseMode.EXCLUSIVE) or ino in self._handing:
            return False
        if ino not in self._ours and self._journal.unborn(ino) and ino not in self._turns:
            self._ours[ino] = None
        return ino in self._ours

    async def hand_over(self, ino: Ino) -> None:
        """Give the deciding back, before the lease goes: return when the server knows all locks of the inode."""
        if ino in self._handing:
            await self._handing[ino].wait()
        elif ino in self._ours:
            del self._ours[ino]
            done = self._handing[ino] = trio.Event()
            self._nursery.start_soon(self._hand_over, ino, done)
            await done.wait()

    async def _hand_over(self, ino: Ino, done: trio.Event) -> None:
        session = self._session.id
        try:
            await self._born(ino)
            if self._session.id == session:
                self._counts["locks handed over"] += 1
                await self._told_to_server(
                    lambda now: HandOverLocks(now, ino, self._of_inode(ino) if now == session else ())
                )
        finally:
            del self._handing[ino]
            done.set()

    async def _born(self, ino: Ino) -> None:
        """Return when the server knows the inode."""
        if self._journal.unborn(ino):
            await self._journal.settle([ino])

    # --- asking the server --------------------------------------------------------------------------------------------

    async def _ask(self, lock: HeldLock, wait: bool) -> bool:
        ticket = self._next_ticket
        self._next_ticket += 1
        before = tuple(held for held in self._of_owner(lock.space, lock.ino, lock.owner) if _overlap(held, lock))
        asked = self._asked[ticket] = _Asked(lock, before, trio.Event())
        turn = self._turn(lock.ino)
        try:
            async with turn:
                if self.decides(lock.ino):
                    return False  # it was delegated meanwhile
                self._give_up(asked)
                asked.sent = True
                delegate = lock.ino not in self._contended
                reply: LockReply = await self._session.ask(
                    lambda session: SetLock(session, lock, wait, ticket, delegate)
                )
            if asked.granted:
                return True
            if reply.verdict is Verdict.WAITING:
                await asked.changed.wait()
                return asked.granted
            if reply.verdict is Verdict.GRANTED:
                return False  # its connection was given up before it was noted
            self._restore(asked, reply.verdict)
            return _is_granted(lock, reply.verdict)
        except trio.Cancelled:
            if asked.sent:
                self._nursery.start_soon(self._withdraw, ticket, asked)
            raise
        finally:
            self._asked.pop(ticket, None)

    def _give_up(self, asked: _Asked) -> None:
        """What the request gives up, in any case."""
        lock = asked.lock
        for held in asked.before:
            if held.kind is lock.kind:
                continue
            if lock.space is LockSpace.FLOCK:  # it is given up first, whatever comes after it (flock(2))
                self._table.release(lock.space, lock.ino, lock.owner)
            elif lock.kind is LockKind.READ:
                start, end = max(held.start, lock.start), min(held.end, lock.end)
                self._table.record(lock.space, lock.ino, _range(_with(lock, start=start, end=end)))
        self._note(lock.space, lock.ino, lock.owner)

    def _restore(self, asked: _Asked, verdict: Verdict) -> None:
        """It was refused, and the server has changed nothing (but a flock that was given up for it)."""
        if asked.lock.space is LockSpace.POSIX or verdict is Verdict.FULL:
            for held in asked.before:
                self._table.record(held.space, held.ino, _range(held))
            self._note(asked.lock.space, asked.lock.ino, asked.lock.owner)

    async def _withdraw(self, ticket: int, asked: _Asked) -> None:
        """The waiter has gone; the server may have granted its lock all the same."""
        lock = asked.lock
        before = asked.before if lock.space is LockSpace.POSIX else ()
        async with self._turn(lock.ino):
            if asked.granted:
                self._table.release(lock.space, lock.ino, lock.owner, lock.start, lock.end)
            for held in before:
                self._table.record(held.space, held.ino, _range(held))
            self._forget(lock.space, lock.ino, lock.owner)
            self._note(lock.space, lock.ino, lock.owner)
            if not self.decides(lock.ino):
                await self._told_to_server(lambda session: CancelLock(session, ticket, lock, before))

    async def _told_to_server(self, make: Callable[[SessionId], object]) -> None:
        """What has nobody left to hear of an error."""
        try:
            await self._session.ask_urgently(make)
        except FsError as error:
            log.error("the metadata server refuses %s: %s", make(self._session.id), error)

    async def _unlock(self, space: LockSpace, ino: Ino, owner: int, start: int, end: int, done: trio.Event) -> None:
        try:
            async with self._turn(ino):
                self._table.release(space, ino, owner, start, end)
                self._forget(space, ino, owner)
                self._note(space, ino, owner)
                if not self.decides(ino):
                    await self._told_to_server(lambda session: Unlock(session, ino, space, owner, start, end))
        finally:
            done.set()

    @asynccontextmanager
    async def _turn(self, ino: Ino) -> AsyncGenerator[None]:
        """To ask the server about this inode: one at a time, and when what we decided is told."""
        turn = self._turns.setdefault(ino, trio.Semaphore(1))
        self._turn_users[ino] += 1
        try:
            async with turn:
                await self._born(ino)
                while ino in self._handing or (ino in self._ours and not self.decides(ino)):
                    await self.hand_over(ino)
                yield
        finally:
            self._turn_users[ino] -= 1
            if not self._turn_users[ino]:
                del self._turn_users[ino], self._turns[ino]

    # --- what the session says ----------------------------------------------------------------------------------------

    def answered(self, reply: LockReply) -> None:
        """Synchronous, in the order of arrival, behind the grants that came along."""
        asked = self._asked.get(reply.ticket)
        if asked is None or reply.verdict is not Verdict.GRANTED:
            return
        self._granted(asked)
        lease = self._leases.find(asked.lock.ino)
        if reply.delegated and lease is not None and self.accepts(asked.lock.ino, reply):
            self._ours[asked.lock.ino] = None

    def accepts(self, ino: Ino, reply: LockReply) -> bool:
        """Whether the lease that came with the delegation is here: it may have crossed its own recall."""
        lease = self._leases.get(ino)
        return lease.usable is LeaseMode.EXCLUSIVE and all(self._leases.accepts(lease, grant) for grant in reply.grants)

    def told_granted(self, message: LockGranted) -> None:
        """A waiter has its lock. One that has gone meanwhile says so by itself."""
        asked = self._asked.get(message.ticket)
        if asked is not None and message.session == self._session.id:
            self._granted(asked)
            asked.changed.set()

    def _granted(self, asked: _Asked) -> None:
        asked.granted = True
        self._table.record(asked.lock.space, asked.lock.ino, _range(asked.lock))
        self._took(asked.lock)

    def tell(self, ino: Ino) -> LocksTold:
        """For an administrator."""
        return LocksTold(ino in self._ours, self._of_inode(ino))

    def claims(self) -> tuple[HeldLock, ...]:
        """All that is held, for resuming the session: with it every delegation ends."""
        self._ours.clear()
        return tuple(self._told(ino, space, held) for space, held, ino in self._table.everything())

    def adopt(self, locks: Iterable[HeldLock]) -> None:
        """What a process before us has locked, as its log says."""
        for lock in locks:
            self._table.record(lock.space, lock.ino, _range(lock))
            self._took(lock)

    def ask_again(self) -> None:
        """The session goes on, or there is a new one: places in queues are gone."""
        for asked in self._asked.values():
            asked.changed.set()

    def lost(self, session: SessionId) -> None:
        """The session is over, and its locks with it."""
        inos = dict.fromkeys(ino for _, _, ino in self._table.everything())
        self._state.locks_lost()
        for ino in inos:
            log.error("locks of inode %d are lost: session %d was evicted", ino, session)
            self._counts["lost locks"] += 1
            if ino in self._files:
                self._files[ino].lock_losses += 1
        self._table = LockTable(MAX_LOCKS)
        self._ours.clear()
        self._through.clear()
        self._handles.clear()
        for asked in self._asked.values():
            asked.granted = False

    # --- small things -------------------------------------------------------------------------------------------------

    def is_ours(self, ino: Ino) -> bool:
        return ino in self._ours

    def purge(self) -> None:
        """Now and then: forget what does not matter any more."""
        for ino in list(self._ours):
            lease = self._leases.find(ino)
            if lease is None or lease.mode is LeaseMode.NONE:
                del self._ours[ino]
        long_ago = self._clock.monotonic() - CONTENDED_S
        for ino in [ino for ino, then in self._contended.items() if then < long_ago]:
            del self._contended[ino]

    def __len__(self) -> int:
        return len(self._table)

    def _took(self, lock: HeldLock) -> None:
        """The lock goes with the handle through which its owner last took one of the file."""
        at = (lock.space, lock.ino, lock.owner)
        self._leave(at)
        self._through.setdefault(lock.handle, {})[at] = None
        self._handles[at] = lock.handle
        self._note(*at)

    def _note(self, space: LockSpace, ino: Ino, owner: int) -> None:
        """What the owner has of the inode now, for the next process. What it gains, when it has it; what it gives up, before
        anybody hears of it."""
        self._state.locked(ino, space, owner, self._of_owner(space, ino, owner))

    def _leave(self, at: tuple[LockSpace, Ino, int]) -> None:
        handle = self._handles.pop(at, None)
        if handle is not None and handle in self._through:
            self._through[handle].pop(at, None)
            if not self._through[handle]:
                del self._through[handle]

    def _forget(self, space: LockSpace, ino: Ino, owner: int) -> None:
        if not self._table.holds(space, ino, owner):
            self._leave((space, ino, owner))

    def _of_inode(self, ino: Ino) -> tuple[HeldLock, ...]:
        return tuple(self._told(ino, space, held) for space in LockSpace for held in self._table.held(space, ino))

    def _of_owner(self, space: LockSpace, ino: Ino, owner: int) -> tuple[HeldLock, ...]:
        return tuple(self._told(ino, space, held) for held in self._table.ranges(space, ino, owner))

    def _told(self, ino: Ino, space: LockSpace, held: LockedRange) -> HeldLock:
        assert isinstance(held.owner, int)
        handle = self._handles.get((space, ino, held.owner), 0)
        return HeldLock(ino, space, held.owner, held.kind, held.start, held.end, held.pid, handle)


def _is_granted(lock: HeldLock, verdict: Verdict) -> bool:
    """True, or the error that says why not."""
    where = f"bytes {lock.start} to {lock.end} of inode {lock.ino}"
    match verdict:
        case Verdict.CONFLICT:
            raise LockConflict(f"{where} are locked by others")
        case Verdict.DEADLOCK:
            raise Deadlock(f"whoever has {where} waits for this owner")
        case Verdict.FULL:
            raise NoLocks(f"no room for a lock of {where}")
        case _:
            return True


def _range(lock: HeldLock) -> LockedRange:
    return LockedRange(lock.owner, lock.kind, lock.start, lock.end, lock.pid)


def _with(lock: HeldLock, *, start: int, end: int) -> HeldLock:
    return HeldLock(lock.ino, lock.space, lock.owner, lock.kind, start, end, lock.pid, lock.handle)


def _overlap(one: HeldLock, other: HeldLock) -> bool:
    return one.start < other.end and other.start < one.end
