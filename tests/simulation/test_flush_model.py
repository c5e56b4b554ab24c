"""Every interleaving of small flushes; and each rule of theirs taken away is missed at once."""

import pytest

from tests.simulation.flush_model import Flush, explore

BOTH = Flush(overwrites=(0, 1))
ONE = Flush(overwrites=(0,))
APPEND = Flush(appends=(1,), resizes=True)
FAR_APPEND = Flush(appends=(0, 1), resizes=True)
IN_PLACE_AND_APPEND = Flush(overwrites=(0,), appends=(0,), resizes=True)
HERE_AND_THERE = Flush(overwrites=(0,), appends=(1,), resizes=True)
GIVEN_UP = Flush(overwrites=(0, 1), aborted=True)

CASES = {
    "one chunk in place": (ONE, ONE),
    "an append": (APPEND, APPEND),
    "an append over two chunks": (FAR_APPEND,),
    "two chunks in place": (BOTH,),
    "two chunks, then one": (BOTH, ONE),
    "one chunk, then two": (ONE, BOTH),
    "in place and an append": (IN_PLACE_AND_APPEND,),
    "in place here, an append there, then one": (HERE_AND_THERE, ONE),
    "twice two chunks": (BOTH, BOTH),
    "given up, then one chunk": (GIVEN_UP, ONE),
    "given up, then two chunks": (GIVEN_UP, BOTH),
    "an append, then two chunks": (APPEND, BOTH),
}


@pytest.mark.parametrize("name", CASES)
def test_a_flush_is_all_or_nothing_in_every_interleaving(name):
    result = explore(*CASES[name])
    assert result.broken is None, result
    assert result.states > 20


def test_only_flushes_of_several_visible_parts_are_prepared():
    assert [flush.prepared(()) for flush in (ONE, APPEND, FAR_APPEND)] == [(), (), ()]
    assert BOTH.prepared(()) == (0, 1)
    assert IN_PLACE_AND_APPEND.prepared(()) == HERE_AND_THERE.prepared(()) == (0,)


@pytest.mark.parametrize("flush", [BOTH, IN_PLACE_AND_APPEND, HERE_AND_THERE])
def test_exactly_these_are_torn_without_two_phases(flush):
    assert explore(flush, bugs=["never two phases"]).broken


@pytest.mark.parametrize("flush", [ONE, APPEND, FAR_APPEND])
def test_the_others_need_none(flush):
    assert explore(flush, bugs=["never two phases"]).broken is None


@pytest.mark.parametrize(
    ("bug", "flushes"),
    [
        ("apply without a record", (BOTH,)),
        ("drop the committed", (BOTH,)),
        ("commit before prepared", (BOTH,)),
        ("commit before prepared", (APPEND,)),
        ("commit of the fenced", (BOTH,)),
        ("answer before it is durable", (BOTH,)),
        ("read around what is pending", (BOTH,)),
        ("drop at the next write", (BOTH, Flush(appends=(0,), resizes=True))),
        ("a later write means yes", (GIVEN_UP, Flush(appends=(0,), resizes=True))),
        ("no barrier", (ONE,)),
        ("serve before the map", (ONE,)),
    ],
)
def test_each_rule_is_needed(bug, flushes):
    assert explore(*flushes, bugs=[bug]).broken, bug
