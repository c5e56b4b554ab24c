"""Who may cache and who may change which inode, as a pure table. Docs of the protocol: fsd.protocol.metadata.

    many SHARED  or  one EXCLUSIVE          for each (layer, ino)

*Openers* of an inode are sessions that have told that they have handles on it (when they gave a lease back, or asked
for an unlink). A session that holds a lease may open without telling; so an orphan may be reaped only when it has neither
openers nor holders.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from fsd.core.ids import Ino, LayerId, SessionId
from fsd.protocol.metadata import Grant, LeaseMode

K = TypeVar("K")
V = TypeVar("V")
W = TypeVar("W")

MAX_TOLD = 50_000  # leases in one answer
MINIMUM_HOLD_S = 0.005  # a fresh lease is not recalled before: two writers do not trade it for every operation


class InodeKey(NamedTuple):
    """An inode of any volume (root inodes have the same number everywhere)."""

    layer: LayerId
    ino: Ino


class Conflict(NamedTuple):
    """`session` must give its lease on `key` back, down to `keep`, before another one can be granted. `born`: which lease it
    is; one that was given back and granted anew is another conflict."""

    session: SessionId
    key: InodeKey
    serial: int
    keep: LeaseMode
    born: int


@dataclass(slots=True)
class Holding:
    mode: LeaseMode
    serial: int
    since: float  # when it was first granted in this mode
    born: int  # the serial of that grant


def compatible(held: LeaseMode, wanted: LeaseMode) -> bool:
    """Whether another session's lease may stand beside the wanted one."""
    if wanted is LeaseMode.EXCLUSIVE:
        return held is LeaseMode.NONE
    return held is not LeaseMode.EXCLUSIVE


def weaker(one: LeaseMode, other: LeaseMode) -> LeaseMode:
    return one if one.value <= other.value else other


def stronger(one: LeaseMode, other: LeaseMode) -> LeaseMode:
    return one if one.value >= other.value else other


def keep_beside(wanted: LeaseMode) -> LeaseMode:
    """What others may keep when one session gets `wanted`."""
    return LeaseMode.NONE if wanted is LeaseMode.EXCLUSIVE else LeaseMode.SHARED


class LeaseTable:
    """All leases and openers. Time comes in as an argument; nothing here waits. Serials begin above `first_serial`: a
    server that restarts must not fall below those that its clients have seen."""

    def __init__(self, first_serial: int = 0) -> None:
        self._first_serial = first_serial
        self._holders: dict[InodeKey, dict[SessionId, Holding]] = {}
        self._held: dict[SessionId, dict[InodeKey, None]] = {}
        self._openers: dict[InodeKey, dict[SessionId, None]] = {}
        self._opened: dict[SessionId, dict[InodeKey, None]] = {}
        self._serials: dict[SessionId, int] = {}
        self.dropped: Callable[[InodeKey], None] = lambda _: None  # hears of inodes that are gone for good

    # --- questions ----------------------------------------------------------------------------------------------------

    def mode(self, key: InodeKey, session: SessionId) -> LeaseMode:
        holding = self._holders.get(key, {}).get(session)
        return LeaseMode.NONE if holding is None else holding.mode

    def conflicts(self, key: InodeKey, session: SessionId, wanted: LeaseMode) -> list[Conflict]:
        """What other sessions hold that cannot stand beside `wanted`; a session never conflicts with itself."""
        keep = keep_beside(wanted)
        return [
            Conflict(holder, key, self._serials[holder], keep, holding.born)
            for holder, holding in self._holders.get(key, {}).items()
            if holder != session and not compatible(holding.mode, wanted)
        ]

    def current(self, conflict: Conflict) -> Conflict | None:
        """The same conflict as it is now: None once the holder has given up enough."""
        holding = self._holders.get(conflict.key, {}).get(conflict.session)
        if holding is None or holding.mode.value <= conflict.keep.value or holding.born != conflict.born:
            return None
        return conflict._replace(serial=self._serials[conflict.session])

    def hold_left_s(self, conflict: Conflict, now: float) -> float:
        """How long the holder may still keep its fresh lease."""
        holding = self._holders.get(conflict.key, {}).get(conflict.session)
        return 0.0 if holding is None else max(0.0, holding.since + MINIMUM_HOLD_S - now)

    def is_free(self, key: InodeKey, session: SessionId, wanted: LeaseMode) -> bool:
        return not self.conflicts(key, session, wanted)

    def is_in_use(self, key: InodeKey) -> bool:
        """Whether any session has the inode open, or may have."""
        return bool(self._openers.get(key)) or bool(self._holders.get(key))

    def holders(self, key: InodeKey) -> tuple[SessionId, ...]:
        return tuple(self._holders.get(key, {}))

    def openers(self, key: InodeKey) -> tuple[SessionId, ...]:
        return tuple(self._openers.get(key, {}))

    def held(self, session: SessionId) -> tuple[InodeKey, ...]:
        return tuple(self._held.get(session, {}))

    def held_since(self, key: InodeKey, session: SessionId) -> float:
        """When the session got the lease in its present mode; the lease must be there."""
        return self._holders[key][session].since

    def count(self, session: SessionId) -> int:
        return len(self._held.get(session, {}))

    # --- changes ------------------------------------------------------------------------------------------------------

    def grant(self, key: InodeKey, session: SessionId, mode: LeaseMode, now: float) -> Grant:
        """Give `mode`, or leave what is stronger; the caller has made sure that it is free."""
        holders = self._holders.setdefault(key, {})
        holding = holders.get(session)
        serial = self._next_serial(session)
        if holding is None:
            holding = holders[session] = Holding(mode, serial, now, serial)
            self._held.setdefault(session, {})[key] = None
        elif mode.value > holding.mode.value:
            holding.mode, holding.since, holding.born = mode, now, serial
        holding.serial = serial
        return Grant(key.ino, holding.mode, serial, self.is_open_elsewhere(session, key))

    def release(self, session: SessionId, key: InodeKey, *, serial: int, keep: LeaseMode, still_open: bool) -> bool:
        """Take a lease back down to `keep`. Ignored (False) if a newer grant crossed it on the way."""
        holding = self._holders.get(key, {}).get(session)
        if holding is not None and is_crossed(holding, serial):
            return False
        if holding is not None:
            self._lower(session, key, holding, keep)
        self.set_open(session, key, still_open)
        return True

    def set_open(self, session: SessionId, key: InodeKey, is_open: bool) -> None:
        if is_open:
            self._openers.setdefault(key, {})[session] = None
            self._opened.setdefault(session, {})[key] = None
        else:
            _discard(self._openers, key, session)
            _discard(self._opened, session, key)

    def is_open_elsewhere(self, session: SessionId, key: InodeKey) -> bool:
        """Whether another session has handles on the inode."""
        return any(opener != session for opener in self._openers.get(key, ()))

    def has_open(self, session: SessionId, key: InodeKey) -> bool:
        return session in self._openers.get(key, {})

    def surrender(self, session: SessionId, key: InodeKey) -> None:
        """The session said that it has no handles on an inode that it just took the last name from, and nothing unwritten."""
        _discard(self._holders, key, session)
        _discard(self._held, session, key)
        self.set_open(session, key, False)

    def drop_inode(self, key: InodeKey) -> None:
        """The inode is gone for good."""
        for session in self.holders(key):
            _discard(self._held, session, key)
        for session in self.openers(key):
            _discard(self._opened, session, key)
        self._holders.pop(key, None)
        self._openers.pop(key, None)
        self.dropped(key)

    def drop_session(self, session: SessionId) -> list[InodeKey]:
        """Everything of a session is given back. Returns the inodes it had, or may have had, open."""
        had = dict.fromkeys([*self._opened.get(session, {}), *self._held.get(session, {})])
        for key in self.held(session):
            _discard(self._holders, key, session)
        for key in self._opened.get(session, {}):
            _discard(self._openers, key, session)
        self._held.pop(session, None)
        self._opened.pop(session, None)
        self._serials.pop(session, None)
        return list(had)

    def resume(
        self, session: SessionId, claims: list[tuple[InodeKey, LeaseMode, bool]], now: float, *, restarted: bool
    ) -> tuple[list[Grant], list[InodeKey]]:
        """What the session has after coming back: what it claims, as far as it was granted it (a grant whose answer was
        lost is taken back; after a restart of the server the claims are all there is to know). Returns the grants and
        the inodes that it has no longer open."""
        before = {key: self.mode(key, session) for key in self.held(session)}
        was_open = list(self._opened.get(session, {}))
        for key in before:
            _discard(self._holders, key, session)
        for key in was_open:
            _discard(self._openers, key, session)
        self._held.pop(session, None)
        self._opened.pop(session, None)
        grants: list[Grant] = []
        for key, mode, is_open in claims:
            allowed = mode if restarted else weaker(mode, before.get(key, LeaseMode.NONE))
            if allowed is not LeaseMode.NONE and self.is_free(key, session, allowed):
                grants.append(self.grant(key, session, allowed, now))
            if is_open:
                self.set_open(session, key, True)
        return grants, list(dict.fromkeys([*was_open, *before]))

    def adopt(
        self,
        session: SessionId,
        claims: list[tuple[InodeKey, LeaseMode, bool]],
        now: float,
        is_claimable: Callable[[InodeKey, bool], bool],
    ) -> tuple[list[Grant], list[InodeKey]]:
        """As `resume`, for a client whose process is another one and does not know what it had: that stays. What is open are
        the claims alone. At most MAX_TOLD leases are told, exclusive ones first; of the others the client hears when they are
        asked for."""
        was_open = list(self._opened.get(session, {}))
        for key in was_open:
            self.set_open(session, key, False)
        for key, _, is_open in claims:
            if is_open:
                self.set_open(session, key, True)
        let_go = was_open
        kept: list[tuple[int, InodeKey, LeaseMode]] = []
        for key in self.held(session):
            if is_claimable(key, self.has_open(session, key)):
                mode = self.mode(key, session)
                kept.append((-mode.value, key, mode))
            else:
                _discard(self._holders, key, session)
                _discard(self._held, session, key)
                let_go.append(key)
        kept.sort(key=lambda item: item[0])
        return [self.grant(key, session, mode, now) for _, key, mode in kept[:MAX_TOLD]], list(dict.fromkeys(let_go))

    def _lower(self, session: SessionId, key: InodeKey, holding: Holding, keep: LeaseMode) -> None:
        holding.mode = weaker(holding.mode, keep)
        if holding.mode is LeaseMode.NONE:
            _discard(self._holders, key, session)
            _discard(self._held, session, key)

    def _next_serial(self, session: SessionId) -> int:
        self._serials[session] = serial = self._serials.get(session, self._first_serial) + 1
        return serial


def is_crossed(holding: Holding, serial: int) -> bool:
    """Whether a release that names `serial` does not know of the last grant."""
    return serial < holding.serial


def _discard(table: dict[K, dict[V, W]], outer: K, inner: V) -> None:
    row = table.get(outer)
    if row is None:
        return
    row.pop(inner, None)
    if not row:
        del table[outer]
