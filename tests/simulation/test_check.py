"""The checkers themselves: histories that are possible, and histories that are not."""

from math import inf

from tests.simulation.check import EMPTY_REGION, EMPTY_TREE, Operation, linearizable, region_step, tree_step


def region(*ops: Operation) -> bool:
    return linearizable(ops, EMPTY_REGION, region_step)


def tree(*ops: Operation) -> bool:
    return linearizable(ops, EMPTY_TREE, tree_step)


def write(client: str, value: int, start: float, end: float = inf) -> Operation:
    return Operation(client, "write", value, None, start, end)


def read(client: str, value: int, start: float, end: float) -> Operation:
    return Operation(client, "read", None, value, start, end)


def sync(client: str, start: float, end: float) -> Operation:
    return Operation(client, "sync", None, None, start, end)


def lost(client: str, start: float, end: float) -> Operation:
    return Operation(client, "lost", None, None, start, end)


def test_a_read_sees_the_last_write() -> None:
    assert region(write("a", 1, 0, 1), read("b", 1, 2, 3))
    assert not region(write("a", 1, 0, 1), read("b", 0, 2, 3))


def test_a_concurrent_read_sees_old_or_new_but_never_old_after_new() -> None:
    assert region(write("a", 1, 0, 10), read("b", 0, 1, 2), read("b", 1, 3, 4))
    assert not region(write("a", 1, 0, 10), read("b", 1, 1, 2), read("b", 0, 3, 4))


def test_an_unfinished_write_happens_late_or_never() -> None:
    assert region(write("a", 1, 0), read("b", 0, 5, 6), read("b", 1, 7, 8))
    assert region(write("a", 1, 0), read("b", 0, 5, 6))


def test_a_dead_client_takes_its_buffer_along_but_nothing_that_was_synced() -> None:
    assert region(write("a", 1, 0, 1), lost("a", 2, 2), read("b", 0, 3, 4))
    assert region(write("a", 1, 0, 1), write("a", 2, 2, 3), lost("a", 4, 4), read("b", 1, 5, 6))
    assert not region(write("a", 1, 0, 1), sync("a", 2, 2.5), lost("a", 3, 3), read("b", 0, 4, 5))
    assert not region(write("a", 1, 0, 1), read("b", 1, 1.5, 2), lost("a", 3, 3), read("b", 0, 4, 5))
    assert not region(write("a", 1, 0, 1), write("b", 2, 1.5, 2), lost("b", 3, 3), read("c", 0, 4, 5))
    assert not region(write("a", 1, 0, 1), lost("b", 3, 3), read("c", 0, 4, 5))


def call(kind: str, argument: object, result: object, start: float, end: float, client: str = "a") -> Operation:
    return Operation(client, kind, argument, result, start, end)  # type: ignore[arg-type]


def test_names_follow_the_rules() -> None:
    created = call("create", "d/x", 5, 0, 1)
    assert tree(created, call("lookup", "d/x", 5, 2, 3))
    assert not tree(created, call("lookup", "d/x", "NotFound", 2, 3))
    assert not tree(created, call("create", "d/x", 6, 2, 3))
    assert tree(created, call("rename", ("d/x", "d/y"), "ok", 2, 3), call("lookup", "d/y", 5, 4, 5))
    assert not tree(created, call("rename", ("d/x", "d/y"), "ok", 2, 3), call("lookup", "d/x", 5, 4, 5))
    assert tree(created, call("unlink", "d/x", "ok", 2, 3), call("lookup", "d/x", "NotFound", 4, 5))
    assert not tree(created, call("unlink", "d/x", "ok", 2, 3), call("unlink", "d/x", "ok", 4, 5))


def test_a_change_without_an_answer_may_have_happened() -> None:
    assert tree(call("create", "d/x", None, 0, inf), call("lookup", "d/x", 7, 2, 3))
    assert tree(call("create", "d/x", None, 0, inf), call("lookup", "d/x", "NotFound", 2, 3))


def test_a_lost_client_takes_an_end_of_its_journal_along() -> None:
    made = [
        Operation("a", "create", "d0/a", 5, 1, 2),
        Operation("a", "create", "d1/b", 6, 3, 4),
        Operation("a", "lost", None, None, 5, 6),
    ]
    assert tree(*made, Operation("b", "lookup", "d0/a", 5, 7, 8), Operation("b", "lookup", "d1/b", "NotFound", 9, 10))
    assert tree(
        *made, Operation("b", "lookup", "d0/a", "NotFound", 7, 8), Operation("b", "lookup", "d1/b", "NotFound", 9, 10)
    )
    assert not tree(
        *made, Operation("b", "lookup", "d0/a", "NotFound", 7, 8), Operation("b", "lookup", "d1/b", 6, 9, 10)
    )


def test_what_another_client_saw_or_was_synced_is_not_lost() -> None:
    made = Operation("a", "create", "d0/a", 5, 1, 2)
    gone = [Operation("a", "lost", None, None, 5, 6), Operation("b", "lookup", "d0/a", "NotFound", 7, 8)]
    assert tree(made, *gone)
    assert not tree(made, Operation("b", "lookup", "d0/a", 5, 3, 4), *gone)
    assert not tree(made, Operation("a", "sync", "d0", "ok", 3, 4), *gone)
    assert tree(made, Operation("a", "sync", "d1", "ok", 3, 4), *gone)
