"""The file system: every system call as a coroutine. See fsd.client for the parts; here they are put together.

With soft mounts (`ClientOptions.hard` False) every call ends after `timeout_s` with DeadlineExceeded; hard ones wait.
"""

import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import trio

from fsd.client.answers import Answers
from fsd.client.chunks import Chunks
from fsd.client.contents import Contents
from fsd.client.core import Core
from fsd.client.file import DirectoryHandle, FileHandle
from fsd.client.instant import InstantCalls
from fsd.client.locks import Locks
from fsd.client.names import Names
from fsd.client.options import Caller, ClientOptions, Invalidate, NothingCached
from fsd.client.pins import Pins
from fsd.client.replay import Restored
from fsd.client.resume import Resume, open_state
from fsd.client.state import KIND_OPEN, KIND_WRITE, Unlogged
from fsd.core.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FsError,
    InvalidArgument,
    IsADirectory,
    NotFound,
    StaleHandle,
)
from fsd.core.ids import Ino, SessionId
from fsd.namespace.operations import (
    Create,
    Link,
    Mkdir,
    Mknod,
    Operation,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttributes,
    SetXattr,
    Symlink,
    Truncate,
    Unlink,
)
from fsd.namespace.records import Inode, Volume
from fsd.protocol.metadata import DirectoryEntry, LeaseMode, VolumeSpace
from fsd.runtime import Runtime
from fsd.runtime.state import StateDirectory
from fsd.wire.codec import number_of

log = logging.getLogger(__name__)
T = TypeVar("T")

OPEN_PATIENCE_S = 30.0  # longer than the grace after a restart of the metadata server, in which nobody new is let in
CLOSE_PATIENCE_S = 60.0
ROOT = Caller(0, 0)


class FileSystem:
    """One mounted volume. Made by `open_filesystem`."""

    def __init__(self, core: Core, contents: Contents, names: Names, resume: Resume | None = None) -> None:
        self._core = core
        self._contents = contents
        self._names = names
        self._answers = Answers() if resume is None else resume.answers
        self._suspended = False
        self.all_written = True  # until `aclose` finds otherwise
        self.restored_handles: dict[int, FileHandle] = {} if resume is None else resume.handles
        self.instant = InstantCalls(core, contents, names)
        self.resumed = resume is not None and resume.session == core.session.id
        self._pins = Pins(core, self._hold, self._drop_handle)

    @property
    def volume(self) -> Volume:
        return self._core.volume

    @property
    def session_id(self) -> SessionId:
        return self._core.session.id

    @property
    def session_is_live(self) -> bool:
        """Whether the session was renewed within its time to live."""
        return self._core.session.is_valid()

    @property
    def locks(self) -> Locks:
        """fcntl's and flock's locks."""
        return self._core.locks

    @property
    def chunk_size(self) -> int:
        return self._core.chunk_size

    # --- surviving the process (fsd.client.resume) ----------------------------------------------------------------------

    def names_forgotten(self) -> None:
        """The caches above have forgotten all names that the process before this one told them: recalls need not wait for
        the end of their time any more."""
        self._core.names_known.set()

    async def suspend(self) -> None:
        """No calls are under way: leave the session, what is not written back and the handles to the next process."""
        await trio.lowlevel.checkpoint()
        self._suspended = True
        self._core.state.freeze()

    # --- what the caches above may keep -------------------------------------------------------------------------------

    def attribute_ttl_s(self, ino: Ino) -> float:
        """How long the attributes just told may be cached above: 0 without a lease, else while the session's time runs.
        To be asked synchronously with telling them."""
        if self._core.tree.inode(ino) is None or not self._core.leases.usable(ino, LeaseMode.SHARED):
            return 0.0
        return max(0.0, self._core.session.remaining_s())

    def entry_ttl_s(self, parent: Ino) -> float:
        """The same for names in a directory, and for their absence."""
        if not self._core.leases.usable(parent, LeaseMode.SHARED):
            return 0.0
        return max(0.0, self._core.session.remaining_s())

    def peek(self, ino: Ino) -> Inode | None:
        """What `getattr` would answer now without asking anybody; None if it would have to ask."""
        return self._core.cached_inode(ino)

    def known_entry(self, parent: Ino, name: bytes) -> Ino | None:
        """What a name is certainly, without asking anybody: an inode, ABSENT, or None if it would have to be asked for."""
        return self._names.known_entry(parent, name)

    def forget(self, ino: Ino) -> None:
        """Nobody above caches the inode any more: its lease may go back, some time."""
        self._core.returns.forget(ino)

    # --- names --------------------------------------------------------------------------------------------------------

    @property
    def lookups_pin(self) -> bool:
        """Whether `lookup` does more than looking, for now (fsd.client.pins)."""
        return self._pins.are_wanted()

    async def lookup(self, parent: Ino, name: bytes) -> Inode:
        """Raises NotFound."""
        return await self._bounded(self._lookup(parent, name))

    async def _lookup(self, parent: Ino, name: bytes) -> Inode:
        inode = await self._names.lookup(parent, name)
        while inode.is_regular and self._pins.are_wanted() and not self._pins.pin(inode.ino):
            await self._core.no_removal(inode.ino)
            inode = await self._names.lookup(parent, name)
        return inode

    async def create(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, flags: int, *, number: int = 0
    ) -> tuple[Inode, FileHandle]:
        """Create and open; without O_EXCL an existing file is opened. `number` as in `open`."""

        async def again(done: int) -> tuple[Inode, FileHandle]:
            handle = self.restored_handles[done]
            return await self._names.getattr(handle.ino), handle

        return await self._bounded(
            self._answers.once(KIND_OPEN, lambda: self._create(caller, parent, name, mode, flags, number), again)
        )

    async def _create(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, flags: int, number: int
    ) -> tuple[Inode, FileHandle]:
        made = await self._answers.find(number_of(Create))
        if made is not None:
            inode = await self._names.getattr(Ino(made))
            return inode, await self._open(inode.ino, flags & ~os.O_TRUNC, number=number)
        held: list[Ino] = []

        def hold(ino: Ino) -> None:
            """Others may remove the name as soon as it is there: a recall must say already that the file is open."""
            self._hold(ino)
            held.append(ino)

        while True:
            try:
                inode = await self._names.create(caller, parent, name, mode, hold)
                return inode, await self._open(inode.ino, flags & ~os.O_TRUNC, number=number)
            except AlreadyExists:
                if flags & os.O_EXCL:
                    raise
            finally:
                while held:
                    self._drop_handle(held.pop())
            try:
                inode = await self._names.lookup(parent, name)
                handle = await self._open(inode.ino, flags, number=number)
                return await self._names.getattr(inode.ino), handle
            except (NotFound, StaleHandle):
                continue  # removed between the two

    async def mkdir(self, caller: Caller, parent: Ino, name: bytes, mode: int) -> Inode:
        return await self._once(Mkdir, lambda: self._names.mkdir(caller, parent, name, mode), self._made)

    async def mknod(self, caller: Caller, parent: Ino, name: bytes, mode: int, rdev: int) -> Inode:
        """`mode` with the type bits."""
        return await self._once(Mknod, lambda: self._names.mknod(caller, parent, name, mode, rdev), self._made)

    async def symlink(self, caller: Caller, parent: Ino, name: bytes, target: bytes) -> Inode:
        return await self._once(Symlink, lambda: self._names.symlink(caller, parent, name, target), self._made)

    async def link(self, caller: Caller, ino: Ino, parent: Ino, name: bytes) -> Inode:
        return await self._once(Link, lambda: self._names.link(caller, ino, parent, name), self._made)

    async def unlink(self, caller: Caller, parent: Ino, name: bytes) -> None:
        await self._once(Unlink, lambda: self._names.unlink(caller, parent, name), nothing_more)

    async def rmdir(self, caller: Caller, parent: Ino, name: bytes) -> None:
        await self._once(Rmdir, lambda: self._names.rmdir(caller, parent, name), nothing_more)

    async def rename(
        self, caller: Caller, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0
    ) -> None:
        """`flags` are renameat2(2)'s NOREPLACE and EXCHANGE."""
        await self._once(
            Rename, lambda: self._names.rename(caller, parent, name, new_parent, new_name, flags), nothing_more
        )

    async def _once(
        self,
        operation: type[Operation] | int,
        work: Callable[[], Awaitable[T]],
        again: Callable[[int], Awaitable[T]],
    ) -> T:
        """A call that must not be carried out twice, also if the kernel sends it to a second process."""
        return await self._bounded(self._answers.once(operation, work, again))

    async def _made(self, ino: int) -> Inode:
        return await self._names.getattr(Ino(ino))

    async def readlink(self, ino: Ino) -> bytes:
        return await self._bounded(self._names.readlink(ino))

    async def open_directory(self, ino: Ino) -> DirectoryHandle:
        return await self._bounded(self._names.open_directory(ino))

    async def read_directory(self, handle: DirectoryHandle, cookie: int, attributes: bool) -> list[DirectoryEntry]:
        """The next entries with a cookie above `cookie`, without "." and ".."; [] at the end. With `attributes`, those that
        are known have their inode."""
        return await self._bounded(self._names.read_directory(handle, cookie, attributes))

    async def fsync_directory(self, ino: Ino) -> None:
        """Changes of names in the directory, and what came before them, are durable on return."""
        await self._bounded(self._core.journal.settle([ino]))

    # --- attributes ---------------------------------------------------------------------------------------------------

    async def getattr(self, ino: Ino) -> Inode:
        """This client's unwritten size and times included. Raises StaleHandle."""
        with self._noticing_what_is_gone():
            return await self._bounded(self._names.getattr(ino))

    async def setattr(
        self,
        caller: Caller,
        ino: Ino,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> Inode:
        """None leaves a field as it is."""

        async def work() -> Inode:
            if size is not None and await self._answers.find(number_of(Truncate)) is None:
                await self._truncate(caller, ino, size)
            others = any(value is not None for value in (mode, uid, gid, atime_ns, mtime_ns))
            if others and await self._answers.find(number_of(SetAttributes)) is None:
                await self._names.set_attributes(
                    caller, ino, mode=mode, uid=uid, gid=gid, atime_ns=atime_ns, mtime_ns=mtime_ns
                )
            return await self._names.getattr(ino)

        with self._noticing_what_is_gone():
            return await self._bounded(work())

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        return await self._bounded(self._names.getxattr(ino, name))

    async def listxattr(self, ino: Ino) -> Sequence[bytes]:
        return await self._bounded(self._names.listxattr(ino))

    async def setxattr(self, caller: Caller, ino: Ino, name: bytes, value: bytes, flags: int = 0) -> None:
        """`flags` are setxattr(2)'s."""
        await self._once(SetXattr, lambda: self._names.setxattr(caller, ino, name, value, flags), nothing_more)

    async def removexattr(self, caller: Caller, ino: Ino, name: bytes) -> None:
        await self._once(RemoveXattr, lambda: self._names.removexattr(caller, ino, name), nothing_more)

    async def statfs(self) -> VolumeSpace:
        return await self._bounded(self._names.space())

    # --- bytes --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _noticing_what_is_gone(self) -> Generator[None]:
        try:
            yield
        except StaleHandle:
            self._pins.came_too_late()
            raise

    async def open(self, ino: Ino, flags: int, caller: Caller = ROOT, *, number: int = 0) -> FileHandle:
        """`number`: by which the handle is known to the next process, if this one dies (`restored_handles`); 0: by none.
        Raises IsADirectory, InvalidArgument (no regular file), StaleHandle."""

        async def again(done: int) -> FileHandle:
            await trio.lowlevel.checkpoint()
            return self.restored_handles[done]

        with self._noticing_what_is_gone():
            return await self._once(KIND_OPEN, lambda: self._open(ino, flags, caller, number), again)

    async def _open(self, ino: Ino, flags: int, caller: Caller = ROOT, number: int = 0) -> FileHandle:
        inode = await self._names.getattr(ino)
        if inode.is_directory:
            raise IsADirectory(f"inode {ino} is a directory")
        if not inode.is_regular:
            raise InvalidArgument(f"inode {ino} is no regular file")
        await self._core.no_removal(ino)
        file = self._contents.file(ino)
        file.handles += 1  # before the lease is had: a recall that comes now must say that the file is open
        try:
            if flags & os.O_TRUNC and await self._answers.find(number_of(Truncate)) is None:
                await self._contents.truncate(caller, file, 0)
            else:
                await self._contents.acquire(file, LeaseMode.SHARED)
        except BaseException:
            self._drop_handle(file.ino)
            raise
        return self._contents.handle(file, flags, number)

    async def read(self, handle: FileHandle, offset: int, length: int) -> bytes:
        """Fewer bytes at the end of the file."""
        return await self._bounded(self._contents.read(handle, offset, length))

    async def write(self, handle: FileHandle, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Taken into memory under the exclusive lease; see fsync."""

        async def again(done: int) -> int:
            await trio.lowlevel.checkpoint()
            return len(data)

        return await self._once(KIND_WRITE, lambda: self._contents.write(handle, offset, data), again)

    async def write_pages(self, handle: FileHandle, offset: int, data: bytes | bytearray | memoryview) -> None:
        """As `write`, for mapped pages that the kernel writes back: never an append, never behind the end."""
        await self._bounded(self._contents.write_pages(handle.file, offset, data))

    async def flush(self, handle: FileHandle) -> None:
        """close(2): as `tell_error`."""
        self.tell_error(handle)

    def tell_error(self, handle: FileHandle) -> None:
        """Raises a write-back error that this handle has not been told yet."""
        error = handle.untold_error()
        if error is not None:
            raise error

    async def fsync(self, handle: FileHandle, data_only: bool = False) -> None:
        """What was written before is durable on return, its size and times too (`data_only`: the time of bytes that were
        changed in place may come a second later). Raises what keeps it from being so, and an
        earlier write-back error that this handle has not been told yet."""
        try:
            await self._bounded(self._contents.write_back(handle.file, data_only=data_only))
            await self._bounded(self._core.journal.settle([handle.ino]))
        except FsError:
            handle.told_errors = handle.file.error_count
            raise
        error = handle.untold_error()
        if error is not None:
            raise error

    async def release(self, handle: FileHandle) -> None:
        """As `drop`."""
        self.drop(handle)

    def drop(self, handle: FileHandle) -> None:
        """The handle is gone. Does not wait for servers."""
        if handle.is_open:
            handle.is_open = False
            if handle.number:
                self._core.state.closed(handle.number)
            self._drop_handle(handle.ino)

    def _hold(self, ino: Ino) -> None:
        self._contents.file(ino).handles += 1

    def _drop_handle(self, ino: Ino) -> None:
        file = self._core.files[ino]
        file.handles -= 1
        if file.handles == 0:
            if file.told_open:
                self._core.nursery.start_soon(self._contents.last_handle_closed, file)
            else:
                self._core.forget_file(file)

    async def _truncate(self, caller: Caller, ino: Ino, size: int) -> None:
        inode = await self._names.getattr(ino)
        if inode.is_directory:
            raise IsADirectory(f"inode {ino} is a directory")
        if not inode.is_regular:
            raise InvalidArgument(f"inode {ino} is no regular file")
        await self._core.no_removal(ino)
        file = self._contents.file(ino)
        try:
            await self._contents.truncate(caller, file, size)
        finally:
            self._core.forget_file(file)

    async def sync(self) -> None:
        """Everything written back."""
        await self._bounded(self._write_all_back())

    async def _write_all_back(self) -> None:
        await self._contents.sync()
        await self._core.journal.drain()

    # --- the rest -----------------------------------------------------------------------------------------------------

    def statistics(self) -> Mapping[str, int]:
        """Requests by kind, hits, misses, sizes of the caches."""
        return {
            **self._core.counts,
            "dirty bytes": self._contents.dirty_bytes,
            "cached block bytes": self._core.blocks.size_bytes,
            "journal": len(self._core.journal),
            "leases": len(self._core.leases),
            "locks": len(self._core.locks),
            "cached entries": self._core.tree.entry_count,
            "open files": sum(file.handles > 0 for file in self._core.files.values()),
        }

    async def aclose(self) -> None:
        """Write back everything and give the session back; within CLOSE_PATIENCE_S, after which the rest is lost, or left to
        another process."""
        if self._suspended:
            return
        patience_s = CLOSE_PATIENCE_S if self._core.options.hard else self._core.options.timeout_s
        with trio.move_on_after(patience_s) as scope:
            scope.shield = True
            try:
                await self._write_all_back()
            except FsError as error:
                self.all_written = False
                log.error("not everything was written back: %s", error)
                if self._core.state.is_kept:
                    return
            await self._core.session.close()
            self._core.state.finish()
        if scope.cancelled_caught:
            self.all_written = False
            log.error("gave up after %g s with %d bytes not written back", patience_s, self._contents.dirty_bytes)

    async def _bounded(self, work: Coroutine[Any, Any, T]) -> T:
        options = self._core.options
        if options.hard:
            return await work
        with trio.move_on_after(options.timeout_s):
            return await work
        raise DeadlineExceeded(f"no answer within {options.timeout_s:g} s")


@asynccontextmanager
async def open_filesystem(
    runtime: Runtime,
    metadata: Sequence[str],
    volume: str,
    options: ClientOptions,
    invalidate: Invalidate | None = None,
    state: StateDirectory | None = None,
) -> AsyncGenerator[FileSystem]:
    """Mount a volume for as long as the block runs; everything is written back at its end. With `state`, another process that
    is given the same directory goes on if this one is killed: with its session, its unwritten bytes and its handles.

    Raises Unreachable, NotFound (no such volume), ForeignFileSystem, VersionMismatch, ConfigurationError."""
    options.check()
    kept, restored = (Unlogged(), None) if state is None else open_state(state, options.write_back_bytes)
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            core = Core(runtime, nursery, metadata, volume, options, invalidate or NothingCached(), kept)
            filesystem = await _start(core, restored)
            try:
                yield filesystem
            finally:
                await filesystem.aclose()
        except Exception as raised:  # carried out of the nursery, which would wrap it in a group
            error = raised
        kept.freeze()
        nursery.cancel_scope.cancel()
    if state is not None:
        state.close()
    if error is not None:
        raise error


async def _start(core: Core, restored: Restored | None) -> FileSystem:
    nursery, options, state = core.nursery, core.options, core.state
    chunks = Chunks(core.runtime, core.session, core.maps, core.channels, core.counts, state.incarnation)
    contents = Contents(core, chunks)
    core.write_back = contents
    resume: Resume | None = None
    if restored is not None:
        resume = Resume(core, state, restored)
        resume.prepare()
    await core.session.start(min(OPEN_PATIENCE_S, options.timeout_s))
    nursery.start_soon(core.session.run)
    await core.maps.refresh()
    state.begin(core.chunk_size)
    nursery.start_soon(core.journal.run)
    nursery.start_soon(core.maps.run)
    if resume is None:
        core.restored.set()
        core.names_known.set()
    else:
        await resume.finish()
        nursery.start_soon(forget_names, core)
    nursery.start_soon(contents.run)
    nursery.start_soon(core.returns.run)
    return FileSystem(core, contents, Names(core, contents), resume)


async def forget_names(core: Core) -> None:
    """What the process before this one told to the caches above runs out with the session's time at the latest."""
    if not isinstance(core.invalidate, NothingCached):
        await trio.sleep(core.session.ttl_s)
    core.names_known.set()


async def nothing_more(value: int) -> None:
    """A call that is answered with nothing was carried out."""
    await trio.lowlevel.checkpoint()
