"""Locks of a toy: `fsd.namespace.locks` with trio's events around it.

A process's fcntl locks of a file go when it closes any descriptor of it (FLUSH names the owner). A flock goes with the last
descriptor of the open file (RELEASE names the owner if there was one). Open file description locks (F_OFD_SETLK) look like
fcntl locks, but of an owner that never flushes: they go with the handle they were taken through. By then every fcntl owner of
that handle has flushed, so what is left under the handle is dropped whatever it is.
"""

import errno
import fcntl
from itertools import count

import pyfuse3
import trio

from fsd.core.ids import Ino
from fsd.mount.companion import OFFSET_END, FileLock
from fsd.namespace.locks import LockedRange, LockKind, LockSpace, LockTable, Outcome, Verdict

_KINDS = {
    fcntl.F_RDLCK: LockKind.READ,
    fcntl.F_WRLCK: LockKind.WRITE,
}
_NUMBERS = {kind: number for number, kind in _KINDS.items()}
_FLOCKS = {fcntl.LOCK_SH: LockKind.READ, fcntl.LOCK_EX: LockKind.WRITE}
_REFUSALS = {
    Verdict.CONFLICT: errno.EAGAIN,
    Verdict.DEADLOCK: errno.EDEADLK,
    Verdict.FULL: errno.ENOLCK,
}


class LocalLocks:
    """The lock table of one mount. Owners are the kernel's lock owners."""

    def __init__(self, table: LockTable | None = None) -> None:
        self._table = table or LockTable()
        self._waiting: dict[int, trio.Event] = {}
        self._tickets = count(1)
        self._through: dict[int, dict[tuple[LockSpace, Ino, int], None]] = {}  # handle -> what was locked through it

    def test(self, ino: Ino, owner: int, lock: FileLock) -> FileLock:
        """F_GETLK: the first conflicting lock, or one of kind F_UNLCK."""
        wanted = LockedRange(owner, _KINDS[lock.kind], lock.start, lock.end, lock.pid)
        found = self._table.conflict(LockSpace.POSIX, ino, wanted)
        if found is None:
            return lock._replace(kind=fcntl.F_UNLCK, pid=0)
        return FileLock(_NUMBERS[found.kind], found.start, found.end, found.pid)

    async def lock_range(self, ino: Ino, fh: int, owner: int, lock: FileLock, wait: bool) -> None:
        """F_SETLK, F_SETLKW. Raises FUSEError(EAGAIN, EDEADLK, ENOLCK)."""
        if lock.kind == fcntl.F_UNLCK:
            self._wake(self._table.release(LockSpace.POSIX, ino, owner, lock.start, lock.end))
            return
        wanted = LockedRange(owner, _KINDS[lock.kind], lock.start, lock.end, lock.pid)
        await self._acquire(LockSpace.POSIX, ino, fh, wanted, wait)

    async def flock(self, ino: Ino, fh: int, owner: int, operation: int, wait: bool, pid: int) -> None:
        """LOCK_SH, LOCK_EX or LOCK_UN. Raises FUSEError(EAGAIN, ENOLCK)."""
        if operation == fcntl.LOCK_UN:
            self._wake(self._table.release(LockSpace.FLOCK, ino, owner))
            return
        wanted = LockedRange(owner, _FLOCKS[operation], 0, OFFSET_END, pid)
        await self._acquire(LockSpace.FLOCK, ino, fh, wanted, wait)

    def closed(self, ino: Ino, owner: int) -> None:
        """A process closed a descriptor of the file (FLUSH)."""
        self._wake(self._table.release(LockSpace.POSIX, ino, owner))

    def released(self, fh: int) -> None:
        """The last descriptor of an open file was closed (RELEASE)."""
        for space, ino, owner in self._through.pop(fh, {}):
            self._wake(self._table.release(space, ino, owner))

    @property
    def is_empty(self) -> bool:
        return len(self._table) == 0

    async def _acquire(self, space: LockSpace, ino: Ino, fh: int, wanted: LockedRange, wait: bool) -> None:
        """When cancelled it has not taken the lock: trio cancels no wait whose event is set."""
        assert isinstance(wanted.owner, int)
        self._through.setdefault(fh, {})[space, ino, wanted.owner] = None
        ticket = next(self._tickets) if wait else None
        outcome: Outcome = self._table.acquire(space, ino, wanted, ticket)
        self._wake(outcome.woken)
        if outcome.verdict in _REFUSALS:
            raise pyfuse3.FUSEError(_REFUSALS[outcome.verdict])
        if outcome.verdict is Verdict.GRANTED or ticket is None:
            return
        granted = self._waiting[ticket] = trio.Event()
        try:
            await granted.wait()
        except trio.Cancelled:
            self._wake(self._table.cancel(ticket))
            raise
        finally:
            del self._waiting[ticket]

    def _wake(self, tickets: tuple[object, ...]) -> None:
        for ticket in tickets:
            assert isinstance(ticket, int)
            self._waiting[ticket].set()
