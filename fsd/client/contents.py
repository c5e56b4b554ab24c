"""The bytes of files: loading, reading, writing, truncating, and writing back.

A write is taken into memory under an exclusive lease and answered. It goes to the servers when it is old enough, when there
is too much of it, at fsync, or when the lease is recalled: bytes first, to all chunks at once and in order within each
chunk; when all are durable, one operation commits size and time (I17). Writers wait when the budget is used up.

How they get there is `fsd.client.storing`.
"""

import itertools
import logging
import os
from collections.abc import Awaitable, Callable

import trio

from fsd.client.blocks import BlockReader
from fsd.client.calls import CALL
from fsd.client.chunks import Chunks
from fsd.client.core import Core
from fsd.client.file import Content, File, FileHandle, Times, content_of
from fsd.client.flushes import MAX_PREPARED
from fsd.client.options import Caller
from fsd.client.room import Room
from fsd.client.session import SessionReplaced
from fsd.client.storing import Storing
from fsd.client.writeback import DirtyMap
from fsd.core.errors import (
    FileTooLarge,
    FsError,
    InternalError,
    InvalidArgument,
    SessionEvicted,
    StaleHandle,
    WriteLost,
)
from fsd.core.ids import DataId, Ino, SessionId
from fsd.core.units import BLOCK_SIZE, MAX_FILE_SIZE, MIB
from fsd.namespace.operations import SetAttributes, Truncate
from fsd.namespace.records import NO_DATA, Inode
from fsd.protocol.metadata import LeaseMode
from fsd.rpc.connection import only_error

log = logging.getLogger(__name__)

TAKE_BYTES = 32 * MIB  # of one file in one flush, so that commits keep coming while a large file is written
MAX_FLUSHES = 16
MAX_SMALL_FLUSHES = 512  # of files whose bytes ride in the journal: many fit into one message
RETRY_S = 1.0
PATIENT_ATTEMPTS = 3  # to get a file's lease and layout, before pausing between them
RELOAD_S = 0.005


class Contents(Storing):
    """See the module. `neighbours` (fsd.client.names) is set right after construction."""

    neighbours: Callable[[Ino], Awaitable[None]]

    def __init__(self, core: Core, chunks: Chunks) -> None:
        super().__init__(core, chunks)
        self._blocks = BlockReader(core, chunks)
        self.dirty_bytes = 0
        self._dirty: dict[Ino, File] = {}
        self._room = Room(core, self._dirty.values)
        self._some_dirty = trio.Event()
        self._pressure = trio.Event()
        self._drained = trio.Event()
        self._flushes = trio.CapacityLimiter(MAX_FLUSHES)
        self._small_flushes = trio.CapacityLimiter(MAX_SMALL_FLUSHES)

    # --- knowing a file -----------------------------------------------------------------------------------------------

    def file(self, ino: Ino) -> File:
        """The state of an inode's bytes, made if there is none."""
        file = self._core.files.get(ino)
        if file is None:
            file = self._core.files[ino] = File(ino, self._core.chunk_size, self._core.state)
        return file

    def holds(self, file: File, mode: LeaseMode) -> bool:
        """Whether this client may act on the bytes now."""
        return file.content is not None and self._core.leases.usable(file.ino, mode)

    def ready(self, file: File, mode: LeaseMode) -> bool:
        """As `holds`, after looking into what is known anyway."""
        if self.holds(file, mode):
            return True
        return self._core.leases.usable(file.ino, mode) and self._load_from_tree(file) and self.holds(file, mode)

    def handle(self, file: File, flags: int, number: int) -> FileHandle:
        """A handle, which the caller has counted already; noted under its number if it has one."""
        if number:
            self._core.state.opened(number, file.ino, flags)
        return FileHandle(file, flags, self._core.options.read_ahead_bytes, number)

    async def acquire(self, file: File, mode: LeaseMode) -> None:
        """Get the lease and learn where the bytes are. Both may be gone again when the caller runs: check `holds`."""
        for attempt in itertools.count():
            if self.holds(file, mode):
                return
            if attempt >= PATIENT_ATTEMPTS:
                await trio.sleep(RELOAD_S)  # many want the file: asking faster would only keep everybody busy
            async with file.load_lock:
                await self._core.session.valid()
                if self.holds(file, mode):
                    return
                if mode is LeaseMode.SHARED:
                    await self.neighbours(file.ino)
                if not (self._core.leases.usable(file.ino, mode) and self._load_from_tree(file)):
                    await self._core.fetch_inode(file.ino, mode, load=file)
                    self._load_from_tree(file)

    def _load_from_tree(self, file: File) -> bool:
        """Know the bytes from what was told of the inode."""
        if file.content is not None:
            return True
        inode = self._core.tree.inode(file.ino)
        content = content_of(inode) if inode is not None else None
        if content is None or self._core.leases.since(file.ino) == 0 or self._core.overlaps.is_changing(file.ino):
            return False
        file.load(content)
        return True

    # --- reading ------------------------------------------------------------------------------------------------------

    async def read(self, handle: FileHandle, offset: int, length: int) -> bytes:
        """Up to `length` bytes, fewer at the end of the file."""
        file = handle.file
        if offset < 0 or length < 0:
            raise InvalidArgument(f"read of {length} bytes at {offset}")
        while True:
            await self.acquire(file, LeaseMode.SHARED)
            with self._core.leases.use(file.ino) as lease:
                if not self.holds(file, LeaseMode.SHARED):
                    continue
                handle.check_locks()
                generation = lease.generation
                self._read_ahead(handle, offset, length)
                data = await self._read_held(file, offset, length)
                if data is not None and lease.generation == generation:
                    self._core.leases.touch(file.ino)
                    return data

    def _read_ahead(self, handle: FileHandle, offset: int, length: int) -> None:
        file = handle.file
        assert file.content is not None
        if file.content.is_inline or not self._core.options.read_ahead_bytes:
            return
        wanted = handle.read_ahead.observe(offset, length, min(file.size, file.content.size))
        if wanted is not None:
            self._blocks.prefetch(file, *wanted)

    async def _read_held(self, file: File, offset: int, length: int) -> bytes | None:
        """None: the bytes have moved meanwhile, start over."""
        content = file.content
        assert content is not None
        end = min(file.size, offset + length)
        if offset >= end:
            return b""
        if content.is_inline:
            return self._read_inline(file, content, offset, end)
        if not file.unwritten:
            data = await self._blocks.read(file, content, offset, end)
            if file.content is not content:
                return None
            if not file.unwritten:
                return bytes(data)
        return await self._read_mixed(file, content, offset, end)

    def _read_inline(self, file: File, content: Content, offset: int, end: int) -> bytes:
        if not file.unwritten and len(content.inline) >= end:
            return content.inline[offset:end]
        buffer = bytearray(end - offset)
        base = content.inline[offset:end]
        buffer[: len(base)] = base
        self._overlay(file, offset, buffer)
        return bytes(buffer)

    def read_here(self, handle: FileHandle, offset: int, length: int) -> bytes | None:
        """As `read`, without waiting; None if something must be fetched."""
        file = handle.file
        if not self.ready(file, LeaseMode.SHARED):
            return None
        handle.check_locks()
        content = file.content
        assert content is not None
        end = min(file.size, offset + length)
        if offset >= end:
            return b""
        if content.is_inline:
            data = self._read_inline(file, content, offset, end)
        else:
            data = None if file.unwritten else self._blocks.read_cached(file, content, offset, end)
            if data is not None:
                self._read_ahead(handle, offset, length)
        if data is not None:
            self._core.leases.touch(file.ino)
        return data

    async def _read_mixed(self, file: File, content: Content, offset: int, end: int) -> bytes | None:
        """Servers' bytes below, dirty ones on top: those of now, and those that were dirty when the servers were asked."""
        flushing, dirty = file.flushing.copy(offset, end), file.dirty.copy(offset, end)
        if dirty.covers(offset, end):
            data = bytearray(end - offset)
        else:
            data = await self._blocks.read(file, content, offset, end)
            if file.content is None or file.content.data != content.data:
                return None
        flushing.overlay(offset, data)
        dirty.overlay(offset, data)
        self._overlay(file, offset, data)
        return bytes(data[: max(0, file.size - offset)])

    def _overlay(self, file: File, offset: int, buffer: bytearray) -> None:
        file.flushing.overlay(offset, buffer)
        file.dirty.overlay(offset, buffer)

    # --- writing ------------------------------------------------------------------------------------------------------

    async def write(self, handle: FileHandle, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Take the bytes; O_APPEND handles write at the end, wherever that is when the lease is here."""
        file = handle.file
        if offset < 0:
            raise InvalidArgument(f"write at {offset}")
        if not len(data):
            return 0
        await self._may_write(file)
        if not self._core.session.may_promise:
            await self._room.take(file, (file.size if handle.flags & os.O_APPEND else offset) + len(data))
            await self._may_write(file)
        handle.check_locks()
        at = file.size if handle.flags & os.O_APPEND else offset
        if at + len(data) > MAX_FILE_SIZE:
            raise FileTooLarge(f"write of {len(data)} bytes at {at}: a file has at most {MAX_FILE_SIZE}")
        self.take(file, at, data)
        if handle.flags & (os.O_SYNC | os.O_DSYNC):
            await self.write_back(file)
        return len(data)

    async def write_pages(self, file: File, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Take mapped pages that the kernel above writes back: in place through whatever handle, and never behind the end,
        which another client may have moved since they were written."""
        await self._may_write(file)
        inside = memoryview(data)[: max(0, file.size - offset)]
        if len(inside):
            self.take(file, offset, inside)

    async def _may_write(self, file: File) -> None:
        await self._wait_for_room(file)
        while not self.holds(file, LeaseMode.EXCLUSIVE):
            await self.acquire(file, LeaseMode.EXCLUSIVE)

    @property
    def has_room(self) -> bool:
        """Whether a writer need not wait."""
        return self.dirty_bytes < self._core.options.write_back_bytes

    def take(self, file: File, offset: int, data: bytes | bytearray | memoryview) -> None:
        file.write(offset, data, self._core.session.now_ns(), self._core.runtime.clock.monotonic())
        self.account(file)

    async def _wait_for_room(self, file: File) -> None:
        """Back-pressure: a writer waits until less than the budget is dirty; told if its file cannot be written back."""
        errors = file.error_count
        while not self.has_room:
            self._core.counts["writers waiting"] += 1
            self._pressure.set()
            await self._drained.wait()
            if file.error_count != errors and file.error is not None:
                raise file.error

    def account(self, file: File) -> None:
        """The number of dirty bytes of a file may have changed."""
        now = file.unwritten_bytes
        self.dirty_bytes += now - file.accounted_bytes
        file.accounted_bytes = now
        if file.unwritten:
            self._dirty[file.ino] = file
            self._some_dirty.set()
            if self.dirty_bytes >= self._core.options.write_back_bytes // 2:
                self._pressure.set()
        elif self._dirty.get(file.ino) is file:
            del self._dirty[file.ino]
        self._drain()

    def _drain(self) -> None:
        """Whoever waits for room looks again."""
        event, self._drained = self._drained, trio.Event()
        event.set()

    # --- writing back -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write back what is old enough, and the oldest when there is too much."""
        age_s = self._core.options.write_back_age_s
        async with trio.open_nursery() as nursery:
            busy: set[Ino] = set()
            while True:
                await self._some_dirty.wait()
                with trio.move_on_after(age_s / 4):
                    await self._pressure.wait()
                under_pressure = self._pressure.is_set()
                self._pressure = trio.Event()
                now = self._core.runtime.clock.monotonic()
                for ino, file in list(self._dirty.items()):
                    due = under_pressure or now - file.dirty_since >= age_s
                    if due and ino not in busy and now >= file.retry_at and len(busy) < MAX_SMALL_FLUSHES * 2:
                        if self._flush_here(file):
                            self._core.forget_file(file)
                            continue
                        busy.add(ino)
                        nursery.start_soon(self._flush_in_background, file, busy)
                if not self._dirty:
                    self._some_dirty = trio.Event()
                elif under_pressure:
                    await trio.sleep(0.001)

    def _flush_here(self, file: File) -> bool:
        """A small file's bytes join the journal, which answers for them from now on, as for its name: nobody waits for each
        single one. False if the file has to go the long way."""
        content, session = file.content, self._core.session.id
        if content is None or not content.is_inline or file.flush_lock.locked() or self._core.journal.is_full():
            return False
        size = max(file.size, content.size)
        if size > self._core.volume.inline_limit or not self._core.leases.usable(file.ino, LeaseMode.EXCLUSIVE):
            return False
        file.take(TAKE_BYTES, MAX_PREPARED)
        times = file.times
        write, data = self.inline_write(file, content, size, self._time_of_flush(file))
        try:
            if file.dirty or self._core.local.change(write, session) is None:
                file.give_back()
                return False
            if times is not None and self._core.local.change(self.times_of(file, times), session) is not None:
                file.times = None
        except (FsError, SessionReplaced) as error:
            log.debug("inode %d goes the long way: %s", file.ino, error)
            file.give_back()
            return False
        file.flushes_begun += 1
        file.flushes_complete = file.flushes_begun
        self.fix_cached_inline(file.ino, data)
        self.flushed(file, content, Content(NO_DATA, data, len(data), 0))
        self._drain()
        return True

    async def _flush_in_background(self, file: File, busy: set[Ino]) -> None:
        try:
            async with self._flush_room(file):
                await self.write_back(file, once=True)
        except StaleHandle:
            log.debug("inode %d was removed before it was written back", file.ino)
        except FsError as error:
            log.warning("inode %d was not written back, will try again: %s", file.ino, error)
            file.retry_at = self._core.runtime.clock.monotonic() + RETRY_S
        except Exception:
            log.exception("writing inode %d back met a bug", file.ino)
            file.fail(InternalError(f"writing inode {file.ino} back met a bug, see the log"))
            file.retry_at = self._core.runtime.clock.monotonic() + RETRY_S
        finally:
            busy.discard(file.ino)
            self._core.forget_file(file)
            self._drain()

    def is_waiting(self) -> bool:
        """Whether chunkservers have not answered yet."""
        return self._chunks.is_waiting()

    def _flush_room(self, file: File) -> trio.CapacityLimiter:
        content = file.content
        small = content is not None and content.is_inline and file.size <= self._core.volume.inline_limit
        return self._small_flushes if small else self._flushes

    async def write_back(self, file: File, *, once: bool = False, data_only: bool = False) -> None:
        """Everything written so far is durable on return (`once`: one flush of it; `data_only`: perhaps without the time of
        bytes that changed in place, which spares a database's commits the metadata server). Raises why not; what was not
        written stays dirty, and the error is noted for every handle. A caller who gives up does not end the flush: half
        of one would leave it unknown where the bytes are."""

        async def work() -> None:
            CALL.set(0)  # the flush's operations are nobody's call
            async with file.flush_lock:
                if file.unwritten and not (data_only and file.owes_time_only):
                    await self._flush(file, data_only=data_only)

        enough = file.flushes_begun + 1  # so that a busy writer cannot keep this caller here for ever
        # For a flush that was under way; two callers on a clean file would see each other's lock for ever.
        waited = False
        if data_only and file.owes_time_only:
            return
        while (file.unwritten or (not waited and file.flush_lock.locked())) and file.flushes_complete < enough:
            await self._core.detached(work)
            waited = True
            if once:
                return

    async def write_back_for_recall(self, file: File) -> None:
        """As `write_back`, but what the servers refuse for good is lost: somebody else is waiting."""
        while True:
            try:
                await self.write_back(file)
                if not file.unwritten:
                    return
            except StaleHandle as error:
                log.debug("inode %d was removed before it was written back: %s", file.ino, error)
                return
            except FsError as error:
                if self._core.leases.get(file.ino).mode is not LeaseMode.EXCLUSIVE:
                    return  # lost already, and said so
                lost = file.unwritten_bytes
                async with file.flush_lock:
                    file.discard()
                    file.unload()
                self.account(file)
                self._core.counts["lost bytes"] += lost
                log.error("%d bytes written to inode %d are lost: %s", lost, file.ino, error)
                return

    async def sync(self) -> None:
        """Everything of every file. Raises the first error after all were tried."""
        errors: list[FsError] = []

        async def write_back(file: File) -> None:
            async with self._flush_room(file):
                try:
                    await self.write_back(file)
                except FsError as error:
                    errors.append(error)

        async with trio.open_nursery() as nursery:
            for file in list(self._dirty.values()):
                nursery.start_soon(write_back, file)
        if errors:
            raise errors[0]

    async def _flush_all(self, file: File) -> None:
        """All of it, in the middle of a call: the flush's operations are not what the call is about."""
        token = CALL.set(0)
        try:
            while file.unwritten:
                await self._flush(file)
        finally:
            CALL.reset(token)

    async def _flush(self, file: File, *, data_only: bool = False) -> None:
        """One round: take, write, commit. The flush lock is held."""
        session = self._core.session.id
        losses, errors = file.losses, file.error_count
        file.take(TAKE_BYTES, MAX_PREPARED)
        file.flushes_begun += 1
        number = 0 if file.dirty else file.flushes_begun
        file.dirty_since = self._core.runtime.clock.monotonic()
        size = min(file.size, file.dirty.start) if file.dirty else file.size
        times, before = file.times, file.content
        mtime_ns = self._time_of_flush(file)
        try:
            late = data_only and file.may_owe_time(file.dirty_since)
            content = await self._store(file, size, mtime_ns, session, time_may_wait=late)
            if times is not None and file.losses == losses:
                file.content = content
                await self._store_times(file, times, session)
        except BaseException as error:
            if file.losses == losses:
                file.give_back()
            self.account(file)
            if isinstance(error, SessionReplaced | SessionEvicted):
                raise WriteLost(f"writes to inode {file.ino} are lost: session {session} was evicted") from None
            if isinstance(error, StaleHandle):
                file.discard()  # the inode is gone for good: nobody can read what was written to it
                self.account(file)
            elif isinstance(error, FsError) and file.losses == losses:
                file.fail(error)
                self._drain()
            raise
        if file.losses != losses:
            self.account(file)
            if file.error_count != errors:
                raise WriteLost(f"writes to inode {file.ino} are lost: its session is gone")
            return  # its last name was removed meanwhile: nobody can read them
        if file.times is times:
            file.times = None
        file.flushes_complete = max(file.flushes_complete, number)
        self.flushed(file, before, content)

    def _time_of_flush(self, file: File) -> int:
        """Of the bytes, in nanoseconds; times that were set follow behind them."""
        if file.times is not None:
            return file.times.ctime_ns
        return file.mtime_ns or self._core.session.now_ns()

    def flushed(self, file: File, before: Content | None, content: Content) -> None:
        """The servers have it: what was on its way is part of the content now."""
        flushing = file.flushed()
        file.content = content
        file.changes += 1
        if before is not None and before.data == content.data and not content.is_inline:
            self._blocks.patch(file, flushing)
        else:
            self._core.blocks.drop(file.ino)
        self.account(file)

    # --- size and attributes ------------------------------------------------------------------------------------------

    async def truncate(self, caller: Caller, file: File, size: int) -> None:
        """Set the size."""
        if size < 0:
            raise InvalidArgument(f"a size of {size}")
        if size > MAX_FILE_SIZE:
            raise FileTooLarge(f"a size of {size}: a file has at most {MAX_FILE_SIZE}")

        async def work() -> bool:
            async with file.flush_lock:
                if not self.holds(file, LeaseMode.EXCLUSIVE):
                    return False
                try:
                    await self._truncate(caller, file, size)
                except SessionReplaced:
                    return False
                return True

        done = False
        while not done:
            await self.acquire(file, LeaseMode.EXCLUSIVE)
            done = await self._core.detached(work)

    async def _truncate(self, caller: Caller, file: File, size: int) -> None:
        session = self._core.session.id
        if size == 0 and await self._emptied_here(caller, file, session):
            return
        await self._flush_all(file)
        content = file.content
        if content is None:
            raise WriteLost(f"the lease on inode {file.ino} is gone")
        new_data = NO_DATA
        if content.is_inline and size > self._core.volume.inline_limit:
            if content.size:
                content = await self._store_chunks(
                    file, content, content.size, file.mtime_ns or self._core.session.now_ns(), session
                )
                self.flushed(file, file.content, content)
            else:
                new_data = DataId(await self._core.session.new_id())
        if not content.is_inline and size > content.size:
            content = await self.clear_behind(file, content, size, DirtyMap(self._core.chunk_size), session)
        operation = Truncate(
            self._core.volume.layer, self._core.session.now_ns(), caller.uid, caller.gid, file.ino, size, new_data
        )
        self._truncated(file, content, await self._commit(file, operation, session))

    async def _emptied_here(self, caller: Caller, file: File, session: SessionId) -> bool:
        """Empty the file, and what is unwritten with it, in one step that the journal tells; False if that cannot be."""
        await self._core.journal.room()
        content = file.content
        if content is None:
            return False
        layer = self._core.volume.layer
        operation = Truncate(layer, self._core.session.now_ns(), caller.uid, caller.gid, file.ino, 0)
        entry = self._core.local.change(operation, session)
        if entry is None or entry.subject is None:
            return False
        file.touched = False
        file.times = None
        self._truncated(file, content, entry.subject)
        return True

    def _truncated(self, file: File, before: Content, inode: Inode) -> None:
        file.cut(inode.size)  # only now: readers meanwhile would have seen what the server still had
        inline = before.inline[: inode.size].ljust(inode.size, b"\0") if inode.data == NO_DATA else b""
        file.content = Content(inode.data, inline, inode.size, inode.trim_end, inode.flushes)
        file.size = max(inode.size, file.dirty.end)
        file.changes += 1
        self._core.blocks.drop(file.ino, min(before.size, inode.size) // BLOCK_SIZE)
        if inode.data == NO_DATA:
            self.fix_cached_inline(file.ino, inline)
        self.account(file)

    def set_times(self, file: File, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Under the exclusive lease, as a write: told to the server with the next flush."""
        times = Times(atime_ns, mtime_ns, self._core.session.now_ns())
        file.set_times(times, self._core.runtime.clock.monotonic())
        self.account(file)

    async def set_attributes(self, file: File, operation: SetAttributes) -> None:
        """With times: behind everything that was written before, so that writing back does not undo them."""

        async def work() -> bool:
            async with file.flush_lock:
                if not self.holds(file, LeaseMode.EXCLUSIVE):
                    return False
                await self._flush_all(file)
                try:
                    await self._commit(file, operation, self._core.session.id)
                except SessionReplaced:
                    return False
                return True

        done = False
        while not done:
            await self.acquire(file, LeaseMode.EXCLUSIVE)
            done = await self._core.detached(work)

    async def last_handle_closed(self, file: File) -> None:
        """Tell the server, which keeps the file open for us. Others may have it open too, name or not: written back first."""
        try:
            while file.handles == 0 and file.told_open:
                await self.write_back(file)
                if await self._core.returns.tell_closed(file):
                    break
        except StaleHandle:
            log.debug("inode %d is gone", file.ino)
        except Exception as raised:
            error = only_error(raised)
            if error is None:
                log.exception("closing inode %d met a bug", file.ino)
            else:
                log.warning("inode %d was not closed at the server: %s", file.ino, error)
        finally:
            self._core.forget_file(file)
