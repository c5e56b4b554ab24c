"""One lock for each key while somebody holds or wants it; first come, first served."""

from collections.abc import AsyncGenerator, Hashable
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

    def held(self) -> list[Hashable]:
        """All keys that somebody holds, in the order in which they were taken."""
        return list(self._locks)

    @asynccontextmanager
    async def hold(self, key: Hashable) -> AsyncGenerator[None]:
        await self.acquire(key)
        try:
            yield
        finally:
            self.release(key)
