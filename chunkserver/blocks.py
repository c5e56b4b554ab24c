"""Which blocks of the segments are free. Pure.

One byte for each block: searching is `bytearray.find`, in C. The cursor goes round, so that fresh writes lie side by side
and a freed block is not used again at once.
"""

_FREE, _USED = 0, 1


class FreeBlocks:
    """Blocks 0 .. total - 1 in segments of `per_segment`."""

    def __init__(self, per_segment: int) -> None:
        self.per_segment = per_segment
        self.free = 0
        self._state = bytearray()
        self._cursor = 0

    @property
    def total(self) -> int:
        return len(self._state)

    def add_segment(self) -> None:
        self._state += bytes(self.per_segment)
        self.free += self.per_segment

    def mark_used(self, block: int) -> bool:
        """At start, for each referenced block. False if there is no such block or it is marked already."""
        if not 0 <= block < len(self._state) or self._state[block] == _USED:
            return False
        self._state[block] = _USED
        self.free -= 1
        return True

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks, side by side where there is such a place; None if there are too few."""
        if count > self.free:
            return None
        found = self._run(count)
        blocks = list(range(found, found + count)) if found >= 0 else self._scattered(count)
        for block in blocks:
            self._state[block] = _USED
        self.free -= count
        if blocks:
            self._cursor = blocks[-1] + 1
        return blocks

    def _run(self, count: int) -> int:
        wanted = bytes(count)
        found = self._state.find(wanted, self._cursor)
        return found if found >= 0 else self._state.find(wanted)

    def _scattered(self, count: int) -> list[int]:
        blocks: list[int] = []
        at = 0
        while len(blocks) < count:
            at = self._state.find(_FREE, at)
            blocks.append(at)
            at += 1
        return blocks

    def release(self, block: int) -> None:
        assert self._state[block] == _USED, f"block {block} is freed twice"
        self._state[block] = _FREE
        self.free += 1
