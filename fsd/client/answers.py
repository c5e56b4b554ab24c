"""Calls that a dead process carried out, and whose answers nobody may have read: they are not carried out again.

Only successes are known: what failed changed nothing and is simply tried again. A call may be of several operations; each is
known by its kind. A call whose request's outcome is unknown waits until that is.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from fsd.client.calls import CALL, RESENT
from fsd.namespace.operations import Operation
from fsd.wire.codec import number_of

T = TypeVar("T")


class Answers:
    """See the module. `done` is from the log; each is asked for once at most."""

    def __init__(self, done: dict[tuple[int, int], int] | None = None) -> None:
        self._done = done or {}
        self._pending: dict[tuple[int, int], trio.Event] = {}

    def expect(self, call: int, kind: int) -> None:
        """The outcome of the call's request will be known later."""
        self._pending[call, kind] = trio.Event()

    def settle(self, call: int, kind: int, value: int | None) -> None:
        """Now it is; None if it failed."""
        if value is not None:
            self._done[call, kind] = value
        self._pending.pop((call, kind)).set()

    async def find(self, kind: int) -> int | None:
        """What the present call has done already: an inode, a handle, bytes. None: carry it out."""
        call = CALL.get()
        if not call & RESENT:
            return None
        key = call & ~RESENT, kind
        pending = self._pending.get(key)
        if pending is not None:
            await pending.wait()
        return self._done.get(key)

    async def once(
        self, operation: type[Operation] | int, work: Callable[[], Awaitable[T]], again: Callable[[int], Awaitable[T]]
    ) -> T:
        """Carry the call out; or, if that was done, make the answer again from what was noted of it."""
        kind = operation if isinstance(operation, int) else number_of(operation)
        value = await self.find(kind)
        return await (work() if value is None else again(value))
