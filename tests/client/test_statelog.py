"""The write-back log's records and segments, without a client."""

import shutil

import pytest

from fsd.client.state import Basis
from fsd.client.statelog import KEEP_SEGMENTS, StateLog, read, records
from fsd.core.errors import CorruptData, DirectoryInUse, FsError
from fsd.core.ids import LayerId, PoolId, RequestNumber, SessionId
from fsd.namespace.records import Volume
from fsd.runtime.localstate import LocalState
from fsd.runtime.state import SEGMENT_BYTES
from fsd.wire.codec import decode, encode
from tests.fakes import MemoryState


def make(directory, *, live=None, segment=1, number=1, limit=1000):
    """A log whose keys are ("k", n) with the value live[n]."""
    live = {} if live is None else live
    log: list[StateLog] = []

    def relog(key):
        log[0].append(2, b"again %d" % key[1], live[key[1]])
        log[0].hold(key)

    made = StateLog(
        directory,
        segment=segment,
        number=number,
        basis=lambda: (1, b"basis"),
        relog=relog,
        is_bulk=lambda key: False,
        retiring=lambda segment: None,
        limit=limit,
    )
    log.append(made)
    return made


def test_what_was_stored_is_read_in_its_order():
    state = MemoryState()
    log = make(state.life())
    log.append(7, b"meta", b"data")
    log.append(8, b"", b"")
    assert [(r.kind, r.number, r.meta, bytes(r.data)) for r in read(state.life())] == [
        (1, 1, b"basis", b""),
        (7, 2, b"meta", b"data"),
        (8, 3, b"", b""),
    ]


def test_the_bytes_of_a_record_are_pinned():
    state = MemoryState()
    make(state.life(), number=258).append(9, b"me", b"data")
    assert bytes(state.kept[1][37:83]).hex() == (
        "c538fd0b" "09000000" "02000000" "04000000" "0301000000000000" "6d65" "64617461" "0301000000000000"
    ) + "00" * 8  # fmt: skip


def test_the_bytes_of_a_basis_are_pinned():
    volume = Volume("v", LayerId(1), PoolId(2), 2, 1)
    basis = Basis(SessionId(5), b"s", 10.0, "fs", volume, 4096, 2, RequestNumber(9), 7, RequestNumber(8), 8, 1, 3)
    assert decode(Basis, encode(basis)) == basis
    beside_the_volume = encode(basis).hex().replace(encode(volume).hex(), " ")
    assert beside_the_volume == "9d05c40173cb4024000000000000a26673 cd100002090708080103"


@pytest.mark.parametrize("torn", [8, 9, 11, 13, 40])
def test_a_record_that_is_not_whole_is_not_there(torn):
    state = MemoryState()
    log = make(state.life())
    log.append(2, b"first", b"")
    end = log._at
    log.append(3, b"meta", b"data")
    assert log._at - end == 40
    state.kept[1][log._at - torn : log._at] = bytes(torn)
    assert [r.kind for r in records(memoryview(state.kept[1]))] == [1, 2]


def test_a_long_record_begins_a_new_segment_and_old_ones_go():
    state = MemoryState()
    log = make(state.life())
    for at in range(40):
        log.append(2, b"%d" % at, bytes(1 << 20))
    assert len(log) <= 4
    assert {r.kind for r in read(state.life())} == {1, 2}
    assert [r.meta for r in read(state.life())][-1] == b"39"


def test_what_is_live_is_written_again_at_the_head():
    state = MemoryState()
    log = make(state.life(), live={1: b"precious"})
    log.append(2, b"first", b"precious")
    log.hold(("k", 1))
    for at in range(KEEP_SEGMENTS * 8):
        log.append(3, b"%d" % at, bytes(1 << 20))
    found = [bytes(r.data) for r in read(state.life()) if r.kind == 2]
    assert found
    assert set(found) == {b"precious"}
    log.let_go(("k", 1))
    for at in range(KEEP_SEGMENTS * 8):
        log.append(3, b"%d" % at, bytes(1 << 20))
    assert not [r for r in read(state.life()) if r.kind == 2]


def test_a_recycled_segment_shows_nothing_of_its_past():
    state = MemoryState()
    log = make(state.life())
    for _ in range(30):
        log.append(2, b"old", bytes(1 << 20))
    numbers = [r.number for r in read(state.life())]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_records_that_are_missing_in_between_are_noticed():
    state = MemoryState()
    log = make(state.life())
    for at in range(12):
        log.append(2, b"%d" % at, bytes(1 << 20))
        log.hold(("k", at))
    state.kept[2][:64] = bytes(64)
    with pytest.raises(CorruptData):
        list(read(state.life()))


def test_segments_of_a_local_directory_outlive_their_process(tmp_path):
    first = LocalState(str(tmp_path / "state"))
    make(first).append(5, b"meta", b"data")
    first.close()
    second = LocalState(str(tmp_path / "state"))
    assert second.segments() == [1]
    assert [r.kind for r in read(second)] == [1, 5]
    log = make(second, segment=2, number=3)
    log.append(6, b"", b"")
    assert [r.kind for r in read(second)] == [1, 5, 1, 6]
    log.adopt([1])
    assert (tmp_path / "state" / "000000000002.state").stat().st_size == SEGMENT_BYTES
    with pytest.raises(DirectoryInUse):
        LocalState(str(tmp_path / "state"))
    log.clear()
    assert second.segments() == []
    second.close()


def test_a_local_directory_that_somebody_removes_ends_the_log_and_nothing_else(tmp_path):
    directory = LocalState(str(tmp_path / "state"))
    log = make(directory)
    shutil.rmtree(tmp_path / "state")
    log.append(2, b"in memory still", b"")
    for _ in range(3):
        log.append(3, b"", bytes(1 << 20))
    with pytest.raises(FsError):
        log.append(3, b"", bytes(1 << 20))
    assert directory.segments() == []
    log.clear()
    directory.close()
