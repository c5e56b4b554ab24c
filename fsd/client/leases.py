"""Which leases this session holds, and what may be done under them. Pure but for the waiting of a recall for readers.

    NONE ──grant──> SHARED <──grant──> EXCLUSIVE
      ^               |  recall(keep)      |
      └───────────────┴────────────────────┘

`mode` is what the server believes; `usable` is what this client still acts under: a recall lowers `usable` at once
(synchronously, in order of arrival) and `mode` only when everything is written back and invalidated.

`since` is the serial of the grant with which the present unbroken hold began, 0 if there is none: what an answer says is
cached only if the hold goes back to before the answer was computed. A grant whose serial is not above the highest recalled
one is refused: the server takes it as given back already.
"""

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from fsd.core.ids import Ino
from fsd.protocol.metadata import Grant, LeaseMode, RecallItem

BORN = 1  # below every serial of a server


@dataclass(slots=True)
class Lease:
    """See the module. `users` are readers at work, for whom a recall waits; `generation` counts the losses."""

    ino: Ino
    mode: LeaseMode = LeaseMode.NONE
    usable: LeaseMode = LeaseMode.NONE
    serial: int = 0
    refused: int = 0
    refused_at: int = 0  # the session's call counter when `refused` was set
    since: int = 0
    open_elsewhere: bool = False  # another session has handles on the inode, or may have
    generation: int = 0
    users: int = 0
    idle: trio.Event | None = None


class LeaseTable:
    """All leases of the session. `is_valid` says whether the session's time still runs."""

    def __init__(self, is_valid: Callable[[], bool]) -> None:
        self._is_valid = is_valid
        self._leases: OrderedDict[Ino, Lease] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, ino: Ino) -> Lease:
        """The lease of an inode, made if there is none."""
        lease = self._leases.get(ino)
        if lease is None:
            lease = self._leases[ino] = Lease(ino)
        return lease

    def find(self, ino: Ino) -> Lease | None:
        return self._leases.get(ino)

    def oldest(self) -> Iterator[Lease]:
        """Those not used for longest first."""
        return iter(self._leases.values())

    def usable(self, ino: Ino, mode: LeaseMode) -> bool:
        """Whether this client may act under `mode` now."""
        lease = self._leases.get(ino)
        return lease is not None and lease.usable.value >= mode.value and self._is_valid()

    def touch(self, ino: Ino) -> None:
        """The inode was used."""
        if ino in self._leases:
            self._leases.move_to_end(ino)

    def since(self, ino: Ino) -> int:
        lease = self._leases.get(ino)
        return lease.since if lease is not None else 0

    # --- what the server says ---------------------------------------------------------------------------------------

    def granted(self, grant: Grant) -> None:
        """A grant arrived. Called in order of arrival, before anybody uses the answer that it came with."""
        lease = self.get(grant.ino)
        if not self.accepts(lease, grant):
            return
        if grant.serial > lease.serial:
            lease.mode = lease.usable = grant.mode
            lease.serial = grant.serial
            lease.since = lease.since or grant.serial
            lease.open_elsewhere = grant.open_elsewhere
        elif lease.since:
            lease.since = min(lease.since, grant.serial)  # answers overtook each other; nothing was recalled between

    def accepts(self, lease: Lease, grant: Grant) -> bool:
        """Serial rule: a grant that crossed its own recall was given back already."""
        return grant.serial > lease.refused

    def recall(self, item: RecallItem, calls: int) -> int:
        """A recall arrived: stop acting under more than `keep`. The serial up to which the lease is given back."""
        lease = self.get(item.ino)
        serial = max(item.serial, lease.serial)
        if item.serial > lease.refused:
            lease.refused, lease.refused_at = item.serial, calls
        self.lower_usable(lease, item.keep)
        return serial

    def born(self, ino: Ino) -> None:
        """This client has made the inode: nobody else knows it, so the lease is here before the server has heard of it. Serial
        0 lies below all that the server will say."""
        lease = self.get(ino)
        lease.mode = lease.usable = LeaseMode.EXCLUSIVE
        lease.since = BORN

    def surrendered(self, ino: Ino) -> None:
        """The server has taken the lease back with the inode's last name, as this session had nothing of it any more."""
        lease = self._leases.get(ino)
        if lease is not None:
            lease.mode = lease.usable = LeaseMode.NONE
            lease.since = 0
            lease.generation += 1
            self.forget(ino)

    def lower_usable(self, lease: Lease, keep: LeaseMode) -> None:
        """Stop granting locally."""
        if lease.usable.value > keep.value:
            lease.usable = keep
        if lease.usable is LeaseMode.NONE:
            lease.since = 0

    def lower(self, ino: Ino, serial: int, keep: LeaseMode) -> bool:
        """Everything is written back: the lease is `keep` at most, unless a newer grant came meanwhile (then False)."""
        lease = self.get(ino)
        if lease.serial > serial:
            return False
        self.lower_usable(lease, keep)
        if lease.mode.value > keep.value:
            lease.mode = keep
        if lease.mode is LeaseMode.NONE:
            lease.generation += 1
        return True

    def resumed(self, grants: Iterable[Grant], is_unborn: Callable[[Ino], bool] = lambda _: False) -> list[Ino]:
        """The session goes on over a new connection with exactly these leases, and with those on inodes that the server does
        not know yet. The inodes whose leases are gone."""
        kept = {grant.ino: grant for grant in grants}
        lost: list[Ino] = []
        for lease in self._leases.values():
            grant = kept.get(lease.ino)
            lease.refused = 0  # answers of the old connection cannot arrive any more
            if grant is None and is_unborn(lease.ino):
                lease.serial = 0
            elif grant is None:
                if lease.mode is not LeaseMode.NONE:
                    lost.append(lease.ino)
                    lease.generation += 1
                lease.mode = lease.usable = LeaseMode.NONE
                lease.since = lease.serial = 0
        for ino, grant in kept.items():
            lease = self.get(ino)
            lease.mode = lease.usable = grant.mode
            lease.serial = lease.since = grant.serial
            lease.open_elsewhere = True  # after its restart the server does not know yet who else comes back
        return lost

    def clear(self) -> None:
        """The session is gone."""
        for lease in self._leases.values():
            lease.generation += 1
            lease.mode = lease.usable = LeaseMode.NONE
            lease.since = lease.serial = lease.refused = 0

    def forget(self, ino: Ino) -> None:
        """Take a lease out of the table that nobody needs."""
        lease = self._leases.get(ino)
        if lease is not None and lease.mode is LeaseMode.NONE and not lease.users:
            del self._leases[ino]

    # --- readers at work --------------------------------------------------------------------------------------------

    @contextmanager
    def use(self, ino: Ino) -> Generator[Lease]:
        """A reader at work: a recall waits for it (a little) before the lease goes."""
        lease = self.get(ino)
        lease.users += 1
        try:
            yield lease
        finally:
            lease.users -= 1
            if lease.users == 0 and lease.idle is not None:
                lease.idle.set()
                lease.idle = None

    async def wait_idle(self, ino: Ino, patience_s: float) -> None:
        """Until no reader is at work on the inode, or patience ends (then the reader finds out and starts over)."""
        lease = self.get(ino)
        with trio.move_on_after(patience_s):
            while lease.users:
                if lease.idle is None:
                    lease.idle = trio.Event()
                await lease.idle.wait()
