"""The block cache stays within its bound, whatever the policy; what each policy drops."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsd.client.cache import BlockCache
from fsd.core.errors import ConfigurationError


def cost_of(count: int, length: int) -> int:
    return count * (length + 256)


@given(
    st.sampled_from(["lru", "lfu"]),
    st.lists(
        st.tuples(st.sampled_from("gpdi"), st.integers(1, 3), st.integers(0, 6), st.integers(0, 500)), max_size=80
    ),
)
def test_the_cache_answers_only_what_was_last_put(policy: str, steps: list[tuple[str, int, int, int]]) -> None:
    cache = BlockCache(2500, policy)
    model: dict[tuple[int, int], bytes] = {}
    for step, (kind, ino, block, length) in enumerate(steps):
        if kind == "p":
            data = bytes([step % 256]) * length
            cache.put(ino, block, data)
            model[ino, block] = data
        elif kind == "d":
            cache.drop_block(ino, block)
            model.pop((ino, block), None)
        elif kind == "i":
            cache.drop(ino, block)
            model = {key: data for key, data in model.items() if key[0] != ino or key[1] < block}
        data = cache.get(ino, block)
        assert data is None or data == model[ino, block]
        assert cache.size_bytes <= cache.limit_bytes
    cache.clear()
    assert cache.size_bytes == 0


def test_lru_drops_what_was_not_used_for_longest() -> None:
    cache = BlockCache(cost_of(3, 10), "lru")
    for block in range(3):
        cache.put(1, block, bytes(10))
    cache.get(1, 0)
    cache.put(1, 3, bytes(10))
    assert [cache.has(1, block) for block in range(4)] == [True, False, True, True]


def test_lfu_keeps_a_hot_block_while_much_is_read_once() -> None:
    cache = BlockCache(cost_of(3, 10), "lfu")
    cache.put(1, 0, bytes(10))
    for _ in range(5):
        cache.get(1, 0)
    hits = Counter()
    for block in range(1, 50):
        cache.put(2, block, bytes(10))
        hits[cache.has(1, 0)] += 1
    assert hits == {True: 49}


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ConfigurationError, match="fifo"):
        BlockCache(1, "fifo")


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = BlockCache(100, "lru")
    cache.put(1, 0, bytes(101))
    assert cache.get(1, 0) is None
