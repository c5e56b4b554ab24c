"""pyfuse3's handlers: from the kernel's requests to `fsd.client.filesystem.FileSystem` and back.

What the kernel may cache, and how long, is asked synchronously right before an answer leaves: no await lies between it and
pyfuse3's reply, so an answer that raced with a recall carries time-out 0, and one that did not is invalidated after it.
"""

import dataclasses
import errno
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ModeT, XAttrNameT

from fsd.client.file import DirectoryHandle, FileHandle
from fsd.client.filesystem import Caller, FileSystem
from fsd.core.errors import FsError, NotFound, StaleHandle
from fsd.core.ids import Ino
from fsd.core.units import NAME_MAX
from fsd.mount.attributes import absent_entry, entry_attributes
from fsd.mount.edge import edge
from fsd.mount.extras import Extras
from fsd.namespace.keys import FIRST_COOKIE
from fsd.namespace.records import Inode
from fsd.namespace.rules import CAPABILITY
from fsd.protocol.metadata import DirectoryEntry

log = logging.getLogger(__name__)

CONCURRENT_ATTRIBUTES = 32
_BLOCK = 4096  # f_bsize, f_frsize
_REFUSED_XATTRS = (b"system.posix_acl_", b"security.")  # kept by nobody here, so that nobody trusts in them
_EXCHANGE = 2  # renameat2(2)
_SERIAL_BITS = 16  # of a directory handle's number; the rest is the inode
_TRUSTED = b"trusted."  # root's alone to see


@dataclass(slots=True)
class OpenDirectory:
    """A directory handle with the entries that were read and did not fit into the last answer."""

    ino: Ino
    handle: DirectoryHandle
    position: int = 0  # cookie of the last entry that was delivered
    pending: list[DirectoryEntry] = field(default_factory=list[DirectoryEntry])


@dataclass(slots=True, frozen=True, eq=False)
class ReadUnderWay:
    ino: Ino
    offset: int
    answered: trio.Event  # its answer is sent before anybody who waits for this runs


class Operations(pyfuse3.Operations):
    """One mount's handlers. `deadline_s` None waits for ever (hard)."""

    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, deadline_s: float | None) -> None:
        super().__init__()
        self.deadline_s = deadline_s
        self.call_number: Callable[[], int] | None = None  # the companion's, if there is one
        self.names_may_be_cached = False  # whether the kernel can be made to forget them: Notifier says so
        self.extras: Extras | None = None  # set if there is a companion
        self._attached: FileSystem | None = None
        self._lookups: Counter[int] = Counter()
        self._files: dict[int, FileHandle] = {}
        self._reads: dict[int, dict[int, ReadUnderWay]] = {}
        self._gone: dict[int, Inode] = {}  # directories removed here that the kernel still knows; as many at most
        self._directories: dict[int, OpenDirectory] = {}
        self._next_handle = 1
        self._inherited = False  # the kernel knows inodes and handles from a daemon before us
        self._trusted: dict[
            int, None
        ] = {}  # inodes opened since then, whose pages are ours; no more than the kernel knows
        self._growing: dict[Ino, int] = {}  # the size before the appends that are not answered yet
        self._busy: Counter[int] = Counter()

    def attach(self, fs: FileSystem) -> None:
        """Which file system these handlers serve; before the first request."""
        self._attached = fs
        self._files.update(fs.restored_handles)
        self._next_handle = max(self._files, default=0) + 1

    def inherit(self, forget_names: Callable[[], None]) -> None:
        """Go on for a daemon that has ended. Recalls name the names that they are about one by one, and nobody here knows which
        the kernel has: it must forget all. Pages of files are dropped when they are opened the next time."""
        self._inherited = True
        if self.names_may_be_cached:
            forget_names()
        self.fs.names_forgotten()

    async def forget_pages(self, forget: Callable[[Ino], Awaitable[None]]) -> None:
        """Of files that are open, if the session did not live on with its leases."""
        if self._inherited and not self.fs.resumed:
            for ino in sorted({handle.ino for handle in self._files.values()}):
                await forget(ino)

    @property
    def attached(self) -> bool:
        return self._attached is not None

    @property
    def fs(self) -> FileSystem:
        assert self._attached is not None
        return self._attached

    def is_gone(self, ino: int) -> bool:
        """Whether it is a removed directory that the kernel still knows."""
        return ino in self._gone

    def count_lookup(self, ino: Ino) -> None:
        """The kernel is told of the inode, and will say when it forgets it."""
        self._lookups[ino] += 1

    def is_busy(self, ino: Ino) -> bool:
        """Whether a handler that holds the kernel's locks of this inode is at work."""
        return self._busy[ino] > 0

    @contextmanager
    def at_work(self, *inos: int) -> Generator[None]:
        for ino in inos:
            self._busy[ino] += 1
        try:
            yield
        finally:
            for ino in inos:
                self._busy[ino] -= 1
                if not self._busy[ino]:
                    del self._busy[ino]

    # --- names --------------------------------------------------------------------------------------------------------

    @edge
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = Ino(parent_inode)
        if parent in self._gone:
            raise NotFound(f"directory {parent} was removed")
        if name in (b".", b".."):
            inode = await self.fs.getattr(parent)
            return self._entry(inode if name == b"." else await self.fs.getattr(inode.parent), parent)
        with self.at_work(parent):
            try:
                inode = await self.fs.lookup(parent, name)
            except NotFound:
                return absent_entry(self.entry_ttl_s(parent))
        return self._entry(inode, parent)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        try:
            for ino, count in inode_list:
                left = self._lookups[ino] - count
                if left > 0:
                    self._lookups[ino] = left
                    continue
                del self._lookups[ino]
                self._gone.pop(ino, None)
                self._trusted.pop(ino, None)
                if self.extras is not None:
                    self.extras.forgotten(Ino(ino))
                self.fs.forget(Ino(ino))
        except Exception:
            log.exception("forget: bug")

    @edge
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        with self.at_work(parent_inode):
            inode = await self.fs.mknod(_caller(ctx), Ino(parent_inode), name, mode, rdev)
        return self._entry(inode, Ino(parent_inode))

    @edge
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        with self.at_work(parent_inode):
            inode = await self.fs.mkdir(_caller(ctx), Ino(parent_inode), name, stat.S_IMODE(mode))
        return self._entry(inode, Ino(parent_inode))

    @edge
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        with self.at_work(parent_inode):
            inode = await self.fs.symlink(_caller(ctx), Ino(parent_inode), name, target)
        return self._entry(inode, Ino(parent_inode))

    @edge
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        with self.at_work(new_parent_inode, inode):
            linked = await self.fs.link(_caller(ctx), Ino(inode), Ino(new_parent_inode), new_name)
        return self._entry(linked, Ino(new_parent_inode))

    @edge
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext) -> None:
        with self.at_work(parent_inode):
            await self.fs.unlink(_caller(ctx), Ino(parent_inode), name)

    @edge
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext) -> None:
        with self.at_work(parent_inode):
            directory = await self._directory_at(Ino(parent_inode), name)
            await self.fs.rmdir(_caller(ctx), Ino(parent_inode), name)
            self.remember_gone(directory)

    @edge
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        with self.at_work(parent_inode_old, parent_inode_new):
            overwrites = not int(flags) & _EXCHANGE
            directory = await self._directory_at(Ino(parent_inode_new), name_new) if overwrites else None
            await self.fs.rename(
                _caller(ctx), Ino(parent_inode_old), name_old, Ino(parent_inode_new), name_new, int(flags)
            )
            self.remember_gone(directory)

    async def _directory_at(self, parent: Ino, name: bytes) -> Inode | None:
        """The directory that is about to be removed, which the kernel has just looked up; None if it does not matter."""
        try:
            inode = await self.fs.lookup(parent, name)
        except FsError:
            return None  # whatever it is, the operation will meet it too
        return inode if inode.is_directory and self._is_known(inode.ino) else None

    def remember_gone(self, directory: Inode | None) -> None:
        """A process may still be in a removed directory, or have it open: it must be able to ask for its attributes."""
        if directory is not None and self._is_known(directory.ino):
            now_ns = time.time_ns()
            self._gone[directory.ino] = dataclasses.replace(directory, nlink=0, ctime_ns=now_ns)

    def _is_known(self, ino: Ino) -> bool:
        """Whether the kernel may have this inode."""
        return self._inherited or ino in self._lookups

    @edge
    async def readlink(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileNameT:
        return FileNameT(await self.fs.readlink(Ino(inode)))

    # --- attributes ---------------------------------------------------------------------------------------------------

    @edge
    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if inode in self._gone:
            return entry_attributes(self._gone[inode], 0, 0)
        with self.at_work(inode):  # the kernel may ask while it holds a directory's lock, to check permissions
            return self._attributes(await self.fs.getattr(Ino(inode)))

    @edge
    async def setattr(
        self,
        inode: InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        with self.at_work(inode):
            changed = await self.fs.setattr(
                _caller(ctx),
                Ino(inode),
                mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
                uid=attr.st_uid if fields.update_uid else None,
                gid=attr.st_gid if fields.update_gid else None,
                size=attr.st_size if fields.update_size else None,
                atime_ns=attr.st_atime_ns if fields.update_atime else None,
                mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            )
        return self._attributes(changed)

    @edge
    async def access(self, inode: InodeT, mode: ModeT, ctx: pyfuse3.RequestContext) -> bool:
        """Not called by the kernel with `default_permissions`, which every mount has."""
        return True

    @edge
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        space = await self.fs.statfs()
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = _BLOCK
        answer.f_blocks = space.total_bytes // _BLOCK
        answer.f_bfree = answer.f_bavail = space.free_bytes // _BLOCK
        answer.f_files = space.total_inodes
        answer.f_ffree = answer.f_favail = space.free_inodes
        answer.f_namemax = NAME_MAX
        return answer

    # --- files --------------------------------------------------------------------------------------------------------

    @edge
    async def open(self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        killer = self.extras.privilege_killer() if self.extras is not None else None
        with self.at_work(inode):
            handle = await self.fs.open(Ino(inode), int(flags), _caller(ctx), number=self.next_number())
            if killer is not None and self.extras is not None:
                await self.extras.kill_privileges(Ino(inode), killer)
        return self._file_info(handle)

    @edge
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        with self.at_work(parent_inode):
            number = self.next_number()
            inode, handle = await self.fs.create(
                _caller(ctx), Ino(parent_inode), name, stat.S_IMODE(mode), int(flags), number=number
            )
        return self._file_info(handle), self._entry(inode, Ino(parent_inode))

    @edge
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        handle = self.file(fh)
        if self.extras is not None:
            self.extras.reading(handle.ino)
        with self.at_work(handle.ino), self._reading(handle.ino, off) as read:
            data = await self.fs.read(handle, off, size)
            if not data:
                await self._answered_below(read)
            return data

    def reads_under_way(self, ino: Ino) -> bool:
        """Whether answers to reads of the file are owed."""
        return ino in self._reads

    @contextmanager
    def _reading(self, ino: Ino, offset: int) -> Generator[ReadUnderWay]:
        reads = self._reads.setdefault(ino, {})
        read = ReadUnderWay(ino, offset, trio.Event())
        reads[id(read)] = read
        try:
            yield read
        finally:
            del reads[id(read)]
            if not reads:
                del self._reads[ino]
            read.answered.set()

    async def _answered_below(self, read: ReadUnderWay) -> None:
        """Wait for the reads under way at lower offsets. From an answer that comes short the kernel learns where the file ends
        (another client may have made it shorter), but believes only the first of those that it has asked for at once: an
        empty one, from wholly behind the end, would make it show zeroes up to there."""
        for other in list(self._reads[read.ino].values()):
            if other.offset < read.offset:
                await other.answered.wait()

    @edge
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        handle = self.file(fh)
        killer = self.extras.privilege_killer() if self.extras is not None else None
        from_page_cache = self.extras is not None and self.extras.from_page_cache()
        with self.at_work(handle.ino):
            if from_page_cache:  # through any handle of the file that may write, one for appending too
                await self.fs.write_pages(handle, off, buf)
                return len(buf)
            if killer is not None and self.extras is not None:
                await self.extras.kill_privileges(handle.ino, killer)
            if self.extras is not None:
                await self.extras.kill_capability(handle.ino, fh)
            written = await self.fs.write(handle, off, buf)
            if self.extras is not None and handle.flags & os.O_APPEND:
                with self._not_grown_yet(handle.ino, written):
                    await self.extras.appended(handle.ino, off)
            return written

    @contextmanager
    def _not_grown_yet(self, ino: Ino, written: int) -> Generator[None]:
        """While the kernel's page at the old end is being dropped, everybody sees the old size, which an append that is not
        answered yet may have: with the new one the kernel would show the zeroes of that page."""
        inode = self.fs.peek(ino)
        if inode is None:
            yield
            return
        old_size = inode.size - written
        first = ino not in self._growing
        self._growing[ino] = min(self._growing.get(ino, old_size), old_size)
        try:
            yield
        finally:
            if first:
                self._growing.pop(ino, None)

    def shown(self, inode: Inode) -> Inode:
        """The inode as the kernel may see it now."""
        old_size = self._growing.get(inode.ino)
        if old_size is None or inode.size <= old_size:
            return inode
        return dataclasses.replace(inode, size=old_size)

    @edge
    async def flush(self, fh: FileHandleT) -> None:
        handle = self.file(fh)
        if self.extras is not None:
            await self.extras.flushing(handle.ino, self.extras.lock_owner())
        await self.fs.flush(handle)

    @edge
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self.fs.fsync(self.file(fh), data_only=bool(datasync))

    @edge
    async def release(self, fh: FileHandleT) -> None:
        self.released(fh)

    def released(self, fh: int) -> None:
        """The kernel has no descriptor of it any more."""
        if self.extras is not None:
            self.extras.releasing(fh)
        handle = self._files.pop(fh, None)
        if handle is not None:  # else a daemon before us has released it, and did not come to say so
            self.fs.drop(handle)

    # --- directories --------------------------------------------------------------------------------------------------

    @edge
    async def opendir(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileHandleT:
        if inode in self._gone:
            return self.opened_directory(DirectoryHandle(Ino(inode)))
        return self.opened_directory(await self.fs.open_directory(Ino(inode)))

    def opened_directory(self, handle: DirectoryHandle) -> FileHandleT:
        """The number holds the inode, so that a daemon after us knows what it is."""
        for serial in range(1 << _SERIAL_BITS):
            number = handle.ino << _SERIAL_BITS | serial
            if number not in self._directories:
                self._directories[number] = OpenDirectory(handle.ino, handle)
                return FileHandleT(number)
        raise pyfuse3.FUSEError(errno.ENFILE)

    def _directory(self, fh: int) -> OpenDirectory:
        found = self._directories.get(fh)
        if found is None:  # a daemon before us opened it
            ino = Ino(fh >> _SERIAL_BITS)
            found = self._directories[fh] = OpenDirectory(ino, DirectoryHandle(ino))
        return found

    @edge
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self._directory(fh)
        if directory.ino in self._gone:
            return  # POSIX: no entries, not even "." and ".."
        with self.at_work(directory.ino):
            await self._readdir(directory, start_id, token)

    async def _readdir(self, directory: OpenDirectory, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if start_id < FIRST_COOKIE - 1 and not await self._dots(directory, start_id, token):
            return
        entries = await self._page(directory, max(start_id, FIRST_COOKIE - 1))
        inodes = await self._inodes_of(entries)
        self._deliver(directory, entries, inodes, token)

    @edge
    async def releasedir(self, fh: FileHandleT) -> None:
        self.closed_directory(fh)

    def closed_directory(self, fh: int) -> None:
        """See `released`."""
        self._directories.pop(fh, None)

    @edge
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        ino = self._directory(fh).ino
        if ino not in self._gone:
            await self.fs.fsync_directory(ino)

    async def _dots(self, directory: OpenDirectory, start_id: int, token: pyfuse3.ReaddirToken) -> bool:
        """ "." and ".."; these are not looked up, so nothing is counted."""
        own = await self.fs.getattr(directory.ino)
        parent = await self.fs.getattr(own.parent)
        for cookie, name, inode in ((1, b".", own), (2, b"..", parent)):
            reply = entry_attributes(inode, 0, 0)
            if start_id < cookie and not pyfuse3.readdir_reply(token, FileNameT(name), reply, cookie):
                return False
        return True

    async def _page(self, directory: OpenDirectory, cookie: int) -> list[DirectoryEntry]:
        """The entries after `cookie`: what is left of the last page, else the next one."""
        if not directory.pending or directory.position != cookie:
            directory.pending = await self.fs.read_directory(directory.handle, cookie, True)
            directory.position = cookie
        return directory.pending

    async def _inodes_of(self, entries: list[DirectoryEntry]) -> list[Inode | None]:
        """Attributes of all entries, from the client's cache where it has them; None for those that went away."""
        inodes: list[Inode | None] = [None] * len(entries)
        left = iter(enumerate(entries))

        async def fetch() -> None:
            for index, entry in left:
                try:
                    inodes[index] = await self.fs.getattr(entry.ino)
                except (NotFound, StaleHandle):
                    continue

        async with trio.open_nursery() as nursery:
            for _ in range(min(CONCURRENT_ATTRIBUTES, -(-len(entries) // CONCURRENT_ATTRIBUTES))):
                nursery.start_soon(fetch)
        return inodes

    def _deliver(
        self,
        directory: OpenDirectory,
        entries: list[DirectoryEntry],
        inodes: list[Inode | None],
        token: pyfuse3.ReaddirToken,
    ) -> None:
        """As many as fit. Attributes were gathered over several awaits, so the kernel may not keep them (time-out 0)
        unless the client still holds the lease and has the same ones."""
        done = 0
        for entry, inode in zip(entries, inodes, strict=True):
            if inode is not None:
                shown = self.shown(inode)
                reply = entry_attributes(shown, self._gathered_ttl_s(inode), self.entry_ttl_s(directory.ino))
                if not pyfuse3.readdir_reply(token, FileNameT(entry.name), reply, entry.cookie):
                    break
                self.count_lookup(entry.ino)
            directory.position = entry.cookie
            done += 1
        directory.pending = entries[done:]

    def _gathered_ttl_s(self, inode: Inode) -> float:
        """How long attributes that were read a while ago may be kept."""
        return self.attribute_ttl_s(inode.ino) if self.fs.peek(inode.ino) == inode else 0.0

    # --- extended attributes ------------------------------------------------------------------------------------------

    @edge
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        if name.startswith(_REFUSED_XATTRS) and not self._keeps_capabilities(name):
            raise pyfuse3.FUSEError(errno.ENOTSUP)
        with self.at_work(inode):
            await self.fs.setxattr(_caller(ctx), Ino(inode), name, value, 0)

    @edge
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        if name.startswith(_REFUSED_XATTRS) and not self._keeps_capabilities(name):
            # without the companion the kernel asks for security.capability at every write
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR if name.startswith(b"security.") else errno.ENOTSUP)
        return await self.fs.getxattr(Ino(inode), name)

    @edge
    async def listxattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> Sequence[XAttrNameT]:
        names = await self.fs.listxattr(Ino(inode))
        return [XAttrNameT(name) for name in names if ctx.uid == 0 or not name.startswith(_TRUSTED)]

    @edge
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: pyfuse3.RequestContext) -> None:
        with self.at_work(inode):
            await self.fs.removexattr(_caller(ctx), Ino(inode), name)

    def _keeps_capabilities(self, name: bytes) -> bool:
        """With the companion they are taken away by whoever writes, so they may be kept."""
        return name == CAPABILITY and self.extras is not None

    def attribute_ttl_s(self, ino: Ino) -> float:
        return 0.0 if ino in self._growing else self.fs.attribute_ttl_s(ino)

    def entry_ttl_s(self, parent: Ino) -> float:
        return self.fs.entry_ttl_s(parent) if self.names_may_be_cached else 0.0

    # --- answers ------------------------------------------------------------------------------------------------------

    def _attributes(self, inode: Inode) -> pyfuse3.EntryAttributes:
        return entry_attributes(self.shown(inode), self.attribute_ttl_s(inode.ino), 0)

    def _entry(self, inode: Inode, parent: Ino) -> pyfuse3.EntryAttributes:
        """An answer that the kernel counts as one lookup of the inode."""
        self.count_lookup(inode.ino)
        return entry_attributes(self.shown(inode), self.attribute_ttl_s(inode.ino), self.entry_ttl_s(parent))

    def _file_info(self, handle: FileHandle) -> pyfuse3.FileInfo:
        direct_io, keep_cache = self.opened(handle)
        return pyfuse3.FileInfo(fh=FileHandleT(handle.number), direct_io=direct_io, keep_cache=keep_cache)

    def opened(self, handle: FileHandle) -> tuple[bool, bool]:
        """Whether it is to go uncached (appends: where they end is decided under the lease, never from the kernel's size), and
        whether the kernel may keep the file's pages."""
        self._files[handle.number] = handle
        keep_cache = self.fs.attribute_ttl_s(handle.ino) > 0 and (not self._inherited or handle.ino in self._trusted)
        if self._inherited:
            self._trusted[handle.ino] = None
        return bool(handle.flags & os.O_APPEND), keep_cache

    def next_number(self) -> int:
        number = self._next_handle
        self._next_handle += 1
        return number

    def file(self, fh: int) -> FileHandle:
        handle = self._files.get(fh)
        if handle is None:
            raise StaleHandle(f"handle {fh} was lost with the daemon that had opened it")
        return handle


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid)
