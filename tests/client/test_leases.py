"""The client's side of the lease protocol: serials that cross, recalls, resuming."""

import trio
import trio.testing

from fsd.client.leases import LeaseTable
from fsd.core.ids import Ino
from fsd.protocol.metadata import Grant, LeaseMode, RecallItem

NONE, SHARED, EXCLUSIVE = LeaseMode.NONE, LeaseMode.SHARED, LeaseMode.EXCLUSIVE
INO = Ino(7)


def table(valid: bool = True) -> LeaseTable:
    return LeaseTable(lambda: valid)


def test_a_grant_makes_a_lease_usable_while_the_session_is_valid() -> None:
    leases = table()
    leases.granted(Grant(INO, SHARED, 1))
    assert leases.usable(INO, SHARED)
    assert not leases.usable(INO, EXCLUSIVE)
    late = table(valid=False)
    late.granted(Grant(INO, SHARED, 1))
    assert not late.usable(INO, SHARED)


def test_a_recall_ends_the_use_at_once_and_the_lease_when_it_is_lowered() -> None:
    leases = table()
    leases.granted(Grant(INO, EXCLUSIVE, 1))
    serial = leases.recall(RecallItem(INO, 1, NONE), 0)
    assert not leases.usable(INO, SHARED)
    assert leases.get(INO).mode is EXCLUSIVE
    assert leases.lower(INO, serial, NONE)
    assert leases.get(INO).mode is NONE


def test_a_grant_that_crossed_its_recall_is_refused() -> None:
    leases = table()
    serial = leases.recall(RecallItem(INO, 5, NONE), 0)
    leases.lower(INO, serial, NONE)
    leases.granted(Grant(INO, SHARED, 5))
    assert not leases.usable(INO, SHARED)
    leases.granted(Grant(INO, SHARED, 6))
    assert leases.usable(INO, SHARED)


def test_a_newer_grant_during_a_recall_stays() -> None:
    leases = table()
    leases.granted(Grant(INO, SHARED, 1))
    serial = leases.recall(RecallItem(INO, 1, NONE), 0)
    leases.granted(Grant(INO, EXCLUSIVE, 2))
    assert not leases.lower(INO, serial, NONE)
    assert leases.usable(INO, EXCLUSIVE)


def test_keeping_shared_does_not_break_the_hold() -> None:
    leases = table()
    leases.granted(Grant(INO, EXCLUSIVE, 3))
    serial = leases.recall(RecallItem(INO, 3, SHARED), 0)
    leases.lower(INO, serial, SHARED)
    assert leases.usable(INO, SHARED)
    assert leases.since(INO) == 3


def test_answers_that_overtook_each_other_do_not_weaken() -> None:
    leases = table()
    leases.granted(Grant(INO, EXCLUSIVE, 6))
    leases.granted(Grant(INO, SHARED, 5))
    assert leases.usable(INO, EXCLUSIVE)
    assert leases.since(INO) == 5


def test_resuming_keeps_what_the_server_says_and_tells_what_is_lost() -> None:
    leases = table()
    for ino in (1, 2, 3):
        leases.granted(Grant(Ino(ino), SHARED, ino))
    lost = leases.resumed([Grant(Ino(2), SHARED, 9)])
    assert lost == [1, 3]
    assert leases.usable(Ino(2), SHARED)
    assert leases.since(Ino(2)) == 9
    assert not leases.usable(Ino(1), SHARED)


async def test_a_recall_waits_for_readers_but_not_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    leases = table()
    leases.granted(Grant(INO, SHARED, 1))
    with leases.use(INO):
        start = trio.current_time()
        await leases.wait_idle(INO, 1.0)
        assert trio.current_time() - start == 1.0
    async with trio.open_nursery() as nursery:
        with leases.use(INO):
            nursery.start_soon(leases.wait_idle, INO, 1000.0)
            await trio.sleep(0.5)
    assert trio.current_time() - start < 10
