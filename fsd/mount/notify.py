"""Taking back what the kernel caches, when a lease is recalled.

Invalidation may block in the kernel while a related request is pending: a page that is being read or written is locked, a
directory in which something is created too. The handler of that request may itself wait for the very lease that is being
recalled. Hence:

- it is done by threads, never by the event loop;
- a recall waits for it, but no longer than `PATIENCE_S`, and no longer than `BUSY_PATIENCE_S` while one of our handlers is at
  work on the same inode; the thread goes on waiting, and what it is blocked by will be filled by an answer that comes
  later, under a new lease;
- for names, the kernel's epoch is raised instead (Linux 6.16): every cached name is looked up again, without any lock. A
  directory may be locked without a handler at work on it: unlink(2) holds it while it waits for a file that is being
  written. So the patience with names is always short, and a kernel without epochs does not cache names at all.
"""

import contextlib
import errno
import logging
import os
import struct
from collections import Counter
from collections.abc import Callable

import pyfuse3
import trio

from fsd.core.ids import Ino

log = logging.getLogger(__name__)

THREADS = 256  # blocked ones included
PATIENCE_S = 1.0
BUSY_PATIENCE_S = 0.01
_NOTIFY_INC_EPOCH = 8  # enum fuse_notify_code
_OUT_HEADER = struct.Struct("<IiQ")  # struct fuse_out_header: len, error (the code), unique 0
_HARMLESS = (errno.ENOENT, errno.ENOTDIR)  # the kernel does not know it (any more)


class Notifier:
    """Implements fsd.client's Invalidate. `is_busy(ino)`: whether a handler that changes or reads it is at work."""

    def __init__(self, is_busy: Callable[[Ino], bool]) -> None:
        self._is_busy = is_busy
        self._running = 0  # threads, blocked ones included
        self._blocked: Counter[Ino] = Counter()  # of them, by the inode that they wait for
        self._fd: int | None = None
        self.names_may_be_cached = False

    def mounted(self) -> None:
        """From here on there is a kernel that caches."""
        self._fd = find_fuse_fd()
        try:
            self._raise_epoch()
            self.names_may_be_cached = True
        except OSError as error:
            log.info("this kernel has no FUSE_NOTIFY_INC_EPOCH (%s): it will not cache names", error.strerror)

    def unmounted(self) -> None:
        self._fd = None

    def forget_names(self) -> None:
        """Have the kernel look up every name again."""
        self._raise_epoch()

    async def forget_pages(self, ino: Ino) -> None:
        await self.inode(ino, attributes_only=False)

    async def inode(self, ino: Ino, *, attributes_only: bool) -> None:
        """Attributes, and pages unless `attributes_only`."""
        if self._fd is None:
            return
        invalidate_attributes(ino)  # takes no lock
        if attributes_only:
            return
        if not await self._in_thread(ino, lambda: invalidate_pages(ino), PATIENCE_S):
            log.debug("pages of inode %d are in use: invalidated when they are free", ino)

    async def entry(self, parent: Ino, name: bytes) -> None:
        """One name of a directory, be it there or absent."""
        if self._fd is None or not self.names_may_be_cached:
            return
        if (
            self._blocked[parent]
            or self._is_busy(parent)
            or not await self._in_thread(parent, lambda: invalidate_name(parent, name), BUSY_PATIENCE_S)
        ):
            self._raise_epoch()

    async def _in_thread(self, ino: Ino, call: Callable[[], None], patience_s: float) -> bool:
        """Whether it was done before it was clear that it waits for one of our own handlers."""
        if self._running >= THREADS:
            log.warning("%d invalidations wait for requests of their inodes: inode %d goes without", THREADS, ino)
            return False
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        self._running += 1

        def finished() -> None:
            self._running -= 1
            self._blocked[ino] -= 1
            if not self._blocked[ino]:
                del self._blocked[ino]
            done.set()

        def deliver(_: object) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(finished)

        self._blocked[ino] += 1
        trio.lowlevel.start_thread_soon(call, deliver, "notify")
        return await self._wait(ino, done, patience_s)

    async def _wait(self, ino: Ino, done: trio.Event, patience_s: float) -> bool:
        deadline = trio.current_time() + patience_s
        while True:
            with trio.move_on_after(BUSY_PATIENCE_S):
                await done.wait()
                return True
            if self._is_busy(ino) or trio.current_time() >= deadline:
                return False

    def _raise_epoch(self) -> None:
        """Let the kernel forget all names at once, which never blocks. Raises OSError."""
        assert self._fd is not None
        os.write(self._fd, _OUT_HEADER.pack(_OUT_HEADER.size, _NOTIFY_INC_EPOCH, 0))


def invalidate_attributes(ino: Ino) -> None:
    _harmless(lambda: pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=True))


def invalidate_pages(ino: Ino) -> None:
    _harmless(lambda: pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=False))


def invalidate_name(parent: Ino, name: bytes) -> None:
    _harmless(lambda: pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name)))


def _harmless(call: Callable[[], None]) -> None:
    try:
        call()
    except OSError as error:
        if error.errno not in _HARMLESS:
            log.warning("invalidation failed: %s", error)


def find_fuse_fd() -> int | None:
    """The descriptor of our FUSE session, which pyfuse3 does not tell."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                return int(name)
        except OSError:
            continue
    return None
