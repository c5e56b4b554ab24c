"""A client's process is killed; another one goes on with its state."""

import os
import random

import pytest
import trio

from fsd.client.calls import CALL, RESENT
from fsd.core.errors import FsError, NotFound, VersionMismatch, WriteLost
from fsd.core.ids import ROOT_INO
from fsd.core.units import KIB, MIB
from tests.client.cluster import METADATA, ROOT, cluster, get, put
from tests.fakes import MemoryState


@pytest.fixture
def state():
    return MemoryState()


async def test_what_was_answered_is_there_after_a_kill(autojump_clock, state):
    big = random.Random(1).randbytes(900 * KIB)
    async with cluster() as c:
        async with c.process(state) as fs:
            await put(fs, b"small", b"hello")
            await put(fs, b"big", big)
            directory = await fs.mkdir(ROOT, ROOT_INO, b"d", 0o755)
            await put(fs, b"inner", b"x" * 5000, directory.ino)
            await fs.rename(ROOT, ROOT_INO, b"small", directory.ino, b"moved")
            session = fs.session_id
        async with c.process(state) as fs:
            assert fs.resumed
            assert fs.session_id == session
            assert await get(fs, b"big") == big
            assert await get(fs, b"moved", directory.ino) == b"hello"
            assert await get(fs, b"inner", directory.ino) == b"x" * 5000
            with pytest.raises(NotFound):
                await fs.lookup(ROOT_INO, b"small")
        async with c.process(state) as fs, c.mount() as other:
            assert await get(other, b"big") == big
            assert await get(other, b"moved", directory.ino) == b"hello"


async def test_many_lives_in_the_middle_of_everything(autojump_clock, state):
    """Killed at random moments; what was answered is in a dictionary beside it, and must be in the file system."""
    rng = random.Random(7)
    expected: dict[bytes, bytearray] = {}
    async with cluster() as c:
        for _ in range(25):
            async with c.process(state, write_back_age_s=0.2) as fs:
                for name, content in expected.items():
                    assert await get(fs, name) == content
                for _ in range(rng.randrange(30)):
                    await change_something(fs, rng, expected)
                    if rng.random() < 0.3:
                        await trio.sleep(rng.random() * 0.3)
        async with c.process(state), c.mount() as other:
            for name, content in expected.items():
                assert await get(other, name) == content


async def change_something(fs, rng, expected):
    name = b"f%d" % rng.randrange(8)
    kind = rng.random()
    if name not in expected:
        expected[name] = bytearray()
        await put(fs, name, b"")
    elif kind < 0.15:
        await fs.unlink(ROOT, ROOT_INO, name)
        del expected[name]
    elif kind < 0.25:
        size = rng.choice((0, 100, 20_000, 300_000))
        await fs.setattr(ROOT, (await fs.lookup(ROOT_INO, name)).ino, size=size)
        expected[name][size:] = b""
        expected[name].extend(bytes(size - len(expected[name])))
    elif kind < 0.35:
        new = b"f%d" % rng.randrange(8)
        await fs.rename(ROOT, ROOT_INO, name, ROOT_INO, new)
        expected[new] = expected.pop(name)
    else:
        offset, data = rng.choice((0, 5000, 250_000)), rng.randbytes(rng.choice((10, 4096, 60_000, 400_000)))
        handle = await fs.open((await fs.lookup(ROOT_INO, name)).ino, os.O_RDWR)
        await fs.write(handle, offset, data)
        content = expected[name]
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
        if rng.random() < 0.2:
            await fs.fsync(handle)
        await fs.release(handle)


async def test_a_handle_of_a_file_without_a_name_goes_on(autojump_clock, state):
    async with cluster() as c:
        async with c.process(state) as fs:
            inode, handle = await fs.create(ROOT, ROOT_INO, b"gone", 0o600, os.O_RDWR, number=17)
            await fs.write(handle, 0, b"before")
            await fs.unlink(ROOT, ROOT_INO, b"gone")
        async with c.process(state) as fs:
            handle = fs.restored_handles[17]
            assert handle.ino == inode.ino
            await fs.write(handle, 6, b" and after")
            assert await fs.read(handle, 0, 100) == b"before and after"
        async with c.process(state) as fs:
            assert await fs.read(fs.restored_handles[17], 0, 100) == b"before and after"
            await fs.release(fs.restored_handles[17])
            await trio.sleep(3)
        async with c.process(state) as fs:
            assert not fs.restored_handles


async def test_a_call_that_was_carried_out_is_not_carried_out_again(autojump_clock, state):
    def calls(resent):
        for number in range(2, 100, 2):
            CALL.set(number | (RESENT if resent else 0))
            yield

    async def all_calls(fs, resent):
        step = calls(resent)
        next(step)
        made = await fs.mkdir(ROOT, ROOT_INO, b"d", 0o755)
        next(step)
        inode, handle = await fs.create(ROOT, ROOT_INO, b"f", 0o644, os.O_RDWR | os.O_EXCL, number=5)
        next(step)
        assert await fs.write(handle, 0, b"0123456789") == 10
        next(step)
        appender = await fs.open(inode.ino, os.O_WRONLY | os.O_APPEND, number=6)
        next(step)
        assert await fs.write(appender, 0, b"tail") == 4
        next(step)
        linked = await fs.link(ROOT, inode.ino, ROOT_INO, b"l")
        next(step)
        await fs.rename(ROOT, ROOT_INO, b"f", made.ino, b"g")
        next(step)
        await fs.symlink(ROOT, ROOT_INO, b"s", b"target")
        next(step)
        await fs.setxattr(ROOT, inode.ino, b"user.x", b"1", 1)
        next(step)
        await fs.unlink(ROOT, ROOT_INO, b"l")
        if not resent:
            CALL.set(0)
            await fs.mkdir(ROOT, ROOT_INO, b"e", 0o755)
        next(step)
        await fs.rmdir(ROOT, ROOT_INO, b"e")
        return made.ino, inode.ino, handle.number, appender.number, linked.ino

    async with cluster() as c:
        async with c.process(state) as fs:
            first = await all_calls(fs, False)
        for _ in range(2):
            async with c.process(state) as fs:
                assert await all_calls(fs, True) == first
                assert len(fs.restored_handles) == 2
                CALL.set(0)
                assert await get(fs, b"g", first[0]) == b"0123456789tail"
        CALL.set(0)


async def test_an_evicted_session_is_told_once_and_the_mount_goes_on(autojump_clock, state):
    async with cluster() as c:
        async with c.process(state) as fs:
            inode, handle = await fs.create(ROOT, ROOT_INO, b"f", 0o644, os.O_RDWR, number=3)
            await fs.write(handle, 0, b"kept")
            await fs.fsync(handle)
            await fs.write(handle, 0, b"lost")
            session = fs.session_id
        await trio.sleep(30)
        async with c.process(state) as fs:
            assert not fs.resumed
            assert fs.session_id != session
            handle = fs.restored_handles[3]
            with pytest.raises(WriteLost):
                await fs.fsync(handle)
            await fs.fsync(handle)
            assert await fs.read(handle, 0, 10) == b"kept"
            await fs.write(handle, 4, b" and new")
        async with c.process(state) as fs:
            assert fs.resumed
            assert await fs.read(fs.restored_handles[3], 0, 20) == b"kept and new"
            assert (await fs.getattr(inode.ino)).size == 12


async def test_a_recall_at_the_wrong_moment_gets_the_bytes_of_the_dead(autojump_clock, state):
    """Somebody waits for the lease of the dead: the new process gives back what the old one had not written."""
    async with cluster() as c, c.mount() as other:
        async with c.process(state) as fs:
            await put(fs, b"f", b"a" * 200_000)
        seen = []

        async def look():
            seen.append(await get(other, b"f"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.sleep(1)
            assert not seen
            async with c.process(state):
                while not seen:
                    await trio.sleep(0.1)
        assert seen == [b"a" * 200_000]


async def test_the_metadata_server_dies_as_well(autojump_clock, state):
    async with cluster() as c:
        async with c.process(state) as fs:
            _, handle = await fs.create(ROOT, ROOT_INO, b"f", 0o644, os.O_RDWR, number=1)
            await fs.write(handle, 0, b"x" * 300_000)
            await fs.fsync(handle)
            await fs.write(handle, 100, b"y" * 1000)
            await fs.unlink(ROOT, ROOT_INO, b"f")
            await put(fs, b"g", b"g" * 20_000)
            await c.kill("metadata", METADATA)
        await c.start_metadata()
        async with c.process(state) as fs:
            assert fs.resumed
            handle = fs.restored_handles[1]
            assert await fs.read(handle, 99, 1002) == b"x" + b"y" * 1000 + b"x"
            assert await get(fs, b"g") == b"g" * 20_000


async def test_a_process_that_suspends_leaves_everything_to_the_next(autojump_clock, state):
    async with cluster() as c:
        async with c.process(state) as fs:
            _, handle = await fs.create(ROOT, ROOT_INO, b"f", 0o644, os.O_RDWR, number=1)
            await fs.write(handle, 0, b"bytes")
            await fs.suspend()
        async with c.process(state) as fs:
            assert await fs.read(fs.restored_handles[1], 0, 9) == b"bytes"


async def test_a_time_that_a_flush_left_to_a_later_one_is_not_lost(autojump_clock, state):
    async with cluster() as c:
        async with c.process(state, write_back_age_s=100.0) as fs:
            inode, handle = await fs.create(ROOT, ROOT_INO, b"f", 0o644, os.O_RDWR, number=1)
            await fs.write(handle, 0, bytes(100_000))
            await fs.fsync(handle)
            await trio.sleep(5)
            await fs.write(handle, 10, b"in place")
            shown = await fs.getattr(inode.ino)
            await fs.fsync(handle, data_only=True)
            assert handle.file.owes_time_only
        async with c.process(state) as fs:
            assert (await fs.getattr(inode.ino)).mtime_ns == shown.mtime_ns
            await fs.setattr(ROOT, inode.ino, atime_ns=5, mtime_ns=6)
        async with c.process(state) as fs:
            after = await fs.getattr(inode.ino)
            assert (after.atime_ns, after.mtime_ns) == (5, 6)


async def test_a_clean_end_leaves_nothing(autojump_clock, state):
    async with cluster() as c:
        async with c.process(state) as fs:
            await put(fs, b"f", b"f" * 100_000)
            await fs.aclose()
        assert not state.kept


async def test_the_log_stays_bounded(autojump_clock, state):
    """Handles that stay open, and a stream of writes: the log does not grow with what was written."""
    async with cluster() as c:
        async with c.process(state, write_back_bytes=8 * MIB, write_back_age_s=0.5) as fs:
            _, held = await fs.create(ROOT, ROOT_INO, b"held", 0o644, os.O_RDWR, number=1)
            _, handle = await fs.create(ROOT, ROOT_INO, b"stream", 0o644, os.O_RDWR, number=2)
            piece = bytes(range(256)) * 512
            for at in range(800):
                await fs.write(handle, at * len(piece), piece)
            assert len(state.kept) < 40
            await fs.write(held, 0, b"held")
        async with c.process(state) as fs:
            assert await fs.read(fs.restored_handles[1], 0, 9) == b"held"
            for at in range(0, 800, 50):
                assert await fs.read(fs.restored_handles[2], at * len(piece), len(piece)) == piece


async def test_a_full_state_directory_is_said_and_the_mount_goes_on(autojump_clock, state, caplog):
    async with cluster() as c:
        async with c.process(state) as fs:
            fs._core.state._directory.room = 0
            content = bytes(3 * MIB)
            await put(fs, b"a", content)
            await put(fs, b"b", content)
            assert "no state is kept any more" in caplog.text
            assert not state.kept
            await fs.sync()
        async with c.process(state) as fs:
            assert not fs.resumed
            assert await get(fs, b"b") == content


async def test_a_log_of_another_format_is_refused_and_left_alone(autojump_clock, state, monkeypatch):
    async with cluster() as c:
        async with c.process(state) as fs:
            await put(fs, b"f", b"precious")
        monkeypatch.setattr("fsd.client.replay.FORMAT", 99)
        with pytest.raises(VersionMismatch, match="has format 3, this version of fsd knows 99"):
            async with c.process(state):
                raise AssertionError("it was read")
        monkeypatch.undo()
        async with c.process(state) as fs:
            assert await get(fs, b"f") == b"precious"


async def test_a_failing_call_is_tried_again(autojump_clock, state):
    async with cluster() as c:
        async with c.process(state) as fs:
            CALL.set(2)
            with pytest.raises(FsError):
                await fs.unlink(ROOT, ROOT_INO, b"nothing")
        async with c.process(state) as fs:
            CALL.set(2 | RESENT)
            with pytest.raises(NotFound):
                await fs.unlink(ROOT, ROOT_INO, b"nothing")
        CALL.set(0)
