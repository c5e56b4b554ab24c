"""The difference of two lists, read in pages of any size, is what makes one side equal to the other."""

from hypothesis import given
from hypothesis import strategies as st

from chunkserver import resync
from fsd.core.ids import ChunkId, DataId, Order, PgEpoch
from fsd.protocol.chunk import ChunkList, ChunkSummary

STATE = st.dictionaries(
    st.builds(lambda d, i: ChunkId(DataId(d), i), st.integers(1, 6), st.integers(0, 3)), st.integers(1, 3)
)


def page(state, after, limit):
    chunks = [chunk for chunk in sorted(state) if chunk > after][:limit]
    found = tuple(ChunkSummary(c, Order(PgEpoch(1), state[c]), 10, state[c]) for c in chunks)
    return ChunkList(found, end=len(found) < limit)


@given(STATE, STATE, st.integers(1, 5), st.integers(1, 5))
def test_pushing_and_removing_makes_both_sides_equal(mine, theirs, my_limit, their_limit):
    theirs = dict(theirs)
    after = resync.BEFORE_ALL
    rounds = 0
    while after is not None:
        difference = resync.compare(page(mine, after, my_limit), page(theirs, after, their_limit))
        for chunk in difference.push:
            theirs[chunk] = mine[chunk]
        for chunk in difference.remove:
            del theirs[chunk]
        assert difference.upto is None or difference.upto > after
        after = difference.upto
        rounds += 1
        assert rounds <= 100
    assert theirs == mine


@given(STATE)
def test_equal_sides_need_nothing(state):
    difference = resync.compare(page(state, resync.BEFORE_ALL, 100), page(state, resync.BEFORE_ALL, 100))
    assert difference == resync.Difference((), (), None)
