"""RocksDB's guards: what was promised to be durable is there, or the store says so."""

import glob
import os
import shutil
import signal
import subprocess
import sys

import pytest
import trio

from fsd.core.errors import CorruptData, DiskFailed
from fsd.runtime.rocks import RocksKeyValue
from fsd.runtime.storage import KeyChange

FAMILIES = ("one", "two")


async def filled(path, count: int) -> None:
    """`count` durable batches, then an image of the directory as a crash would leave it, in `path`."""
    store = RocksKeyValue(f"{path}.live", FAMILIES)
    for number in range(count):
        store.apply([KeyChange("one", b"%06d" % number, os.urandom(100)), KeyChange("two", b"%06d" % number, b"x")])
        await store.durable()
    shutil.copytree(f"{path}.live", path)
    await store.aclose()


async def test_what_was_applied_is_there_after_reopening(tmp_path):
    store = RocksKeyValue(str(tmp_path / "kv"), FAMILIES)
    store.apply([KeyChange("one", b"a", b"1"), KeyChange("two", b"a", b"2")])
    store.apply([KeyChange("one", b"a", None), KeyChange("one", b"b", b"3")])
    assert store.applied_sequence == 2
    assert store.durable_sequence == 0
    await store.durable()
    assert store.durable_sequence == 2
    await store.aclose()
    again = RocksKeyValue(str(tmp_path / "kv"), FAMILIES)
    assert again.get("one", b"a") is None
    assert again.get("two", b"a") == b"2"
    assert again.scan("one", b"", b"\xff", 10) == [(b"b", b"3")]
    assert again.applied_sequence == 2
    await again.aclose()


async def test_what_was_frozen_stays_as_it_was_in_all_families(tmp_path):
    store = RocksKeyValue(str(tmp_path / "kv"), FAMILIES)
    store.apply([KeyChange("one", b"a", b"1"), KeyChange("two", b"a", b"1")])
    frozen = store.freeze()
    store.apply([KeyChange("one", b"a", b"2"), KeyChange("one", b"b", b"2"), KeyChange("two", b"a", None)])
    assert frozen.scan("one", b"", b"\xff", 10) == [(b"a", b"1")]
    assert frozen.scan("two", b"", b"\xff", 10) == [(b"a", b"1")]
    assert store.scan("one", b"", b"\xff", 10) == [(b"a", b"2"), (b"b", b"2")]
    frozen.close()
    await store.aclose()
    await RocksKeyValue(str(tmp_path / "kv"), FAMILIES).aclose()


async def test_many_waiters_share_a_sync(tmp_path):
    store = RocksKeyValue(str(tmp_path / "kv"), FAMILIES)

    async def one(number):
        await store.durable(store.apply([KeyChange("one", b"%d" % number, b"x")]))

    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(one, number)
    assert store.durable_sequence == 300
    assert store._syncs < 100
    await store.aclose()


async def test_a_cancelled_waiter_leaves_the_store_usable(tmp_path):
    store = RocksKeyValue(str(tmp_path / "kv"), FAMILIES)
    store.apply([KeyChange("one", b"a", b"1")])
    with trio.move_on_after(0):
        await store.durable()
    await store.durable()
    assert store.durable_sequence == 1
    await store.aclose()


async def test_a_removed_write_ahead_log_is_noticed(tmp_path):
    await filled(str(tmp_path / "kv"), 300)
    for log in glob.glob(str(tmp_path / "kv/*.log")):
        os.unlink(log)
    with pytest.raises(CorruptData, match="promised to be durable"):
        RocksKeyValue(str(tmp_path / "kv"), FAMILIES)


async def test_a_flipped_bit_in_the_middle_of_the_log_is_noticed(tmp_path):
    await filled(str(tmp_path / "kv"), 300)
    log = max(glob.glob(str(tmp_path / "kv/*.log")), key=os.path.getsize)
    with open(log, "r+b") as file:
        file.seek(os.path.getsize(log) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CorruptData):
        RocksKeyValue(str(tmp_path / "kv"), FAMILIES)


async def test_a_torn_tail_is_only_what_was_never_promised(tmp_path):
    await filled(str(tmp_path / "kv"), 10)
    log = max(glob.glob(str(tmp_path / "kv/*.log")), key=os.path.getsize)
    os.truncate(log, os.path.getsize(log) - 7)
    try:
        store = RocksKeyValue(str(tmp_path / "kv"), FAMILIES)
    except CorruptData:
        return  # the floor had reached the torn batch: refusing is right
    assert store.applied_sequence == 9
    assert store.get("one", b"%06d" % 8) is not None
    assert store.get("two", b"%06d" % 9) is None
    await store.aclose()


async def test_a_damaged_floor_is_refused(tmp_path):
    await filled(str(tmp_path / "kv"), 70)
    with open(tmp_path / "kv/floor", "r+b") as file:
        file.write(b"xx")
    with pytest.raises(CorruptData, match="floor"):
        RocksKeyValue(str(tmp_path / "kv"), FAMILIES)


async def test_a_scan_over_a_damaged_table_fails_instead_of_ending_early(tmp_path):
    store = RocksKeyValue(str(tmp_path / "kv"), FAMILIES)
    for start in range(0, 20_000, 500):
        store.apply([KeyChange("one", b"%06d" % number, os.urandom(100)) for number in range(start, start + 500)])
    store._families["one"].flush()
    await store.aclose()
    table = max(glob.glob(str(tmp_path / "kv/*.sst")), key=os.path.getsize)
    with open(table, "r+b") as file:
        file.seek(os.path.getsize(table) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    store = RocksKeyValue(str(tmp_path / "kv"), FAMILIES)
    with pytest.raises(CorruptData):
        store.scan("one", b"", b"\xff", 100_000)
    await store.aclose()


async def test_a_failed_sync_ends_the_store_for_good(tmp_path, monkeypatch):
    store = RocksKeyValue(str(tmp_path / "kv"), FAMILIES)
    store.apply([KeyChange("one", b"a", b"1")])

    def broken(covered):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store, "_sync", broken)
    with pytest.raises(DiskFailed):
        await store.durable()
    monkeypatch.undo()
    with pytest.raises(DiskFailed):
        await store.durable()
    with pytest.raises(DiskFailed):
        store.apply([KeyChange("one", b"b", b"1")])
    await store.aclose()


WRITER = """
import sys, trio
from fsd.runtime.rocks import RocksKeyValue
from fsd.runtime.storage import KeyChange

async def main():
    store = RocksKeyValue(sys.argv[1], ("one", "two"))
    number = store.applied_sequence
    for old in range(number):
        assert store.get("one", b"%d" % old) == b"a%d" % old and store.get("two", b"%d" % old) == b"b%d" % old, old
    print("holds", number, flush=True)
    while True:
        store.apply([KeyChange("one", b"%d" % number, b"a%d" % number), KeyChange("two", b"%d" % number, b"b%d" % number)])
        await store.durable()
        number += 1
        print("durable", number, flush=True)

trio.run(main)
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_durable(tmp_path):
    promised = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "kv")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        word, holds = process.stdout.readline().split()
        assert word == "holds"
        assert int(holds) >= promised
        for _ in range(40):
            promised = int(process.stdout.readline().split()[1])
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")
        promised = max([promised, *[int(line.split()[1]) for line in rest if line.endswith(tuple("0123456789"))]])
        process.wait()
