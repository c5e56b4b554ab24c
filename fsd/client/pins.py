"""Files that are looked up to be opened, kept as if they were open already.

Opening a path takes the kernel above two requests: LOOKUP of the name, OPEN of what it named. What is removed or replaced in
between is ESTALE, whereupon the kernel looks the name up again, once. If that comes too late as well, the caller sees ESTALE,
which no file system that renames atomically may show. So for PIN_S after an open that came too late, whatever regular file a
lookup finds is pinned: a handle is counted on it for PIN_S, and it lives on without a name.
"""

from collections.abc import Callable

import trio

from fsd.client.core import Core
from fsd.core.ids import Ino
from fsd.protocol.metadata import LeaseMode

PIN_S = 1.0
MAX_PINS = 256


class Pins:
    """See the module. `hold` counts a handle on a file, `let_go` takes it back."""

    def __init__(self, core: Core, hold: Callable[[Ino], None], let_go: Callable[[Ino], None]) -> None:
        self._core = core
        self._hold = hold
        self._let_go = let_go
        self._until = 0.0
        self._count = 0

    def came_too_late(self) -> None:
        """Something that was looked up was gone when it was asked for."""
        self._until = trio.current_time() + PIN_S

    def are_wanted(self) -> bool:
        return trio.current_time() < self._until and self._count < MAX_PINS

    def pin(self, ino: Ino) -> bool:
        """Keep the file for a while; False if it may be gone already."""
        if not self._core.leases.usable(ino, LeaseMode.SHARED) or self._core.is_being_removed(ino):
            return False
        self._count += 1
        self._hold(ino)
        self._core.nursery.start_soon(self._unpin_later, ino)
        return True

    async def _unpin_later(self, ino: Ino) -> None:
        try:
            await trio.sleep(PIN_S)
        finally:
            self._count -= 1
            self._let_go(ino)
