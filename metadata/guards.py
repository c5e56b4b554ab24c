"""One lock for each inode that a request works on, taken in sorted order; made when needed, gone when nobody waits."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import trio

from metadata.leases import InodeKey


class Guards:
    """A request holds the guards of all inodes it touches while it recalls leases and applies; never while it waits for
    the disk."""

    def __init__(self) -> None:
        self._locks: dict[InodeKey, trio.Lock] = {}
        self._users: dict[InodeKey, int] = {}

    def is_held(self, key: InodeKey) -> bool:
        """Whether some request works on the inode, or waits to."""
        return key in self._locks

    @asynccontextmanager
    async def hold(self, keys: Iterable[InodeKey]) -> AsyncGenerator[None]:
        """Keep everybody else off `keys`. First come, first served for each inode."""
        taken: list[InodeKey] = []
        try:
            for key in sorted(set(keys)):
                await self._acquire(key)
                taken.append(key)
            yield
        finally:
            for key in reversed(taken):
                self._release(key)

    async def _acquire(self, key: InodeKey) -> None:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = trio.Lock()
        self._users[key] = self._users.get(key, 0) + 1
        try:
            try:
                lock.acquire_nowait()
            except trio.WouldBlock:
                await lock.acquire()
        except BaseException:
            self._leave(key)
            raise

    def _release(self, key: InodeKey) -> None:
        self._locks[key].release()
        self._leave(key)

    def _leave(self, key: InodeKey) -> None:
        self._users[key] -= 1
        if self._users[key] == 0:
            del self._users[key], self._locks[key]
