"""One lock for each key while somebody holds or wants it; first come, first served."""

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import trio


class KeyedLocks:
    def __init__(self) -> None:
        self._locks: dict[Hashable, trio.Lock] = {}

    async def acquire(self, key: Hashable) -> None:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = trio.Lock()
            lock.acquire_nowait()
        else:
            await lock.acquire()

    def release(self, key: Hashable) -> None:
        """By the task that acquired it."""
        lock = self._locks[key]
        lock.release()
        if not lock.locked():
            del self._locks[key]

    def is_held(self, key: Hashable) -> bool:
        return key in self._locks

    @asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncIterator[None]:
        await self.acquire(key)
        try:
            yield
        finally:
            self.release(key)

    async def wait_free(self, key: Hashable) -> None:
        """Return at once, without a checkpoint, if nobody holds it; else when it was free for a moment."""
        while key in self._locks:
            async with self.hold(key):
                pass
            if key not in self._locks or not self._locks[key].statistics().tasks_waiting:
                break
