"""The authority's rules: examples one by one, and random histories in which nothing acknowledged may ever be lost."""

from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsd.cluster.map import NodeState, Pool, Row
from fsd.core.errors import Busy, ForeignFileSystem, InvalidArgument
from fsd.core.ids import Incarnation, MapEpoch, Member, NodeId, PgId, PoolId, SessionId
from metadata.membership import (
    MAX_CLOSED,
    PLACE_AFTER_S,
    REJOIN_AFTER_S,
    Membership,
    is_full,
    leaders_from_base,
    may_place,
    may_shrink,
)
from metadata.records import MapHead, RowRecord

GRACE_S = 8.0
REBUILD_S = 60.0
HEAD = MapHead(MapEpoch(1), (), (), (), SessionId(1), NodeId(1))
PG = PgId(1 << 16)


def machine(now: float = 0.0) -> Membership:
    return Membership(HEAD, (), now=now, grace_s=GRACE_S, rebuild_after_s=REBUILD_S)


class Scene:
    """A machine with some nodes and one pool of one group; `now` moves by hand."""

    def __init__(self, nodes: int = 2, replicas: int = 2) -> None:
        self.now = 100.0
        self.machine = machine(self.now)
        self.incarnations: dict[int, int] = {}
        self.removed: set[int] = set()
        for n in range(1, nodes + 1):
            self.start(n)
        self.beat(*range(1, nodes + 1))
        self.machine.want_pool(self.machine.pool_for(replicas, 1), self.now - PLACE_AFTER_S)
        self.settle()

    def start(self, n: int, *, damaged: bool = False) -> None:
        self.incarnations[n] = self.incarnations.get(n, 0) + 1
        known = NodeId(n) if NodeId(n) in self.machine.nodes else NodeId(0)
        node = self.machine.register(known, self.incarnations[n], f"host{n}:1", f"zone{n}", 1000, damaged, self.now)
        assert node == n

    def member(self, n: int) -> Member:
        return Member(NodeId(n), Incarnation(self.incarnations[n]))

    def beat(self, *nodes: int) -> None:
        for n in nodes:
            assert self.machine.heartbeat(self.member(n), self.now)
            self.machine.revive(self.member(n))

    def settle(self) -> Row:
        self.machine.settle(1, self.now)
        return self.row

    def kill(self, n: int) -> None:
        self.machine.refused(self.member(n), self.now)

    def wait(self, seconds: float, *alive: int) -> Row:
        """Time passes; `alive` beat all along."""
        end = self.now + seconds
        while self.now < end:
            self.now += 1.0
            self.beat(*alive)
            self.machine.tick(self.now)
            self.settle()
        return self.row

    @property
    def row(self) -> Row:
        return self.machine.facts.rows[PG]

    def activate(self) -> Row:
        assert self.row.primary is not None
        self.machine.activate(PG, self.row.epoch, self.row.primary)
        return self.row

    def nodes(self, members: tuple[Member, ...]) -> list[int]:
        return sorted(member.node for member in members)

    def other(self) -> int:
        """The member that is not the primary."""
        assert self.row.primary is not None
        return next(m.node for m in self.row.members() if m.node != self.row.primary.node)


def test_a_first_row_has_the_ideal_members_and_is_not_active():
    scene = Scene(3)
    assert len(scene.row.in_sync) == 2
    assert scene.row.base == scene.row.in_sync
    assert not scene.row.active
    assert scene.activate().active


def test_a_dead_secondary_is_taken_out_once_the_primary_was_heard_afterwards():
    scene = Scene()
    scene.activate()
    lost = scene.other()
    scene.kill(lost)
    scene.settle()
    assert len(scene.row.in_sync) == 2  # R8: the primary may be dead as well
    scene.now += 1
    assert scene.row.primary is not None
    left = scene.row.primary.node
    scene.beat(left)
    row = scene.settle()
    assert scene.nodes(row.in_sync) == [left]
    assert (row.active, len(row.base)) == (False, 2)


def test_a_dead_primary_is_replaced_by_a_member_in_sync():
    scene = Scene()
    scene.activate()
    assert scene.row.primary is not None
    old, new = scene.row.primary.node, scene.other()
    epoch = scene.row.epoch
    scene.kill(old)
    row = scene.wait(1, new)
    assert row.primary == scene.member(new)
    assert row.epoch == epoch + 1


def test_silence_is_death_only_after_the_grace():
    scene = Scene()
    scene.activate()
    lost, left = scene.other(), scene.row.primary.node
    assert len(scene.wait(GRACE_S, left).in_sync) == 2
    assert len(scene.wait(2, left).in_sync) == 1
    assert scene.machine.nodes[NodeId(lost)].state is NodeState.DOWN


def test_a_restarted_authority_waits_the_whole_grace():
    scene = Scene()
    scene.activate()
    facts = scene.machine.facts
    head = MapHead(MapEpoch(5), tuple(facts.nodes.values()), tuple(facts.pools.values()), (), SessionId(1), NodeId(3))
    restarted = Membership(head, [RowRecord(scene.row, ())], now=1000.0, grace_s=GRACE_S, rebuild_after_s=REBUILD_S)
    restarted.tick(1000.0 + GRACE_S)
    assert all(node.state is NodeState.UP for node in restarted.nodes.values())
    restarted.tick(1000.1 + GRACE_S)
    restarted.settle(1, 1000.1 + GRACE_S)
    assert all(node.state is NodeState.DOWN for node in restarted.nodes.values())
    assert restarted.facts.rows[PG] == scene.row  # I5


def test_the_last_member_is_never_dropped():
    scene = Scene(1, replicas=1)
    scene.activate()
    scene.kill(1)
    row = scene.wait(100)
    assert scene.nodes(row.in_sync) == [1]


def test_a_restart_is_a_rejoin():
    scene = Scene()
    scene.activate()
    back, left = scene.other(), scene.row.primary.node
    scene.start(back)
    row = scene.wait(2, left, back)
    assert scene.nodes(row.in_sync) == [left]
    assert row.syncing == (scene.member(back),)
    scene.activate()
    scene.machine.promote(PG, scene.row.epoch, scene.row.primary, scene.member(back))
    assert len(scene.row.in_sync) == 2
    assert not scene.row.active


def test_a_whole_group_that_died_is_led_by_whoever_of_base_is_back():
    scene = Scene()
    scene.activate()
    scene.kill(1)
    scene.kill(2)
    scene.wait(100)
    assert len(scene.row.in_sync) == 2
    scene.start(2)
    row = scene.settle()
    assert row.in_sync == (scene.member(2),)
    scene.start(1)
    row = scene.wait(1, 1, 2)
    assert row.syncing == (scene.member(1),)


def test_who_was_left_behind_may_not_lead():
    scene = Scene()
    scene.activate()
    left, behind = scene.row.primary.node, scene.other()
    scene.kill(behind)
    scene.wait(1, left)
    scene.activate()
    assert scene.nodes(scene.row.base) == [left]
    scene.kill(left)
    scene.start(behind)
    row = scene.wait(100, behind)
    assert scene.nodes(row.in_sync) == [left]
    assert leaders_from_base(row, scene.machine.nodes) == ()


def test_a_row_that_was_never_active_may_be_led_by_any_of_base():
    scene = Scene()
    scene.activate()
    left, behind = scene.row.primary.node, scene.other()
    scene.kill(behind)
    scene.wait(1, left)  # not activated: nothing was acknowledged by `left` alone
    scene.kill(left)
    scene.start(behind)
    assert scene.settle().primary == scene.member(behind)


def test_a_damaged_node_is_no_base_member():
    scene = Scene()
    scene.activate()
    scene.kill(1)
    scene.kill(2)
    scene.start(1, damaged=True)
    assert scene.nodes(scene.wait(10, 1).in_sync) == [1, 2]
    scene.start(2)
    assert scene.settle().primary == scene.member(2)


def test_the_primary_has_a_silent_member_dropped_and_it_comes_back_later():
    scene = Scene()
    scene.activate()
    primary, victim = scene.row.primary, scene.member(scene.other())
    epoch = scene.row.epoch
    scene.machine.drop(PG, epoch, primary, victim, scene.now)
    row = scene.settle()
    assert row.in_sync == (primary,)
    assert row.epoch == epoch + 1
    assert scene.wait(REJOIN_AFTER_S - 2, 1, 2).syncing == ()
    assert scene.wait(3, 1, 2).syncing == (victim,)


def test_only_the_primary_of_the_row_as_it_is_may_drop_activate_or_promote():
    scene = Scene()
    primary, other = scene.row.primary, scene.member(scene.other())
    epoch = scene.row.epoch
    scene.machine.activate(PG, epoch - 1, primary)
    scene.machine.activate(PG, epoch, other)
    assert not scene.row.active
    scene.machine.drop(PG, epoch, other, primary, scene.now)
    scene.machine.drop(PG, epoch, primary, primary, scene.now)
    scene.machine.promote(PG, epoch, primary, other)
    assert scene.settle().epoch == epoch


def test_a_dead_joiner_goes_at_once_even_while_a_dead_member_must_wait():
    scene = Scene(3)
    scene.activate()
    lost, left = scene.other(), scene.row.primary.node
    third = 6 - lost - left
    scene.kill(lost)
    scene.wait(REBUILD_S + 5, left, third)
    scene.activate()
    scene.machine.promote(PG, scene.row.epoch, scene.row.primary, scene.row.syncing[0])
    scene.activate()
    scene.machine.facts.pools[PoolId(1)] = Pool(PoolId(1), 3, 1)
    scene.start(lost)
    assert scene.settle().syncing == (scene.member(lost),)
    scene.kill(lost)
    scene.kill(third)
    row = scene.settle()  # the primary was not heard since
    assert (row.syncing, scene.nodes(row.in_sync)) == ((), sorted([left, third]))
    assert scene.nodes(scene.wait(1, left).in_sync) == [left]


def test_a_missing_members_place_is_kept_and_then_given_away():
    scene = Scene(3)
    scene.activate()
    lost, left = scene.other(), scene.row.primary.node
    third = 6 - lost - left
    scene.kill(lost)
    assert scene.wait(REBUILD_S - 5, left, third).syncing == ()
    assert scene.wait(10, left, third).syncing == (scene.member(third),)


def test_a_new_node_fills_a_row_that_never_had_enough():
    scene = Scene(1)
    scene.activate()
    scene.start(2)
    assert scene.wait(1, 1, 2).syncing == (scene.member(2),)


def test_goodbye_moves_rows_at_once_and_its_heartbeats_count_no_more():
    scene = Scene()
    scene.activate()
    leaving, left = scene.row.primary.node, scene.other()
    scene.machine.goodbye(scene.member(leaving), scene.now)
    assert scene.wait(1, left).primary == scene.member(left)
    assert not scene.machine.heartbeat(scene.member(leaving), scene.now)


def test_a_silent_node_that_is_heard_again_goes_on_if_nobody_took_its_place():
    scene = Scene(1, replicas=1)
    scene.activate()
    scene.wait(20)
    assert scene.machine.needs_revival(scene.member(1))
    scene.beat(1)
    assert scene.settle().active


def test_registering_twice_is_once_and_an_older_life_is_refused():
    scene = Scene()
    again = scene.machine.register(NodeId(1), 1, "host1:1", "zone1", 1000, False, scene.now)
    assert again == 1
    scene.start(1)
    with pytest.raises(Busy):
        scene.machine.register(NodeId(1), 1, "host1:1", "zone1", 1000, False, scene.now)
    with pytest.raises(ForeignFileSystem):
        scene.machine.register(NodeId(77), 1, "host1:1", "zone1", 1000, False, scene.now)


def test_a_first_registration_whose_answer_was_lost_makes_no_second_node():
    fresh = machine()
    first = fresh.register(NodeId(0), 1, "host:1", "z", 10, False, 0.0)
    assert fresh.register(NodeId(0), 1, "host:1", "z", 10, False, 0.0) == first
    fresh.heartbeat(Member(first, Incarnation(1)), 1.0)
    assert fresh.register(NodeId(0), 1, "host:1", "z", 10, False, 2.0) != first


def test_a_first_placement_waits_a_moment_for_enough_nodes():
    assert may_place(2, 2, 0.0)
    assert not may_place(1, 2, 1.0)
    assert may_place(1, 2, PLACE_AFTER_S)
    assert not may_place(0, 2, 1000.0)


def test_nobody_shrinks_onto_nobody_or_onto_a_corpse():
    one, two = Member(NodeId(1), Incarnation(1)), Member(NodeId(2), Incarnation(1))
    heard = {NodeId(1): 5.0, NodeId(2): 4.0}
    assert not may_shrink((), heard, 1.0)
    assert may_shrink((one, two), heard, 3.0)
    assert not may_shrink((one, two), heard, 4.0)


# --- moves ------------------------------------------------------------------------------------------------------------


def finish_moves(scene: Scene, *alive: int, rounds: int = 30) -> None:
    """The primaries do what they are asked for at once."""
    for _ in range(rounds):
        scene.wait(1.0, *alive)
        row = scene.activate()
        if row.syncing and row.primary is not None:
            scene.machine.promote(PG, row.epoch, row.primary, row.syncing[0])
            scene.settle()


def test_a_drained_node_gives_its_place_to_another_and_is_then_dispensable():
    scene = Scene(3)
    scene.activate()
    assert scene.row.primary is not None
    drained = scene.row.primary.node
    third = next(n for n in (1, 2, 3) if n not in scene.nodes(scene.row.members()))
    scene.machine.set_node(drained, draining=True, weight=None)
    row = scene.settle()
    assert (scene.nodes(row.in_sync), scene.nodes(row.syncing)) == (sorted({1, 2, 3} - {third}), [third])
    assert scene.machine.obstacle(drained, force=False) is not None
    scene.activate()
    assert scene.row.primary is not None
    scene.machine.promote(PG, scene.row.epoch, scene.row.primary, scene.member(third))
    row = scene.settle()
    assert drained not in scene.nodes(row.members())
    assert len(row.in_sync) == 2
    assert scene.machine.obstacle(drained, force=False) is not None  # base: it may be needed until the row is active
    scene.activate()
    assert scene.machine.obstacle(drained, force=False) is None
    scene.machine.remove_node(drained, force=False)
    with pytest.raises(ForeignFileSystem):
        scene.machine.register(drained, 9, "host9:1", "z", 1, False, scene.now)


def test_without_another_node_a_drain_waits_and_nothing_is_lost():
    scene = Scene(2)
    scene.activate()
    scene.machine.set_node(NodeId(1), draining=True, weight=None)
    finish_moves(scene, 1, 2)
    assert scene.nodes(scene.row.in_sync) == [1, 2]


def test_a_move_whose_target_dies_came_to_nothing_and_is_tried_again():
    scene = Scene(3)
    scene.activate()
    drained = scene.other()
    third = next(n for n in (1, 2, 3) if n not in scene.nodes(scene.row.members()))
    scene.machine.set_node(NodeId(drained), draining=True, weight=None)
    scene.settle()
    scene.kill(third)
    assert scene.settle().syncing == ()
    assert scene.machine.facts.leaving == {}
    scene.start(third)
    finish_moves(scene, 1, 2, 3)
    assert drained not in scene.nodes(scene.row.members())
    assert third in scene.nodes(scene.row.in_sync)


def test_a_paused_cluster_moves_nothing():
    scene = Scene(3)
    scene.activate()
    scene.machine.pause(True)
    scene.machine.set_node(NodeId(scene.other()), draining=True, weight=None)
    assert scene.settle().syncing == ()
    scene.machine.pause(False)
    assert scene.settle().syncing != ()


def test_a_full_node_is_no_substitute_until_it_has_room():
    scene = Scene(3)
    scene.activate()
    lost = scene.other()
    third = next(n for n in (1, 2, 3) if n not in scene.nodes(scene.row.members()))
    left = next(n for n in (1, 2, 3) if n not in (lost, third))
    scene.machine.set_full(scene.member(third), True)
    scene.kill(lost)
    scene.wait(REBUILD_S + 5, left, third)
    scene.activate()
    assert scene.settle().syncing == ()
    scene.machine.set_full(scene.member(third), False)
    scene.wait(2, left, third)
    assert scene.nodes(scene.row.syncing) == [third]


def test_the_only_copy_is_not_removed_even_by_force():
    scene = Scene(1, replicas=1)
    scene.activate()
    with pytest.raises(Busy):
        scene.machine.remove_node(NodeId(1), force=True)
    scene.kill(1)
    with pytest.raises(Busy):
        scene.machine.remove_node(NodeId(1), force=True)


def test_a_dead_disk_is_removed_by_force_when_others_have_its_groups():
    scene = Scene(3)
    scene.activate()
    lost = scene.other()
    scene.kill(lost)
    with pytest.raises(Busy):
        scene.machine.remove_node(NodeId(lost), force=True)
    alive = [n for n in (1, 2, 3) if n != lost]
    scene.wait(2, *alive)
    with pytest.raises(Busy):
        scene.machine.remove_node(NodeId(lost), force=False)
    scene.activate()
    scene.machine.remove_node(NodeId(lost), force=True)
    scene.settle()
    assert scene.nodes(scene.row.syncing) != []  # nobody waits for it any more


def test_the_weight_that_was_set_outlives_a_restart_of_the_node():
    scene = Scene(2)
    scene.machine.set_node(NodeId(1), draining=None, weight=77)
    scene.start(1)
    assert scene.machine.nodes[NodeId(1)].weight == 77
    scene.machine.set_node(NodeId(1), draining=None, weight=0)
    scene.start(1)
    assert scene.machine.nodes[NodeId(1)].weight == 1000


def test_a_new_disk_at_an_old_address_is_a_new_node_also_for_a_restarted_authority():
    scene = Scene(2)
    old = MapHead(MapEpoch(3), tuple(scene.machine.nodes.values()), (), (), SessionId(1), NodeId(3))
    restarted = Membership(old, (), now=0.0, grace_s=GRACE_S, rebuild_after_s=REBUILD_S)
    node = restarted.register(NodeId(0), 1, "host1:1", "zone1", 1000, False, 1.0)
    assert node == 3


def test_a_node_whose_first_registration_was_not_answered_gets_the_same_number():
    fresh = machine()
    first = fresh.register(NodeId(0), 1, "host1:1", "zone1", 1000, False, 1.0)
    assert fresh.register(NodeId(0), 1, "host1:1", "zone1", 1000, False, 2.0) == first
    assert fresh.register(NodeId(0), 2, "host1:1", "zone1", 1000, False, 2.0) == first
    assert fresh.heartbeat(Member(first, Incarnation(2)), 3.0)
    assert fresh.register(NodeId(0), 3, "host1:1", "zone1", 1000, False, 4.0) != first


def test_fullness_does_not_go_to_and_fro():
    assert not is_full(False, 100, 11)
    assert is_full(False, 100, 10)
    assert is_full(True, 100, 19)
    assert not is_full(True, 100, 21)
    assert not is_full(True, 0, 0)


def test_fences_are_forgotten_when_all_older_sessions_are_gone():
    fresh = machine()
    for number in (3, 5, 9):
        fresh.fence(SessionId(number))
    fresh.forget_fences(SessionId(6))
    assert (fresh.facts.evicted, fresh.facts.oldest_session) == ((SessionId(9),), 6)
    fresh.forget_fences(SessionId(2))
    assert fresh.facts.oldest_session == 6


def test_fences_of_closed_sessions_are_bounded_and_of_evicted_ones_kept():
    fresh = machine()
    fresh.fence(SessionId(2))
    for number in range(3, MAX_CLOSED + 4):
        fresh.fence(SessionId(number), closed=True)
    assert fresh.facts.evicted[:2] == (SessionId(2), SessionId(4))
    assert len(fresh.facts.evicted) == MAX_CLOSED + 1


def test_pools_are_bounded():
    fresh = machine()
    pools = [fresh.pool_for(8, n) for n in range(1, 9)] + [fresh.pool_for(7, n) for n in range(1, 8)]
    assert len(set(pools)) == 15
    assert fresh.pool_for(8, 1) == pools[0]
    fresh.pool_for(1, 1)
    with pytest.raises(InvalidArgument):
        fresh.pool_for(2, 1)


# --- random histories -------------------------------------------------------------------------------------------------


@dataclass
class World:
    """Nodes with stores: `held[n]` is the number of the last acknowledged write that node n's disk holds."""

    scene: Scene
    held: dict[int, int] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    acknowledged: int = 0
    damaged: set[int] = field(default_factory=set)

    def write(self) -> None:
        """The primary activates if it must and acknowledges a write by all members of the row."""
        row = self.scene.row
        primary = row.primary
        assert primary is not None
        if not {m.node for m in row.in_sync} <= self.running or not self.is_itself(primary):
            return
        if not row.active:
            assert self.held[primary.node] == self.acknowledged, f"{primary} leads and has lost something: {row}"
            for member in row.in_sync:
                self.held[member.node] = self.held[primary.node]
            row = self.scene.activate()
        if row.active:
            self.acknowledged += 1
            for member in row.in_sync:
                self.held[member.node] = self.acknowledged

    def is_itself(self, member: Member) -> bool:
        return member.incarnation == self.scene.incarnations[member.node]

    def promote(self) -> None:
        row = self.scene.row
        if row.active and row.syncing and row.primary is not None and {m.node for m in row.members()} <= self.running:
            self.held[row.syncing[0].node] = self.held[row.primary.node]
            self.scene.machine.promote(PG, row.epoch, row.primary, row.syncing[0])

    def drop(self) -> None:
        row = self.scene.row
        others = [m for m in row.members() if m != row.primary]
        if others and row.primary is not None and row.primary.node in self.running and self.is_itself(row.primary):
            self.scene.machine.drop(PG, row.epoch, row.primary, others[-1], self.scene.now)


ACTION = st.tuples(
    st.sampled_from(
        (
            *(
                "beat",
                "beat",
                "write",
                "write",
                "kill",
                "vanish",
                "start",
                "damage",
                "promote",
                "promote",
                "drop",
                "bye",
            ),
            *("drain", "drain", "undrain", "remove", "lost"),
        )
    ),
    st.integers(1, 4),
    st.sampled_from([0.3, 1.0, 9.0, 70.0]),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.lists(ACTION, max_size=80))
def test_in_any_history_nobody_leads_who_lacks_an_acknowledged_write(replicas, nodes, actions):
    world = World(Scene(nodes, replicas))
    scene = world.scene
    world.running = set(range(1, nodes + 1))
    world.held = dict.fromkeys(range(1, 5), 0)
    for what, n, pause in actions:
        before = scene.row
        known = n in scene.incarnations
        if what == "beat":
            scene.now += pause
            for alive in sorted(world.running):
                if scene.machine.nodes[NodeId(alive)].state is not NodeState.AWAY:
                    scene.beat(alive)
        elif what == "write":
            world.write()
        elif what == "kill" and n in world.running:
            world.running.discard(n)
            scene.kill(n)
        elif what == "vanish":
            world.running.discard(n)
        elif what == "start" and n not in scene.removed and (known or n == max(scene.incarnations) + 1):
            world.running.add(n)
            scene.start(n)
        elif what == "damage" and known and n not in scene.removed:
            world.held[n] = 0
            world.running.add(n)
            scene.start(n, damaged=True)
        elif what == "promote":
            world.promote()
        elif what == "drop":
            world.drop()
        elif what in ("drain", "undrain") and NodeId(n) in scene.machine.nodes:
            scene.machine.set_node(NodeId(n), draining=what == "drain", weight=None)
        elif what in ("remove", "lost") and NodeId(n) in scene.machine.nodes:
            with suppress(Busy):
                scene.machine.remove_node(NodeId(n), force=what == "lost")
                world.running.discard(n)
                scene.removed.add(n)
        elif what == "bye" and n in world.running:
            world.running.discard(n)
            scene.machine.goodbye(scene.member(n), scene.now)
        scene.machine.tick(scene.now)
        row = scene.settle()
        check_row(before, row)


def check_row(before: Row, row: Row) -> None:
    assert row.in_sync, "a row lost its last member"
    assert row.primary in row.in_sync
    assert row.epoch >= before.epoch
    assert len({m.node for m in row.members()}) == len(row.members())
    if (row.in_sync, row.syncing, row.primary) != (before.in_sync, before.syncing, before.primary):
        assert row.epoch > before.epoch
        assert not row.active
    if row.active:
        assert set(row.base) <= set(row.in_sync)
    entitled = {m.node for m in (*before.in_sync, *before.base, *before.syncing)}
    assert {m.node for m in row.in_sync} <= entitled
