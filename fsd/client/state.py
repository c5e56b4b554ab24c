"""What a client tells its write-back log, so that another process can go on with its session (fsd.client.replay reads it).

    B basis      session, counters; at the head of every segment
    J journalled S shipped   Z answered          the journal: position, operation; numbers of the batch under way
    E requested  X answered                      numbered requests of their own
    W written    M times     K cut               a file's bytes and times as they come
    T taken      G given back  C flushed  D discarded  R replaced     and where they are on their way to the servers
    H opened     L closed    O locked            handles, and the locks of each owner
    A done                                       calls that were carried out, and may be asked for again

The log says what happened to a file's dirty map, in order; who replays it ends with the same map. A call is answered when its
record is there. Records that are torn belong to calls that were not answered. `Unlogged` is for a client that keeps nothing.

If the log cannot grow (its file system is full), nothing more is kept: that is said, and the log is removed, since half of it
would be worse than none.
"""

import logging
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsd.client.calls import unique
from fsd.client.statelog import PIECE_BYTES, Key, StateLog
from fsd.core.errors import FsError
from fsd.core.ids import Ino, RequestNumber, SessionId
from fsd.namespace.locks import LockSpace
from fsd.namespace.operations import Operation
from fsd.namespace.records import Volume
from fsd.namespace.touched import born
from fsd.protocol.locks import LocksTold
from fsd.protocol.metadata import BatchItem, Execute, HeldLock
from fsd.runtime.state import SEGMENT_BYTES, StateDirectory
from fsd.wire.codec import decode, encode, number_of_message, wire
from fsd.wire.frame import Buffer

if TYPE_CHECKING:
    from fsd.client.file import File
    from fsd.client.journal import Entry
    from fsd.client.replay import Restored
    from fsd.client.writeback import DirtyMap

log = logging.getLogger(__name__)

BASIS, JOURNALLED, SHIPPED, JOURNAL_ANSWERED, REQUESTED, ANSWERED = range(1, 7)
WRITTEN, TIMES, TAKEN, GIVEN_BACK, FLUSHED, CUT, DISCARDED, REPLACED, OPENED, CLOSED, DONE, LOCKED = range(7, 19)

JOURNAL_HEAD = struct.Struct("<QQQBH")  # position, call, new inode, 1 if written again, inodes that follow
SHIPPED_META = struct.Struct("<QQI")  # first number, first position, count
POSITION = struct.Struct("<Q")
REQUEST_HEAD = struct.Struct("<QQB")  # number, call, urgent
WRITTEN_META = struct.Struct("<QQqQ")  # inode, offset, time, call
TIMES_META = struct.Struct("<QQBqqqq")  # inode, call, has times, mtime shown, atime, mtime, ctime
TAKEN_META = struct.Struct("<QQ")  # inode, one past the last chunk taken
INODE = struct.Struct("<Q")
FLUSHED_META = struct.Struct("<QBB")  # inode, touched still, has times to set still
CUT_META = struct.Struct("<QQBB")  # inode, size, touched, has times
REPLACED_META = struct.Struct("<QQQBB")  # inode, chunk, offset, which map, first of the chunk
OPENED_META = struct.Struct("<QQQI")  # number, inode, call, flags
LOCKED_HEAD = struct.Struct("<QBQ")  # inode, space, owner
SPACES = tuple(LockSpace)
DONE_META = struct.Struct("<QHQ")  # call, kind, value
NONE_TIME = -(1 << 63)

KIND_WRITE, KIND_OPEN, KIND_TIMES = 1, 2, 3  # others are the numbers of operations
FORMAT = 3  # of all records (2 had no LOCKED): whoever changes one raises it, and reads the older ones or refuses them
MAX_DONE = 4096  # calls whose answers may not have been read: no more threads wait for one mount
BULK = ("d", "f", "j")
JOURNAL_ROOM = 64 << 20
LEAST_PIECE_BYTES = 64 << 10  # what is left of a segment is not filled with less of a long write


@wire(700)
@dataclass(frozen=True, slots=True)
class Basis:
    """All that is small. `incarnation` counts the processes of one log; `answered` is the last journal position that the server
    has confirmed; a batch of `shipped_count` operations, from `shipped_position` on, is under way as `shipped_number`."""

    session: SessionId
    secret: bytes
    ttl_s: float
    file_system: str
    volume: Volume
    chunk_size: int
    incarnation: int
    next_number: RequestNumber
    answered: int
    shipped_number: RequestNumber
    shipped_position: int
    shipped_count: int
    format: int = 1


def subject_of(operation: Operation) -> int:
    """The inode that a call which is sent again is answered with; 0 if it needs none."""
    new = born(operation)
    return new if new is not None else getattr(operation, "ino", 0)


class Unlogged:
    """Nothing is kept."""

    is_kept = False
    incarnation = 0

    def restore(self, restored: "Restored") -> None:
        """What the last process left, already in this one's memory; see `begin`."""

    def begin(self, chunk_size: int) -> None:
        """The session is there: keep everything from now on. What was restored is written first."""

    def trim(self) -> None:
        """Once a second: memory that is not needed goes back."""

    def freeze(self) -> None:
        """Nothing more is kept; what is there stays for the next process."""

    def finish(self) -> None:
        """All is at the servers: nothing is to be restored."""

    def session_begins(self, session: SessionId, secret: bytes, ttl_s: float, file_system: str, volume: Volume) -> None:
        """There is a session, maybe another one than before: what was promised to that one is void."""

    def journalled(self, entry: "Entry") -> None:
        """An operation was carried out here."""

    def shipped(self, number: RequestNumber, count: int) -> None:
        """The oldest `count` operations of the journal are about to be sent under numbers from `number` on."""

    def journal_answered(self, position: int) -> None:
        """The server has all operations up to this position."""

    def requested(self, request: Execute, urgent: bool) -> None:
        """The request is about to be sent for the first time."""

    def answered(self, number: RequestNumber, carried_out: bool) -> None:
        """There is an answer, or none will count any more."""

    def written(self, file: "File", offset: int, data: Buffer, time_ns: int) -> None:
        """The bytes are dirty."""

    def times_set(self, file: "File") -> None: ...

    def taken(self, file: "File") -> None:
        """What is in `flushing` was dirty and is on its way."""

    def given_back(self, file: "File") -> None:
        """It is dirty again."""

    def flushed(self, file: "File") -> None:
        """The servers have what is in `flushing` still."""

    def cut(self, file: "File", size: int, emptied: list[int]) -> None:
        """What was dirty behind `size` is void, all of it in the chunks `emptied`."""

    def discarded(self, file: "File") -> None:
        """All that was dirty or on its way is void."""

    def opened(self, number: int, ino: Ino, flags: int) -> None:
        """A handle under a number that its user will name again."""

    def closed(self, number: int) -> None: ...

    def locked(self, ino: Ino, space: LockSpace, owner: int, locks: tuple[HeldLock, ...]) -> None:
        """All that the owner has locked of the inode."""

    def locks_lost(self) -> None:
        """All of them, with the session."""


UNLOGGED = Unlogged()


class ClientState(Unlogged):
    """See the module. `restored` is what the last process left, already in the memory of this one: `begin` writes it again."""

    is_kept = True

    def __init__(
        self, directory: StateDirectory, *, incarnation: int, segment: int, number: int, bytes_limit: int
    ) -> None:
        self._directory = directory
        self._log: StateLog | None = None
        self._first = (segment, number)
        self._limit = (bytes_limit * 2 + JOURNAL_ROOM) // SEGMENT_BYTES
        self._chunk_size = 0
        self._session: tuple[SessionId, bytes, float, str, Volume] | None = None
        self.incarnation = incarnation
        self.next_number = 1
        self.journal_position = 0
        self.shipped_batch = (0, 0, 0)
        self._entries: dict[int, tuple[Entry, int]] = {}
        self._requests: dict[int, bytes] = {}
        self._handles: dict[int, bytes] = {}
        self._done: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()  # value, segment where it stands
        self._held = (0, 0, 0, 0)  # inode, chunk, chunk, segment of the last write, while they are held
        self._locks: dict[Key, bytes] = {}
        self._files: dict[Ino, File] = {}

    # --- beginning and end --------------------------------------------------------------------------------------------

    def session_begins(self, session: SessionId, secret: bytes, ttl_s: float, file_system: str, volume: Volume) -> None:
        replaced = self._session is not None and self._session[0] != session
        self._session = (session, secret, ttl_s, file_system, volume)
        if replaced:
            self.next_number, self.shipped_batch = 1, (0, 0, 0)
            for number in list(self._requests):
                self._forget_request(number)
            for position in list(self._entries):
                self._forget_entry(position)
        if self._log is not None:
            self._append(*self._basis())

    def begin(self, chunk_size: int) -> None:
        self._chunk_size = chunk_size
        segment, number = self._first
        old = self._directory.segments()
        try:
            self._log = StateLog(
                self._directory,
                segment=segment,
                number=number,
                basis=self._basis,
                relog=self._relog,
                is_bulk=is_bulk,
                retiring=self._retiring,
                limit=self._limit,
            )
        except FsError as error:
            self._give_up(error)
            return
        for key in self._keys():
            self._relog(key)
        self._retiring(0)
        self._adopted(old)

    def _adopted(self, segments: list[int]) -> None:
        """What is in the last process's segments has been written again."""
        if self._log is not None:
            self._log.adopt(segments)

    def restore(self, restored: "Restored") -> None:
        basis = restored.basis
        self._session = (basis.session, basis.secret, basis.ttl_s, basis.file_system, basis.volume)
        self.next_number, self.journal_position = restored.next_number, restored.answered
        self.shipped_batch = restored.shipped
        self._entries.update(restored.entries)
        self._requests.update((number, pending.meta) for number, pending in restored.requests.items())
        for number, handle in restored.handles.items():
            self._handles[number] = OPENED_META.pack(number, handle.ino, 0, handle.flags)
        self._done.update((call, (value, 0)) for call, value in restored.done.items())
        self._files.update(restored.files)
        for locks in restored.locks.values():
            self.locked(locks[0].ino, locks[0].space, locks[0].owner, locks)

    def _keys(self) -> list[Key]:
        keys: list[Key] = [("j", position) for position in self._entries]
        keys += [("e", number) for number in self._requests]
        keys += [("h", number) for number in self._handles]
        keys += list(self._locks)
        for ino, file in self._files.items():
            keys += [("d", ino, chunk) for chunk in file.dirty.chunks()]
            keys.append(("t", ino))
        return keys

    def trim(self) -> None:
        if self._log is not None:
            self._log.trim()

    def freeze(self) -> None:
        self._log = None

    def finish(self) -> None:
        if self._log is not None:
            self._log.clear()
        self._log = None

    def _give_up(self, error: FsError) -> None:
        log.error("no state is kept any more, the death of this process would lose what is not written back: %s", error)
        self._log = None
        for segment in self._directory.segments():
            self._directory.remove(segment)

    def _append(self, kind: int, meta: bytes, data: Buffer = b"", key: Key | None = None) -> bool:
        """Store a record, which is needed until its key is let go. Whether anything is kept."""
        if self._log is None:
            return False
        try:
            self._log.append(kind, meta, data)
        except FsError as error:
            self._give_up(error)
            return False
        if key is not None:
            self._log.hold(key)
        return True

    def _let_go(self, key: Key) -> None:
        self._held = (0, 0, 0, 0)
        if self._log is not None:
            self._log.let_go(key)

    def _basis(self) -> tuple[int, bytes]:
        assert self._session is not None, "there is a session"
        basis = Basis(
            *self._session,
            self._chunk_size,
            self.incarnation,
            RequestNumber(self.next_number),
            self.journal_position,
            RequestNumber(self.shipped_batch[0]),
            *self.shipped_batch[1:],
            FORMAT,
        )
        return BASIS, encode(basis)

    # --- calls that were carried out ----------------------------------------------------------------------------------

    def _did(self, call: int, kind: int, value: int) -> None:
        """The record that was just written says so too, but will be dropped before the kernel has its answer."""
        if call and self._log is not None:
            self._done[call, kind] = (value, self._log.head)
            if len(self._done) > MAX_DONE:
                self._done.popitem(last=False)

    def _retiring(self, segment: int) -> None:
        """The answers that stand in the segment alone are written again."""
        for (call, kind), (value, where) in list(self._done.items()):
            if where == segment and self._log is not None:
                self._append(DONE, DONE_META.pack(call, kind, value))
                self._done[call, kind] = (value, self._log.head)

    # --- the journal --------------------------------------------------------------------------------------------------

    def journalled(self, entry: "Entry") -> None:
        call = unique()
        self._entries[entry.position] = (entry, call)
        self._log_entry(entry, call, again=False)
        self._did(call, number_of_message(entry.operation), subject_of(entry.operation))

    def _log_entry(self, entry: "Entry", call: int, *, again: bool) -> None:
        inos = entry.inos
        head = JOURNAL_HEAD.pack(entry.position, call, entry.new or 0, again, len(inos))
        item = encode(BatchItem(entry.operation, entry.keep_open))
        meta = head + struct.pack(f"<{len(inos)}Q", *inos) + item
        self._append(JOURNALLED, meta, key=("j", entry.position))

    def _forget_entry(self, position: int) -> None:
        del self._entries[position]
        self._let_go(("j", position))

    def shipped(self, number: RequestNumber, count: int) -> None:
        self.shipped_batch = (number, self.journal_position + 1, count)
        self.next_number = max(self.next_number, number + count)
        self._append(SHIPPED, SHIPPED_META.pack(*self.shipped_batch))

    def journal_answered(self, position: int) -> None:
        for done in range(self.journal_position + 1, position + 1):
            if done in self._entries:
                self._forget_entry(done)
        self.journal_position = position
        self.shipped_batch = (0, 0, 0)
        self._append(JOURNAL_ANSWERED, POSITION.pack(position))

    # --- requests of their own ----------------------------------------------------------------------------------------

    def requested(self, request: Execute, urgent: bool) -> None:
        meta = REQUEST_HEAD.pack(request.number, unique(), urgent) + encode(request)
        self._requests[request.number] = meta
        self.next_number = max(self.next_number, request.number + 1)
        self._append(REQUESTED, meta, key=("e", request.number))

    def answered(self, number: RequestNumber, carried_out: bool) -> None:
        meta = self._requests.get(number)
        if meta is None:
            return
        call = REQUEST_HEAD.unpack_from(meta)[1]
        if call and carried_out:  # before it is forgotten which request it was
            operation = decode(Execute, meta[REQUEST_HEAD.size :]).operation
            kind, value = number_of_message(operation), subject_of(operation)
            self._append(DONE, DONE_META.pack(call, kind, value))
            self._did(call, kind, value)
        self._append(ANSWERED, POSITION.pack(number))
        self._forget_request(number)

    def _forget_request(self, number: int) -> None:
        del self._requests[number]
        self._let_go(("e", number))

    # --- bytes --------------------------------------------------------------------------------------------------------

    def written(self, file: "File", offset: int, data: Buffer, time_ns: int) -> None:
        if self._log is None:
            return
        call, ino, view = unique(), file.ino, memoryview(data)
        self._files[ino] = file
        length, at = len(view), 0
        while at < length:
            room = self._log.room()
            piece = view[at : at + (room if room >= LEAST_PIECE_BYTES else PIECE_BYTES)]
            begin, end = offset + at, offset + at + len(piece)
            at += len(piece)
            meta = WRITTEN_META.pack(ino, begin, time_ns, call if at == length else 0)
            if not self._append(WRITTEN, meta, piece):
                return
            first, last = begin // self._chunk_size, (end - 1) // self._chunk_size
            if self._held != (ino, first, last, self._log.head):
                self._hold_written(ino, first, last)
        self._did(call, KIND_WRITE, length)

    def _hold_written(self, ino: Ino, first: int, last: int) -> None:
        """Once for all writes to the same chunks that stand in the same segment."""
        if self._log is not None:
            self._log.hold(("t", ino))
            for chunk in range(first, last + 1):
                self._log.hold(("d", ino, chunk))
            self._held = (ino, first, last, self._log.head)

    def times_set(self, file: "File") -> None:
        self._files[file.ino] = file
        call = unique()
        self._log_times(file, call)
        self._did(call, KIND_TIMES, 0)

    def _log_times(self, file: "File", call: int) -> None:
        times = file.times
        parts = (None, None, None) if times is None else times
        values = [NONE_TIME if value is None else value for value in (file.mtime_ns, *parts)]
        meta = TIMES_META.pack(file.ino, call, times is not None, *values)
        self._append(TIMES, meta, key=("t", file.ino))

    def taken(self, file: "File") -> None:
        self._held = (0, 0, 0, 0)
        chunks = file.flushing.chunks()
        self._append(TAKEN, TAKEN_META.pack(file.ino, chunks[-1] + 1 if chunks else 0))
        if self._log is not None:
            for chunk in chunks:
                self._log.move(("d", file.ino, chunk), ("f", file.ino, chunk))

    def given_back(self, file: "File") -> None:
        self._append(GIVEN_BACK, INODE.pack(file.ino))
        if self._log is not None:
            for chunk in file.dirty.chunks():
                self._log.move(("f", file.ino, chunk), ("d", file.ino, chunk))

    def flushed(self, file: "File") -> None:
        self._append(FLUSHED, FLUSHED_META.pack(file.ino, file.touched, file.times is not None))
        for chunk in file.flushing.chunks():
            self._let_go(("f", file.ino, chunk))
        self._forget_clean(file)

    def _forget_clean(self, file: "File") -> None:
        if not file.touched and not file.dirty and file.times is None:
            self._let_go(("t", file.ino))
            self._files.pop(file.ino, None)

    def cut(self, file: "File", size: int, emptied: list[int]) -> None:
        self._append(CUT, CUT_META.pack(file.ino, size, file.touched, file.times is not None))
        for chunk in emptied:
            self._let_go(("d", file.ino, chunk))
        if not file.flushing:
            self._forget_clean(file)

    def discarded(self, file: "File") -> None:
        if file.ino not in self._files:
            return
        self._append(DISCARDED, INODE.pack(file.ino))
        for chunk in file.dirty.chunks():
            self._let_go(("d", file.ino, chunk))
        for chunk in file.flushing.chunks():
            self._let_go(("f", file.ino, chunk))
        self._let_go(("t", file.ino))
        self._files.pop(file.ino, None)

    # --- handles ------------------------------------------------------------------------------------------------------

    def opened(self, number: int, ino: Ino, flags: int) -> None:
        call = unique()
        self._handles[number] = meta = OPENED_META.pack(number, ino, call, flags)
        self._append(OPENED, meta, key=("h", number))
        self._did(call, KIND_OPEN, number)

    def closed(self, number: int) -> None:
        if self._handles.pop(number, None) is not None:
            self._append(CLOSED, POSITION.pack(number))
            self._let_go(("h", number))

    def locked(self, ino: Ino, space: LockSpace, owner: int, locks: tuple[HeldLock, ...]) -> None:
        at = (ino, SPACES.index(space), owner)
        key = ("l", ino, owner * len(SPACES) + at[1])
        meta = LOCKED_HEAD.pack(*at) + encode(LocksTold(False, locks))
        if self._locks.get(key) == meta or (not locks and key not in self._locks):
            return
        if locks:
            self._locks[key] = meta
            self._append(LOCKED, meta, key=key)
        else:
            del self._locks[key]
            self._append(LOCKED, meta)
            self._let_go(key)

    def locks_lost(self) -> None:
        for key, meta in list(self._locks.items()):
            del self._locks[key]
            self._append(LOCKED, meta[: LOCKED_HEAD.size] + encode(LocksTold(False, ())))
            self._let_go(key)

    # --- writing again ------------------------------------------------------------------------------------------------

    def _relog(self, key: Key) -> None:
        """The present state of what is kept under the key, at the head of the log."""
        match key:
            case ("j", position):
                entry, call = self._entries[position]
                self._log_entry(entry, call, again=True)
            case ("e", number):
                self._append(REQUESTED, self._requests[number], key=key)
            case ("h", number):
                self._append(OPENED, self._handles[number], key=key)
            case ("l", _, _):
                self._append(LOCKED, self._locks[key], key=key)
            case ("t", ino):
                self._log_times(self._files[Ino(ino)], 0)
            case ("d", ino, chunk):
                self._log_chunk(key, self._files[Ino(ino)].dirty, Ino(ino), chunk, 0)
            case ("f", ino, chunk):
                self._log_chunk(key, self._files[Ino(ino)].flushing, Ino(ino), chunk, 1)
            case _:
                raise AssertionError(f"no such key: {key}")

    def _log_chunk(self, key: Key, dirty: "DirtyMap", ino: Ino, chunk: int, which: int) -> None:
        first = 1
        for extent in dirty.extents(chunk):
            for at in range(0, len(extent.data), PIECE_BYTES):
                piece = memoryview(extent.data)[at : at + PIECE_BYTES]
                meta = REPLACED_META.pack(ino, chunk, extent.file_offset + at, which, first)
                self._append(REPLACED, meta, piece, key)
                first = 0


def is_bulk(key: Key) -> bool:
    """Dear to write again, and soon written back anyway."""
    return key[0] in BULK
