"""R14: the authority's own epoch fences its predecessor."""

from unittest.mock import patch

import pytest
import trio

from chunkserver import report
from fsd.core.errors import NotServing
from fsd.core.ids import ChunkId, DataId
from fsd.protocol.chunk import ReadChunk
from tests.chunkserver.cluster import cluster

CHUNK = ChunkId(DataId(40), 0)


async def read_once(c):
    reply = await c.pool.to(c.addresses[c.primary(CHUNK)]).call(ReadChunk(c.where(CHUNK), c.session, CHUNK, 0, 100))
    return bytes(reply.payload)


def come_back(c, epoch):
    """Another metadata server answers at the same address."""
    c.authority.epoch = epoch
    for peer in list(c.authority.peers):
        peer.close()


async def follow_a_predecessor():
    async with cluster("a", "b") as c:
        await c.write(CHUNK, 0, b"x" * 100)
        come_back(c, 5)
        await trio.sleep(20)
        assert await read_once(c) == b"x" * 100
        come_back(c, 4)
        await trio.sleep(20)
        with pytest.raises(NotServing):  # its leases count for nothing
            await read_once(c)
        come_back(c, 5)
        await trio.sleep(5)
        assert await read_once(c) == b"x" * 100


async def test_a_node_takes_nothing_from_a_predecessor(autojump_clock):
    await follow_a_predecessor()


async def test_without_the_check_this_is_seen(autojump_clock):
    def check_authority(followed, epoch):
        return None

    with (
        patch.object(report, "check_authority", check_authority),
        pytest.RaisesGroup(pytest.fail.Exception, flatten_subgroups=True),
    ):
        await follow_a_predecessor()


async def test_a_node_remembers_the_epoch_over_a_restart(autojump_clock):
    async with cluster("a", "b") as c:
        come_back(c, 5)
        await trio.sleep(5)
        before = c.servers["a"].incarnation
        c.kill("a")
        c.authority.epoch = 4
        server = await c.start("a")
        await trio.sleep(10)
        assert server.incarnation == before + 1
        assert all(node.incarnation != server.incarnation for node in c.authority.nodes.values())
        come_back(c, 6)
        await c.settle(members=2)
