"""What the client knows of a file's bytes while it is open or dirty, and the handles on it. Pure but for its locks.

`content` is where the server has the bytes: known under a lease, changed only by this client under an exclusive one.
`size` and `mtime_ns` are the file's as this client sees it: ahead of `content` by what is dirty or being flushed.

    bytes of the file = content's  <  flushing (on their way to the servers)  <  dirty (newest)
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import trio

from fsd.client.readahead import ReadAhead
from fsd.client.state import UNLOGGED, Unlogged
from fsd.client.writeback import DirtyMap
from fsd.core.errors import FsError, LockLost
from fsd.core.ids import DataId, Ino
from fsd.namespace.records import NO_DATA, FlushRecord, Inode
from fsd.protocol.metadata import DirectoryEntry

TIME_OWED_S = 1.0  # at most this long the time of synced bytes is left to a later flush


@dataclass(frozen=True, slots=True)
class Content:
    """An inode's fields that say where its bytes are."""

    data: DataId
    inline: bytes
    size: int
    trim_end: int
    flushes: tuple[FlushRecord, ...] = ()

    @property
    def is_inline(self) -> bool:
        return self.data == NO_DATA


def content_of(inode: Inode) -> Content | None:
    """None if the answer left the inline bytes out."""
    if inode.data == NO_DATA and inode.inline is None and inode.size:
        return None
    return Content(inode.data, inode.inline or b"", inode.size, inode.trim_end, inode.flushes)


class Times(NamedTuple):
    """Set by utimensat(2) under the exclusive lease, at `ctime_ns`; None where the file's own time counts."""

    atime_ns: int | None
    mtime_ns: int | None
    ctime_ns: int


class File:
    """One inode's bytes; see the module. `changes` counts what makes a fetched block old: flushes and truncations. What
    happens to unwritten bytes is told to `log`."""

    def __init__(self, ino: Ino, chunk_size: int, log: Unlogged = UNLOGGED) -> None:
        self.ino = ino
        self._log = log
        self.handles = 0
        self.told_open = False  # the server counts this session among those that have it open
        self.content: Content | None = None
        self.size = 0
        self.mtime_ns: int | None = None  # newer than the server's
        self.times: Times | None = None  # to be set behind the bytes
        self.dirty = DirtyMap(chunk_size)
        self.flushing = DirtyMap(chunk_size)
        self.dirty_since = 0.0
        self.touched = False  # written since the last flush began, be it with nothing to show but the time
        self.time_owed_since: float | None = None  # when a flush first left the time of its bytes to a later one
        self.changes = 0
        self.flush_lock = trio.Lock()
        self.load_lock = trio.Lock()
        self.error: FsError | None = None
        self.error_count = 0
        self.retry_at = 0.0
        self.losses = 0
        self.lock_losses = 0  # how often locks on it were lost with a session
        self.flushes_begun = 0
        self.flushes_complete = 0  # the number of the last flush that took everything and succeeded
        self.unapplied: dict[tuple[int, int], set[int]] = {}  # (session, number) of flushes in two phases -> chunks
        self.is_applying = False
        self.accounted_bytes = 0  # of `unwritten_bytes`, in the client's total

    def keep_log(self, log: Unlogged) -> None:
        """From now on."""
        self._log = log

    @property
    def unwritten(self) -> bool:
        """Whether the servers do not have all of it yet."""
        return self.touched or bool(self.dirty) or bool(self.flushing)

    @property
    def owes_time_only(self) -> bool:
        """Whether the servers have all but the time of what was written last: fdatasync(2) asks for no more."""
        return self.time_owed_since is not None and not self.dirty and not self.flushing and self.times is None

    def may_owe_time(self, now: float) -> bool:
        return self.times is None and (self.time_owed_since is None or now - self.time_owed_since < TIME_OWED_S)

    def owe_time(self, now: float) -> None:
        """The bytes are at the servers, their time follows with the next flush that is not for data alone."""
        if self.time_owed_since is None:
            self.time_owed_since = now
        self.touched = True

    @property
    def is_needed(self) -> bool:
        """Whether the server must keep the inode for our sake even without a name."""
        return self.handles > 0 or self.unwritten or self.is_under_way

    @property
    def is_under_way(self) -> bool:
        """Whether a flush is at work, which needs the lease to its end."""
        return self.flush_lock.locked()

    @property
    def unwritten_bytes(self) -> int:
        return self.dirty.size_bytes + self.flushing.size_bytes

    def load(self, content: Content) -> None:
        """Learn where the bytes are; nothing is dirty."""
        self.content = content
        self.size = content.size
        self.mtime_ns = None
        self.changes += 1

    def load_below(self, content: Content) -> None:
        """Learn where the bytes are below those that a process before this one left unwritten."""
        self.content = content
        self.size = max(content.size, self.dirty.end)
        self.changes += 1

    def unload(self) -> None:
        """The lease is gone."""
        self.content = None
        self.unapplied.clear()
        self.mtime_ns = self.times = self.time_owed_since = None
        self.changes += 1

    def lose(self, error: FsError) -> int:
        """What was not written never will be. How many bytes that are."""
        lost = self.unwritten_bytes
        if self.unwritten:
            self.fail(error)
        self.discard()
        self.unload()
        return lost

    def discard(self) -> None:
        """Forget what was not written, without an error: nobody can ever read it."""
        self._log.discarded(self)
        self.losses += 1
        self.times = self.time_owed_since = None
        self.dirty.clear()
        self.flushing = DirtyMap(self.dirty.chunk_size)
        self.touched = False

    def fail(self, error: FsError) -> None:
        """A flush failed: to be told once to each handle."""
        self.error = error
        self.error_count += 1

    def write(self, offset: int, data: bytes | bytearray | memoryview, time_ns: int, now: float) -> None:
        """Take bytes under the exclusive lease."""
        if not self.touched and not self.dirty:
            self.dirty_since = now
        self.dirty.write(offset, data)
        self.size = max(self.size, offset + len(data))
        self.mtime_ns = time_ns
        if self.times is not None:
            self.times = Times(self.times.atime_ns, None, time_ns)
        self.touched = True
        self._log.written(self, offset, data, time_ns)

    def take(self, limit_bytes: int, limit_chunks: int) -> None:
        """A flush begins: dirty bytes, lowest first, are on their way."""
        self.flushing = self.dirty.take(limit_bytes, limit_chunks)
        self.touched = bool(self.dirty)
        self._log.taken(self)

    def give_back(self) -> None:
        """The flush failed: its bytes are dirty again, below what was written since."""
        self.dirty.put_below(self.flushing)
        self.flushing = DirtyMap(self.dirty.chunk_size)
        self.touched = True
        self._log.given_back(self)

    def flushed(self) -> DirtyMap:
        """The servers have what was on its way."""
        self._log.flushed(self)
        flushing, self.flushing = self.flushing, DirtyMap(self.dirty.chunk_size)
        if not self.unwritten:
            self.mtime_ns = None
        return flushing

    def cut(self, size: int) -> None:
        """A truncation: what was dirty behind `size` is void."""
        before = self.dirty.chunks()
        self.dirty.cut(size)
        if not self.unwritten:
            self.mtime_ns = self.times = None
        self._log.cut(self, size, [chunk for chunk in before if not self.dirty.extents(chunk)])

    def set_times(self, times: Times, now: float) -> None:
        """Take times under the exclusive lease; what was set before and is not set now stays."""
        if not self.touched and not self.dirty:
            self.dirty_since = now
        before = self.times or Times(None, None, 0)
        atime_ns = before.atime_ns if times.atime_ns is None else times.atime_ns
        mtime_ns = before.mtime_ns if times.mtime_ns is None else times.mtime_ns
        self.times = Times(atime_ns, mtime_ns, times.ctime_ns)
        if mtime_ns is not None:
            self.mtime_ns = mtime_ns
        self.touched = True
        self._log.times_set(self)

    def shown(self, inode: Inode) -> Inode:
        """The inode as a system call here must see it."""
        if self.content is None or not inode.is_regular:
            return inode
        if self.size == inode.size and self.mtime_ns is None and self.times is None:
            return inode
        mtime_ns = inode.mtime_ns if self.mtime_ns is None else self.mtime_ns
        if self.times is None:
            ctime_ns = max(inode.ctime_ns, self.mtime_ns or 0)
            return dataclasses.replace(inode, size=self.size, mtime_ns=mtime_ns, ctime_ns=ctime_ns)
        atime_ns = inode.atime_ns if self.times.atime_ns is None else self.times.atime_ns
        ctime_ns = max(inode.ctime_ns, self.times.ctime_ns)
        return dataclasses.replace(inode, size=self.size, atime_ns=atime_ns, mtime_ns=mtime_ns, ctime_ns=ctime_ns)


class FileHandle:
    """One open(2) of a file. `number`: by which its user names it, also to a process that goes on with it; 0 if to none."""

    def __init__(self, file: File, flags: int, read_ahead_bytes: int, number: int = 0) -> None:
        self.file = file
        self.number = number
        self.flags = flags
        self.read_ahead = ReadAhead(read_ahead_bytes)
        self.told_errors = file.error_count
        self.lock_losses = file.lock_losses
        self.is_open = True

    @property
    def ino(self) -> Ino:
        return self.file.ino

    def check_locks(self) -> None:
        """Raises LockLost once a lock on the file was lost since this handle was opened."""
        if self.lock_losses != self.file.lock_losses:
            raise LockLost(f"a lock on inode {self.ino} was lost with its session: open the file again")

    def untold_error(self) -> FsError | None:
        """The write-back error that this handle has not been told yet; told now."""
        if self.told_errors == self.file.error_count:
            return None
        self.told_errors = self.file.error_count
        return self.file.error


class DirectoryHandle:
    """One opendir(3): the last page read, good while the directory's lease is unbroken and nothing was changed here."""

    def __init__(self, ino: Ino) -> None:
        self.ino = ino
        self.page: list[DirectoryEntry] = []
        self.page_after = 0
        self.page_end = False
        self.page_attributes = False
        self.stamp: tuple[int, int] | None = None
