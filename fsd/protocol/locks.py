"""Advisory locks between clients and the metadata server: fcntl's ranges and flock.

    decided here   the session has the inode's lease exclusively and was told `delegated`: it decides alone, and tells all
                   locks (HandOverLocks) before the lease goes, or when somebody has to wait
    asked for      SetLock ─> GRANTED | CONFLICT | DEADLOCK | FULL
                              WAITING ─> LockGranted (server to client) | CancelLock

Nobody waits but at the server, which so sees every edge of a deadlock. A client asks about one inode at a time. A broken
connection leaves requests with an unknown result; ResumeSession says exactly what the session holds, which ends what was
delegated and all waiting, and what was not answered is asked again: a lock is set, not added, so that is no harm.
"""

from dataclasses import dataclass

from fsd.core.ids import Ino, LayerId, SessionId
from fsd.namespace.locks import LockSpace, Verdict
from fsd.protocol.metadata import Grant, HeldLock, LeaseMode
from fsd.wire.codec import wire


@wire(251)
@dataclass(frozen=True, slots=True)
class SetLock:
    """Take a lock, or change the kind of one's own. `ticket`, unique in the session, names a waiter; without `wait` a conflict
    is the answer. `delegate`: the session would like to decide from then on. Answer: LockReply. Errors: StaleHandle."""

    session: SessionId
    lock: HeldLock
    wait: bool
    ticket: int
    delegate: bool


@wire(252)
@dataclass(frozen=True, slots=True)
class LockReply:
    """`delegated`: from now on the session decides about the inode's locks, as long as it has the lease that is in `grants`
    (if that crossed a recall, it never began)."""

    ticket: int
    verdict: Verdict
    delegated: bool
    grants: tuple[Grant, ...]


@wire(253)
@dataclass(frozen=True, slots=True)
class Unlock:
    """Give up [start, end). Answer: Done."""

    session: SessionId
    ino: Ino
    space: LockSpace
    owner: int
    start: int
    end: int


@wire(254)
@dataclass(frozen=True, slots=True)
class CancelLock:
    """The waiter has gone. If it was granted its lock meanwhile, its owner has `before` again (within the lock's bytes).
    Answer: Done."""

    session: SessionId
    ticket: int
    lock: HeldLock
    before: tuple[HeldLock, ...]


@wire(255)
@dataclass(frozen=True, slots=True)
class TestLock:
    """Who is in the way of this lock? Answer: LockFound."""

    session: SessionId
    lock: HeldLock


@wire(256)
@dataclass(frozen=True, slots=True)
class LockFound:
    lock: HeldLock | None


@wire(257)
@dataclass(frozen=True, slots=True)
class LockGranted:
    """Server to client: a waiter has its lock. Answer: Done."""

    session: SessionId
    ticket: int


@wire(258)
@dataclass(frozen=True, slots=True)
class HandOverLocks:
    """The end of a delegation: all that the session holds of the inode. Answer: Done."""

    session: SessionId
    ino: Ino
    locks: tuple[HeldLock, ...]


# --- for administration -----------------------------------------------------------------------------------------------


@wire(259)
@dataclass(frozen=True, slots=True)
class TellLocks:
    """Server to client: what do you hold of this inode? Answer: LocksTold."""

    session: SessionId
    ino: Ino


@wire(260)
@dataclass(frozen=True, slots=True)
class LocksTold:
    """`delegated`: these count, not what the server knows."""

    delegated: bool
    locks: tuple[HeldLock, ...]


@wire(261)
@dataclass(frozen=True, slots=True)
class InspectLocks:
    """Without a session. Answer: LocksReply."""

    layer: LayerId
    ino: Ino


@wire(262)
@dataclass(frozen=True, slots=True)
class LockRow:
    """`age_s`: since when it is held or waited for, negative if unknown (decided at the client)."""

    session: SessionId
    client: str
    lock: HeldLock
    waiting: bool
    age_s: float


@wire(263)
@dataclass(frozen=True, slots=True)
class LocksReply:
    """Holders by offset, then waiters in their order. `delegate`: the session that decides, 0 if it is the server."""

    rows: tuple[LockRow, ...]
    delegate: SessionId


@wire(264)
@dataclass(frozen=True, slots=True)
class InspectLeases:
    """Without a session. Answer: LeasesReply."""

    layer: LayerId
    ino: Ino


@wire(265)
@dataclass(frozen=True, slots=True)
class LeaseRow:
    """What a session has on the inode; `open`: it has said that it has handles on it."""

    session: SessionId
    client: str
    address: str
    mode: LeaseMode
    age_s: float
    open: bool


@wire(266)
@dataclass(frozen=True, slots=True)
class LeasesReply:
    rows: tuple[LeaseRow, ...]


@wire(267)
@dataclass(frozen=True, slots=True)
class EvictSession:
    """By an administrator: fence the session and give what it holds to others. Answer: Done, when all that is durable.
    Errors: SessionUnknown."""

    session: SessionId
