"""Administration over connections: nodes are drained, weighed, forgotten; plans are told; orphans are collected."""

import dataclasses

import pytest
import trio

from fsd.core.errors import Busy, InvalidArgument, NotFound
from fsd.core.ids import DataId, NodeId
from fsd.namespace.operations import CommitSize
from fsd.protocol import cluster as c
from fsd.protocol import metadata as m
from tests.metadata.cluster import OPTIONS, client, running
from tests.metadata.test_cluster_live import FakeNode, cluster_map, nodes

QUICK = dataclasses.replace(OPTIONS, rebalance_after_s=2.0)


async def promote_all(node: FakeNode) -> None:
    """The fake primary copies nothing and says that it is done."""
    while True:
        await trio.sleep(0.3)
        for row in node.map.rows if node.map else ():
            if row.primary == node.member and row.active:
                for member in row.syncing:
                    await node.ask(c.Promote(row.pg, row.epoch, node.member, member))


async def started(server, count):
    made = await nodes(server, count)
    for node in made:
        server.nursery.start_soon(promote_all, node)
    await client(server, "one")
    await trio.sleep(5)
    return made


async def test_a_new_node_gets_its_share_by_itself_and_the_plan_says_so_before(autojump_clock):
    async with running(QUICK) as server:
        await started(server, 2)
        third = FakeNode(server, 3)
        await third.start()
        server.nursery.start_soon(promote_all, third)
        await trio.sleep(0.6)
        plan = await server.ask(c.GetPlan())
        assert plan.copies == 16
        assert 5 <= plan.moves <= 6
        assert plan.waiting_s > 0
        await trio.sleep(30)
        assert (await server.ask(c.GetPlan())).moves == 0
        held = [sum(node.node in {m.node for m in row.in_sync} for row in (await cluster_map(server)).rows)
                for node in (await cluster_map(server)).nodes]  # fmt: skip
        assert sorted(held) == [5, 5, 6]
        assert (await server.ask(c.GetStatus())).moving == 0


async def test_a_paused_cluster_stays_as_it_is_over_a_restart(autojump_clock):
    async with running(QUICK) as server:
        await started(server, 2)
        await server.ask(c.PauseMoves(True))
        await server.restart()
        await trio.sleep(3)
        third = FakeNode(server, 3)
        await third.start()
        await trio.sleep(15)
        status = await server.ask(c.GetStatus())
        assert status.paused
        assert not any(member.node == 3 for row in (await cluster_map(server)).rows for member in row.members())


async def test_a_drained_node_is_safe_to_remove_when_nothing_names_it(autojump_clock):
    async with running(QUICK) as server:
        await started(server, 3)
        await server.ask(c.SetNode(NodeId(2), draining=True))
        drain = await server.ask(c.GetDrain(NodeId(2)))
        assert not drain.safe
        with pytest.raises(Busy):
            await server.ask(c.RemoveNode(NodeId(2)))
        await trio.sleep(30)
        drain = await server.ask(c.GetDrain(NodeId(2)))
        assert (drain.safe, drain.groups, drain.blocked) == (True, 0, 0)
        await server.ask(c.RemoveNode(NodeId(2)))
        assert [node.node for node in (await cluster_map(server)).nodes] == [1, 3]
        with pytest.raises(NotFound):
            await server.ask(c.GetDrain(NodeId(2)))


async def test_a_drain_with_nowhere_to_go_says_so(autojump_clock):
    async with running(QUICK) as server:
        await started(server, 2)
        await server.ask(c.SetNode(NodeId(1), draining=True))
        await trio.sleep(5)
        drain = await server.ask(c.GetDrain(NodeId(1)))
        assert (drain.safe, drain.groups, drain.blocked) == (False, 8, 8)
        await server.ask(c.SetNode(NodeId(1), draining=False))
        assert not (await cluster_map(server)).nodes[0].draining


async def test_a_node_above_ninety_percent_is_full_and_gives_some_away(autojump_clock):
    async with running(QUICK) as server:
        made = await started(server, 3)
        before = (await cluster_map(server)).nodes[0].full
        made[0].free_bytes = (1 << 30) // 20
        await trio.sleep(2)
        after = (await cluster_map(server)).nodes[0].full
        made[0].free_bytes = (1 << 30) // 7
        await trio.sleep(2)
        still = (await cluster_map(server)).nodes[0].full
        made[0].free_bytes = (1 << 30) // 2
        await trio.sleep(2)
        assert (before, after, still) == (False, True, True)
        assert not (await cluster_map(server)).nodes[0].full


async def test_an_impossible_weight_is_refused(autojump_clock):
    async with running() as server:
        await started(server, 1)
        with pytest.raises(InvalidArgument):
            await server.ask(c.SetNode(NodeId(1), weight=-1))
        with pytest.raises(NotFound):
            await server.ask(c.SetNode(NodeId(9), weight=1))
        assert (await server.ask(c.SetNode(NodeId(1), weight=5))).node.weight == 5


async def test_orphans_are_collected_but_never_what_a_live_session_may_commit(autojump_clock):
    async with running() as server:
        made = await started(server, 2)
        dead = await client(server, "dead", alive=False)
        orphan = dead.new_id()
        alive = await client(server, "alive")
        mine = alive.new_id()
        ino = await alive.create(b"f", lease=m.LeaseMode.EXCLUSIVE)
        chunk_size = OPTIONS.chunk_size
        pool = (await cluster_map(server)).pools[0].pool
        asked = tuple(c.Orphan(DataId(data), pool, 2 * chunk_size) for data in (orphan, mine, 1 << 40))
        assert (await server.ask(c.CollectOrphans(asked))).taken == ()  # both sessions live, the third was never given
        await trio.sleep(OPTIONS.session_ttl_s + 3)
        assert (await server.ask(c.CollectOrphans(asked))).taken == (orphan,)
        await alive.execute(CommitSize(*alive.base(), ino, chunk_size, 5, mine))
        await trio.sleep(3)
        removed = {chunk.data for node in made for chunk in node.removed}
        assert removed == {orphan}
        assert (await server.ask(c.Ping())).version
