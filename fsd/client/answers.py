"""Calls that a dead process carried out, and whose answers nobody may have read: they are not carried out again.

Only successes are known: what failed changed nothing and is simply tried again. A call may be of several operations; each is
known by its kind. A call whose request's outcome is unknown waits until that is. If the session was evicted meanwhile, nobody
can know any more what became of its calls: those fail, as they do without another process.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from fsd.client.calls import CALL, RESENT
from fsd.client.state import KIND_OPEN
from fsd.core.errors import SessionEvicted
from fsd.namespace.operations import Operation
from fsd.wire.codec import number_of

T = TypeVar("T")


class Answers:
    """See the module. `done` is from the log; each is asked for once at most."""

    def __init__(self, done: dict[tuple[int, int], int] | None = None) -> None:
        self._done = done or {}
        self._pending: dict[tuple[int, int], trio.Event] = {}
        self._void: dict[tuple[int, int], None] = {}

    def expect(self, call: int, kind: int) -> None:
        """The outcome of the call's request will be known later."""
        self._pending[call, kind] = trio.Event()

    def settle(self, call: int, kind: int, value: int | None) -> None:
        """Now it is; None if it failed."""
        if value is not None:
            self._done[call, kind] = value
        self._pending.pop((call, kind)).set()

    def lose(self, call: int, kind: int) -> None:
        """It never will be: the session is gone."""
        self._void[call, kind] = None
        self._pending.pop((call, kind)).set()

    def lose_all(self) -> None:
        """The session is gone, and with it what its calls did. Handles stay."""
        lost = [*self._pending, *(key for key in self._done if key[1] != KIND_OPEN)]
        self._void.update(dict.fromkeys(lost))
        for pending in self._pending.values():
            pending.set()
        self._pending.clear()

    async def find(self, kind: int) -> int | None:
        """What the present call has done already: an inode, a handle, bytes. None: carry it out. Raises SessionEvicted."""
        call = CALL.get()
        if not call & RESENT:
            return None
        key = call & ~RESENT, kind
        pending = self._pending.get(key)
        if pending is not None:
            await pending.wait()
        if key in self._void:
            raise SessionEvicted("the session was evicted while this call was under way")
        return self._done.get(key)

    async def once(
        self, operation: type[Operation] | int, work: Callable[[], Awaitable[T]], again: Callable[[int], Awaitable[T]]
    ) -> T:
        """Carry the call out; or, if that was done, make the answer again from what was noted of it."""
        kind = operation if isinstance(operation, int) else number_of(operation)
        value = await self.find(kind)
        return await (work() if value is None else again(value))
