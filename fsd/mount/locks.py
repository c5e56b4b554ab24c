"""From the kernel's lock requests to fsd.client.locks and back.

A process's fcntl locks of a file go when it closes any descriptor of it (FLUSH names the owner). A flock goes with the last
descriptor of the open file (RELEASE). Open file description locks (F_OFD_SETLK) look like fcntl locks, but of an owner that
never flushes: they go with the handle they were taken through. By then every fcntl owner of that handle has flushed, so what
is left under the handle is dropped whatever it is.
"""

import fcntl
from typing import TYPE_CHECKING

import pyfuse3

from fsd.client.locks import Locks
from fsd.core.errors import FsError
from fsd.core.ids import Ino
from fsd.mount.companion import OFFSET_END, FileLock
from fsd.namespace.locks import LockKind, LockSpace
from fsd.protocol.metadata import HeldLock

if TYPE_CHECKING:
    from fsd.mount.operations import Operations

_KINDS = {
    fcntl.F_RDLCK: LockKind.READ,
    fcntl.F_WRLCK: LockKind.WRITE,
}
_NUMBERS = {kind: number for number, kind in _KINDS.items()}
_FLOCKS = {fcntl.LOCK_SH: LockKind.READ, fcntl.LOCK_EX: LockKind.WRITE}


class MountLocks:
    """Raises nothing but FUSEError. Owners are the kernel's lock owners, handles the mount's."""

    def __init__(self, operations: "Operations") -> None:
        self._operations = operations

    @property
    def _locks(self) -> Locks:
        return self._operations.fs.locks

    async def test(self, ino: Ino, owner: int, lock: FileLock) -> FileLock:
        """F_GETLK: the first conflicting lock, or one of kind F_UNLCK. A pid is that of the holder on its own host."""
        wanted = HeldLock(ino, LockSpace.POSIX, owner, _KINDS[lock.kind], lock.start, lock.end, lock.pid, 0)
        try:
            found = await self._locks.test(wanted)
        except FsError as error:
            raise pyfuse3.FUSEError(error.errno) from None
        if found is None:
            return lock._replace(kind=fcntl.F_UNLCK, pid=0)
        return FileLock(_NUMBERS[found.kind], found.start, found.end, found.pid)

    async def lock_range(self, ino: Ino, fh: int, owner: int, lock: FileLock, wait: bool) -> None:
        """F_SETLK, F_SETLKW. Raises FUSEError(EAGAIN, EDEADLK, ENOLCK)."""
        if lock.kind == fcntl.F_UNLCK:
            await self._locks.release(LockSpace.POSIX, ino, owner, lock.start, lock.end)
            return
        kind = _KINDS[lock.kind]
        await self._acquire(HeldLock(ino, LockSpace.POSIX, owner, kind, lock.start, lock.end, lock.pid, fh), wait)

    async def flock(self, ino: Ino, fh: int, owner: int, operation: int, wait: bool, pid: int) -> None:
        """LOCK_SH, LOCK_EX or LOCK_UN. Raises FUSEError(EAGAIN, ENOLCK). The handle is the owner: the kernel's number is free
        for another file as soon as the last descriptor is closed, which is before we hear of it."""
        if operation == fcntl.LOCK_UN:
            await self._locks.release(LockSpace.FLOCK, ino, fh)
            return
        await self._acquire(HeldLock(ino, LockSpace.FLOCK, fh, _FLOCKS[operation], 0, OFFSET_END, pid, fh), wait)

    async def _acquire(self, lock: HeldLock, wait: bool) -> None:
        try:
            await self._locks.acquire(lock, wait=wait)
        except FsError as error:
            raise pyfuse3.FUSEError(error.errno) from None
