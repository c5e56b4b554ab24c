"""What flushes in two phases leave in a store and in a cluster: prepared, applied, dropped; through crashes and fail-over."""

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkserver.index import ChunkRecord
from chunkserver.pending import Pending, decode_pending, encode_pending, merged
from fsd.core.checksum import block_checksums
from fsd.core.errors import CorruptData, InvalidArgument
from fsd.core.ids import NO_ORDER, ChunkId, DataId, Ino, LayerId, SessionId
from fsd.core.units import BLOCK_SIZE
from fsd.protocol.chunk import Change, FlushId, PendingPart, Resolve
from fsd.protocol.cluster import Fate
from tests.chunkserver.cluster import cluster
from tests.chunkserver.test_store import CHUNK_SIZE, PG, VERSIONS, A, assert_blocks_add_up, content, fill, opened
from tests.fakes import MemoryDirectory

FLUSH = FlushId(LayerId(1), Ino(5), SessionId(7), 3)
C, D = ChunkId(DataId(5), 0), ChunkId(DataId(5), 1)


# --- the record -------------------------------------------------------------------------------------------------------


def test_a_pending_state_comes_back_and_every_flipped_bit_is_seen():
    pending = Pending(FLUSH, ((0, 5), (100, 7)), ChunkRecord(NO_ORDER, 0, (), (), (), 3))
    value = encode_pending(pending)
    assert decode_pending(value) == pending
    for at in range(len(value)):
        flipped = bytearray(value)
        flipped[at] ^= 1
        with pytest.raises(CorruptData):
            decode_pending(bytes(flipped))
    for length in range(len(value)):
        with pytest.raises(CorruptData):
            decode_pending(value[:length])


def test_extents_are_merged():
    assert merged([(10, 5), (0, 4), (4, 6), (30, 1), (12, 1)]) == ((0, 15), (30, 1))


# --- one store --------------------------------------------------------------------------------------------------------


async def change(store, kind, offset=0, data=b"", **options):
    async with store.locked(PG, A):
        sums = block_checksums(data, offset)
        prepared = await store.prepare(PG, A, kind, offset, options.pop("length", 0), data, sums, **options)
        await store.commit(prepared, VERSIONS.next(), ())
    await store.durable()


async def pending_bytes(store):
    found = await store.read_pending(store.look(PG, A))
    return bytes(found.data)


OFFSETS = st.one_of(st.integers(0, CHUNK_SIZE - 1), st.sampled_from([0, BLOCK_SIZE, 2 * BLOCK_SIZE]))
SIZES = st.one_of(st.integers(1, 300), st.integers(1, CHUNK_SIZE), st.sampled_from([BLOCK_SIZE, 2 * BLOCK_SIZE]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "prepare"]), OFFSETS, SIZES, st.integers(0, 255)),
        st.tuples(st.sampled_from(["apply", "drop", "restart", "copy"])),
        st.tuples(st.just("cut"), OFFSETS),
    ),
    max_size=20,
)


class Model:
    """A chunk, and the chunk as it will be."""

    def __init__(self):
        self.shown = bytearray()
        self.pending = None

    def resolve(self, how):
        if self.pending is not None and how is Resolve.APPLY:
            self.shown = self.pending
        self.pending = None

    @staticmethod
    def write(state, offset, data):
        state.extend(bytes(max(0, offset + len(data) - len(state))))
        state[offset : offset + len(data)] = data


async def run(steps, resolve):
    directory, model, position = MemoryDirectory(segment_limit=20), Model(), 0
    while position < len(steps) or position == 0:
        async with opened(directory) as (store, damaged):
            assert not damaged
            await compare(store, model)
            while position < len(steps):
                name, *arguments = steps[position]
                position += 1
                if name == "restart":
                    break
                await step(store, model, name, arguments, resolve)
                await compare(store, model)
            position = position or 1
            assert_blocks_add_up(store)


async def compare(store, model):
    assert await content(store, A) == bytes(model.shown)
    pending = store.look(PG, A).pending
    assert (pending is None) == (model.pending is None)
    if pending is not None:
        expected = b"".join(bytes(model.pending[start : start + length]) for start, length in pending.extents)
        assert await pending_bytes(store) == expected


async def step(store, model, name, arguments, resolve):
    if name in ("write", "prepare"):
        offset, size, seed = arguments
        data = fill(seed, min(size, CHUNK_SIZE - offset))
        if name == "write":
            await change(store, Change.WRITE, offset, data, resolve=resolve)
            model.resolve(resolve)
            model.write(model.shown, offset, data)
        else:
            await change(store, Change.PREPARE, offset, data, flush=FLUSH)
            model.pending = bytearray(model.shown if model.pending is None else model.pending)
            model.write(model.pending, offset, data)
    elif name in ("apply", "drop"):
        how = Resolve.APPLY if name == "apply" else Resolve.DROP
        await change(store, Change.RESOLVE, resolve=how)
        model.resolve(how)
    elif name == "cut":
        await change(store, Change.TRUNCATE, length=arguments[0], resolve=resolve)
        model.resolve(resolve if arguments[0] else Resolve.DROP)
        del model.shown[arguments[0] :]
    elif name == "copy":  # as another member gets it
        snapshot = store.look(PG, A)
        shown = await store.read(snapshot, 0, CHUNK_SIZE)
        rest = await store.read_pending(snapshot)
        part = None
        if snapshot.pending is not None:
            part = PendingPart(snapshot.pending.flush, snapshot.pending.extents, rest.checksums)
        await change(store, Change.WHOLE, 0, b"", pending=None)
        async with store.locked(PG, A):
            data = bytes(shown.data) + bytes(rest.data)
            prepared = await store.prepare(PG, A, Change.WHOLE, 0, 0, data, shown.checksums, pending=part)
            await store.commit(prepared, VERSIONS.next(), ())
        await store.durable()


@given(STEPS, st.sampled_from([Resolve.APPLY, Resolve.DROP]))
@settings(max_examples=150, deadline=None)
def test_a_store_with_pending_states_is_like_two_bytearrays(steps, resolve):
    trio.run(run, steps, resolve)


def test_nothing_is_laid_over_what_another_flush_has_prepared():
    async def main():
        async with opened(MemoryDirectory()) as (store, _):
            await change(store, Change.WRITE, 0, b"old")
            await change(store, Change.PREPARE, 0, b"new", flush=FLUSH)
            other = FlushId(LayerId(1), Ino(5), SessionId(7), 4)
            for kind, options in ((Change.WRITE, {}), (Change.PREPARE, {"flush": other}), (Change.PREPARE, {})):
                with pytest.raises(InvalidArgument):
                    await change(store, kind, 0, b"x", **options)
            assert await content(store, A) == b"old"

    trio.run(main)


# --- a cluster --------------------------------------------------------------------------------------------------------


async def test_what_is_prepared_shows_when_its_flush_is_committed(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(C, 0, b"old bytes")
        await c.write(C, 0, b"NEW", flush=c.flush(3))
        c.authority.fates[3] = Fate.OPEN
        assert await c.read(C) == b"old bytes"
        await c.check_equal("a", "b")
        c.authority.fates[3] = Fate.COMMITTED
        assert await c.read(C) == b"NEW bytes"
        asked = c.authority.asked
        assert await c.read(C) == b"NEW bytes"
        assert c.authority.asked == asked  # applied: nobody needs to ask again
        await c.check_equal("a", "b")


async def test_what_is_prepared_goes_when_its_flush_is_over(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(C, 0, b"old bytes")
        await c.write(C, 0, b"NEW", flush=c.flush(3))
        assert await c.read(C) == b"old bytes"
        c.authority.fates[3] = Fate.COMMITTED  # too late: it never was
        assert await c.read(C) == b"old bytes"
        await c.check_equal("a", "b")


async def test_a_client_that_knows_says_so_and_nobody_is_asked(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(C, 0, b"old bytes")
        await c.write(C, 0, b"NEW", flush=c.flush(3))
        await c.write(C, 4, b"B", committed=3)
        await c.write(D, 0, b"1234", flush=c.flush(3))
        await c.apply(D, c.flush(3))
        await c.apply(D, c.flush(3))
        await c.apply(D, c.flush(9))
        assert await c.read(C) == b"NEW Bytes"
        assert await c.read(D) == b"1234"
        assert c.authority.asked == 0
        await c.check_equal("a", "b")


async def test_a_request_for_another_session_waits_while_a_flush_is_open(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(C, 0, b"old bytes")
        await c.write(C, 0, b"NEW", flush=c.flush(3, SessionId(8)))
        c.authority.fates[3] = Fate.OPEN
        with trio.move_on_after(5) as scope:
            await c.write(C, 8, b"!")
        assert scope.cancelled_caught
        c.authority.fates[3] = Fate.COMMITTED
        await c.write(C, 8, b"?")
        assert await c.read(C) == b"NEW byte?"


async def test_a_new_primary_has_what_was_prepared(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(C, 0, b"old bytes")
        c.authority.fates[3] = Fate.OPEN
        await c.write(C, 0, b"NEW", flush=c.flush(3))
        first = c.primary(C)
        c.kill(first)
        await c.settle(members=1)
        assert c.primary(C) != first
        assert await c.read(C) == b"old bytes"
        await c.start(first)
        await c.settle(members=2)
        await c.check_equal("a", "b")
        c.authority.fates[3] = Fate.COMMITTED
        second = c.primary(C)
        c.kill(second)
        await c.settle(members=1)
        assert await c.read(C) == b"NEW bytes"


async def test_a_restarted_pair_has_what_was_prepared(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(C, 0, b"old bytes")
        await c.write(C, 0, b"NEW", flush=c.flush(3))
        for name in ("a", "b"):
            c.kill(name, noticed=False)
        for name in ("a", "b"):
            await c.start(name)
        await c.settle(members=2)
        c.authority.fates[3] = Fate.COMMITTED
        assert await c.read(C) == b"NEW bytes"
        await c.check_equal("a", "b")


async def test_what_nobody_meets_is_looked_after(autojump_clock):
    async with cluster("a", "b") as c:
        for chunk, number in ((C, 3), (D, 4)):
            await c.write(chunk, 0, b"old")
            await c.write(chunk, 0, b"NEW", flush=c.flush(number))
        c.authority.fates.update({3: Fate.COMMITTED, 4: Fate.OPEN})
        await trio.sleep(30)
        assert [bytes((await c.copy(name, C)).payload) for name in ("a", "b")] == [b"NEW", b"NEW"]
        assert (await c.copy("a", D)).message.pending is not None
        c.authority.fates[4] = Fate.OVER
        await trio.sleep(30)
        for name in ("a", "b"):
            copy = await c.copy(name, D)
            assert (bytes(copy.payload), copy.message.pending) == (b"old", None)


async def test_cutting_and_removing_meet_what_is_pending(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(C, 0, b"old bytes")
        await c.write(C, 0, b"NEW", flush=c.flush(3))
        c.authority.fates[3] = Fate.COMMITTED
        await c.truncate(C, 5)
        assert await c.read(C) == b"NEW b"
        await c.write(C, 0, b"AGAIN", flush=c.flush(4))
        await c.truncate(C, 0)
        assert await c.read(C) == b""
        assert c.authority.asked == 1
        await c.check_equal("a", "b")


async def test_applying_a_flush_forgets_no_request_number(autojump_clock):
    async with cluster("a", "b") as c:
        await c.write(C, 0, b"first", number=5)
        await c.write(C, 0, b"SECOND", number=6, flush=c.flush(3))
        await c.apply(C, c.flush(3))
        await c.write(C, 0, b"first", number=5)  # late, from a broken connection
        assert await c.read(C) == b"SECOND"
