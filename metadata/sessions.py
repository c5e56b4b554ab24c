"""The table of sessions, pure: who lives, who is overdue, what was answered.

    open ──(every request renews)──> open ──(silent longer than the ttl, or a recall unanswered)──> evicting ──> gone
    after a restart of the server:   known ──(ResumeSession within the ttl)──> open

A client trusts its session until ttl after the *send time* of the last renewal that was answered; the server counts from
that renewal's arrival and adds a margin for drifting clocks, so the client always gives up first.
"""

from dataclasses import dataclass, field

from fsd.core.errors import Overloaded, ProtocolError
from fsd.core.ids import LayerId, RequestNumber, SessionId
from fsd.protocol.metadata import IdRange
from metadata.records import ResultRecord, SessionRecord

DRIFT = 0.05  # of the ttl: more than clocks of two machines differ in rate
MAX_REMEMBERED = 8192  # answers that a session may leave unconfirmed
MAX_RANGES = 16  # a session uses its ranges one after another; older ones are used up
ID_RANGE = 4096


@dataclass(slots=True)
class Session:
    """One session in memory. `results` are the answers that the client may not have got yet (I11)."""

    record: SessionRecord
    heard: float
    address: str = ""
    since: float = 0.0  # when it was opened, or loaded
    resumed: bool = True
    evicting: bool = False
    floor: RequestNumber = RequestNumber(1)
    results: dict[RequestNumber, ResultRecord] = field(default_factory=dict[RequestNumber, ResultRecord])
    forgotten: list[RequestNumber] = field(
        default_factory=list[RequestNumber]
    )  # still stored, to go with the next batch

    @property
    def session(self) -> SessionId:
        return self.record.session

    @property
    def layer(self) -> LayerId:
        return self.record.layer

    def remembered(self, number: RequestNumber) -> ResultRecord | None:
        """The answer that this number got before."""
        return self.results.get(number)

    def check_number(self, number: RequestNumber) -> None:
        """A number below the floor was answered and is forgotten: its sender is a ghost of an old connection."""
        if number < self.floor:
            raise ProtocolError(f"request {number} of session {self.session} is below its floor {self.floor}")
        if len(self.results) >= MAX_REMEMBERED:
            raise Overloaded(f"session {self.session} has {MAX_REMEMBERED} unconfirmed answers")

    def advance(self, floor: RequestNumber) -> None:
        """Answers below `floor` have arrived: forget them."""
        if floor <= self.floor:
            return
        self.floor = floor
        for number in [number for number in self.results if number < floor]:
            if not self.results.pop(number).error:
                self.forgotten.append(number)

    def take_forgotten(self) -> list[RequestNumber]:
        """Numbers whose stored results can go."""
        forgotten, self.forgotten = self.forgotten, []
        return forgotten

    def owns(self, new_id: int) -> bool:
        """Whether an inode number or data id is from the session's ranges."""
        return any(part.first_id <= new_id < part.first_id + part.id_count for part in self.record.ranges)


class SessionTable:
    """All sessions that are not gone."""

    def __init__(self, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self._sessions: dict[SessionId, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def all(self) -> list[Session]:
        return list(self._sessions.values())

    def get(self, session: SessionId) -> Session | None:
        return self._sessions.get(session)

    def add(self, session: Session) -> None:
        self._sessions[session.session] = session

    def remove(self, session: SessionId) -> None:
        self._sessions.pop(session, None)

    def of_layer(self, layer: LayerId) -> list[Session]:
        return [session for session in self._sessions.values() if session.layer == layer]

    def oldest(self) -> SessionId | None:
        return min(self._sessions, default=None)

    def overdue(self, now: float) -> list[Session]:
        """Sessions that must be evicted now."""
        return [s for s in self._sessions.values() if not s.evicting and is_overdue(s, now, self.ttl_s)]

    def forgive(self, gap_s: float) -> None:
        """The server itself slept for `gap_s`: nobody could be heard meanwhile."""
        for session in self._sessions.values():
            session.heard += gap_s

    def is_settled(self) -> bool:
        """Whether every session known from before a restart has resumed or is gone."""
        return all(session.resumed for session in self._sessions.values())


def is_overdue(session: Session, now: float, ttl_s: float) -> bool:
    return now - session.heard > ttl_s * (1 + DRIFT)


def with_range(record: SessionRecord, added: IdRange) -> SessionRecord:
    """The record of a session that got one more range of ids."""
    ranges = (*record.ranges, added)[-MAX_RANGES:]
    return SessionRecord(record.session, record.secret, record.client, record.layer, ranges)
