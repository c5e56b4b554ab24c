"""Was the history possible? Linearizability by search (Wing and Gong 1993, with Lowe's memo), for two kinds of object.

A *region* is a range of a file that is only ever written whole: a register whose writes sit in a client's buffer until they
are written back. Its state is (value, what else may be on the disk, who buffers). A client that dies or is evicted takes
its buffer along: the value may fall back to anything it wrote since the last write-back, no further.

    write by c      others' buffers were written back first (I14), then c buffers
    sync by c       c's buffer is on the disk (I16)
    read by c       the value; if another client buffered it, that one had to write it back
    lost by c       the value, or one of those that may be on the disk

A *tree* is a handful of names in a few directories. A client's changes wait in its journal; whoever else looks into a
directory, or changes it, sees to it that the journal is at the server up to the last change there, and so does a sync. A client
that is lost takes some end of its journal along, and nothing from the middle (I15).

An operation without an end may take effect at any later time, or never.
"""

from collections.abc import Callable, Collection, Hashable, Iterable
from math import inf
from typing import NamedTuple

MAX_STATES = 300_000


class Operation(NamedTuple):
    """What a client did, from `start` to `end` (inf: unknown whether), places in the one sequence of all that was seen.
    `argument` and `result` depend on the kind."""

    client: str
    kind: str
    argument: Hashable
    result: Hashable
    start: float
    end: float

    def __str__(self) -> str:
        return f"[{self.start:g} {self.end:g}] {self.client} {self.kind} {self.argument} -> {self.result}"


Step = Callable[[Hashable, Operation], Iterable[Hashable]]  # the states after it; none if it cannot have happened


class TooHard(Exception):
    """More states than are worth looking at; no verdict."""


def linearizable(operations: Iterable[Operation], initial: Hashable, step: Step) -> bool:
    """Whether there is an order of the operations, in keeping with their times, that `step` allows."""
    ops = sorted(operations, key=lambda op: (op.start, op.end, op.client))
    required = sum(1 << index for index, op in enumerate(ops) if op.end < inf)
    seen: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, int, Hashable]] = [(0, 0, initial)]  # (done, first that is not done, state)
    while stack:
        done, first, state = stack.pop()
        if done & required == required:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        if len(seen) > MAX_STATES:
            raise TooHard
        while done >> first & 1:
            first += 1
        limit = inf
        candidates: list[int] = []
        for index in range(first, len(ops)):
            op = ops[index]
            if op.start > limit:
                break
            if not done >> index & 1:
                candidates.append(index)
                limit = min(limit, op.end)
        for index in reversed(candidates):
            if ops[index].start <= limit:
                for after in step(state, ops[index]):
                    stack.append((done | 1 << index, first, after))
    return False


# --- a region of a file -----------------------------------------------------------------------------------------------

EMPTY_REGION = (0, (), "")


def region_step(state: Hashable, op: Operation) -> Iterable[Hashable]:
    """state = (value, other values that may be on the disk, the client that buffers or "")."""
    value, disk, owner = state  # type: ignore[misc]
    if op.kind == "read":
        if op.result != value:
            return ()
        return (state,) if op.client == owner else ((value, (), ""),)
    if op.kind == "write":
        if op.client == owner:
            return ((op.argument, tuple(sorted({*disk, value})), owner),)
        return ((op.argument, (value,), op.client),)
    if op.client != owner:
        return (state,)
    if op.kind == "sync":
        return ((value, (), ""),)
    assert op.kind == "lost", op.kind
    return [(each, (), "") for each in (value, *disk)]


# --- names ------------------------------------------------------------------------------------------------------------

UNKNOWN = -1
EMPTY_TREE: tuple[tuple[tuple[str, int], ...], tuple[Operation, ...]] = ((), ())


Names = tuple[tuple[str, int], ...]
Journal = tuple[Operation, ...]


def tree_step(state: Hashable, op: Operation, mortal: Collection[str] | None = None) -> Iterable[Hashable]:
    """state = (sorted (slot, inode) pairs at the server, changes in journals, oldest first); a slot is "directory/name".
    Results: an inode, "ok", or an error's name. `mortal`: the clients that are lost some time; None: any may be."""
    stored, journal = state  # type: ignore[misc]
    if op.kind == "lost":
        return _cuts(stored, journal, op.client)
    stored, journal = _shipped(stored, journal, op)
    if op.kind == "sync":
        return ((stored, journal),)
    names: dict[str, int] = dict(stored)
    for change in journal:
        _carry_out(names, change)
    before = dict(names)
    if _carry_out(names, op) != op.result and op.result is not None:
        return ()
    return (_settled(stored, journal if names == before else (*journal, op), mortal),)


def _settled(stored: Names, journal: Journal, mortal: Collection[str] | None) -> tuple[Names, Journal]:
    """What leads the journal and is of a client that is never lost might as well be at the server."""
    if mortal is None or not journal or journal[0].client in mortal:
        return stored, journal
    names = dict(stored)
    at = 0
    while at < len(journal) and journal[at].client not in mortal:
        _carry_out(names, journal[at])
        at += 1
    return tuple(sorted(names.items())), journal[at:]


def _carry_out(names: dict[str, int], op: Operation) -> object:
    result = _TREE[op.kind](names, op.argument, op.result)
    for slot, ino in names.items():
        if ino == UNKNOWN:
            names[slot] = -1 - int(op.start)  # an inode of its own, whose number nobody has seen yet
    return result


def directories_of(op: Operation) -> set[str]:
    """Where the operation looks or changes something."""
    if op.kind in ("list", "sync"):
        return {str(op.argument)}
    parts = op.argument if isinstance(op.argument, tuple) else (op.argument,)
    return {part.split("/")[0] for part in parts if isinstance(part, str)}


def _shipped(stored: Names, journal: Journal, op: Operation) -> tuple[Names, Journal]:
    """What must be at the server before the operation: of another client all up to its last change in these directories; of
    its own only for a sync."""
    wanted = directories_of(op)
    last: dict[str, int] = {}
    for at, change in enumerate(journal):
        if directories_of(change) & wanted and (change.client == op.client) == (op.kind == "sync"):
            last[change.client] = at
    if not last:
        return stored, journal
    names = dict(stored)
    rest: list[Operation] = []
    for at, change in enumerate(journal):
        if at <= last.get(change.client, -1):
            _carry_out(names, change)
        else:
            rest.append(change)
    return tuple(sorted(names.items())), tuple(rest)


def _cuts(stored: Names, journal: Journal, client: str) -> list[Hashable]:
    """The client is gone: some beginning of its journal is at the server, the rest is nowhere."""
    own = [at for at, change in enumerate(journal) if change.client == client]
    states: list[Hashable] = []
    for kept in range(len(own), -1, -1):
        names = dict(stored)
        for at in own[:kept]:
            _carry_out(names, journal[at])
        others = tuple(change for change in journal if change.client != client)
        states.append((tuple(sorted(names.items())), others))
    return states


def _create(names: dict[str, int], slot: str, result: object) -> object:
    if slot in names:
        return "AlreadyExists"
    names[slot] = result if isinstance(result, int) else UNKNOWN
    return result if isinstance(result, int) else "ok"


def _unlink(names: dict[str, int], slot: str, _: object) -> object:
    return "ok" if names.pop(slot, None) is not None else "NotFound"


def _lookup(names: dict[str, int], slot: str, result: object) -> object:
    if names.get(slot, 0) < 0 and isinstance(result, int):
        names[slot] = result  # made by a request whose answer never came
    return names.get(slot, "NotFound")


def _rename(names: dict[str, int], slots: tuple[str, str], _: object) -> object:
    old, new = slots
    if old not in names:
        return "NotFound"
    if names.get(new) != names[old]:  # two names of one inode: rename does nothing
        names[new] = names.pop(old)
    return "ok"


def _rename_new(names: dict[str, int], slots: tuple[str, str], _: object) -> object:
    old, new = slots
    if old not in names:
        return "NotFound"
    if new in names:
        return "AlreadyExists"
    names[new] = names.pop(old)
    return "ok"


def _exchange(names: dict[str, int], slots: tuple[str, str], _: object) -> object:
    old, new = slots
    if old not in names or new not in names:
        return "NotFound"
    names[old], names[new] = names[new], names[old]
    return "ok"


def _link_inode(names: dict[str, int], argument: tuple[int, str], _: object) -> object:
    ino, new = argument
    if ino not in names.values():
        return "NotFound"
    if new in names:
        return "AlreadyExists"
    names[new] = ino
    return "ok"


_TREE: dict[str, Callable[..., object]] = {
    "create": _create,
    "unlink": _unlink,
    "lookup": _lookup,
    "rename": _rename,
    "rename_new": _rename_new,
    "exchange": _exchange,
    "link_inode": _link_inode,
}


def explain(operations: Iterable[Operation], initial: Hashable, step: Step) -> list[Operation]:
    """The shortest prefix (by end time) that is not linearizable, for people to read."""
    ops = sorted(operations, key=lambda op: op.start)
    ends = sorted({op.end for op in ops if op.end < inf})
    low, high = 0, len(ends) - 1
    while low < high:
        middle = (low + high) // 2
        if _possible_until(ops, ends[middle], initial, step):
            low = middle + 1
        else:
            high = middle
    return _until(ops, ends[low]) if ends else ops


def _until(ops: list[Operation], time: float) -> list[Operation]:
    return [op if op.end <= time else op._replace(end=inf) for op in ops if op.start <= time]


def _possible_until(ops: list[Operation], time: float, initial: Hashable, step: Step) -> bool:
    pending = [op for op in _until(ops, time) if op.end < inf or op.kind not in ("read", "lookup")]
    return linearizable(pending, initial, step)
