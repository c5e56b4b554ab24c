"""What a reader makes the window do."""

from hypothesis import given
from hypothesis import strategies as st

from fsd.client.readahead import FIRST_WINDOW, ReadAhead
from fsd.core.units import KIB, MIB

FILE = 100 * MIB


def test_the_window_grows_with_a_sequential_reader_up_to_the_limit() -> None:
    ahead = ReadAhead(4 * MIB)
    offset, windows = 0, []
    while offset < 20 * MIB:
        ahead.observe(offset, 128 * KIB, FILE)
        windows.append(ahead.window_bytes)
        offset += 128 * KIB
    assert windows[0] == FIRST_WINDOW
    assert max(windows) == windows[-1] == 4 * MIB


def test_nothing_is_asked_for_twice_and_no_hole_is_left() -> None:
    ahead = ReadAhead(1 * MIB)
    offset, asked_to = 0, None
    while offset < 10 * MIB:
        wanted = ahead.observe(offset, 64 * KIB, FILE)
        offset += 64 * KIB
        if wanted is not None:
            assert wanted[0] == (asked_to if asked_to is not None else offset)
            assert wanted[1] > wanted[0]
            asked_to = wanted[1]
    assert asked_to is not None
    assert asked_to >= offset


def test_a_random_reader_gets_nothing_ahead() -> None:
    ahead = ReadAhead(4 * MIB)
    for offset in (50 * MIB, 3 * MIB, 70 * MIB, 1 * MIB, 20 * MIB):
        assert ahead.observe(offset, 4 * KIB, FILE) is None
    assert ahead.window_bytes == 0


def test_a_wrong_guess_halves_the_window() -> None:
    ahead = ReadAhead(4 * MIB)
    for i in range(40):
        ahead.observe(i * 128 * KIB, 128 * KIB, FILE)
    full = ahead.window_bytes
    ahead.observe(90 * MIB, 128 * KIB, FILE)
    assert ahead.window_bytes == full // 2


@given(st.lists(st.tuples(st.integers(0, 10 * MIB), st.integers(1, MIB)), max_size=50))
def test_never_beyond_the_file_nor_the_limit(reads: list[tuple[int, int]]) -> None:
    ahead = ReadAhead(1 * MIB)
    for offset, length in reads:
        wanted = ahead.observe(offset, length, 8 * MIB)
        if wanted is not None:
            start, end = wanted
            assert start < end <= 8 * MIB
            assert end <= offset + length + 1 * MIB
