"""The dirty map against a bytearray with a mask."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fsd.client.writeback import DirtyMap

CHUNK = 16
SPAN = 100


class AgainstBytes(RuleBasedStateMachine):
    """`model` is the file's dirty bytes, None where nothing is dirty; `taken` those of a flush under way."""

    def __init__(self) -> None:
        super().__init__()
        self.map = DirtyMap(CHUNK)
        self.model: list[int | None] = [None] * SPAN
        self.taken: DirtyMap | None = None
        self.taken_model: list[int | None] = [None] * SPAN

    @rule(offset=st.integers(0, SPAN - 1), data=st.binary(min_size=1, max_size=40))
    def write(self, offset: int, data: bytes) -> None:
        data = data[: SPAN - offset]
        self.map.write(offset, data)
        self.model[offset : offset + len(data)] = list(data)

    @rule(size=st.integers(0, SPAN))
    def cut(self, size: int) -> None:
        self.map.cut(size)
        self.model[size:] = [None] * (SPAN - size)

    @rule(limit=st.integers(1, 60))
    def take(self, limit: int) -> None:
        if self.taken is not None:
            return
        self.taken = self.map.take(limit)
        self.taken_model = [None] * SPAN
        for extent in self.taken.all_extents():
            for i in range(extent.file_offset, extent.end):
                assert extent.data[i - extent.file_offset] == self.model[i]
                self.taken_model[i], self.model[i] = self.model[i], None
        if self.map:
            assert self.taken
            assert self.map.start >= self.taken.end

    @rule()
    def succeed(self) -> None:
        self.taken = None

    @rule()
    def fail(self) -> None:
        if self.taken is None:
            return
        self.map.put_below(self.taken)
        self.model = [new if new is not None else old for new, old in zip(self.model, self.taken_model, strict=True)]
        self.taken = None

    @rule(start=st.integers(0, SPAN - 1), length=st.integers(1, 50))
    def read(self, start: int, length: int) -> None:
        end = min(SPAN, start + length)
        buffer = bytearray(end - start)
        self.map.overlay(start, buffer)
        wanted = self.model[start:end]
        assert list(buffer) == [byte or 0 for byte in wanted]
        assert self.map.covers(start, end) == all(byte is not None for byte in wanted)
        part = self.map.copy(start, end)
        assert part.size_bytes == sum(byte is not None for byte in wanted)

    @invariant()
    def extents_are_sorted_apart_and_within_chunks(self) -> None:
        last_end, total = -1, 0
        for extent in self.map.all_extents():
            assert extent.data
            assert extent.file_offset > last_end or (extent.file_offset == last_end and extent.file_offset % CHUNK == 0)
            assert extent.file_offset // CHUNK == (extent.end - 1) // CHUNK
            last_end, total = extent.end, total + len(extent.data)
        assert total == self.map.size_bytes
        assert bool(self.map) == (total > 0)
        dirty = [i for i, byte in enumerate(self.model) if byte is not None]
        assert self.map.end == (dirty[-1] + 1 if dirty else 0)
        if dirty:
            assert self.map.start == dirty[0]


TestAgainstBytes = AgainstBytes.TestCase
TestAgainstBytes.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=20))
def test_a_sequential_writer_makes_one_extent_for_each_chunk(pieces: list[bytes]) -> None:
    dirty = DirtyMap(CHUNK)
    data = b""
    for piece in pieces:
        dirty.write(len(data), piece)
        data += piece
    assert [len(dirty.extents(chunk)) for chunk in dirty.chunks()] == [1] * -(-len(data) // CHUNK)
    assert b"".join(bytes(extent.data) for extent in dirty.all_extents()) == data


def test_giving_back_leaves_buffers_that_are_still_being_sent_alone() -> None:
    dirty = DirtyMap(CHUNK)
    dirty.write(0, b"abc")
    taken = dirty.take(100)
    being_sent = memoryview(taken.extents(0)[0].data)
    dirty.write(2, b"Xdef")
    dirty.put_below(taken)
    assert bytes(being_sent) == b"abc"
    assert bytes(dirty.extents(0)[0].data) == b"abXdef"
