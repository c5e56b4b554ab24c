"""A server's data directory behind an interface: small files, a key-value store, segment files, the lock."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fsd.wire.frame import Buffer


class KeyChange(NamedTuple):
    """Put `value` under `key`, or delete it if None."""

    family: str
    key: bytes
    value: bytes | None


class Frozen(Protocol):
    """A key-value store as it was at one moment. Closed before its store is."""

    def scan(self, family: str, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """As KeyValue.scan."""
        ...

    def close(self) -> None: ...


class KeyValue(Protocol):
    """An ordered key-value store with group commit. Reads see what was applied; `durable` says when it is on disk.

    All errors are DiskFailed (R12: the store is unusable from then on) or CorruptData.
    """

    def get(self, family: str, key: bytes) -> bytes | None: ...

    def scan(self, family: str, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """At most `limit` pairs with start <= key < end, in order. Fails rather than end early on damage."""
        ...

    def freeze(self) -> Frozen:
        """Everything that was applied until now, whatever is applied later: for reading that lets others work."""
        ...

    def apply(self, changes: Sequence[KeyChange]) -> int:
        """One atomic batch: visible at once, on disk later. Returns its sequence number."""
        ...

    async def durable(self, sequence: int | None = None) -> None:
        """Return when the batch `sequence` (default: the last one) and all before it are on stable storage."""
        ...

    @property
    def applied_sequence(self) -> int: ...

    @property
    def durable_sequence(self) -> int: ...

    async def aclose(self) -> None: ...


class SegmentWrite(NamedTuple):
    segment: int
    offset: int
    data: Buffer


class Space(NamedTuple):
    total_bytes: int
    free_bytes: int


class Segments(Protocol):
    """Preallocated files of equal size that hold blocks. Errors: DiskFailed, NoSpace (from `grow` alone)."""

    segment_size: int

    def count(self) -> int:
        """Segments are 0 .. count - 1."""
        ...

    async def grow(self) -> int:
        """Preallocate one more segment, durably; its number. Raises NoSpace before anything is promised."""
        ...

    async def read(self, segment: int, offset: int, length: int) -> Buffer:
        """Exactly `length` bytes."""
        ...

    async def write(self, writes: Sequence[SegmentWrite]) -> None:
        """Everything written and synced on return. Never retried after a failure (R12)."""
        ...

    def space(self) -> Space: ...

    async def aclose(self) -> None: ...


class DataDirectory(Protocol):
    """One server's directory, held under an exclusive lock from `open` to `aclose` (DirectoryInUse otherwise)."""

    name: str

    def read_file(self, name: str) -> bytes | None:
        """The contents of a small file, None if there is none."""
        ...

    async def write_file(self, name: str, data: bytes) -> None:
        """Replace a small file atomically and durably."""
        ...

    async def set_aside(self, name: str) -> str:
        """Rename a damaged store (a key-value store or segments) out of the way, durably; the new name."""
        ...

    async def open_keyvalue(self, name: str, families: Sequence[str]) -> KeyValue:
        """Open or create. Raises CorruptData if it does not hold all that was promised to be durable."""
        ...

    async def open_segments(self, name: str, segment_size: int) -> Segments: ...

    def space(self) -> Space:
        """Of the file system that it lies on. Raises DiskFailed."""
        ...

    async def aclose(self) -> None: ...
