"""Reading a directory ahead: when, where, and when no more."""

from fsd.client.foresight import AGAIN, FIRST, NEXT, USEFUL, Foresight
from fsd.core.ids import Ino
from fsd.namespace.keys import FIRST_COOKIE

HERE = Ino(7)


def misses_until_page(foresight: Foresight, cookie: int) -> tuple[int, int]:
    for count in range(1, 100):
        start = foresight.missed(HERE, cookie)
        if start is not None:
            return count, start
    raise AssertionError("no page in 100 misses")


def test_a_few_misses_begin_where_the_last_of_them_belongs() -> None:
    assert misses_until_page(Foresight(), 500) == (FIRST, 500)


def test_a_page_of_use_is_followed_by_the_next_where_it_ended() -> None:
    foresight = Foresight()
    misses_until_page(foresight, 500)
    foresight.read(HERE, 800, end=False)
    for _ in range(USEFUL):
        foresight.hit(HERE)
    assert misses_until_page(foresight, 10_000) == (NEXT, 801)


def test_pages_of_no_use_become_rare() -> None:
    foresight = Foresight()
    counts: list[int] = []
    for last in range(5):
        counts.append(misses_until_page(foresight, 500)[0])
        foresight.read(HERE, 600 + last, end=False)
    assert counts == sorted(set(counts)), "each takes more misses than the one before"


def test_it_goes_around_once_and_begins_anew_when_all_was_forgotten() -> None:
    foresight = Foresight()
    misses_until_page(foresight, 500)
    foresight.read(HERE, 900, end=True)
    assert misses_until_page(foresight, 1)[1] == FIRST_COOKIE
    foresight.read(HERE, 700, end=False)
    assert [foresight.missed(HERE, 2) for _ in range(AGAIN - 1)] == [None] * (AGAIN - 1)
    assert foresight.missed(HERE, 444) == 444


def test_one_page_at_a_time_and_a_failed_one_is_asked_for_again() -> None:
    foresight = Foresight()
    misses_until_page(foresight, 500)
    assert [foresight.missed(HERE, 1) for _ in range(50)] == [None] * 50
    foresight.read(HERE, None, end=False)
    assert foresight.missed(HERE, 1) == 500
