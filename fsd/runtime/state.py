"""Where a client keeps what must outlive its process: numbered segments of memory that somebody else holds.

Bytes that were stored in a segment survive the death of the process (kill -9), not that of the host: there is no sync here.
One process at a time has the directory.
"""

from typing import Protocol

SEGMENT_BYTES = 4 << 20


class StateDirectory(Protocol):
    """Errors: NoSpace, DiskFailed (from `make` and `rename` alone; what was made can be written)."""

    def segments(self) -> list[int]:
        """Their numbers, ascending."""
        ...

    def open(self, number: int) -> memoryview:
        """The bytes of a segment of the last life, writable."""
        ...

    def make(self, number: int) -> memoryview:
        """A new segment of SEGMENT_BYTES, with room for all of it."""
        ...

    def rename(self, number: int, new: int) -> None:
        """The segment's bytes and its view stay as they are."""
        ...

    def remove(self, number: int) -> None:
        """The segment's view is not used any more."""
        ...

    def close(self) -> None:
        """Let go; the segments stay."""
        ...
