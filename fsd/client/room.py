"""Room for a file's growth on a volume that has a quota, or on a cluster that is nearly full: asked before bytes are taken, so
that EDQUOT and ENOSPC come from the write(2) that goes too far, not from a flush that nobody hears of.

    write grows a file by n ──> n fits into what was left when the server was last asked? ── yes, and that was lately ──> taken
                                     └─ no: ask (StatVolume), count what this client has not told yet ──> fits? else the error

The server alone decides when bytes are committed: clients that fill a volume at the same moment may each be told of the same
room, and then the later one's fsync has the error. Where no quota and no full disk can refuse anything, nothing is asked.
"""

from collections.abc import Callable, Iterable

from fsd.client.core import Core
from fsd.client.file import File
from fsd.core.errors import NoSpace, QuotaExceeded
from fsd.protocol.metadata import StatVolume, VolumeSpace

FRESH_S = 1.0


class Room:
    """See the module. `unwritten` are the files with bytes that the servers do not have."""

    def __init__(self, core: Core, unwritten: Callable[[], Iterable[File]]) -> None:
        self._core = core
        self._unwritten = unwritten
        self._left = 0
        self._asked_at = float("-inf")

    async def take(self, file: File, end: int) -> None:
        """Something may refuse (no `may_promise`), and the file is about to grow to `end`, if that is more than it has. Raises
        QuotaExceeded, NoSpace."""
        if end <= file.size:
            return
        growth = end - file.size
        now = self._core.runtime.clock.monotonic()
        if growth > self._left or now - self._asked_at > FRESH_S:
            await self._core.journal.drain()
            space: VolumeSpace = await self._core.session.ask(StatVolume)
            self._left = space.free_bytes - sum(_untold(other) for other in self._unwritten())
            self._asked_at = now
            growth = max(0, end - file.size)
            if growth > self._left:
                room = max(0, self._left)
                if space.by_quota:
                    raise QuotaExceeded(f"{growth} more bytes, the quota leaves {room}")
                raise NoSpace(f"{growth} more bytes, there is room for {room}")
        self._left -= growth


def _untold(file: File) -> int:
    """By how much the file is longer here than the server knows."""
    return max(0, file.size - file.content.size) if file.content is not None else 0
