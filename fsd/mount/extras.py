"""What the companion brings to a mount: handlers that pyfuse3 does not have, and set-id bits that are ours to take away.

Not here on purpose: lseek and copy_file_range. Without them the kernel answers SEEK_DATA and SEEK_HOLE as POSIX allows
(data everywhere, a hole at the end) and copies through the page cache, both without a request more.
"""

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

import pyfuse3
import trio

from fsd.client.file import FileHandle
from fsd.client.filesystem import Caller
from fsd.core.errors import NoAttribute
from fsd.core.ids import Ino
from fsd.core.units import MIB
from fsd.mount.companion import CallerContext, Companion, FileLock
from fsd.mount.edge import edge
from fsd.mount.locks import MountLocks
from fsd.mount.notify import invalidate_attributes
from fsd.namespace.records import Inode, InodeFlag
from fsd.namespace.rules import CAPABILITY, mode_without_privileges

if TYPE_CHECKING:
    from fsd.mount.operations import Operations

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
THREADS = 8  # appends at once that drop pages
ZEROES = bytes(MIB)
MAX_ZEROED_BYTES = 256 * MIB  # zeroes are written; who wants more is told to do it otherwise (EOPNOTSUPP)


class Extras:
    """Given to `Companion.install`; shares the tables of `operations`."""

    def __init__(self, companion: Companion, operations: "Operations") -> None:
        self._companion = companion
        self._operations = operations
        self._locks = MountLocks(operations)
        self._threads = trio.CapacityLimiter(THREADS)
        self._wrote: dict[int, None] = {}  # handles through which was written
        self._cached: dict[Ino, None] = {}  # inodes whose pages the kernel may have; no more than it has inodes

    @property
    def deadline_s(self) -> float | None:
        return self._operations.deadline_s

    @property
    def call_number(self) -> None:
        """The dispatcher tells each handler's task."""
        return None

    # --- locks: no deadline; they raise nothing but FUSEError ---------------------------------------------------------

    async def getlk(self, inode: int, fh: int, owner: int, lock: FileLock, ctx: CallerContext) -> FileLock:
        return await self._locks.test(Ino(inode), owner, lock)

    async def setlk(self, inode: int, fh: int, owner: int, lock: FileLock, wait: bool, ctx: CallerContext) -> None:
        await self._locks.lock_range(Ino(inode), fh, owner, lock, wait)

    async def flock(self, inode: int, fh: int, owner: int, operation: int, wait: bool, ctx: CallerContext) -> None:
        await self._locks.flock(Ino(inode), fh, owner, operation, wait, ctx.pid)

    def lock_owner(self) -> int:
        """First in `flush`: who closes a descriptor."""
        return self._companion.current().lock_owner

    async def flushing(self, ino: Ino, owner: int) -> None:
        """In `flush`: the process that closes the descriptor loses its range locks of the file."""
        await self._operations.fs.locks.closed(ino, owner)

    def releasing(self, fh: int) -> None:
        """First in `release`: what was locked through the handle goes with it."""
        self._wrote.pop(fh, None)
        self._operations.fs.locks.released(fh)

    # --- space --------------------------------------------------------------------------------------------------------

    @edge
    async def fallocate(self, inode: int, fh: int, mode: int, offset: int, length: int, ctx: CallerContext) -> None:
        """Space is not reserved ahead (replicas and quota are looked at when bytes are written); what is promised is the
        size, and zeroes."""
        if mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        ino, end = Ino(inode), offset + length
        with self._operations.at_work(inode):
            before = await self._operations.fs.getattr(ino)
            if ctx.uid != 0:
                await self.kill_privileges(ino, Caller(ctx.uid, ctx.gid, ctx.pid))
            if mode & (PUNCH_HOLE | ZERO_RANGE):
                await self._write_zeroes(self._operations.file(fh), offset, min(end, before.size))
            if not mode & KEEP_SIZE and end > before.size:
                await self._operations.fs.setattr(Caller(ctx.uid, ctx.gid, ctx.pid), ino, size=end)

    async def _write_zeroes(self, handle: FileHandle, offset: int, end: int) -> None:
        if end - offset > MAX_ZEROED_BYTES:
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        while offset < end:
            piece = memoryview(ZEROES)[: end - offset]
            await self._operations.fs.write(handle, offset, piece)
            offset += len(piece)

    # --- HANDLE_KILLPRIV_V2: without it the kernel asks for security.capability before every write --------------------

    def privilege_killer(self) -> Caller | None:
        """First in `write` and `open`: the caller, if its change takes set-id bits away."""
        now = self._companion.current()
        return Caller(now.uid, now.gid, 0) if now.kills_privileges else None

    def from_page_cache(self) -> bool:
        """First in `write`: whether these are mapped pages, not a process's write(2)."""
        return self._companion.current().from_page_cache

    def is_plain_write(self, handle: FileHandle, fh: int) -> bool:
        """Whether a write through the handle has nothing to take away: no capability, no page of the kernel's at the end."""
        ino = handle.ino
        if handle.flags & os.O_APPEND and ino in self._cached:
            return False
        if fh not in self._wrote:
            inode = self._operations.fs.peek(ino)
            if inode is None or inode.flags & InodeFlag.HAS_XATTRS:
                return False
            self._wrote[fh] = None
        return True

    async def kill_privileges(self, ino: Ino, caller: Caller) -> None:
        """Take the set-id bits away that a write by this caller takes. Costs a look into the cache if there are none."""
        inode: Inode | None = self._operations.fs.peek(ino)
        if inode is None:
            inode = await self._operations.fs.getattr(ino)
        mode = mode_without_privileges(inode, caller.uid, caller.gid)
        if mode != inode.mode:
            await self._operations.fs.setattr(Caller(0, 0, 0), ino, mode=stat.S_IMODE(mode))
            invalidate_attributes(ino)  # no answer on this way tells the kernel the mode

    async def kill_capability(self, ino: Ino, fh: int) -> None:
        """Any write takes a file's capabilities away. The server does that too when the bytes arrive there; here it is seen
        to once for each handle, so that nobody runs the changed program with them before."""
        if fh in self._wrote:
            return
        inode = self._operations.fs.peek(ino)
        if inode is None:
            inode = await self._operations.fs.getattr(ino)
        if inode.flags & InodeFlag.HAS_XATTRS:
            with contextlib.suppress(NoAttribute):
                await self._operations.fs.removexattr(Caller(0, 0, 0), ino, CAPABILITY)
        self._wrote[fh] = None

    # --- EXPLICIT_INVAL_DATA: an append goes past the kernel's pages, and nobody but us drops what it makes old ----------

    def reading(self, ino: Ino) -> None:
        """First in `read`: the kernel will keep the answer."""
        self._cached[ino] = None

    async def appended(self, ino: Ino, offset: int) -> None:
        """Before the answer to an append. The page at the end, if it was read while the append was on its way, has zeroes
        where the new bytes belong; the kernel shows them as soon as it knows the new size, which is after the answer."""
        if ino not in self._cached:
            return
        del self._cached[ino]
        await trio.to_thread.run_sync(
            self._companion.invalidate_pages, ino, offset, abandon_on_cancel=True, limiter=self._threads
        )

    def forgotten(self, ino: Ino) -> None:
        """In `forget`: the kernel has nothing of it any more."""
        self._cached.pop(ino, None)
