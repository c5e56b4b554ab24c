"""Advisory locks: fcntl's ranges and flock's whole files, with a fair queue and deadlock detection. Pure.

    acquire --> GRANTED | CONFLICT | DEADLOCK | FULL
            --> WAITING --(release, cancel, drop of others)--> woken
                        --(cancel, drop_owners)--> gone

Invariants:
- Two owners never hold conflicting locks (overlapping, one of them a write lock) of the same file and space.
- One owner's ranges in a file are disjoint, sorted, and merged where kind and ends meet.
- Fair: who waits is overtaken by nobody who conflicts with it, with two exceptions. A request that does not wait (F_SETLK,
  LOCK_NB) looks at held locks only, as on a local disk. And a request that the waiter itself (through others) waits for
  goes first: the queue alone never makes a deadlock.
- A waiter that nothing blocks does not stay a waiter: every call returns the tickets that it woke, in the order of arrival.

fcntl and flock do not see each other (flock(2)). An owner is whatever the caller compares by: (session, lock owner).
Sources: fcntl(2), flock(2), fs/locks.c.
"""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from fsd.core.ids import Ino

MAX_LOCKS = 100_000  # ranges and waiters in one table; at about 300 bytes each
RANGE_END = 1 << 63  # one past the last offset that a file can have

Owner = Hashable
Ticket = Hashable


class LockSpace(Enum):
    """The two kinds of locks that do not see each other."""

    POSIX = "posix"  # fcntl: ranges; closing any descriptor of the file drops the process's locks
    FLOCK = "flock"  # whole files; belongs to an open file description


class LockKind(Enum):
    READ = "read"
    WRITE = "write"


class Verdict(Enum):
    GRANTED = "granted"
    WAITING = "waiting"  # the ticket comes back in some later `woken`
    CONFLICT = "conflict"  # EAGAIN
    DEADLOCK = "deadlock"  # EDEADLK
    FULL = "full"  # ENOLCK


class LockedRange(NamedTuple):
    """Bytes [start, end) that `owner` holds; `pid` is for F_GETLK."""

    owner: Owner
    kind: LockKind
    start: int
    end: int
    pid: int


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    woken: tuple[Ticket, ...] = ()  # others that have their lock now


@dataclass(frozen=True, slots=True)
class Restated:
    refused: tuple[tuple[LockSpace, LockedRange, Ino], ...]
    woken: tuple[Ticket, ...]


@dataclass(eq=False, slots=True)
class _Waiter:
    key: tuple[LockSpace, Ino]
    wanted: LockedRange
    ticket: Ticket


@dataclass(slots=True)
class _File:
    """Locks of one inode in one space."""

    held: dict[Owner, list[LockedRange]] = field(default_factory=dict[Owner, list[LockedRange]])
    waiters: list[_Waiter] = field(default_factory=list[_Waiter])


class LockTable:
    """All locks of a set of files; who owns it carries out what the calls return."""

    def __init__(self, limit: int = MAX_LOCKS) -> None:
        self._limit = limit
        self._files: dict[tuple[LockSpace, Ino], _File] = {}
        self._tickets: dict[Ticket, _Waiter] = {}
        self._waits: dict[Owner, list[_Waiter]] = {}
        self._ranges = 0

    # --- questions ----------------------------------------------------------------------------------------------------

    def conflict(self, space: LockSpace, ino: Ino, wanted: LockedRange) -> LockedRange | None:
        """The first held range (by offset) that keeps `wanted` from being granted."""
        file = self._files.get((space, ino))
        found = list(_conflicting(file, wanted)) if file else []
        return min(found, key=lambda held: (held.start, held.end), default=None)

    def held(self, space: LockSpace, ino: Ino) -> list[LockedRange]:
        """Every held range of the file, by offset."""
        file = self._files.get((space, ino))
        ranges = [held for ranges in file.held.values() for held in ranges] if file else []
        return sorted(ranges, key=lambda held: (held.start, held.end))

    def holds(self, space: LockSpace, ino: Ino, owner: Owner) -> bool:
        file = self._files.get((space, ino))
        return file is not None and owner in file.held

    def ranges(self, space: LockSpace, ino: Ino, owner: Owner) -> tuple[LockedRange, ...]:
        """What one owner holds, by offset."""
        file = self._files.get((space, ino))
        return tuple(file.held.get(owner, ())) if file is not None else ()

    def everything(self) -> list[tuple[LockSpace, LockedRange, Ino]]:
        """Every held range of every file."""
        return [
            (space, held, ino)
            for (space, ino), file in self._files.items()
            for ranges in file.held.values()
            for held in ranges
        ]

    def waiters(self, space: LockSpace, ino: Ino) -> list[LockedRange]:
        """What is waited for, in the order of arrival."""
        file = self._files.get((space, ino))
        return [waiter.wanted for waiter in file.waiters] if file is not None else []

    def is_waiting(self, ticket: Ticket) -> bool:
        return ticket in self._tickets

    def waiting(self, space: LockSpace, ino: Ino) -> list[Ticket]:
        """In the order of arrival."""
        file = self._files.get((space, ino))
        return [waiter.ticket for waiter in file.waiters] if file else []

    def __len__(self) -> int:
        """Ranges and waiters, what `limit` bounds."""
        return self._ranges + len(self._tickets)

    # --- events -------------------------------------------------------------------------------------------------------

    def acquire(self, space: LockSpace, ino: Ino, wanted: LockedRange, ticket: Ticket | None) -> Outcome:
        """Take a lock, or change the kind of one's own; without a `ticket` it does not wait.

        A flock of another kind is given up first, whatever comes after it (flock(2)); `woken` may then be others.
        """
        assert wanted.start < wanted.end, wanted
        assert ticket is None or ticket not in self._tickets, ticket
        key = (space, ino)
        woken: tuple[Ticket, ...] = ()
        if space is LockSpace.FLOCK:
            wanted = wanted._replace(start=0, end=RANGE_END)
            if self._has_other_kind(key, wanted):
                woken = self.release(space, ino, wanted.owner)
        file = self._files.get(key) or _File()
        if self.is_full(file, wanted):
            return Outcome(Verdict.FULL, woken)
        is_held = any(_conflicting(file, wanted))
        if is_held and ticket is None:
            return Outcome(Verdict.CONFLICT, woken)
        if not is_held and (ticket is None or not self.is_queued_behind(file.waiters, wanted)):
            self._files[key] = file
            return Outcome(Verdict.GRANTED, woken + self._grant_and_settle(key, wanted))
        if space is LockSpace.POSIX and self.is_deadlock(file, wanted):
            return Outcome(Verdict.DEADLOCK, woken)
        self._files[key] = file
        return self._enqueue(_Waiter(key, wanted, ticket), woken)

    def release(
        self, space: LockSpace, ino: Ino, owner: Owner, start: int = 0, end: int = RANGE_END
    ) -> tuple[Ticket, ...]:
        """Unlock [start, end), which may split a range. Who waits under the same owner goes on waiting."""
        key = (space, ino)
        file = self._files.get(key)
        if file is None or owner not in file.held:
            return ()
        self._put(file, owner, _without(file.held[owner], start, end))
        return self._settle(key)

    def cancel(self, ticket: Ticket) -> tuple[Ticket, ...]:
        """Take a waiter out of the queue; one that has its lock, or is unknown, is left alone."""
        waiter = self._tickets.get(ticket)
        if waiter is None:
            return ()
        self._dequeue(waiter)
        return self._settle(waiter.key)

    def drop_owners(self, matches: Callable[[Owner], bool]) -> tuple[Ticket, ...]:
        """Take everything from some owners, locks and places in queues (their session has died)."""
        return self.restate(matches, ()).woken

    def restate(
        self,
        matches: Callable[[Owner], bool],
        stated: Iterable[tuple[LockSpace, LockedRange, Ino]],
        only: Ino | None = None,
    ) -> Restated:
        """These owners now hold exactly what is stated and wait for nothing (in all files, or in `only` one), in one step:
        nobody gets in between. What conflicts with others is refused: they had it first."""
        for waiter in list(self._tickets.values()):
            if matches(waiter.wanted.owner) and only in (None, waiter.key[1]):
                self._dequeue(waiter)
        for (_, ino), file in self._files.items():
            if only in (None, ino):
                for owner in [owner for owner in file.held if matches(owner)]:
                    self._put(file, owner, [])
        refused: list[tuple[LockSpace, LockedRange, Ino]] = []
        for space, held, ino in stated:
            file = self._files.setdefault((space, ino), _File())
            if any(_conflicting(file, held)):
                refused.append((space, held, ino))
            else:
                self._grant(file, held)
        return Restated(tuple(refused), self._settle_all())

    def take_back(
        self, space: LockSpace, ino: Ino, owner: Owner, start: int, end: int, before: Iterable[LockedRange]
    ) -> tuple[Ticket, ...]:
        """In [start, end) the owner has no more than it had `before` some lock was granted, which it does not want any more."""
        key = (space, ino)
        file = self._files.get(key)
        if file is None or owner not in file.held:
            return ()
        self._put(file, owner, _without(file.held[owner], start, end))
        for held in before:
            if not any(_conflicting(file, held)):
                self._grant(file, held)
        return self._settle(key)

    def record(self, space: LockSpace, ino: Ino, held: LockedRange) -> None:
        """Note a lock that somebody else has granted: this table is a copy, and does not decide."""
        self._grant(self._files.setdefault((space, ino), _File()), held)

    def drop_file(self, ino: Ino) -> None:
        """The inode is gone for good, with whoever could have waited."""
        for space in LockSpace:
            file = self._files.get((space, ino))
            if file is not None:
                for waiter in list(file.waiters):
                    self._dequeue(waiter)
                for owner in list(file.held):
                    self._put(file, owner, [])
                del self._files[space, ino]

    # --- rules --------------------------------------------------------------------------------------------------------

    def is_full(self, file: _File, wanted: LockedRange) -> bool:
        """Whether there is no room for what a grant may add: one range split in three, or a waiter."""
        return len(self) + 2 > self._limit

    def is_queued_behind(self, ahead: list[_Waiter], wanted: LockedRange) -> bool:
        """Fairness: a conflicting waiter goes first, unless it waits for the owner of `wanted` itself."""
        return any(
            _conflict(waiter.wanted, wanted)
            and not self._reaches(waiter.wanted.owner, wanted.owner, through_queue=True)
            for waiter in ahead
        )

    def is_deadlock(self, file: _File, wanted: LockedRange) -> bool:
        """Whether a holder that is in the way waits, through held locks alone, for the owner of `wanted`."""
        return any(self._reaches(held.owner, wanted.owner, through_queue=False) for held in _conflicting(file, wanted))

    def _reaches(self, owner: Owner, target: Owner, *, through_queue: bool) -> bool:
        """Whether `owner` waits for `target`, directly or through others."""
        seen: set[Owner] = {owner}
        pending = [owner]
        while pending:
            for blocker in self._blockers(pending.pop(), through_queue):
                if blocker == target:
                    return True
                if blocker not in seen:
                    seen.add(blocker)
                    pending.append(blocker)
        return False

    def _blockers(self, owner: Owner, through_queue: bool) -> Iterator[Owner]:
        """Whom the requests of `owner` wait for."""
        for waiter in self._waits.get(owner, ()):
            file = self._files[waiter.key]
            for held in _conflicting(file, waiter.wanted):
                yield held.owner
            if through_queue:
                for ahead in file.waiters:
                    if ahead is waiter:
                        break
                    if _conflict(ahead.wanted, waiter.wanted):
                        yield ahead.wanted.owner

    # --- changes ------------------------------------------------------------------------------------------------------

    def _has_other_kind(self, key: tuple[LockSpace, Ino], wanted: LockedRange) -> bool:
        file = self._files.get(key)
        return any(held.kind is not wanted.kind for held in (file.held.get(wanted.owner, ()) if file else ()))

    def _enqueue(self, waiter: _Waiter, woken: tuple[Ticket, ...]) -> Outcome:
        self._files[waiter.key].waiters.append(waiter)
        self._tickets[waiter.ticket] = waiter
        self._waits.setdefault(waiter.wanted.owner, []).append(waiter)
        owner = waiter.wanted.owner
        if self._reaches(owner, owner, through_queue=True):  # only the queue closes this circle: someone may overtake
            woken += self._settle_all()
        if waiter.ticket not in woken:
            return Outcome(Verdict.WAITING, woken)
        return Outcome(Verdict.GRANTED, tuple(ticket for ticket in woken if ticket != waiter.ticket))

    def _dequeue(self, waiter: _Waiter) -> None:
        self._files[waiter.key].waiters.remove(waiter)
        del self._tickets[waiter.ticket]
        waits = self._waits[waiter.wanted.owner]
        waits.remove(waiter)
        if not waits:
            del self._waits[waiter.wanted.owner]

    def _grant_and_settle(self, key: tuple[LockSpace, Ino], wanted: LockedRange) -> tuple[Ticket, ...]:
        """A weaker lock than before may let others in; one that overtook may let its owner be waited for by more."""
        has_waiters = bool(self._files[key].waiters)
        self._grant(self._files[key], wanted)
        if has_waiters and wanted.owner in self._waits:
            return self._settle_all()
        return self._settle(key) if has_waiters else ()

    def _grant(self, file: _File, wanted: LockedRange) -> None:
        others = _without(file.held.get(wanted.owner, []), wanted.start, wanted.end)
        self._put(file, wanted.owner, _merged(sorted([*others, wanted], key=lambda held: held.start)))

    def _put(self, file: _File, owner: Owner, ranges: list[LockedRange]) -> None:
        self._ranges += len(ranges) - len(file.held.get(owner, ()))
        if ranges:
            file.held[owner] = ranges
        else:
            file.held.pop(owner, None)

    def _settle(self, key: tuple[LockSpace, Ino]) -> tuple[Ticket, ...]:
        """Grant what nothing blocks any more, in the order of arrival."""
        file = self._files[key]
        woken: list[Ticket] = []
        at = 0
        while at < len(file.waiters):
            waiter = file.waiters[at]
            if any(_conflicting(file, waiter.wanted)) or self.is_queued_behind(file.waiters[:at], waiter.wanted):
                at += 1
                continue
            self._dequeue(waiter)
            self._grant(file, waiter.wanted)
            woken.append(waiter.ticket)
            at = 0  # it may have weakened its owner's lock, or waited in front of somebody
        if not file.held and not file.waiters:
            del self._files[key]
        return tuple(woken)

    def _settle_all(self) -> tuple[Ticket, ...]:
        woken: tuple[Ticket, ...] = ()
        while True:
            more = tuple(ticket for key in list(self._files) for ticket in self._settle(key))
            if not more:
                return woken
            woken += more


def _conflict(one: LockedRange, other: LockedRange) -> bool:
    return (
        one.owner != other.owner
        and one.start < other.end
        and other.start < one.end
        and LockKind.WRITE in (one.kind, other.kind)
    )


def _conflicting(file: _File, wanted: LockedRange) -> Iterator[LockedRange]:
    """Held ranges that are in the way."""
    for owner, ranges in file.held.items():
        if owner == wanted.owner:
            continue
        at = bisect_right(ranges, wanted.start, key=lambda held: held.end)
        while at < len(ranges) and ranges[at].start < wanted.end:
            if _conflict(ranges[at], wanted):
                yield ranges[at]
            at += 1


def _without(ranges: list[LockedRange], start: int, end: int) -> list[LockedRange]:
    """What is left of the ranges outside of [start, end)."""
    left: list[LockedRange] = []
    for held in ranges:
        if held.end <= start or end <= held.start:
            left.append(held)
            continue
        if held.start < start:
            left.append(held._replace(end=start))
        if end < held.end:
            left.append(held._replace(start=end))
    return left


def _merged(ranges: list[LockedRange]) -> list[LockedRange]:
    merged: list[LockedRange] = []
    for held in ranges:
        if merged and merged[-1].end == held.start and merged[-1].kind is held.kind:
            merged[-1] = merged[-1]._replace(end=held.end)
        else:
            merged.append(held)
    return merged
