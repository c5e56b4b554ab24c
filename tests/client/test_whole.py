"""Real servers, real clients, an imagined network, virtual time. Every test ends with fsck."""

import os
import random

import pytest
import trio
import trio.testing

from fsd.client.filesystem import FileSystem
from fsd.core.errors import FsError, NotFound, StaleHandle
from fsd.core.units import KIB, MIB
from tests.client.cluster import METADATA, ROOT, cluster, get, put

Clock = trio.testing.MockClock


def some_bytes(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


async def test_what_one_client_wrote_another_reads_without_a_close(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        inode, writer = await a.create(ROOT, 1, b"f", 0o644, os.O_RDWR)
        await a.write(writer, 0, b"first")
        reader = await b.open(inode.ino, os.O_RDONLY)
        assert await b.read(reader, 0, 100) == b"first"
        await a.write(writer, 5, b" and second")
        assert (await b.getattr(inode.ino)).size == 16
        assert await b.read(reader, 0, 100) == b"first and second"
        await a.write(writer, 0, b"FIRST")
        assert await b.read(reader, 0, 5) == b"FIRST"
        await a.release(writer)
        await b.release(reader)


@pytest.mark.parametrize("length", [0, 1, 16 * KIB, 16 * KIB + 1, 256 * KIB, 256 * KIB + 1, 3 * MIB + 17])
async def test_a_file_of_any_size_reads_back_on_another_client(length: int, autojump_clock: Clock) -> None:
    data = some_bytes(length)
    async with cluster() as made, made.mount() as a, made.mount() as b:
        await put(a, b"f", data)
        assert await get(a, b"f") == data
        assert await get(b, b"f") == data
        assert await get(b, b"f") == data


async def test_more_is_written_than_may_be_dirty(autojump_clock: Clock) -> None:
    data = some_bytes(12 * MIB)
    async with cluster() as made, made.mount(write_back_bytes=1 * MIB, cache_bytes=1 * MIB) as a:
        await put(a, b"f", data)
        assert a.statistics()["dirty bytes"] <= 1 * MIB + 128 * KIB
        assert await get(a, b"f") == data


def commits(client: FileSystem) -> int:
    counts = client.statistics()
    return counts.get("Execute", 0) + counts.get("ExecuteBatch", 0)


async def test_a_page_synced_in_place_leaves_its_time_to_a_later_commit(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount(write_back_age_s=100.0) as a, made.mount() as b:
        ino = await put(a, b"f", b"x" * 300_000)
        await a.sync()
        handle = await a.open(ino, os.O_RDWR)
        known = commits(a)
        before = (await a.getattr(ino)).mtime_ns
        await trio.sleep(0.5)
        for number in range(3):
            await a.write(handle, 4096 * number, b"y" * 4096)
            await a.fsync(handle, data_only=True)
        assert commits(a) == known
        written = (await a.getattr(ino)).mtime_ns
        assert written > before
        assert (await b.getattr(ino)).mtime_ns == written  # the recall brings it to the server
        assert (await get(b, b"f"))[:12288] == b"y" * 12288
        await a.release(handle)


async def test_a_file_that_is_synced_all_the_time_has_its_time_committed_once_a_second(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount(write_back_age_s=100.0) as a:
        ino = await put(a, b"f", b"x" * 300_000)
        await a.sync()
        handle = await a.open(ino, os.O_RDWR)
        known = commits(a)
        for number in range(50):
            await a.write(handle, 4096 * number, b"y" * 4096)
            await a.fsync(handle, data_only=True)
            await trio.sleep(0.1)
        assert 3 <= commits(a) - known <= 6
        await a.fsync(handle)  # owes the time, and commits it
        after = commits(a)
        await a.fsync(handle)
        await a.fsync(handle, data_only=True)
        assert commits(a) == after
        await a.release(handle)


async def test_a_small_file_grows_out_of_its_record(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        _inode, handle = await a.create(ROOT, 1, b"f", 0o644, os.O_RDWR)
        await a.write(handle, 0, b"x" * 1000)
        await a.fsync(handle)
        await a.write(handle, 100_000, b"end")
        expected = b"x" * 1000 + bytes(99_000) + b"end"
        assert await a.read(handle, 0, 200_000) == expected
        await a.fsync(handle)
        assert await a.read(handle, 0, 200_000) == expected
        assert await get(b, b"f") == expected
        await a.release(handle)


async def test_what_was_cut_off_never_comes_back(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        ino = await put(a, b"f", b"x" * (1 * MIB))
        await a.sync()
        await b.setattr(ROOT, ino, size=100_000)
        await a.setattr(ROOT, ino, size=700_000)
        expected = b"x" * 100_000 + bytes(600_000)
        assert await get(b, b"f") == expected
        await b.setattr(ROOT, ino, size=50_000)
        handle = await b.open(ino, os.O_RDWR)
        await b.write(handle, 600_000, b"y")
        assert await b.read(handle, 0, 700_000) == b"x" * 50_000 + bytes(550_000) + b"y"
        await b.release(handle)
        assert await get(a, b"f") == b"x" * 50_000 + bytes(550_000) + b"y"
        await a.setattr(ROOT, ino, size=0)
        assert await get(b, b"f") == b""
        await b.setattr(ROOT, ino, size=300_000)
        assert await get(a, b"f") == bytes(300_000)


async def test_an_unlinked_file_lives_until_its_last_handle_anywhere_is_gone(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        data = some_bytes(300_000)
        ino = await put(a, b"f", data)
        there = await b.open(ino, os.O_RDWR)
        here = await a.open(ino, os.O_RDONLY)
        await a.unlink(ROOT, 1, b"f")
        with pytest.raises(NotFound):
            await b.lookup(1, b"f")
        assert await a.read(here, 0, 300_000) == data
        await a.release(here)
        await b.write(there, 0, b"still")
        await b.fsync(there)
        assert (await b.read(there, 0, 300_000)) == b"still" + data[5:]
        await b.release(there)
        await trio.sleep(5)
        with pytest.raises(StaleHandle):
            await a.getattr(ino)


async def test_a_replaced_file_that_is_open_here_lives_on(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a:
        ino = await put(a, b"old", b"old")
        handle = await a.open(ino, os.O_RDONLY)
        await put(a, b"new", b"new")
        await a.rename(ROOT, 1, b"new", 1, b"old")
        assert await a.read(handle, 0, 10) == b"old"
        assert await get(a, b"old") == b"new"
        await a.release(handle)
        await trio.sleep(5)
        with pytest.raises(StaleHandle):
            await a.getattr(ino)


async def test_appends_of_two_clients_do_not_overwrite_each_other(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        ino = await put(a, b"log", b"")

        async def append(client: object, letter: bytes) -> None:
            handle = await client.open(ino, os.O_WRONLY | os.O_APPEND)
            for _ in range(10):
                await client.write(handle, 0, letter * 8)
                await trio.sleep(0.01)
            await client.release(handle)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, a, b"a")
            nursery.start_soon(append, b, b"b")
        data = await get(a, b"log")
        pieces = [data[i : i + 8] for i in range(0, len(data), 8)]
        assert sorted(pieces) == [b"a" * 8] * 10 + [b"b" * 8] * 10


async def test_a_chunkserver_dies_in_the_middle_of_writing(autojump_clock: Clock) -> None:
    data = some_bytes(4 * MIB)
    async with cluster() as made, made.mount() as a, made.mount() as b:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, a, b"f", data)
            await trio.sleep(0.05)
            await made.kill("node1", "node1:1")
        await a.sync()
        assert await get(b, b"f") == data
        await made.start_node(1)
        await made.nodes_up(3)
        await trio.sleep(20)
        await made.kill("node0", "node0:1")
        with trio.fail_after(120):
            assert await get(b, b"f") == data
            await put(b, b"g", data)
            assert await get(a, b"g") == data
        await b.sync()


async def test_the_metadata_server_restarts_and_nobody_notices(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        _inode, handle = await a.create(ROOT, 1, b"f", 0o644, os.O_RDWR)
        await a.write(handle, 0, b"dirty before")
        other = await b.open((await put(b, b"g", b"gone") and await b.lookup(1, b"g")).ino, os.O_RDONLY)
        await b.unlink(ROOT, 1, b"g")
        await made.kill("metadata", METADATA)
        await trio.sleep(2)
        await a.write(handle, 12, b" and during")
        await made.start_metadata()
        with trio.fail_after(60):
            assert await get(b, b"f") == b"dirty before and during"
            await a.mkdir(ROOT, 1, b"after", 0o755)
            assert await b.read(other, 0, 10) == b"gone"
        await b.release(other)
        await a.release(handle)
        assert a.statistics()["resumes"] == 1
        assert a.statistics().get("evictions", 0) == 0


async def test_an_evicted_client_says_once_to_each_handle_what_it_lost(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount(write_back_age_s=1000.0) as a, made.mount() as b:
        inode, first = await a.create(ROOT, 1, b"f", 0o644, os.O_RDWR)
        second = await a.open(inode.ino, os.O_RDWR)
        await a.write(first, 0, b"kept")
        await a.fsync(first)
        await a.write(first, 0, b"lost")
        await made.isolate(a, 30)
        with trio.fail_after(60):
            assert await get(b, b"f") == b"kept"
            for handle in (first, second):
                with pytest.raises(FsError, match="lost"):
                    await a.fsync(handle)
                await a.fsync(handle)
            assert await a.read(first, 0, 10) == b"kept"
            await a.write(first, 0, b"more")
            await a.fsync(first)
            assert await get(b, b"f") == b"more"
        await a.release(first)
        await a.release(second)


async def test_two_clients_change_one_directory_and_agree(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        top = await a.mkdir(ROOT, 1, b"d", 0o755)

        async def work(client: object, letter: str, rounds: int) -> None:
            for i in range(rounds):
                name = f"{letter}{i}".encode()
                await put(client, name, name, top.ino)
                if i % 3 == 0:
                    await client.rename(ROOT, top.ino, name, top.ino, name + b"-moved")
                if i % 3 == 1:
                    await client.unlink(ROOT, top.ino, name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, a, "a", 30)
            nursery.start_soon(work, b, "b", 30)
        listings = []
        for client in (a, b):
            handle = await client.open_directory(top.ino)
            names, cookie = [], 0
            while entries := await client.read_directory(handle, cookie, True):
                names += [entry.name for entry in entries]
                cookie = entries[-1].cookie
            listings.append(sorted(names))
        assert listings[0] == listings[1]
        assert len(listings[0]) == 40
        for name in listings[0]:
            assert await get(a, name, top.ino) == name.removesuffix(b"-moved")
        assert (await a.getattr(top.ino)).size == (await b.getattr(top.ino)).size == 40


async def test_times_set_after_a_write_stay(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        ino = await put(a, b"f", b"bytes")
        await a.setattr(ROOT, ino, mtime_ns=1_000_000_000, atime_ns=5)
        before = await a.getattr(ino)
        assert (before.mtime_ns, before.atime_ns) == (1_000_000_000, 5)
        await trio.sleep(3)
        assert (await b.getattr(ino)).mtime_ns == 1_000_000_000
        assert (await b.getattr(ino)).size == 5
        after = await a.getattr(ino)
        assert (after.mtime_ns, after.atime_ns, after.ctime_ns) == (before.mtime_ns, before.atime_ns, before.ctime_ns)


async def test_a_call_that_is_given_up_leaves_no_doubt(autojump_clock: Clock) -> None:
    """Its result is unknown to the caller, but not to the caches."""
    async with cluster() as made, made.mount() as a, made.mount() as b:
        ino = await put(a, b"f", b"x" * 100_000)
        for patience in (0.0, 0.0001, 0.001, 0.01):
            with trio.move_on_after(patience):
                await a.setattr(ROOT, ino, size=1000)
                handle = await a.open(ino, os.O_RDWR)
                await a.write(handle, 50_000, b"y" * 100)
                await a.fsync(handle)
            with trio.move_on_after(patience):
                await a.rename(ROOT, 1, b"f", 1, b"g")
            with trio.move_on_after(patience):
                await a.rename(ROOT, 1, b"g", 1, b"f")
        await trio.sleep(3)
        await a.sync()
        assert (await a.lookup(1, b"f")).size == (await b.lookup(1, b"f")).size
        assert await get(a, b"f") == await get(b, b"f")


async def test_a_write_after_times_were_set_counts(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        inode, handle = await a.create(ROOT, 1, b"f", 0o644, os.O_RDWR)
        await a.write(handle, 0, b"x")
        await a.setattr(ROOT, inode.ino, mtime_ns=7, atime_ns=5)
        await a.write(handle, 0, b"y")
        shown = await a.getattr(inode.ino)
        assert shown.mtime_ns > 7
        assert shown.atime_ns == 5
        there = await b.getattr(inode.ino)
        assert (there.mtime_ns, there.atime_ns) == (shown.mtime_ns, 5)
        await a.setattr(ROOT, inode.ino, mtime_ns=7)
        assert (await b.getattr(inode.ino)).mtime_ns == 7
        await a.release(handle)


@pytest.mark.parametrize("length", [10, 400_000])
async def test_times_and_bytes_reach_the_other_client_together(length: int, autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        ino = await put(a, b"f", some_bytes(length))
        await a.setattr(ROOT, ino, mtime_ns=7, atime_ns=5)
        there = await b.getattr(ino)
        assert (there.size, there.mtime_ns, there.atime_ns) == (length, 7, 5)
        assert await get(b, b"f") == some_bytes(length)


async def test_writing_back_does_not_change_what_stat_says(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        for name, length in ((b"small", 100), (b"large", 500_000)):
            ino = await put(a, name, some_bytes(length))
            before = await a.getattr(ino)
            await a.sync()
            after = await a.getattr(ino)
            assert (after.size, after.mtime_ns, after.ctime_ns) == (before.size, before.mtime_ns, before.ctime_ns)
            there = await b.getattr(ino)
            assert (there.size, there.mtime_ns, there.ctime_ns) == (before.size, before.mtime_ns, before.ctime_ns)


async def test_a_large_directory_is_read_in_pages_without_loss(autojump_clock: Clock) -> None:
    async with cluster(0) as made, made.mount() as a, made.mount() as b:
        wanted = {f"n{i}".encode() for i in range(2500)}
        for name in sorted(wanted):
            await a.mknod(ROOT, 1, name, 0o10644, 0)
        handle = await b.open_directory(1)
        found, cookie = [], 0
        while entries := await b.read_directory(handle, cookie, False):
            found += [entry.name for entry in entries[:100]]
            cookie = entries[min(99, len(entries) - 1)].cookie
        assert len(found) == 2500
        assert set(found) == wanted


async def test_extended_attributes(autojump_clock: Clock) -> None:
    async with cluster(0) as made, made.mount() as a, made.mount() as b:
        ino = await put(a, b"f", b"")
        assert await b.listxattr(ino) == ()
        await a.setxattr(ROOT, ino, b"user.one", b"1")
        assert await b.getxattr(ino, b"user.one") == b"1"
        await b.removexattr(ROOT, ino, b"user.one")
        with pytest.raises(FsError):
            await a.getxattr(ino, b"user.one")


async def test_what_was_written_before_the_last_name_went_is_read_where_the_file_is_open(autojump_clock: Clock) -> None:
    for size in (10, 200 * KIB):
        async with cluster() as made, made.mount() as a, made.mount() as b:
            ino = await put(a, b"f", b"old" * size)
            reader = await b.open(ino, os.O_RDONLY)
            assert await b.read(reader, 0, 3) == b"old"
            writer = await a.open(ino, os.O_RDWR)
            await a.write(writer, 0, b"new" * size)
            await a.release(writer)
            await a.unlink(ROOT, 1, b"f")
            assert await b.read(reader, 0, 3 * size) == b"new" * size
            await b.release(reader)
            await a.sync()
            await b.sync()


async def test_a_file_that_goes_while_it_is_written_back_is_lost_silently(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        for round in range(20):
            name = b"f%d" % round
            _, handle = await a.create(ROOT, 1, name, 0o644, os.O_RDWR)
            await a.write(handle, 0, b"x" * 300_000)
            await a.release(handle)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.sync)
                await trio.sleep(0.001 * round)
                await (a if round % 2 else b).unlink(ROOT, 1, name)
        await a.sync()
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_an_open_that_came_too_late_comes_in_time_when_it_is_repeated(autojump_clock: Clock) -> None:
    """As a kernel does it: LOOKUP, OPEN, and both once more when that is ESTALE. The other client replaces the file each
    time."""
    async with cluster() as made, made.mount() as a, made.mount() as b:
        await put(a, b"f", b"0")

        async def replace(number: int) -> None:
            await put(a, b"new", b"%d" % number)
            await a.rename(ROOT, 1, b"new", 1, b"f", 0)

        old = await b.lookup(1, b"f")
        await replace(1)
        with pytest.raises(StaleHandle):
            await b.open(old.ino, os.O_RDONLY)
        found = await b.lookup(1, b"f")
        await replace(2)
        handle = await b.open(found.ino, os.O_RDONLY)
        assert await b.read(handle, 0, 10) == b"1"
        await b.release(handle)
        await trio.sleep(5)
        assert b.statistics()["open files"] == 0
