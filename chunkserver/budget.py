"""How much background work may take: bytes for each second, and turns in order of urgency."""

import heapq
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

BURST_S = 0.25  # of the rate may be taken at once


class Rate:
    """`bytes_per_s` 0: no bound."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._paid_until = float("-inf")

    def set(self, bytes_per_s: int) -> None:
        """From the next `take` on."""
        self._bytes_per_s = bytes_per_s

    async def take(self, size: int) -> None:
        """Wait until `size` bytes are within the budget."""
        if not self._bytes_per_s:
            return
        now = trio.current_time()
        self._paid_until = max(self._paid_until, now - BURST_S) + size / self._bytes_per_s
        if self._paid_until > now:
            await trio.sleep(self._paid_until - now)


class Turns:
    """At most `count` at once; of those that wait the most urgent (the lowest number) is next, then the first to come."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._serial = 0
        self._waiting: list[tuple[int, int, trio.Event]] = []

    @asynccontextmanager
    async def turn(self, urgency: int) -> AsyncGenerator[None]:
        await self._wait(urgency)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, urgency: int) -> None:
        if self._free:
            self._free -= 1
            return
        self._serial += 1
        entry = (urgency, self._serial, trio.Event())
        heapq.heappush(self._waiting, entry)
        try:
            await entry[2].wait()
        except BaseException:
            if entry[2].is_set():
                self._pass_on()
            else:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            raise

    def _pass_on(self) -> None:
        if self._waiting:
            heapq.heappop(self._waiting)[2].set()
        else:
            self._free += 1
