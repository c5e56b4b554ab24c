"""The write-back log: records that outlive the process, and which of them are still needed.

    segment  n        n+1       n+2 (head)
           |B rrrrr| |B rrrrr| |B rr      |

    record   crc u32 | kind u8, 3 unused | meta length u32 | data length u32 | number u64 | meta | data | number u64

A record is there when its last eight bytes are: they are stored last and by themselves (one copy may store its end first), and
bytes stored before them in a process are there when they are, also after kill -9. The checksum covers all but the data, which
may be long. Numbers grow by one through the
whole log, so what is left in a recycled segment is not taken for a record. Every segment begins with a *basis*: all that is
small, so that an older segment is dropped as soon as nothing in it is *live*. Who has written something under a *key* lets it
go when it is no longer needed. Segments go oldest first, never from the middle: a record that makes an older one void must not
go before that one. What keeps the oldest too long is written again at the head (`relog`).

A segment that is used again costs 0.12 ms for each MiB that goes into it, as much as any copy; a new one 0.6 ms, for its pages.
So those that are free are kept as long as they are needed now and then (`trim`).

Bounded: what is live is bounded by its owners (write-back budget, journal); above `limit` segments all of the oldest
segment's live records are written again.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fsd.core.errors import CorruptData
from fsd.runtime.state import SEGMENT_BYTES, StateDirectory
from fsd.wire.frame import Buffer

HEAD = struct.Struct("<IBxxxIIQ")
CHECKSUM = struct.Struct("<I")
CHECKED = struct.Struct("<BxxxIIQ")
TAIL = struct.Struct("<Q")
OVERHEAD = HEAD.size + TAIL.size
KEEP_SEGMENTS = 4  # before anything is written again for the sake of dropping the oldest
JOINED_BYTES = 16 << 10  # data up to this are copied together with what is before them
TRIM_PART = 8

PIECE_BYTES = 1 << 20

Key = tuple[str, int] | tuple[str, int, int]


class Record(NamedTuple):
    kind: int
    number: int
    meta: bytes
    data: memoryview


class StateLog:
    """Appending, and dropping what is not needed. `basis` makes the first record's kind and meta of a segment; `relog` writes
    the present state of a key again; `is_bulk` says which keys are dear to write again; `retiring` hears of a segment before it
    goes, and may append."""

    def __init__(
        self,
        directory: StateDirectory,
        *,
        segment: int,
        number: int,
        basis: Callable[[], tuple[int, bytes]],
        relog: Callable[[Key], None],
        is_bulk: Callable[[Key], bool],
        retiring: Callable[[int], None],
        limit: int,
    ) -> None:
        self._directory = directory
        self._basis = basis
        self._relog = relog
        self._is_bulk = is_bulk
        self._retiring = retiring
        self._least_free = 0
        self._limit = limit
        self._views: dict[int, memoryview] = {}
        self._live: dict[int, dict[Key, None]] = {}
        self._where: dict[Key, list[int]] = {}
        self._free: list[int] = []
        self._number = number
        self._head = segment
        self._at = 0
        self._reclaiming = False
        self._begin(segment)

    def __len__(self) -> int:
        """Segments in use."""
        return len(self._views)

    # --- appending ----------------------------------------------------------------------------------------------------

    def append(self, kind: int, meta: bytes, data: Buffer = b"") -> None:
        """Store one record. Raises NoSpace, DiskFailed."""
        if self._at + OVERHEAD + len(meta) + len(data) > SEGMENT_BYTES:
            self._begin(self._head + 1)
        self._store(kind, meta, data)

    def room(self) -> int:
        """How much data goes into the head together with a record's usual meta."""
        return SEGMENT_BYTES - self._at - OVERHEAD - 64

    def _store(self, kind: int, meta: bytes, data: Buffer = b"") -> None:
        view, at, number = self._view, self._at, self._number
        length, more = len(meta), len(data)
        assert OVERHEAD + length + more <= SEGMENT_BYTES - at, "a record fits into a segment"
        checked = CHECKED.pack(kind, length, more, number) + meta
        front = CHECKSUM.pack(zlib.crc32(checked)) + checked
        end = at + HEAD.size + length + more
        if more <= JOINED_BYTES:
            view[at:end] = front + data if more else front
        else:
            view[at : end - more] = front
            view[end - more : end] = data
        TAIL.pack_into(view, end, number)
        self._number = number + 1
        self._at = end + TAIL.size

    def _begin(self, segment: int) -> None:
        """A new head; afterwards what is not needed any more goes."""
        view = self._recycled(segment) if self._free else self._directory.make(segment)
        self._views[segment] = self._view = view
        self._live[segment] = {}
        self._head, self._at = segment, 0
        self._store(*self._basis())
        if not self._reclaiming:
            self._reclaim()

    def _recycled(self, segment: int) -> memoryview:
        old = self._free.pop()
        self._least_free = min(self._least_free, len(self._free))
        self._directory.rename(old, segment)
        return self._views.pop(old)

    # --- what is needed -----------------------------------------------------------------------------------------------

    def hold(self, key: Key) -> None:
        """The record just appended is needed until `let_go(key)`."""
        head = self._head
        where = self._where.get(key)
        if where is None:
            self._where[key] = [head]
        elif where[-1] == head:
            return
        else:
            where.append(head)
        self._live[head][key] = None

    def let_go(self, key: Key) -> None:
        """Nothing written under the key is needed any more."""
        for segment in self._where.pop(key, ()):
            del self._live[segment][key]

    def move(self, key: Key, new: Key) -> None:
        """What was written under `key` is needed under `new`."""
        for segment in self._where.pop(key, ()):
            del self._live[segment][key]
            if new not in self._live[segment]:
                self._live[segment][new] = None
                self._where.setdefault(new, []).append(segment)
        if new in self._where:
            self._where[new].sort()

    def _reclaim(self) -> None:
        """What is dead at the old end goes; one segment that is kept too long is written again."""
        self._reclaiming = True
        try:
            self._drop_dead()
            if self._in_use() > KEEP_SEGMENTS:
                oldest, everything = self._oldest(), self._in_use() > self._limit
                for key in [key for key in self._live[oldest] if everything or not self._is_bulk(key)]:
                    self.let_go(key)
                    self._relog(key)
                self._drop_dead()
        finally:
            self._reclaiming = False

    def _drop_dead(self) -> None:
        while (oldest := self._oldest()) != self._head and not self._live[oldest]:
            self._retiring(oldest)
            self._retire(oldest)

    def _in_use(self) -> int:
        return len(self._live)

    def _oldest(self) -> int:
        return next(iter(self._live))

    def _retire(self, segment: int) -> None:
        del self._live[segment]
        self._views[segment][: HEAD.size] = bytes(HEAD.size)  # not to be read again
        self._free.append(segment)

    def trim(self) -> None:
        """Once a second: give back some of the free segments that were not needed since the last time."""
        for _ in range(-(-self._least_free // TRIM_PART)):
            segment = self._free.pop(0)
            del self._views[segment]
            self._directory.remove(segment)
        self._least_free = len(self._free)

    @property
    def head(self) -> int:
        """The segment to which the last record went."""
        return self._head

    def adopt(self, segments: list[int]) -> None:
        """Segments of the last life, all of whose records have been written again."""
        for segment in segments:
            if segment != self._head:
                self._directory.remove(segment)

    def clear(self) -> None:
        """Nothing is to outlive this process."""
        for segment in list(self._views):
            del self._views[segment]
            self._directory.remove(segment)
        self._live.clear()
        self._where.clear()
        self._free.clear()


# --- reading ----------------------------------------------------------------------------------------------------------


def records(view: memoryview) -> Iterator[Record]:
    """The records of a segment from its beginning; ends before the first that is not whole."""
    at, expected = 0, None
    while at + OVERHEAD <= len(view):
        crc, kind, length, more, number = HEAD.unpack_from(view, at)
        begin = at + HEAD.size
        end = begin + length + more
        if not kind or (expected is not None and number != expected) or end + TAIL.size > len(view):
            return
        meta = bytes(view[begin : begin + length])
        if crc != zlib.crc32(view[at + CHECKSUM.size : begin + length]):
            return
        if TAIL.unpack_from(view, end)[0] != number:
            return
        yield Record(kind, number, meta, view[begin + length : end])
        at, expected = end + TAIL.size, number + 1


def to_read(segments: list[int]) -> list[int]:
    """Which of the segments make up the log."""
    return segments


def read(directory: StateDirectory) -> Iterator[Record]:
    """All records of the last life in their order. Raises CorruptData if some are missing in between."""
    expected = None
    for segment in to_read(directory.segments()):
        for record in records(directory.open(segment)):
            if expected is not None and record.number != expected:
                raise CorruptData(f"the write-back log goes from record {expected - 1} to {record.number}")
            expected = record.number + 1
            yield record
