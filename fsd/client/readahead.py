"""How far to read ahead of a reader. Pure: one object for each handle, told of every read.

The window doubles while the reader goes on where it stopped, up to the limit; a jump halves it, and two jumps in a row
close it until the reader is sequential again. What is asked for ahead is asked once: from the end of what was asked
before to the end of the window, and only when half of the window has been consumed, so that requests stay large.
"""

from fsd.core.units import BLOCK_SIZE

FIRST_WINDOW = 2 * BLOCK_SIZE


class ReadAhead:
    """`observe` every read; it answers what to fetch now."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._next = 0  # where a sequential reader goes on
        self._asked_to = 0  # end of what was asked for ahead
        self._window = 0
        self._jumped = False

    @property
    def window_bytes(self) -> int:
        return self._window

    def observe(self, offset: int, length: int, file_size: int) -> tuple[int, int] | None:
        """[start, end) to be fetched ahead now, or None. `offset` and `length` are of the read that happens now."""
        end = offset + length
        if offset != self._next:
            self._jump()
            self._next = self._asked_to = end
            return None
        self._jumped = False
        self._next = end
        self._window = min(self._limit, max(FIRST_WINDOW, self._window * 2))
        self._asked_to = max(self._asked_to, end)
        target = min(file_size, end + self._window)
        if target <= self._asked_to or (self._asked_to - end) * 2 > self._window:
            return None
        start, self._asked_to = self._asked_to, target
        return start, target

    def _jump(self) -> None:
        self._window = 0 if self._jumped else self._window // 2
        self._jumped = True
