"""The lock table against examples of fcntl(2) and flock(2), and against a table with one cell per byte."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from fsd.core.ids import Ino
from fsd.namespace.locks import RANGE_END, LockedRange, LockKind, LockSpace, LockTable, Verdict

P, F = LockSpace.POSIX, LockSpace.FLOCK
R, W = LockKind.READ, LockKind.WRITE
FILE, OTHER = Ino(7), Ino(8)


def lock(owner, kind, start=0, end=RANGE_END):
    return LockedRange(owner, kind, start, end, 100)


def spans(table, space=P, ino=FILE):
    return [(held.owner, held.kind, held.start, held.end) for held in table.held(space, ino)]


def test_readers_share_and_writers_do_not():
    table = LockTable()
    assert table.acquire(P, FILE, lock("a", R), None).verdict is Verdict.GRANTED
    assert table.acquire(P, FILE, lock("b", R), None).verdict is Verdict.GRANTED
    assert table.acquire(P, FILE, lock("c", W), None).verdict is Verdict.CONFLICT
    assert table.acquire(P, OTHER, lock("c", W), None).verdict is Verdict.GRANTED


def test_unlocking_the_middle_splits_a_range_and_locking_it_again_merges():
    table = LockTable()
    table.acquire(P, FILE, lock("a", W, 0, 30), None)
    table.release(P, FILE, "a", 10, 20)
    assert spans(table) == [("a", W, 0, 10), ("a", W, 20, 30)]
    table.acquire(P, FILE, lock("a", R, 12, 18), None)
    assert spans(table) == [("a", W, 0, 10), ("a", R, 12, 18), ("a", W, 20, 30)]
    table.acquire(P, FILE, lock("a", W, 10, 20), None)
    assert spans(table) == [("a", W, 0, 30)]


def test_the_first_conflict_is_told():
    table = LockTable()
    table.acquire(P, FILE, lock("b", W, 20, 30), None)
    table.acquire(P, FILE, lock("a", R, 5, 8), None)
    assert table.conflict(P, FILE, lock("c", W, 0, 100)).owner == "a"
    assert table.conflict(P, FILE, lock("c", R, 0, 100)).owner == "b"
    assert table.conflict(P, FILE, lock("c", W, 8, 20)) is None


def test_a_waiter_is_woken_by_release_and_by_a_weaker_lock():
    table = LockTable()
    table.acquire(P, FILE, lock("a", W), None)
    assert table.acquire(P, FILE, lock("b", R), 1).verdict is Verdict.WAITING
    assert table.acquire(P, FILE, lock("c", W), 2).verdict is Verdict.WAITING
    assert table.acquire(P, FILE, lock("a", R), None).woken == (1,)
    assert table.release(P, FILE, "a") == ()
    assert table.release(P, FILE, "b") == (2,)


def test_a_reader_does_not_overtake_a_waiting_writer():
    table = LockTable()
    table.acquire(P, FILE, lock("a", R), None)
    table.acquire(P, FILE, lock("w", W), 1)
    assert table.acquire(P, FILE, lock("b", R), 2).verdict is Verdict.WAITING
    assert table.release(P, FILE, "a") == (1,)
    assert table.release(P, FILE, "w") == (2,)


def test_a_request_that_does_not_wait_looks_at_held_locks_only():
    table = LockTable()
    table.acquire(P, FILE, lock("a", R), None)
    table.acquire(P, FILE, lock("w", W), 1)
    assert table.acquire(P, FILE, lock("b", R), None).verdict is Verdict.GRANTED


def test_the_queue_alone_makes_no_deadlock():
    table = LockTable()
    table.acquire(P, FILE, lock("a", R, 0, 10), None)
    assert table.acquire(P, FILE, lock("b", W, 0, 20), 1).verdict is Verdict.WAITING
    assert table.acquire(P, FILE, lock("a", R, 10, 20), 2).verdict is Verdict.GRANTED


def test_a_wait_that_closes_a_circle_through_the_queue_lets_somebody_overtake():
    table = LockTable()
    table.acquire(P, FILE, lock("r", R, 0, 10), None)
    table.acquire(P, OTHER, lock("v", W), None)
    assert table.acquire(P, FILE, lock("u", W, 0, 20), 1).verdict is Verdict.WAITING
    assert table.acquire(P, FILE, lock("v", R, 15, 20), 2).verdict is Verdict.WAITING  # behind u
    outcome = table.acquire(P, OTHER, lock("r", W), 3)  # r waits for v, v for u, u for r
    assert outcome.verdict is Verdict.WAITING
    assert outcome.woken == (2,)


def test_a_deadlock_is_refused():
    table = LockTable()
    table.acquire(P, FILE, lock("a", W, 0, 1), None)
    table.acquire(P, FILE, lock("b", W, 1, 2), None)
    table.acquire(P, OTHER, lock("c", W), None)
    assert table.acquire(P, FILE, lock("a", W, 1, 2), 1).verdict is Verdict.WAITING
    assert table.acquire(P, OTHER, lock("b", W), 2).verdict is Verdict.WAITING
    assert table.acquire(P, FILE, lock("c", R, 0, 1), 3).verdict is Verdict.DEADLOCK
    assert table.release(P, OTHER, "c") == (2,)


def test_flock_does_not_look_for_deadlocks_nor_at_ranges():
    table = LockTable()
    table.acquire(F, FILE, lock("a", W), None)
    table.acquire(F, OTHER, lock("b", W), None)
    assert table.acquire(P, FILE, lock("b", W), None).verdict is Verdict.GRANTED
    assert table.acquire(F, OTHER, lock("a", W), 1).verdict is Verdict.WAITING
    assert table.acquire(F, FILE, lock("b", W), 2).verdict is Verdict.WAITING


def test_a_flock_of_another_kind_gives_the_first_one_up():
    table = LockTable()
    table.acquire(F, FILE, lock("a", R), None)
    table.acquire(F, FILE, lock("b", R), None)
    assert table.acquire(F, FILE, lock("a", W), None).verdict is Verdict.CONFLICT
    assert not table.holds(F, FILE, "a")
    table.acquire(F, FILE, lock("c", W), 1)
    outcome = table.acquire(F, FILE, lock("b", W), 2)
    assert outcome.verdict is Verdict.WAITING
    assert outcome.woken == (1,)


def test_a_cancelled_waiter_lets_those_behind_it_pass():
    table = LockTable()
    table.acquire(P, FILE, lock("a", R), None)
    table.acquire(P, FILE, lock("w", W), 1)
    table.acquire(P, FILE, lock("b", R), 2)
    assert table.cancel(1) == (2,)
    assert table.cancel(1) == ()
    assert len(table) == 2


def test_a_dead_session_leaves_nothing():
    table = LockTable()
    table.acquire(P, FILE, lock((1, "a"), W), None)
    table.acquire(F, FILE, lock((1, "b"), W), None)
    table.acquire(P, FILE, lock((1, "c"), R), 1)
    table.acquire(P, FILE, lock((2, "d"), R), 2)
    assert table.drop_owners(lambda owner: owner[0] == 1) == (2,)
    assert spans(table) == [((2, "d"), R, 0, RANGE_END)]
    table.drop_owners(lambda owner: True)
    assert len(table) == 0


def test_a_full_table_refuses():
    table = LockTable(limit=4)
    for at in range(3):
        assert table.acquire(P, FILE, lock("a", W, 10 * at, 10 * at + 5), None).verdict is Verdict.GRANTED
    assert table.acquire(P, FILE, lock("b", W, 90, 95), None).verdict is Verdict.FULL
    table.release(P, FILE, "a")
    assert table.acquire(P, FILE, lock("b", W, 90, 95), None).verdict is Verdict.GRANTED


BYTES, OWNERS, FILES = 6, "abcd", (FILE, OTHER)


class ByteTable:
    """The dumb one: a cell per byte, owner -> kind."""

    def __init__(self):
        self.cells = {(space, ino): [{} for _ in range(BYTES)] for space in LockSpace for ino in FILES}

    def blocked(self, space, ino, owner, kind, start, end):
        return any(
            other != owner and W in (kind, held)
            for cell in self.cells[space, ino][start:end]
            for other, held in cell.items()
        )

    def put(self, space, ino, owner, kind, start, end):
        for cell in self.cells[space, ino][start:end]:
            cell.pop(owner, None)
            if kind is not None:
                cell[owner] = kind


class LockMachine(RuleBasedStateMachine):
    tickets = Bundle("tickets")

    def __init__(self):
        super().__init__()
        self.table, self.bytes, self.waiting, self.next = LockTable(), ByteTable(), {}, 0

    def woken(self, tickets):
        for ticket in tickets:
            space, ino, wanted = self.waiting.pop(ticket)
            self.granted(space, ino, wanted)

    def granted(self, space, ino, wanted):
        start, end = (wanted.start, wanted.end) if space is P else (0, BYTES)
        assert not self.bytes.blocked(space, ino, wanted.owner, wanted.kind, start, end)
        self.bytes.put(space, ino, wanted.owner, wanted.kind, start, end)

    @rule(
        target=tickets,
        space=st.sampled_from(LockSpace),
        ino=st.sampled_from(FILES),
        owner=st.sampled_from(OWNERS),
        kind=st.sampled_from(LockKind),
        ends=st.tuples(st.integers(0, BYTES), st.integers(0, BYTES)).filter(lambda ends: ends[0] < ends[1]),
        wait=st.booleans(),
    )
    def acquire(self, space, ino, owner, kind, ends, wait):
        wanted = LockedRange(owner, kind, *ends, 1)
        if space is F:
            kinds = {cell[owner] for cell in self.bytes.cells[F, ino] if owner in cell}
            if kinds - {kind}:
                self.bytes.put(F, ino, owner, None, 0, BYTES)
            ends = (0, BYTES)
        free = not self.bytes.blocked(space, ino, owner, kind, *ends)
        self.next += 1
        outcome = self.table.acquire(space, ino, wanted, self.next if wait else None)
        if space is F or outcome.verdict is not Verdict.GRANTED:
            self.woken(outcome.woken)
        match outcome.verdict:
            case Verdict.GRANTED:
                assert free
                self.granted(space, ino, wanted)
                if space is P:
                    self.woken(outcome.woken)
            case Verdict.WAITING:
                assert wait
                self.waiting[self.next] = (space, ino, wanted)
            case Verdict.CONFLICT:
                assert not wait
                assert not free or outcome.woken
            case Verdict.DEADLOCK:
                assert wait
                assert not free
        return self.next

    @rule(
        space=st.sampled_from(LockSpace),
        ino=st.sampled_from(FILES),
        owner=st.sampled_from(OWNERS),
        ends=st.tuples(st.integers(0, BYTES), st.integers(0, BYTES)).filter(lambda ends: ends[0] < ends[1]),
    )
    def release(self, space, ino, owner, ends):
        if space is F:
            ends = (0, BYTES)
            woken = self.table.release(space, ino, owner)
        else:
            woken = self.table.release(space, ino, owner, *ends)
        self.bytes.put(space, ino, owner, None, *ends)
        self.woken(woken)

    @rule(ticket=tickets)
    def cancel(self, ticket):
        self.waiting.pop(ticket, None)
        self.woken(self.table.cancel(ticket))

    @rule(owner=st.sampled_from(OWNERS))
    def drop(self, owner):
        self.waiting = {t: w for t, w in self.waiting.items() if w[2].owner != owner}
        for space, ino in self.bytes.cells:
            self.bytes.put(space, ino, owner, None, 0, BYTES)
        self.woken(self.table.drop_owners(lambda one: one == owner))

    @invariant()
    def both_tables_hold_the_same(self):
        for (space, ino), cells in self.bytes.cells.items():
            found = [{} for _ in range(BYTES)]
            for held in self.table.held(space, ino):
                for cell in found[held.start : min(held.end, BYTES)]:
                    assert held.owner not in cell
                    cell[held.owner] = held.kind
            assert found == cells

    @invariant()
    def ranges_of_one_owner_are_merged(self):
        for ino in FILES:
            mine = {}
            for held in self.table.held(P, ino):
                before = mine.get(held.owner)
                assert before is None or before.end < held.start or before.kind is not held.kind
                mine[held.owner] = held

    @invariant()
    def everyone_waits_for_somebody(self):
        for space, ino in self.bytes.cells:
            ahead = []
            for ticket in self.table.waiting(space, ino):
                _, _, wanted = self.waiting[ticket]
                start, end = (wanted.start, wanted.end) if space is P else (0, BYTES)
                behind = any(
                    other.owner != wanted.owner
                    and W in (other.kind, wanted.kind)
                    and (space is F or (other.start < end and start < other.end))
                    for other in ahead
                )
                assert behind or self.bytes.blocked(space, ino, wanted.owner, wanted.kind, start, end)
                ahead.append(wanted)
        assert sorted(self.waiting) == sorted(
            ticket for space in LockSpace for ino in FILES for ticket in self.table.waiting(space, ino)
        )

    @invariant()
    def somebody_can_go_on_unless_flocks_are_in_a_circle(self):
        """Whoever waits in the fcntl space reaches, by held locks or the queue, an owner that waits for nothing."""
        waits = {wanted.owner for space, _, wanted in self.waiting.values() if space is P}
        flocks = any(space is F for space, _, _ in self.waiting.values())
        if waits and not flocks and len(self.waiting) == len(waits):  # one wait per owner, as without threads
            for owner in waits:
                assert not self.table._reaches(owner, owner, through_queue=True)


LockMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLockMachine = LockMachine.TestCase
