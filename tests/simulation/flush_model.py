"""A flush in small, looked at in every interleaving: client A flushes, B reads as soon as A's lease is gone.

Each chunk stands for a whole in-sync group. A message, once sent, may be delivered at any later time, any number of times,
or never. Anybody may die at any moment: A for good, a chunk's primary for a restart (its promise to have fetched the map
before it serves included), the session by eviction. Values are numbers of flushes, so what B sees tells which flush it
belongs to.

`explore(flushes)` visits every reachable state and returns the first that breaks a rule, with the way to it:

    all or nothing     what B sees is the file as it was behind one and the same flush
    nothing is lost    of a flush whose fsync returned before B got the lease, B sees all
    no late surprise   what A is told is done, after B began to look, B can see
"""

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fsd.client.flushes import to_prepare

CHUNKS = (0, 1)


@dataclass(frozen=True)
class Flush:
    """`overwrites`: chunks with bytes below the size; `appends`: with bytes behind it; `aborted`: A gives it up after any
    part of it was sent (no space for the rest), and goes on."""

    overwrites: tuple[int, ...] = ()
    appends: tuple[int, ...] = ()
    resizes: bool = False
    aborted: bool = False

    def prepared(self, bugs: Collection[str]) -> tuple[int, ...]:
        if "never two phases" in bugs:
            return ()
        return tuple(to_prepare(list(self.overwrites), resizes=self.resizes))

    def chunks(self) -> tuple[int, ...]:
        return tuple(sorted({*self.overwrites, *self.appends}))


class Pending(NamedTuple):
    flush: int
    shown: int
    tail: int


class Chunk(NamedTuple):
    """`shown`, `tail`: the flush that wrote the bytes below and behind the first size. `unsynced`: a state that a restart
    forgets (only with a bug)."""

    shown: int = 0
    tail: int = 0
    pending: Pending | None = None
    number: int = 0
    fenced: bool = False
    up: bool = True
    unsynced: Pending | None = None


class State(NamedTuple):
    """`at`: the flush that A is at, counted from 1; `phase`: 0 nothing sent, 1 bytes sent, 2 commit sent; 9: A is dead."""

    net: frozenset[tuple[object, ...]] = frozenset()
    at: int = 1
    phase: int = 0
    acked: int = 0
    size: int = 0
    records: frozenset[int] = frozenset()
    fenced: bool = False
    chunks: tuple[Chunk, ...] = (Chunk(), Chunk())
    granted: bool = False
    acked_at_grant: int = 0
    seen_size: int = 0
    seen: tuple[tuple[int, int] | None, ...] = (None, None)


Step = tuple[str, State]


@dataclass(frozen=True)
class Model:
    flushes: tuple[Flush, ...]
    bugs: frozenset[str] = frozenset()

    def steps(self, s: State) -> Iterator[Step]:
        yield from self._client(s)
        yield from self._metadata(s)
        for index in CHUNKS:
            yield from self._chunk(s, index)
            yield from self._reader(s, index)

    # --- client A -----------------------------------------------------------------------------------------------------

    def _flush(self, s: State) -> Flush:
        return self.flushes[s.at - 1]

    def _client(self, s: State) -> Iterator[Step]:
        if s.phase == 9 or s.at > len(self.flushes):
            return
        flush, prepared = self._flush(s), self._flush(s).prepared(self.bugs)
        yield "A dies", s._replace(phase=9)
        if s.phase == 0:
            hint = max(
                (n for n in range(1, s.at) if self._is_two_phase(n) and not self.flushes[n - 1].aborted), default=0
            )
            sent = {("write", c, s.at, c in prepared, hint) for c in flush.chunks()}
            yield f"A sends flush {s.at}", s._replace(net=s.net | sent, phase=1)
        elif s.phase == 1 and flush.aborted:
            yield f"A gives flush {s.at} up", s._replace(at=s.at + 1, phase=0)
        elif s.phase == 1 and (
            {("wrote", c, s.at) for c in flush.chunks()} <= s.net or "commit before prepared" in self.bugs
        ):
            if prepared or flush.resizes:
                yield f"A commits {s.at}", s._replace(net=s.net | {("commit", s.at)}, phase=2)
            else:
                yield f"A's fsync {s.at} returns", self._done(s)
        elif s.phase == 2 and ("committed", s.at) in s.net:
            applies = {("apply", c, s.at) for c in prepared}
            yield f"A's fsync {s.at} returns", self._done(s._replace(net=s.net | applies))

    def _is_two_phase(self, number: int) -> bool:
        return bool(self.flushes[number - 1].prepared(self.bugs))

    def _done(self, s: State) -> State:
        return s._replace(acked=s.at, at=s.at + 1, phase=0)

    # --- the metadata server ------------------------------------------------------------------------------------------

    def _metadata(self, s: State) -> Iterator[Step]:
        for number, flush in enumerate(self.flushes, 1):
            asked = ("commit", number) in s.net and number not in s.records and ("committed", number) not in s.net
            if asked and (not s.fenced or "commit of the fenced" in self.bugs):
                size = number if flush.resizes else s.size
                net = s.net | {("committed", number)}
                yield f"flush {number} is committed", s._replace(net=net, size=size, records=s.records | {number})
        if not s.fenced:
            yield "A is evicted", s._replace(fenced=True)
        released = s.at > len(self.flushes) and s.phase == 0
        if not s.granted and (s.fenced or released):
            yield "B gets the lease", s._replace(granted=True, acked_at_grant=s.acked, seen_size=s.size)

    def _fate(self, s: State, pending: Pending) -> str:
        if pending.flush in s.records:
            return "dead" if "drop the committed" in self.bugs else "committed"
        return "committed" if "apply without a record" in self.bugs else "absent"

    # --- chunkservers -------------------------------------------------------------------------------------------------

    def _put(self, s: State, index: int, chunk: Chunk, *sent: tuple[object, ...]) -> State:
        chunks = tuple(chunk if i == index else other for i, other in enumerate(s.chunks))
        return s._replace(chunks=chunks, net=s.net | set(sent))

    def _chunk(self, s: State, index: int) -> Iterator[Step]:
        chunk = s.chunks[index]
        if not chunk.up:
            yield f"{index} fetches the map", self._put(s, index, chunk._replace(up=True, fenced=s.fenced))
            return
        if ("crash", index) not in s.net:
            fresh = "serve before the map" in self.bugs
            back = chunk._replace(up=fresh, fenced=False)
            if chunk.unsynced is not None:
                back = back._replace(pending=None, unsynced=None)
            yield f"{index} restarts", self._put(s, index, back, ("crash", index))
        for number, flush in enumerate(self.flushes, 1):
            for message in s.net:
                if message[0] == "write" and message[1] == index and message[2] == number:
                    yield from self._write(s, index, chunk, flush, message)
            if ("apply", index, number) in s.net and chunk.pending is not None and chunk.pending.flush == number:
                yield f"{index} applies {number}", self._put(s, index, _applied(chunk))

    def _write(self, s: State, index: int, chunk: Chunk, flush: Flush, message: tuple[object, ...]) -> Iterator[Step]:
        _, _, number, prepared, hint = message
        assert isinstance(number, int)
        if chunk.fenced:
            return
        if number <= chunk.number:  # R11
            yield f"{index} answers {number} again", self._put(s, index, chunk, ("wrote", index, number))
            return
        if chunk.pending is not None:
            known = chunk.pending.flush == hint or "a later write means yes" in self.bugs
            keep = known or self._fate(s, chunk.pending) == "committed"
            chunk = _applied(chunk) if keep and "drop at the next write" not in self.bugs else _dropped(chunk)
        shown = number if index in flush.overwrites else chunk.shown
        tail = number if index in flush.appends else chunk.tail
        if prepared:
            pending = Pending(number, shown, tail)
            lazy = pending if "answer before it is durable" in self.bugs else None
            after = chunk._replace(pending=pending, number=number, unsynced=lazy)
        else:
            after = chunk._replace(shown=shown, tail=tail, number=number)
        yield f"{index} takes {number}", self._put(s, index, after, ("wrote", index, number))

    # --- client B -----------------------------------------------------------------------------------------------------

    def _reader(self, s: State, index: int) -> Iterator[Step]:
        chunk = s.chunks[index]
        if not s.granted or s.seen[index] is not None or not chunk.up:
            return
        if "no barrier" not in self.bugs and s.fenced:
            chunk = chunk._replace(fenced=True)  # B's request names a map with the fence
        if chunk.pending is not None and "read around what is pending" not in self.bugs:
            fate = self._fate(s, chunk.pending)
            if fate == "committed":
                chunk = _applied(chunk)
            elif s.fenced or fate == "dead":
                chunk = _dropped(chunk)
        seen = tuple((chunk.shown, chunk.tail) if i == index else other for i, other in enumerate(s.seen))
        yield f"B reads {index}", self._put(s, index, chunk)._replace(seen=seen)

    # --- rules --------------------------------------------------------------------------------------------------------

    def broken(self, s: State) -> str | None:
        if None in s.seen:
            return None
        boundaries = [n for n in range(len(self.flushes) + 1) if n == 0 or not self.flushes[n - 1].aborted]
        matching = [n for n in boundaries if self._looks_like(s, n)]
        if not matching:
            return f"B sees a piece of a flush: {s.seen}, size {s.seen_size}"
        if max(matching) < s.acked_at_grant:
            return f"B sees flush {max(matching)}, {s.acked_at_grant} was answered before"
        if max(matching) < s.acked:
            return f"B sees flush {max(matching)}, {s.acked} was answered when B could not see it any more"
        return None

    def _looks_like(self, s: State, boundary: int) -> bool:
        done = [(n, f) for n, f in enumerate(self.flushes[:boundary], 1) if not f.aborted]
        if s.seen_size != max((n for n, f in done if f.resizes), default=0):
            return False
        for index in CHUNKS:
            seen = s.seen[index]
            assert seen is not None
            if seen[0] != max((n for n, f in done if index in f.overwrites), default=0):
                return False
            tail = max((n for n, f in done if index in f.appends), default=0)
            if tail and seen[1] < tail:  # behind the size there may be more than was committed, never less before it
                return False
        return True


def _applied(chunk: Chunk) -> Chunk:
    assert chunk.pending is not None
    return chunk._replace(shown=chunk.pending.shown, tail=chunk.pending.tail, pending=None, unsynced=None)


def _dropped(chunk: Chunk) -> Chunk:
    return chunk._replace(pending=None, unsynced=None)


class Result(NamedTuple):
    states: int
    broken: str | None
    trace: tuple[str, ...]


def explore(*flushes: Flush, bugs: Collection[str] = ()) -> Result:
    """Breadth first, so the trace is a shortest one."""
    model = Model(flushes, frozenset(bugs))
    first = State()
    before: dict[State, tuple[State, str] | None] = {first: None}
    queue = deque([first])
    while queue:
        state = queue.popleft()
        fault = model.broken(state)
        if fault is not None:
            return Result(len(before), fault, _trace(before, state))
        for name, after in model.steps(state):
            if after not in before:
                before[after] = (state, name)
                queue.append(after)
    return Result(len(before), None, ())


def _trace(before: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    names: list[str] = []
    while (step := before[state]) is not None:
        state, name = step
        names.append(name)
    return tuple(reversed(names))
