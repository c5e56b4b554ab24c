"""What background work may take."""

import pytest
import trio

from chunkserver.budget import Rate


async def test_a_rate_can_be_set_while_it_is_used(autojump_clock):
    rate = Rate(1000)
    await rate.take(1000)
    rate.set(100_000)
    start = trio.current_time()
    await rate.take(100_000)
    assert trio.current_time() - start == pytest.approx(1.0, abs=0.3)
    rate.set(0)
    start = trio.current_time()
    await rate.take(1 << 40)
    assert trio.current_time() == start
