"""The lease table, rule by rule; and random programs: many shared or one exclusive, serials grow."""

from hypothesis import given
from hypothesis import strategies as st

from fsd.core.ids import Ino, LayerId, SessionId
from fsd.protocol.metadata import LeaseMode
from metadata.leases import MINIMUM_HOLD_S, InodeKey, LeaseTable, compatible

NONE, SHARED, EXCLUSIVE = LeaseMode.NONE, LeaseMode.SHARED, LeaseMode.EXCLUSIVE
A, B, C = SessionId(1), SessionId(2), SessionId(3)
KEY = InodeKey(LayerId(1), Ino(5))
OTHER = InodeKey(LayerId(2), Ino(5))


def release(table: LeaseTable, session: SessionId, serial: int, keep: LeaseMode = NONE, is_open: bool = False) -> bool:
    return table.release(session, KEY, serial=serial, keep=keep, still_open=is_open)


def test_shared_leases_stand_side_by_side():
    table = LeaseTable()
    table.grant(KEY, A, SHARED, 0)
    assert table.is_free(KEY, B, SHARED)
    assert not table.is_free(KEY, B, EXCLUSIVE)
    assert compatible(NONE, EXCLUSIVE)


def test_an_exclusive_lease_stands_alone_and_a_reader_lets_it_keep_shared():
    table = LeaseTable()
    table.grant(KEY, A, EXCLUSIVE, 0)
    [conflict] = table.conflicts(KEY, B, SHARED)
    assert (conflict.session, conflict.keep) == (A, SHARED)
    [conflict] = table.conflicts(KEY, B, EXCLUSIVE)
    assert conflict.keep is NONE


def test_a_session_never_conflicts_with_itself():
    table = LeaseTable()
    table.grant(KEY, A, SHARED, 0)
    assert table.is_free(KEY, A, EXCLUSIVE)


def test_the_same_number_in_two_volumes_is_two_inodes():
    table = LeaseTable()
    table.grant(KEY, A, EXCLUSIVE, 0)
    assert table.is_free(OTHER, B, EXCLUSIVE)


def test_a_grant_never_weakens_and_its_serial_grows_over_all_inodes():
    table = LeaseTable()
    first = table.grant(KEY, A, EXCLUSIVE, 0)
    table.grant(OTHER, A, SHARED, 0)
    again = table.grant(KEY, A, SHARED, 0)
    assert (first.serial, again.serial, again.mode) == (1, 3, EXCLUSIVE)


def test_a_release_that_does_not_know_the_last_grant_is_ignored():
    table = LeaseTable()
    old = table.grant(KEY, A, SHARED, 0)
    new = table.grant(KEY, A, EXCLUSIVE, 0)
    assert not release(table, A, old.serial)
    assert table.mode(KEY, A) is EXCLUSIVE
    assert release(table, A, new.serial, SHARED)
    assert table.mode(KEY, A) is SHARED


def test_a_recall_names_the_serial_up_to_which_grants_are_meant():
    table = LeaseTable()
    table.grant(KEY, A, EXCLUSIVE, 0)
    later = table.grant(OTHER, A, SHARED, 0)
    [conflict] = table.conflicts(KEY, B, EXCLUSIVE)
    assert conflict.serial == later.serial
    assert table.current(conflict) == conflict
    release(table, A, conflict.serial)
    assert table.current(conflict) is None


def test_a_fresh_lease_is_kept_for_a_moment():
    table = LeaseTable()
    table.grant(KEY, A, EXCLUSIVE, 10.0)
    table.grant(KEY, A, SHARED, 10.004)  # does not make it fresh again
    [conflict] = table.conflicts(KEY, B, EXCLUSIVE)
    assert 0 < table.hold_left_s(conflict, 10.001) < MINIMUM_HOLD_S
    assert table.hold_left_s(conflict, 10.0 + MINIMUM_HOLD_S) < 1e-9


def test_an_inode_is_in_use_while_somebody_has_it_open_or_may_open_it():
    table = LeaseTable()
    grant = table.grant(KEY, A, SHARED, 0)
    assert table.is_in_use(KEY)
    release(table, A, grant.serial, is_open=True)
    assert table.is_in_use(KEY)
    release(table, A, grant.serial)
    assert not table.is_in_use(KEY)


def test_a_session_that_ends_gives_everything_back():
    table = LeaseTable()
    table.grant(KEY, A, EXCLUSIVE, 0)
    table.set_open(A, OTHER, True)
    assert sorted(table.drop_session(A)) == sorted([KEY, OTHER])
    assert not table.is_in_use(KEY)
    assert not table.is_in_use(OTHER)
    assert table.count(A) == 0


def test_who_resumes_gets_what_it_was_granted_and_claims():
    table = LeaseTable()
    table.grant(KEY, A, EXCLUSIVE, 0)
    table.grant(OTHER, A, SHARED, 0)
    grants, let_go = table.resume(A, [(KEY, SHARED, True), (OTHER, EXCLUSIVE, False)], 1.0, restarted=False)
    assert [(grant.mode, grant.serial) for grant in grants] == [(SHARED, 3), (SHARED, 4)]
    assert table.openers(KEY) == (A,)
    assert let_go == [KEY, OTHER]


def test_a_lost_grant_is_taken_back_when_its_session_resumes():
    table = LeaseTable()
    table.grant(KEY, A, EXCLUSIVE, 0)
    assert table.resume(A, [], 1.0, restarted=False) == ([], [KEY])
    assert not table.is_in_use(KEY)


def test_after_a_restart_a_claim_is_believed_unless_it_conflicts():
    table = LeaseTable()
    assert len(table.resume(A, [(KEY, EXCLUSIVE, False)], 0.0, restarted=True)[0]) == 1
    assert table.resume(B, [(KEY, SHARED, False)], 0.0, restarted=True)[0] == []


STEP = st.tuples(
    st.sampled_from(["grant", "release", "old release", "end", "resume"]),
    st.sampled_from([A, B, C]),
    st.sampled_from([KEY, OTHER]),
    st.sampled_from([SHARED, EXCLUSIVE]),
    st.booleans(),
)


@given(st.lists(STEP, max_size=60))
def test_whatever_happens_an_exclusive_lease_stands_alone(steps):
    table = LeaseTable()
    serials = {A: 0, B: 0, C: 0}
    for what, session, key, mode, is_open in steps:
        if what == "grant" and table.is_free(key, session, mode):
            grant = table.grant(key, session, mode, 0.0)
            assert grant.serial > serials[session]
            serials[session] = grant.serial
        elif what == "release":
            table.release(session, key, serial=serials[session], keep=NONE, still_open=is_open)
            assert table.mode(key, session) is NONE
        elif what == "old release":
            table.release(session, key, serial=0, keep=NONE, still_open=is_open)
        elif what == "end":
            table.drop_session(session)
            serials[session] = 0
        elif what == "resume":
            claims = [(held, table.mode(held, session), is_open) for held in table.held(session)]
            for grant in table.resume(session, claims, 0.0, restarted=False)[0]:
                assert grant.serial > serials[session]
                serials[session] = grant.serial
        for every in (KEY, OTHER):
            modes = [table.mode(every, holder) for holder in table.holders(every)]
            assert modes in ([EXCLUSIVE], [SHARED] * len(modes))
            assert all(every in table.held(holder) for holder in table.holders(every))
