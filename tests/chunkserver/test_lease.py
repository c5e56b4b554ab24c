"""R2: a lease counts from the heartbeat's sending. In the simulator this bug needs a fault of a tenth of a second."""

from unittest.mock import patch

import pytest
import trio

from chunkserver import report
from fsd.core.errors import NotServing
from fsd.core.ids import ChunkId, DataId
from fsd.protocol.chunk import ReadChunk
from fsd.protocol.cluster import Heartbeat
from tests.chunkserver.cluster import cluster

CHUNK = ChunkId(DataId(40), 0)
SLOW_S = 2.5


async def scenario() -> None:
    """Answers to heartbeats take SLOW_S; after one such answer there are no more."""
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"x" * 1000)
        node = c.authority.row(c.pg(CHUNK)).primary.node
        answer = c.authority.handle
        sent: list[float] = []

        async def slow(peer, message, payload):
            if isinstance(message, Heartbeat) and message.node == node:
                if sent:
                    await trio.sleep_forever()
                sent.append(trio.current_time())
                await trio.sleep(SLOW_S)
            return await answer(peer, message, payload)

        with patch.object(c.authority, "handle", slow):
            while not sent:
                await trio.sleep(0.1)
            channel = c.pool.to(c.addresses[c.primary(CHUNK)])
            await trio.sleep_until(sent[0] + c.authority.lease_s * report.LEASE_SHARE - 0.1)
            await channel.call(ReadChunk(c.where(CHUNK), c.session, CHUNK, 0, 1000))
            await trio.sleep(0.2)
            with pytest.raises(NotServing):
                await channel.call(ReadChunk(c.where(CHUNK), c.session, CHUNK, 0, 1000))


async def test_a_late_answer_makes_no_longer_lease(autojump_clock):
    await scenario()


async def test_counting_from_the_answers_arrival_is_seen(autojump_clock):
    def lease_end(sent_at, lease_s):
        return max(sent_at, trio.current_time()) + lease_s * report.LEASE_SHARE

    with (
        patch.object(report, "lease_end", lease_end),
        pytest.RaisesGroup(pytest.fail.Exception, flatten_subgroups=True),
    ):
        await scenario()
