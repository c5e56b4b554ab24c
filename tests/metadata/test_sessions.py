"""The table of sessions, pure."""

import pytest

from fsd.core.errors import Overloaded, ProtocolError
from fsd.core.ids import LayerId, RequestNumber, SessionId
from fsd.protocol.metadata import IdRange
from metadata.records import ResultRecord, SessionRecord
from metadata.sessions import DRIFT, MAX_RANGES, MAX_REMEMBERED, Session, SessionTable, with_range

RESULT = ResultRecord(0, "", ())


def session(number: int = 1, heard: float = 0.0, **kwargs) -> Session:
    record = SessionRecord(SessionId(number), b"secret", "client", LayerId(1), (IdRange(100, 10),))
    return Session(record, heard, **kwargs)


def test_a_session_is_overdue_after_its_ttl_and_a_margin_for_drift():
    table = SessionTable(10.0)
    table.add(session())
    assert table.overdue(10.0 * (1 + DRIFT)) == []
    assert len(table.overdue(10.0 * (1 + DRIFT) + 0.01)) == 1


def test_a_server_that_slept_forgives_everybody():
    table = SessionTable(10.0)
    table.add(session())
    table.forgive(100.0)
    assert table.overdue(105.0) == []


def test_results_below_the_floor_are_forgotten_and_their_numbers_are_ghosts():
    one = session()
    for number in range(1, 6):
        one.results[RequestNumber(number)] = RESULT
    one.results[RequestNumber(2)] = ResultRecord(1, "no", ())
    one.advance(RequestNumber(4))
    assert sorted(one.results) == [4, 5]
    assert one.take_forgotten() == [1, 3]  # errors were never stored
    assert one.take_forgotten() == []
    with pytest.raises(ProtocolError):
        one.check_number(RequestNumber(3))
    one.check_number(RequestNumber(4))


def test_unconfirmed_answers_are_bounded():
    one = session()
    for number in range(1, MAX_REMEMBERED + 1):
        one.results[RequestNumber(number)] = RESULT
    with pytest.raises(Overloaded):
        one.check_number(RequestNumber(MAX_REMEMBERED + 1))


def test_a_session_owns_its_ranges_and_the_oldest_is_used_up_at_last():
    one = session()
    assert one.owns(100)
    assert one.owns(109)
    assert not one.owns(110)
    for n in range(MAX_RANGES):
        one.record = with_range(one.record, IdRange(1000 + n * 10, 10))
    assert not one.owns(100)
    assert one.owns(1000)


def test_a_restart_is_settled_when_everybody_is_back_or_gone():
    table = SessionTable(10.0)
    table.add(session(1, resumed=False))
    table.add(session(2, resumed=False))
    assert not table.is_settled()
    one = table.get(SessionId(1))
    assert one is not None
    one.resumed = True
    table.remove(SessionId(2))
    assert table.is_settled()
    assert table.oldest() == 1
