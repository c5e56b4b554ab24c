"""What another process left in its write-back log, as it was in that one's memory. Pure but for reading the log.

A file's records are carried out on a `File` in their order, as they were then; what was on its way to the servers is dirty
again, below what was written since.
"""

import struct
from dataclasses import dataclass, field

from fsd.client import state, statelog
from fsd.client.file import File, Times
from fsd.client.journal import Entry
from fsd.client.overlap import Ticket
from fsd.client.state import (
    ANSWERED,
    BASIS,
    CUT,
    CUT_META,
    DISCARDED,
    DONE_META,
    FLUSHED,
    FLUSHED_META,
    FORMAT,
    GIVEN_BACK,
    INODE,
    JOURNAL_ANSWERED,
    JOURNAL_HEAD,
    KIND_OPEN,
    KIND_TIMES,
    KIND_WRITE,
    LOCKED_HEAD,
    NONE_TIME,
    OPENED_META,
    POSITION,
    REPLACED,
    REPLACED_META,
    REQUEST_HEAD,
    SHIPPED,
    SHIPPED_META,
    TAKEN,
    TAKEN_META,
    TIMES,
    TIMES_META,
    WRITTEN,
    WRITTEN_META,
    Basis,
    subject_of,
)
from fsd.client.statelog import Record
from fsd.client.writeback import DirtyMap
from fsd.core.errors import VersionMismatch
from fsd.core.ids import Ino, RequestNumber
from fsd.namespace.operations import Truncate
from fsd.protocol.locks import LocksTold
from fsd.protocol.metadata import BatchItem, Execute, HeldLock
from fsd.runtime.state import StateDirectory
from fsd.wire.codec import decode, number_of_message


@dataclass(slots=True)
class Handle:
    number: int
    ino: Ino
    flags: int


@dataclass(slots=True)
class Pending:
    """A numbered request whose answer the process did not live to see. `call`: 0 if it was nobody's."""

    request: Execute
    call: int
    urgent: bool
    meta: bytes


@dataclass(slots=True)
class Restored:
    """`done`: what calls, by their number and kind, have carried out, and on which inode, handle or bytes."""

    basis: Basis
    next_number: int = 1
    answered: int = 0
    shipped: tuple[RequestNumber, int, int] = (RequestNumber(0), 0, 0)
    entries: dict[int, tuple[Entry, int]] = field(default_factory=dict[int, tuple[Entry, int]])
    requests: dict[int, Pending] = field(default_factory=dict[int, Pending])
    handles: dict[int, Handle] = field(default_factory=dict[int, Handle])
    locks: dict[tuple[int, int, int], tuple[HeldLock, ...]] = field(
        default_factory=dict[tuple[int, int, int], tuple[HeldLock, ...]]
    )
    done: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    files: dict[Ino, File] = field(default_factory=dict[Ino, File])
    flushing: dict[Ino, None] = field(default_factory=dict[Ino, None])
    last_segment: int = 0
    last_number: int = 0

    def file(self, ino: int) -> File:
        file = self.files.get(Ino(ino))
        if file is None:
            file = self.files[Ino(ino)] = File(Ino(ino), self.basis.chunk_size)
        return file

    def sent(self) -> tuple[RequestNumber, int] | None:
        """The number and the length of the batch that was under way."""
        number, position, count = self.shipped
        return (number, count) if number and position == self.answered + 1 else None

    def unanswered(self) -> list[RequestNumber]:
        """Numbers that the server must not forget yet."""
        sent = self.sent()
        batch = [] if sent is None else [RequestNumber(sent[0] + at) for at in range(sent[1])]
        return [*(RequestNumber(number) for number in self.requests), *batch]


def load(directory: StateDirectory) -> Restored | None:
    """None if there is nothing to go on with. Raises CorruptData, ProtocolError, VersionMismatch."""
    restored: Restored | None = None
    for record in statelog.read(directory):
        if record.kind == BASIS:
            basis = decode(Basis, record.meta)
            check_format(basis.format)
            restored = _basis(restored, basis)
        assert restored is not None, "a log begins with a basis"
        _replay(restored, record)
        restored.last_number = record.number
    if restored is None:
        return None
    restored.last_segment = max(directory.segments())
    for ino in restored.flushing:
        file = restored.files.get(ino)
        if file is not None:
            file.give_back()
    restored.files = {ino: file for ino, file in restored.files.items() if file.unwritten}
    return restored


def check_format(number: int) -> None:
    """Raises VersionMismatch: nothing is touched, and a process of the version that wrote the log can go on with it."""
    if number != FORMAT:
        raise VersionMismatch(
            f"the write-back log of the process before this one has format {number}, this version of fsd knows {FORMAT}: "
            "go on with the version that wrote it, unmount, then change the version"
        )


def _basis(restored: Restored | None, basis: Basis) -> Restored:
    """A session that is another one makes what was promised to the one before void; handles stay."""
    if restored is None:
        restored = Restored(basis)
    elif restored.basis.session != basis.session:
        restored.entries, restored.requests, restored.files, restored.flushing = {}, {}, {}, {}
        restored.locks = {}
    restored.basis = basis
    restored.next_number, restored.answered = basis.next_number, basis.answered
    restored.shipped = (basis.shipped_number, basis.shipped_position, basis.shipped_count)
    return restored


def _replay(restored: Restored, record: Record) -> None:
    meta = record.meta
    match record.kind:
        case state.BASIS:
            return
        case state.JOURNALLED | state.SHIPPED | state.JOURNAL_ANSWERED:
            _replay_journal(restored, record.kind, meta)
        case state.REQUESTED | state.ANSWERED:
            _replay_request(restored, record.kind, meta)
        case state.OPENED:
            number, ino, call, flags = OPENED_META.unpack(meta)
            restored.handles[number] = Handle(number, Ino(ino), flags)
            _done(restored, call, KIND_OPEN, number)
        case state.CLOSED:
            restored.handles.pop(POSITION.unpack(meta)[0], None)
        case state.LOCKED:
            ino, space, owner = LOCKED_HEAD.unpack_from(meta)
            locks = decode(LocksTold, meta[LOCKED_HEAD.size :]).locks
            restored.locks.pop((ino, space, owner), None)
            if locks:
                restored.locks[ino, space, owner] = locks
        case state.DONE:
            call, kind, value = DONE_META.unpack(meta)
            restored.done[call, kind] = value
        case _:
            _replay_bytes(restored, record.kind, meta, record.data)


def _done(restored: Restored, call: int, kind: int, value: int) -> None:
    if call:
        restored.done[call, kind] = value


def _replay_journal(restored: Restored, kind: int, meta: bytes) -> None:
    if kind == SHIPPED:
        number, position, count = SHIPPED_META.unpack(meta)
        restored.shipped = (RequestNumber(number), position, count)
        restored.next_number = max(restored.next_number, number + count)
        return
    if kind == JOURNAL_ANSWERED:
        restored.answered = POSITION.unpack(meta)[0]
        restored.entries = {at: entry for at, entry in restored.entries.items() if at > restored.answered}
        return
    position, call, new, again, count = JOURNAL_HEAD.unpack_from(meta)
    inos = struct.unpack_from(f"<{count}Q", meta, JOURNAL_HEAD.size)
    item = decode(BatchItem, meta[JOURNAL_HEAD.size + 8 * count :])
    operation = item.operation
    if position > restored.answered:
        ticket = Ticket((), True, True)
        restored.entries[position] = (
            Entry(operation, inos, ticket, None, item.keep_open, Ino(new) if new else None, (), position),
            call,
        )
    _done(restored, call, number_of_message(operation), subject_of(operation))
    if isinstance(operation, Truncate) and not again:
        _cut(restored.file(operation.ino), operation.size)


def _cut(file: File, size: int) -> None:
    """What was written before the truncation is void, even if the process died before it came to that."""
    if size == 0:
        file.touched, file.times = False, None
    file.cut(size)


def _replay_request(restored: Restored, kind: int, meta: bytes) -> None:
    if kind == ANSWERED:
        restored.requests.pop(POSITION.unpack(meta)[0], None)
        return
    number, call, urgent = REQUEST_HEAD.unpack_from(meta)
    request = decode(Execute, meta[REQUEST_HEAD.size :])
    restored.requests[number] = Pending(request, call, bool(urgent), meta)
    restored.next_number = max(restored.next_number, number + 1)


def _replay_bytes(restored: Restored, kind: int, meta: bytes, data: memoryview) -> None:
    if kind == WRITTEN:
        ino, offset, time_ns, call = WRITTEN_META.unpack(meta)
        restored.file(ino).write(offset, data, time_ns, 0.0)
        _done(restored, call, KIND_WRITE, len(data))
    elif kind == TIMES:
        _times(restored, meta)
    elif kind == TAKEN:
        ino, stop = TAKEN_META.unpack(meta)
        file = restored.file(ino)
        file.flushing = file.dirty.take_below(stop)
        file.touched = bool(file.dirty)
        restored.flushing[Ino(ino)] = None
    elif kind == GIVEN_BACK:
        file = restored.file(INODE.unpack(meta)[0])
        file.give_back()
        restored.flushing.pop(file.ino, None)
    elif kind == FLUSHED:
        ino, touched, has_times = FLUSHED_META.unpack(meta)
        file = restored.file(ino)
        file.touched = bool(touched)
        if not has_times:
            file.times = None
        file.flushed()
        restored.flushing.pop(file.ino, None)
    elif kind == CUT:
        ino, size, touched, has_times = CUT_META.unpack(meta)
        file = restored.file(ino)
        file.touched = bool(touched)
        if not has_times:
            file.times = None
        file.cut(size)
    elif kind == DISCARDED:
        ino = Ino(INODE.unpack(meta)[0])
        restored.files.pop(ino, None)
        restored.flushing.pop(ino, None)
    else:
        assert kind == REPLACED, f"record of kind {kind}"
        _replaced(restored, meta, data)


def _times(restored: Restored, meta: bytes) -> None:
    ino, call, has_times, *values = TIMES_META.unpack(meta)
    mtime_ns, *parts = (None if value == NONE_TIME else value for value in values)
    file = restored.file(ino)
    file.mtime_ns = mtime_ns
    file.times = Times(parts[0], parts[1], parts[2] or 0) if has_times else None
    file.touched = True
    _done(restored, call, KIND_TIMES, 0)


def _replaced(restored: Restored, meta: bytes, data: memoryview) -> None:
    ino, chunk, offset, which, first = REPLACED_META.unpack(meta)
    file = restored.file(ino)
    dirty: DirtyMap = file.flushing if which else file.dirty
    if first:
        dirty.drop(chunk)
    dirty.write(offset, data)
    if which:
        restored.flushing[Ino(ino)] = None
    else:
        file.touched = True
