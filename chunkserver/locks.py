"""One lock for each key while somebody holds or wants it; first come, first served."""

from collections.abc import Hashable
from types import TracebackType

import trio


class Hold:
    """`async with`: the lock of one key. `release` gives it back early, by the task that took it; once is enough."""

    __slots__ = ("_held", "_key", "_locks")

    def __init__(self, locks: "KeyedLocks", key: Hashable) -> None:
        self._locks = locks
        self._key = key
        self._held = False

    async def __aenter__(self) -> "Hold":
        await self._locks.acquire(self._key)
        self._held = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        if self._held:
            self._held = False
            self._locks.release(self._key)


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

    def hold(self, key: Hashable) -> Hold:
        return Hold(self, key)
