"""The rules of 2-replication.md, one by one."""

from dataclasses import replace

import pytest

from chunkserver import replica
from chunkserver.replica import Group, RowChanged
from fsd.cluster.map import ClusterMap, Pool, Row
from fsd.core.errors import BaseMismatch, NotALeader, NotServing, SessionEvicted, StaleMap
from fsd.core.ids import (
    NO_ORDER,
    ChunkId,
    DataId,
    Incarnation,
    MapEpoch,
    Member,
    NodeId,
    Order,
    PgEpoch,
    PgId,
    PoolId,
    RequestNumber,
    SessionId,
)

ME = Member(NodeId(1), Incarnation(4))
OTHER = Member(NodeId(2), Incarnation(1))
THIRD = Member(NodeId(3), Incarnation(1))
PG = PgId(65536)
ROW = Row(PG, PgEpoch(5), ME, (ME, OTHER), (THIRD,), (ME, OTHER), True)
A, B = ChunkId(DataId(1), 0), ChunkId(DataId(1), 1)


def order(epoch, version):
    return Order(PgEpoch(epoch), version)


def test_r1_another_incarnation_of_this_node_does_not_lead():
    replica.check_primary(ROW, ME)
    with pytest.raises(StaleMap):
        replica.check_primary(ROW, ME._replace(incarnation=Incarnation(5)))


def test_r1_another_incarnation_of_this_node_is_no_member():
    replica.check_receiver(ROW, THIRD)
    with pytest.raises(NotALeader):
        replica.check_receiver(ROW, THIRD._replace(incarnation=Incarnation(2)))


def test_r2_nothing_is_served_when_the_lease_has_ended():
    replica.check_lease(9.99, 10.0)
    with pytest.raises(NotServing):
        replica.check_lease(10.0, 10.0)


def test_r3_the_row_must_be_known_active_and_of_the_askers_epoch():
    with pytest.raises(StaleMap):
        replica.check_known(None, PG)
    with pytest.raises(NotServing):
        replica.check_active(replace(ROW, active=False))
    replica.check_asker(ROW, PgEpoch(5))
    for epoch in (4, 6):
        with pytest.raises(StaleMap):
            replica.check_asker(ROW, PgEpoch(epoch))


def test_r3_a_member_refuses_lower_epochs_than_promised():
    replica.check_promise(PgEpoch(5), PgEpoch(5))
    with pytest.raises(NotALeader):
        replica.check_promise(PgEpoch(6), PgEpoch(5))


def test_r3_a_member_follows_the_primary_of_its_row_alone():
    replica.check_epoch(ROW, PgEpoch(5))
    replica.check_sender(ROW, Incarnation(4))
    for epoch in (4, 6):
        with pytest.raises(NotALeader):
            replica.check_epoch(ROW, PgEpoch(epoch))
    with pytest.raises(NotALeader):
        replica.check_sender(ROW, Incarnation(3))


def test_r4_all_members_must_answer_and_there_must_be_enough_of_them():
    assert replica.must_answer(ROW, ME) == [OTHER, THIRD]
    replica.check_copies(ROW, Pool(PoolId(1), 2, 3))
    with pytest.raises(NotServing):
        replica.check_copies(ROW, Pool(PoolId(1), 4, 4))


def test_i13_an_evicted_session_is_refused_and_the_servers_never():
    cluster_map = ClusterMap(MapEpoch(1), "fs", 1, 1, (), (), (), (SessionId(9),), SessionId(5))
    replica.check_fence(cluster_map, SessionId(0))
    replica.check_fence(cluster_map, SessionId(8))
    for session in (9, 4):
        with pytest.raises(SessionEvicted):
            replica.check_fence(cluster_map, SessionId(session))


@pytest.mark.parametrize(
    ("present", "pushed", "resync", "syncing", "expected"),
    [
        (NO_ORDER, order(5, 1), False, False, True),
        (order(5, 1), order(5, 1), False, False, False),  # a repeated message
        (order(5, 2), order(5, 1), False, False, False),
        (order(4, 9), order(5, 1), False, False, True),
        (order(4, 9), order(3, 1), True, True, True),  # garbage that the returning member brought along
        (order(5, 2), order(5, 1), True, True, False),  # overtaken by a write of this epoch
        (order(5, 2), order(4, 1), True, True, False),
        (order(4, 9), order(3, 1), True, False, False),
    ],
)
def test_r7_r10_what_a_member_applies(present, pushed, resync, syncing, expected):
    assert replica.accepts(present=present, order=pushed, resync=resync, syncing=syncing, epoch=PgEpoch(5)) is expected


def test_a_partial_change_needs_its_base():
    replica.check_base(order(5, 1), order(5, 1))
    with pytest.raises(BaseMismatch):
        replica.check_base(order(5, 1), order(5, 2))


def test_r7_settling_takes_the_union_in_order():
    assert replica.settle_list([[B], [A, B], []]) == [A, B]


def test_r11_a_request_is_known_by_its_number_and_session():
    requests = replica.remember((), SessionId(1), RequestNumber(5))
    assert replica.already_applied(requests, SessionId(1), RequestNumber(5))
    assert replica.already_applied(requests, SessionId(1), RequestNumber(4))
    assert not replica.already_applied(requests, SessionId(1), RequestNumber(6))
    assert not replica.already_applied(requests, SessionId(2), RequestNumber(5))
    assert not replica.already_applied(requests, SessionId(0), RequestNumber(0))
    assert replica.remember(requests, SessionId(0), RequestNumber(0)) == requests


def test_r11_the_list_is_bounded_and_forgets_the_longest_unused():
    requests = ()
    for session in range(1, 40):
        requests = replica.remember(requests, SessionId(session), RequestNumber(1))
        requests = replica.remember(requests, SessionId(1), RequestNumber(session))
    assert len(requests) == replica.MAX_REQUESTS
    assert replica.already_applied(requests, SessionId(1), RequestNumber(39))
    assert not replica.already_applied(requests, SessionId(2), RequestNumber(1))


def test_versions_begin_again_with_an_epoch_and_never_within():
    group = Group(PG)
    group.adopt(replace(ROW, active=False))
    assert [group.begin(A, PgEpoch(5)), group.begin(B, PgEpoch(5))] == [order(5, 1), order(5, 2)]
    group.adopt(ROW)
    assert group.begin(A, PgEpoch(5)) == order(5, 3)
    group.adopt(replace(ROW, epoch=PgEpoch(6)))
    assert group.begin(A, PgEpoch(6)) == order(6, 1)


def test_settled_is_below_the_oldest_unanswered_version():
    group = Group(PG)
    group.adopt(ROW)
    first, second, third = (group.begin(chunk, PgEpoch(5)) for chunk in (A, B, ChunkId(DataId(2), 0)))
    group.finish(B, second)
    assert group.settled() == 0
    group.finish(A, first)
    assert group.settled() == 2
    group.finish(ChunkId(DataId(2), 0), third)
    assert group.settled() == 3


def test_a_chunk_is_dirty_until_its_last_change_was_answered_by_all():
    group = Group(PG)
    group.adopt(ROW)
    group.begin(A, PgEpoch(5))
    assert A in group.dirty
    again = group.begin(A, PgEpoch(5))
    group.finish(A, again)
    assert not group.dirty
    assert group.settled() == 2


def test_work_of_an_old_row_ends():
    group = Group(PG)
    group.adopt(ROW)
    old = group.begin(A, PgEpoch(5))
    group.check_still(ROW)
    group.adopt(replace(ROW, epoch=PgEpoch(6)))
    with pytest.raises(RowChanged):
        group.check_still(ROW)
    new = group.begin(A, PgEpoch(6))
    group.finish(A, old)
    assert A in group.dirty
    group.finish(A, new)
    assert A not in group.dirty
    assert group.promised == 6


def test_removed_chunks_are_remembered_up_to_a_bound():
    group = Group(PG)
    for index in range(replica.MAX_REMOVED + 5):
        group.remember_removed(ChunkId(DataId(1), index), ())
    assert len(group.removed) == replica.MAX_REMOVED
    assert ChunkId(DataId(1), 4) not in group.removed
