"""The small pure parts: what operations touch, how much room there is; and guards."""

import pytest
import trio

from fsd.cluster.map import ClusterMap, Node, NodeState
from fsd.core.ids import Ino, LayerId, MapEpoch, NodeId, PoolId, SessionId
from fsd.namespace.memory import MemoryView
from fsd.namespace.operations import (
    CommitSize,
    Create,
    Link,
    Mkdir,
    RemoveXattr,
    Rename,
    SetAttributes,
    Symlink,
    Truncate,
    Unlink,
    WriteInline,
)
from fsd.namespace.records import Dentry, Volume
from fsd.namespace.touched import grows, is_of_the_holder, new_ids, touched
from fsd.namespace.view import PutDentry
from fsd.protocol.cluster import NodeLoad
from metadata.guards import Guards
from metadata.leases import InodeKey
from metadata.space import is_full, space_of

BASE = (LayerId(1), 0, 0, 0)
VOLUME = Volume("v", LayerId(1), PoolId(1), 2, 1)


def view() -> MemoryView:
    made = MemoryView(VOLUME)
    made.commit([PutDentry(Ino(1), b"a", Dentry(Ino(5), 0o100000)), PutDentry(Ino(2), b"b", Dentry(Ino(6), 0o100000))])
    return made


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (Create(*BASE, Ino(1), b"new", Ino(9), 0o644), (1,)),
        (Mkdir(*BASE, Ino(1), b"new", Ino(9), 0o755), (1,)),
        (Link(*BASE, Ino(5), Ino(2), b"c"), (5, 2)),
        (Unlink(*BASE, Ino(1), b"a"), (1, 5)),
        (Unlink(*BASE, Ino(1), b"missing"), (1,)),
        (Rename(*BASE, Ino(1), b"a", Ino(2), b"b"), (1, 2, 5, 6)),
        (Rename(*BASE, Ino(1), b"a", Ino(1), b"c"), (1, 5)),
        (SetAttributes(*BASE, Ino(5), mode=0), (5,)),
        (RemoveXattr(*BASE, Ino(5), b"user.a"), (5,)),
    ],
)
def test_an_operation_touches_all_inodes_that_it_may_change(operation, expected):
    assert touched(view(), operation) == expected


def test_only_what_an_exclusive_holder_writes_back_passes_by_the_guards():
    assert is_of_the_holder(WriteInline(*BASE, Ino(5), b""))
    assert is_of_the_holder(CommitSize(*BASE, Ino(5), 1, 2))
    assert not is_of_the_holder(Unlink(*BASE, Ino(1), b"a"))


def test_new_ids_are_those_that_must_come_from_the_sessions_ranges():
    assert new_ids(Symlink(*BASE, Ino(1), b"s", Ino(9), b"target")) == (9,)
    assert new_ids(Truncate(*BASE, Ino(5), 100, 77)) == (77,)
    assert new_ids(Truncate(*BASE, Ino(5), 100)) == ()


def test_what_a_client_has_already_taken_is_not_growth():
    assert grows(Create(*BASE, Ino(1), b"new", Ino(9), 0o644))
    assert not grows(WriteInline(*BASE, Ino(5), b"taken"))
    assert not grows(Unlink(*BASE, Ino(1), b"a"))


def cluster(*states: NodeState) -> ClusterMap:
    nodes = tuple(Node(NodeId(n), 1, f"h{n}:1", "z", 100, state) for n, state in enumerate(states, 1))
    return ClusterMap(MapEpoch(1), "fs", 1, 1, nodes, (), (), (), SessionId(1))


def test_a_cluster_is_full_when_every_node_that_is_up_says_so():
    full, roomy = NodeLoad(100, 0), NodeLoad(100, 50)
    two = cluster(NodeState.UP, NodeState.UP)
    assert not is_full(two, {})
    assert is_full(two, {NodeId(1): full, NodeId(2): full})
    assert not is_full(two, {NodeId(1): full, NodeId(2): roomy})
    assert is_full(cluster(NodeState.UP, NodeState.DOWN), {NodeId(1): full, NodeId(2): roomy})


def test_room_counts_all_copies_and_ends_at_the_quota():
    two = cluster(NodeState.UP, NodeState.UP)
    loads = {NodeId(1): NodeLoad(100, 60), NodeId(2): NodeLoad(100, 40)}
    space = space_of(VOLUME, two, loads)
    assert (space.total_bytes, space.free_bytes) == (100, 50)
    limited = Volume("v", LayerId(1), PoolId(1), 2, 1, quota_bytes=30, quota_inodes=10, used_bytes=25, used_inodes=4)
    space = space_of(limited, two, loads)
    assert (space.total_bytes, space.free_bytes, space.free_inodes) == (30, 5, 6)


async def test_guards_let_one_in_at_a_time_in_order_and_leave_nothing_behind(autojump_clock):
    guards = Guards()
    one, two = InodeKey(LayerId(1), Ino(1)), InodeKey(LayerId(1), Ino(2))
    order: list[str] = []

    async def work(name, keys):
        async with guards.hold(keys):
            order.append(f"{name} in")
            await trio.sleep(1)
            order.append(f"{name} out")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, "a", [one, two])
        await trio.sleep(0.1)
        nursery.start_soon(work, "b", [two, one])
        await trio.sleep(0.1)
        nursery.start_soon(work, "c", [one])
        await trio.sleep(0.1)
        assert guards.is_held(one)
    assert order == ["a in", "a out", "b in", "b out", "c in", "c out"]
    assert not guards.is_held(one)
    assert not guards.is_held(two)


async def test_a_request_that_gives_up_waiting_leaves_the_guard_alone(autojump_clock):
    guards = Guards()
    key = InodeKey(LayerId(1), Ino(1))

    async def give_up():
        with trio.move_on_after(1):
            async with guards.hold([key]):
                raise AssertionError("let in")

    async with guards.hold([key]):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
        assert guards.is_held(key)
    assert not guards.is_held(key)
