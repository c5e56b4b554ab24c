"""Placement's promises as properties: balance, little movement, zones."""

import collections

from hypothesis import given, settings
from hypothesis import strategies as st

from fsd.cluster.map import Node, NodeState, pg_of, pool_of
from fsd.cluster.placement import host_of, place
from fsd.core.ids import ChunkId, DataId, NodeId, PgId, PoolId


def node(number: int, weight: int = 100, zone: str = "", host: str = "") -> Node:
    return Node(NodeId(number), 1, f"{host or f'host{number}'}:7000", zone or f"z{number}", weight, NodeState.UP)


def groups(count: int = 4096) -> list[PgId]:
    return [PgId(1 << 16 | number) for number in range(count)]


def test_shares_follow_the_weights_within_a_few_percent():
    nodes = [node(number, weight) for number, weight in enumerate([100, 100, 200, 400], start=1)]
    first = collections.Counter(place(pg, nodes, 1)[0].node for pg in groups(16384))
    for each in nodes:
        assert abs(first[each.node] / 16384 - each.weight / 800) < 0.02


def test_a_new_node_takes_its_share_and_nothing_moves_between_old_ones():
    old = [node(number) for number in range(1, 10)]
    new = node(10)
    moved = 0
    for pg in groups():
        before = {each.node for each in place(pg, old, 2)}
        after = {each.node for each in place(pg, [*old, new], 2)}
        assert after - before <= {new.node}
        moved += len(after - before)
    assert abs(moved / (2 * 4096) - 1 / 10) < 0.02


def test_replicas_are_in_different_zones_while_there_are_zones():
    nodes = [node(number, zone="abc"[number % 3]) for number in range(9)]
    for pg in groups(500):
        assert len({each.zone for each in place(pg, nodes, 3)}) == 3


def test_replicas_are_on_different_hosts_within_a_zone():
    nodes = [node(number, zone="z", host=f"h{number // 3}") for number in range(9)]
    for pg in groups(500):
        assert len({host_of(each) for each in place(pg, nodes, 3)}) == 3


@settings(max_examples=50)
@given(st.lists(st.integers(0, 1000), max_size=8), st.integers(1, 4))
def test_as_many_distinct_nodes_as_asked_for_or_as_there_are(weights, replicas):
    nodes = [node(number, weight) for number, weight in enumerate(weights)]
    usable = sum(weight > 0 for weight in weights)
    chosen = place(PgId(5), nodes, replicas)
    assert len({each.node for each in chosen}) == len(chosen) == min(replicas, usable)
    assert chosen == place(PgId(5), reversed(nodes), replicas)


def test_chunks_spread_evenly_over_the_groups_of_their_pool():
    counts = collections.Counter(
        pg_of(PoolId(3), ChunkId(DataId(data), index), 256) for data in range(256) for index in range(64)
    )
    assert len(counts) == 256
    assert max(counts.values()) < 2 * 64
    assert {pool_of(pg) for pg in counts} == {3}


def test_the_group_of_a_chunk_never_moves():
    """A change here loses every file of every running cluster."""
    places = [(2, 0), (2, 1), (10**12, 7)]
    assert [pg_of(PoolId(1), ChunkId(DataId(data), index), 256) for data, index in places] == [65590, 65602, 65619]
