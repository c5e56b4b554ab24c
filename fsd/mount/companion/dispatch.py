"""Extra operations: from the extension to handlers and back, each request in a task of its own.

States of a request:   arrived --> handler runs --> answered
                          |            |
                          |            +-- exception, interrupt, shutdown --> answered with an errno
                          +-- too many --> ENOLCK

A handler that waits for a lock holds none of pyfuse3's workers. FUSE_INTERRUPT (a signal hit the caller) cancels only a
handler that waits for a lock: what else is under way is carried out, as on a local disk.
"""

import errno
import fcntl
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import pyfuse3
import trio

from fsd.client.calls import CALL
from fsd.mount.companion.protocol import CallerContext, FileLock

if TYPE_CHECKING:
    from fsd.mount.companion._companion import Request

log = logging.getLogger(__name__)

MAX_REQUESTS = 10_000  # extra operations at once, most of them waiters for locks; more are refused with ENOLCK
_OPERATIONS = {
    "setlk": 1,
    "flock": 2,
    "fallocate": 4,
    "lseek": 8,
    "copy_file_range": 16,
    "ioctl": 32,
}  # the extension's HAS_; getlk comes with setlk


class ExtraOperations(Protocol):
    """What an operations object may have beside pyfuse3's methods; what it lacks, the kernel does by itself or refuses.

    All may raise FUSEError. A cancelled `setlk` or `flock` must not have taken the lock.
    """

    async def getlk(self, inode: int, fh: int, owner: int, lock: FileLock, ctx: CallerContext) -> FileLock:
        """The first lock that `lock` conflicts with, or one of kind F_UNLCK."""
        ...

    async def setlk(self, inode: int, fh: int, owner: int, lock: FileLock, wait: bool, ctx: CallerContext) -> None: ...

    async def flock(self, inode: int, fh: int, owner: int, operation: int, wait: bool, ctx: CallerContext) -> None:
        """`operation` is LOCK_SH, LOCK_EX or LOCK_UN."""
        ...

    async def fallocate(self, inode: int, fh: int, mode: int, offset: int, length: int, ctx: CallerContext) -> None: ...

    async def lseek(self, inode: int, fh: int, offset: int, whence: int, ctx: CallerContext) -> int:
        """`whence` is SEEK_DATA or SEEK_HOLE."""
        ...

    async def copy_file_range(
        self,
        inode: int,
        fh: int,
        offset: int,
        inode_to: int,
        fh_to: int,
        offset_to: int,
        length: int,
        flags: int,
        ctx: CallerContext,
    ) -> int: ...

    async def ioctl(
        self,
        inode: int,
        fh: int,
        command: int,
        argument: int,
        flags: int,
        data: bytes,
        out_size: int,
        ctx: CallerContext,
    ) -> tuple[int, bytes]:
        """The call's result and at most `out_size` bytes for the caller."""
        ...


class Dispatcher:
    """Starts a handler for each request that the extension hands over, while `nursery` is set."""

    def __init__(self, operations: object) -> None:
        self._operations: Any = operations
        self.nursery: trio.Nursery | None = None
        self.running = 0
        self._runners: dict[str, Callable[[Request, Any], Awaitable[None]]] = {
            "getlk": self._getlk,
            "setlk": self._setlk,
            "flock": self._flock,
            "fallocate": self._fallocate,
            "lseek": self._lseek,
            "copy_file_range": self._copy_file_range,
            "ioctl": self._ioctl,
        }

    def mask(self) -> int:
        """Which operations there are, for the extension."""
        return sum(bit for name, bit in _OPERATIONS.items() if hasattr(self._operations, name))

    def dispatch(self, name: str, request: "Request", arguments: tuple[object, ...]) -> None:
        """Called by the extension in pyfuse3's worker; does not wait. A request that nobody takes is answered EIO."""
        if self.nursery is None:
            return
        if self.running >= MAX_REQUESTS:
            log.warning("%s: %d requests are waiting: refused", name, self.running)
            request.reply_error(errno.ENOLCK)
            return
        self.running += 1
        self.nursery.start_soon(self._run, name, request, arguments)

    async def _run(self, name: str, request: "Request", arguments: tuple[object, ...]) -> None:
        CALL.set(request.call)
        try:
            await self._runners[name](request, arguments)
        except pyfuse3.FUSEError as error:
            _refuse(request, error.errno)
        except trio.Cancelled:
            _refuse(request, errno.EINTR)
            raise
        except Exception:
            log.exception("%s%r: bug", name, arguments)
            _refuse(request, errno.EIO)
        finally:
            self.running -= 1

    async def _getlk(self, request: "Request", arguments: tuple[int, int, int, int, int, int, int]) -> None:
        inode, fh, owner, *lock = arguments
        found = await self._operations.getlk(inode, fh, owner, FileLock.from_length(*lock), _caller(request))
        request.reply_lock(found.kind, found.start, found.length, found.pid)

    async def _setlk(self, request: "Request", arguments: tuple[int, int, int, int, int, int, int, int]) -> None:
        inode, fh, owner, *lock, sleep = arguments
        asked = FileLock.from_length(*lock)
        wait = bool(sleep) and asked.kind != fcntl.F_UNLCK
        await self._lock(request, wait, lambda: self._operations.setlk(inode, fh, owner, asked, wait, _caller(request)))

    async def _flock(self, request: "Request", arguments: tuple[int, int, int, int]) -> None:
        inode, fh, owner, how = arguments
        operation = how & ~fcntl.LOCK_NB
        wait = not how & fcntl.LOCK_NB and operation != fcntl.LOCK_UN
        await self._lock(
            request, wait, lambda: self._operations.flock(inode, fh, owner, operation, wait, _caller(request))
        )

    async def _lock(self, request: "Request", wait: bool, acquire: Callable[[], Awaitable[None]]) -> None:
        with trio.CancelScope() as scope:
            if wait:
                request.on_interrupt(scope.cancel)
            await acquire()
            request.reply_error(0)
            return
        request.reply_error(errno.EINTR)

    async def _fallocate(self, request: "Request", arguments: tuple[int, int, int, int, int]) -> None:
        await self._operations.fallocate(*arguments, _caller(request))
        request.reply_error(0)

    async def _lseek(self, request: "Request", arguments: tuple[int, int, int, int]) -> None:
        request.reply_offset(await self._operations.lseek(*arguments, _caller(request)))

    async def _copy_file_range(
        self, request: "Request", arguments: tuple[int, int, int, int, int, int, int, int]
    ) -> None:
        request.reply_count(await self._operations.copy_file_range(*arguments, _caller(request)))

    async def _ioctl(self, request: "Request", arguments: tuple[int, int, int, int, int, bytes, int]) -> None:
        result, data = await self._operations.ioctl(*arguments, _caller(request))
        assert len(data) <= arguments[-1], "the kernel would drop such an answer and the caller would hang"
        request.reply_ioctl(result, data)


def _caller(request: "Request") -> CallerContext:
    return CallerContext(*request.context())


def _refuse(request: "Request", number: int) -> None:
    """Answer with an errno, unless the failure was in answering."""
    if not request.answered:
        request.reply_error(number)
