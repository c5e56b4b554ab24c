"""Names at memory speed: what runs here, what it costs in requests, and each barrier."""

import os

import pytest
import trio
import trio.lowlevel
import trio.testing

import fsd.client.journal
from fsd.client.filesystem import FileSystem
from fsd.core.errors import AlreadyExists, NotEmpty, NotFound, QuotaExceeded
from fsd.core.units import KIB
from fsd.protocol.cluster import SetVolume
from tests.client.cluster import METADATA, ROOT, cluster, get, put

Clock = trio.testing.MockClock
REQUESTS = (
    "Lookup",
    "GetInode",
    "ReadDirectory",
    "ExecuteBatch",
    "Create",
    "Mkdir",
    "Unlink",
    "Rmdir",
    "Rename",
    "SetAttributes",
    "WriteInline",
    "Symlink",
    "Link",
)


def requests(filesystem: FileSystem) -> int:
    """What was asked of the metadata server."""
    statistics = filesystem.statistics()
    return sum(statistics.get(name, 0) for name in REQUESTS)


async def warm(filesystem: FileSystem, parent: int = 1) -> None:
    """Get the exclusive lease on a directory and learn its names."""
    await put(filesystem, b"warm", b"", parent)
    await filesystem.unlink(ROOT, parent, b"warm")
    await filesystem.sync()


async def names(filesystem: FileSystem, ino: int) -> list[bytes]:
    handle = await filesystem.open_directory(ino)
    found: list[bytes] = []
    cookie = 0
    while entries := await filesystem.read_directory(handle, cookie, True):
        found += [entry.name for entry in entries]
        cookie = entries[-1].cookie
    return sorted(found)


def unplug(filesystem: FileSystem) -> trio.Event:
    """Batches wait from here until the event is set."""
    journal = filesystem._core.journal
    ship, plugged = journal._ship, trio.Event()

    async def later(items: object) -> object:
        await plugged.wait()
        return await ship(items)

    journal._ship = later
    return plugged


async def test_a_hundred_files_in_a_new_directory_cost_a_handful_of_requests(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        await warm(a)
        before = requests(a)
        directory = (await a.mkdir(ROOT, 1, b"d", 0o755)).ino
        for number in range(100):
            name = b"f%d" % number
            with pytest.raises(NotFound):
                await a.lookup(directory, name)
            await put(a, name, b"small %d" % number, directory)
            await a.setattr(ROOT, (await a.lookup(directory, name)).ino, mode=0o600)
        await a.sync()
        assert requests(a) - before <= 50  # of 301 changes; with a network that takes any time it is a handful
        assert sum(a.statistics().get(name, 0) for name in REQUESTS if name != "ExecuteBatch") <= 2
        for number in range(100):
            inode = await b.lookup(directory, b"f%d" % number)
            assert inode.mode & 0o7777 == 0o600
        assert await get(b, b"f7", directory) == b"small 7"


async def test_a_tree_is_moved_and_removed_without_asking(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a:
        await warm(a)
        before = requests(a)
        top = (await a.mkdir(ROOT, 1, b"top", 0o755)).ino
        for number in range(20):
            inner = (await a.mkdir(ROOT, top, b"d%d" % number, 0o755)).ino
            await put(a, b"file", b"x", inner)
            await a.symlink(ROOT, inner, b"link", b"target")
        await a.rename(ROOT, 1, b"top", 1, b"other")
        with pytest.raises(NotEmpty):
            await a.rmdir(ROOT, 1, b"other")
        for name in await names(a, top):
            inner = (await a.lookup(top, name)).ino
            assert await names(a, inner) == [b"file", b"link"]
            await a.unlink(ROOT, inner, b"file")
            await a.unlink(ROOT, inner, b"link")
            await a.rmdir(ROOT, top, name)
        await a.rmdir(ROOT, 1, b"other")
        await a.sync()
        assert requests(a) - before <= 8


async def test_an_old_tree_is_removed_with_a_few_requests_for_a_directory(autojump_clock: Clock) -> None:
    async with cluster() as made:
        async with made.mount() as a:
            directory = (await a.mkdir(ROOT, 1, b"d", 0o755)).ino
            for number in range(100):
                await put(a, b"f%d" % number, b"x", directory)
        async with made.mount() as b:
            for name in await names(b, directory):
                await b.unlink(ROOT, directory, name)
            await b.rmdir(ROOT, 1, b"d")
            await b.sync()
            assert requests(b) <= 12


async def test_another_client_sees_what_was_not_shipped_yet(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        await warm(a)
        plugged = unplug(a)
        made_here = await a.mkdir(ROOT, 1, b"d", 0o755)
        inner = await a.mkdir(ROOT, made_here.ino, b"inner", 0o755)
        seen: list[int] = []

        async def look() -> None:
            seen.append((await b.lookup(1, b"d")).ino)
            seen.append((await b.lookup(made_here.ino, b"inner")).ino)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.sleep(1)
            assert seen == []
            assert a.statistics()["journal"] == 2
            plugged.set()
        assert seen == [made_here.ino, inner.ino]
        with pytest.raises(AlreadyExists):
            await b.mkdir(ROOT, 1, b"d", 0o755)


async def test_fsync_waits_for_its_own_prefix_only(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a:
        await warm(a)
        directory = (await a.mkdir(ROOT, 1, b"d", 0o755)).ino
        inode, handle = await a.create(ROOT, directory, b"f", 0o644, os.O_RDWR)
        await a.write(handle, 0, b"bytes")
        await a.fsync(handle)
        assert not a._core.journal.pending(inode.ino)
        plugged = unplug(a)
        await a.mkdir(ROOT, directory, b"later", 0o755)
        with trio.fail_after(1):
            await a.fsync(handle)
        with trio.move_on_after(1) as scope:
            await a.fsync_directory(directory)
        assert scope.cancelled_caught
        plugged.set()
        with trio.fail_after(1):
            await a.fsync_directory(directory)
        await a.release(handle)


async def test_a_burst_survives_a_restart_of_the_metadata_server(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        await warm(a)
        directory = (await a.mkdir(ROOT, 1, b"d", 0o755)).ino

        async def burst() -> None:
            for number in range(300):
                await put(a, b"f%d" % number, b"x%d" % number, directory)
                await a.rename(ROOT, directory, b"f%d" % number, directory, b"g%d" % number)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(burst)
            for _ in range(3):
                await trio.sleep(0.7)
                await made.kill("metadata", METADATA)
                await trio.sleep(0.2)
                await made.start_metadata()
        await a.sync()
        assert await names(b, directory) == sorted(b"g%d" % number for number in range(300))
        assert await get(b, b"g250", directory) == b"x250"
        assert a.statistics().get("refused promises", 0) == 0


async def test_an_answer_that_is_lost_does_not_repeat_a_batch(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a:
        await warm(a)
        directory = (await a.mkdir(ROOT, 1, b"d", 0o755)).ino
        for number in range(50):
            await put(a, b"f%d" % number, b"", directory)
            if number % 10 == 5:
                await trio.lowlevel.checkpoint()
                made.network.cut(METADATA)
            await a.unlink(ROOT, directory, b"f%d" % number)
        await a.sync()
        assert await names(a, directory) == []
        assert a.statistics().get("refused promises", 0) == 0


async def test_an_evicted_client_loses_an_end_and_says_so(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        await warm(a)
        await a.mkdir(ROOT, 1, b"kept", 0o755)
        await a.sync()
        unplug(a)
        for number in range(5):
            await a.mkdir(ROOT, 1, b"lost%d" % number, 0o755)
        await made.isolate(a, 20.0)
        await trio.sleep(5)
        assert await names(b, 1) == [b"kept"]
        assert await names(a, 1) == [b"kept"]
        assert a.statistics()["lost operations"] == 5
        assert "5 changes of names and attributes are lost" in caplog.text


async def test_a_full_journal_makes_the_caller_wait(autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsd.client.journal, "MAX_ITEMS", 10)
    async with cluster(0) as made, made.mount() as a:
        await warm(a)
        plugged = unplug(a)
        done: list[int] = []

        async def make() -> None:
            for number in range(15):
                await a.mkdir(ROOT, 1, b"d%d" % number, 0o755)
                done.append(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            await trio.sleep(1)
            assert len(done) == 10
            plugged.set()
        assert len(done) == 15


async def test_large_contents_go_in_batches_of_bounded_size(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a:
        await warm(a)
        for number in range(100):
            await put(a, b"f%d" % number, bytes([number]) * (16 * KIB))
        before = a.statistics().get("ExecuteBatch", 0)
        await a.sync()
        assert 2 <= a.statistics()["ExecuteBatch"] - before <= 6


async def test_a_file_unlinked_while_open_lives_until_it_is_closed(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a:
        await warm(a)
        inode, handle = await a.create(ROOT, 1, b"f", 0o644, os.O_RDWR)
        await a.unlink(ROOT, 1, b"f")
        await a.write(handle, 0, b"still here")
        await a.fsync(handle)
        assert await a.read(handle, 0, 100) == b"still here"
        assert (await a.getattr(inode.ino)).nlink == 0
        await a.release(handle)
        await trio.sleep(3)
        assert (await a.statfs()).free_inodes == (1 << 40) - 1


async def test_a_file_renamed_over_another_replaces_it(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        await warm(a)
        await put(a, b"old", b"old bytes")
        await put(a, b"new", b"new bytes")
        await a.rename(ROOT, 1, b"new", 1, b"old")
        assert await get(a, b"old") == b"new bytes"
        assert await get(b, b"old") == b"new bytes"
        assert await names(b, 1) == [b"old"]


async def test_errors_come_from_the_call_that_causes_them(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a:
        await warm(a)
        await a.mkdir(ROOT, 1, b"d", 0o755)
        with pytest.raises(AlreadyExists):
            await a.mkdir(ROOT, 1, b"d", 0o755)
        with pytest.raises(NotFound):
            await a.unlink(ROOT, 1, b"missing")
        await made.ask(SetVolume("default", quota_inodes=2))
        with pytest.raises(QuotaExceeded):
            await a.mkdir(ROOT, 1, b"e", 0o755)
        await made.ask(SetVolume("default", quota_inodes=0))
        await trio.sleep(2)
        await a.mkdir(ROOT, 1, b"e", 0o755)
        assert a.statistics().get("refused promises", 0) == 0


async def test_two_clients_that_change_one_directory_both_get_on(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        directory = (await a.mkdir(ROOT, 1, b"d", 0o755)).ino

        async def work(client: FileSystem, letter: bytes) -> None:
            for number in range(50):
                await put(client, b"%s%d" % (letter, number), b"", directory)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, a, b"a")
            nursery.start_soon(work, b, b"b")
        assert len(await names(a, directory)) == 100
        assert await names(b, directory) == await names(a, directory)


async def test_a_file_is_emptied_and_written_anew_without_waiting(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        await warm(a)
        inode, handle = await a.create(ROOT, 1, b"f", 0o644, os.O_RDWR)
        plugged = unplug(a)
        for text in (b"long and first", b"second", b""):
            again = await a.open(inode.ino, os.O_RDWR | os.O_TRUNC)
            assert (await a.getattr(inode.ino)).size == 0
            await a.write(again, 0, text)
            assert await a.read(handle, 0, 100) == text
            await a.release(again)
        await a.write(handle, 0, b"third")
        plugged.set()
        await a.release(handle)
        assert await get(b, b"f") == b"third"


async def test_a_large_file_is_emptied_and_its_chunks_go(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        await warm(a)
        await put(a, b"f", bytes(600 * KIB))
        await a.sync()
        ino = (await a.lookup(1, b"f")).ino
        handle = await a.open(ino, os.O_RDWR | os.O_TRUNC)
        await a.write(handle, 100 * KIB, b"end")
        await a.release(handle)
        assert await get(b, b"f") == bytes(100 * KIB) + b"end"


async def test_files_removed_while_they_are_written_back_are_no_loss(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster() as made, made.mount() as a:
        await warm(a)
        plugged = unplug(a)
        for number in range(20):
            await put(a, b"f%d" % number, b"bytes")
        await trio.sleep(2)
        for number in range(20):
            await a.unlink(ROOT, 1, b"f%d" % number)
        plugged.set()
        await a.sync()
        assert a.statistics()["dirty bytes"] == 0
        assert [record for record in caplog.records if record.name == "fsd.client.contents"] == []
