"""The planner: shares, balance, how much moves, and that no move makes anything worse."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsd.cluster.map import Node, NodeState
from fsd.core.ids import NodeId, PgId
from metadata.balance import Balance, crowding, may_receive, shares, water_fill
from metadata.membership import first_rows

GROUPS = 256


def node(number: int, weight: int = 1000, zone: str | None = None, **changes) -> Node:
    where = f"zone{number}" if zone is None else zone
    return Node(NodeId(number), 1, f"host{number}:1", where, weight, NodeState.UP, **changes)


def placed(nodes: list[Node], replicas: int = 2, groups: int = GROUPS) -> dict[PgId, list[NodeId]]:
    rows = first_rows([PgId(1 << 16 | index) for index in range(groups)], nodes, replicas)
    return {pg: [member.node for member in row.in_sync] for pg, row in rows.items()}


def balance(nodes: list[Node], members: dict[PgId, list[NodeId]], replicas: int = 2) -> Balance:
    receivers = {n.node for n in nodes if may_receive(n)}
    return Balance({n.node: n for n in nodes}, receivers, replicas, {pg: list(m) for pg, m in members.items()})


def unequal(count: int) -> list[Node]:
    """Nodes of weights from 1 to 4, five zones at most."""
    return [node(n, 1000 * (1 + n % 4), zone=f"zone{n % min(count, 5)}") for n in range(1, count + 1)]


def test_what_is_capped_goes_to_the_others():
    assert water_fill(10, {"a": 8, "b": 1, "c": 1}, {"a": 5, "b": 9, "c": 9}) == {"a": 5, "b": 2.5, "c": 2.5}
    assert water_fill(10, {"a": 1, "b": 0}, {"a": 4, "b": 9}) == {"a": 4, "b": 0}


@pytest.mark.parametrize("count", [3, 5, 10, 100])
def test_a_new_file_system_is_balanced_to_one_group(count):
    nodes = unequal(count)
    members = placed(nodes)
    share = shares(nodes, GROUPS, 2)
    held = {n.node: sum(n.node in m for m in members.values()) for n in nodes}
    assert sum(held.values()) == 2 * GROUPS
    assert max(abs(held[n] - share[n]) for n in held) <= 2.0
    assert all(len(set(m)) == 2 for m in members.values())
    assert all(crowding([nodes[n - 1] for n in m])[0] == 0 for m in members.values())


@pytest.mark.parametrize("count", [3, 5, 10, 100])
def test_a_new_node_takes_its_share_and_nothing_moves_between_the_others(count):
    nodes = unequal(count)
    members = placed(nodes)
    grown = [*nodes, node(count + 1, 2000, zone=f"zone{(count + 1) % min(count, 5)}")]
    planner = balance(grown, members)
    moves = planner.plan(10_000)
    share = shares(grown, GROUPS, 2)
    to_new = sum(move.target == count + 1 for move in moves)
    print(f"{count} nodes: {len(moves)} moves, {to_new} to the new one, its share {share[NodeId(count + 1)]:.1f}")
    assert to_new <= share[NodeId(count + 1)] + 1.5
    assert to_new >= share[NodeId(count + 1)] - 1.5
    assert len(moves) - to_new <= max(1, len(moves) * 0.05)


def test_a_drained_node_is_emptied_and_gets_nothing():
    nodes = unequal(5)
    members = placed(nodes)
    drained = [node(n.node, n.weight, n.zone, draining=n.node == 2) for n in nodes]
    planner = balance(drained, members)
    moves = planner.plan(10_000)
    assert not any(NodeId(2) in m for m in planner.members.values())
    held = sum(NodeId(2) in m for m in members.values())
    assert held <= len(moves) <= held * 1.1 + 2


def test_two_nodes_for_two_copies_cannot_be_drained():
    nodes = [node(1), node(2, draining=True)]
    planner = balance(nodes, {PgId(1 << 16): [NodeId(1), NodeId(2)]})
    assert planner.plan(100) == []


def test_a_full_node_gets_nothing_and_gives_a_little():
    nodes = [node(1), node(2), node(3, full=True)]
    before = placed([node(1), node(2), node(3)])
    moves = balance(nodes, before).plan(10_000)
    assert moves
    assert all(move.source == 3 for move in moves)


def test_a_new_zone_takes_one_copy_of_each_group():
    old = [node(1, zone="a"), node(2, zone="a")]
    members = placed(old)
    grown = [*old, node(3, zone="b")]
    planner = balance(grown, members)
    planner.plan(10_000)
    assert all(NodeId(3) in m for m in planner.members.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_every_plan_converges_improves_and_keeps_every_copy_apart(seed):
    chance = random.Random(seed)
    nodes = [
        node(
            n,
            chance.choice((0, 500, 1000, 4000)),
            zone=chance.choice("abc"),
            draining=chance.random() < 0.1,
            full=chance.random() < 0.1,
        )
        for n in range(1, chance.randint(3, 9))
    ]
    replicas = chance.choice((1, 2, 3))
    everybody = [n.node for n in nodes]
    members = {PgId(1 << 16 | index): chance.sample(everybody, min(replicas, len(everybody))) for index in range(32)}
    planner = balance(nodes, members, replicas)
    moves = planner.plan(100_000)
    assert len(moves) < 1000
    for move in moves:
        assert may_receive(nodes[move.target - 1])
    for pg, held in planner.members.items():
        assert len(set(held)) == len(held) == len(members[pg])
    again = balance(nodes, planner.members, replicas)
    assert len(again.plan(100_000)) <= len(moves)
    third = balance(nodes, again.members, replicas)
    third.plan(100_000)
    assert len(balance(nodes, third.members, replicas).plan(100_000)) == 0
