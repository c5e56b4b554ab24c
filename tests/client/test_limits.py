"""Full volumes, soft mounts, bounded caches, servers that do not answer: what the caller is told."""

import os

import pytest
import trio
import trio.testing

from fsd.client.filesystem import open_filesystem
from fsd.client.options import ClientOptions
from fsd.core.errors import ConfigurationError, DeadlineExceeded, NotFound, QuotaExceeded, Unreachable
from fsd.core.ids import Ino
from fsd.core.units import KIB
from fsd.protocol.cluster import SetVolume
from tests.client.cluster import METADATA, OPTIONS, ROOT, cluster, get, put
from tests.fakes import MemoryNetwork, memory_runtime

Clock = trio.testing.MockClock


async def test_a_full_volume_is_told_once_to_each_handle_and_the_bytes_stay(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a:
        _, first = await a.create(ROOT, 1, b"f", 0o644, os.O_RDWR)
        second = await a.open(first.ino, os.O_RDWR)
        await a.write(first, 0, b"x" * 200 * KIB)
        await made.ask(SetVolume("default", quota_bytes=100 * KIB))
        with pytest.raises(QuotaExceeded):
            await a.fsync(first)
        with pytest.raises(QuotaExceeded):
            await a.flush(second)
        assert await a.read(second, 0, 300 * KIB) == b"x" * 200 * KIB
        await made.ask(SetVolume("default", quota_bytes=0))
        await a.fsync(first)
        await a.flush(first)
        await trio.sleep(5)
        assert a.statistics()["dirty bytes"] == 0
        await a.release(first)
        await a.release(second)
        assert await get(a, b"f") == b"x" * 200 * KIB


async def test_what_cannot_be_written_back_is_lost_when_another_wants_the_file(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        _, handle = await a.create(ROOT, 1, b"f", 0o644, os.O_RDWR)
        await a.write(handle, 0, b"x" * 200 * KIB)
        await made.ask(SetVolume("default", quota_bytes=100 * KIB))
        with trio.fail_after(5):
            assert await get(b, b"f") == b""
        with pytest.raises(QuotaExceeded):
            await a.fsync(handle)
        await a.fsync(handle)
        assert await a.read(handle, 0, 10) == b""
        await a.release(handle)


async def test_a_close_that_cannot_write_everything_back_says_so(autojump_clock: Clock) -> None:
    async with cluster() as made:
        async with made.mount() as fs:
            _, handle = await fs.create(ROOT, 1, b"f", 0o644, os.O_RDWR)
            await fs.write(handle, 0, b"x" * 200 * KIB)
            await made.ask(SetVolume("default", quota_bytes=100 * KIB))
            await fs.release(handle)
        assert not fs.all_written
        await made.ask(SetVolume("default", quota_bytes=0))
        async with made.mount() as fs:
            await put(fs, b"g", b"fits")
        assert fs.all_written


async def test_a_writer_to_a_full_volume_does_not_wait_for_ever(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount(write_back_bytes=64 * KIB) as a:
        await made.ask(SetVolume("default", quota_bytes=10 * KIB))
        _, handle = await a.create(ROOT, 1, b"f", 0o644, os.O_RDWR)

        async def write_much() -> None:
            for i in range(100):
                await a.write(handle, i * 32 * KIB, bytes(32 * KIB))

        with trio.fail_after(30), pytest.raises(QuotaExceeded):
            await write_much()
        await made.ask(SetVolume("default", quota_bytes=0))
        await a.release(handle)


async def test_a_soft_mount_gives_up_and_a_hard_one_waits(autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount(hard=False, timeout_s=3.0) as soft, made.mount() as hard:
        await put(soft, b"f", b"data")
        await made.kill("metadata", METADATA)
        start = trio.current_time()
        with pytest.raises(DeadlineExceeded):
            await soft.sync()
        assert 2.9 < trio.current_time() - start < 3.1
        with trio.move_on_after(4) as scope:
            await hard.mkdir(ROOT, 1, b"e", 0o755)
        assert scope.cancelled_caught
        await made.start_metadata()
        with trio.fail_after(60):
            await hard.mkdir(ROOT, 1, b"g", 0o755)
            await trio.sleep(3)


async def test_the_cache_of_names_stays_within_its_bound(autojump_clock: Clock) -> None:
    async with cluster(0) as made, made.mount(metadata_cache_entries=50) as a:
        for i in range(300):
            await a.mknod(ROOT, 1, f"n{i}".encode(), 0o10644, 0)
        for i in range(20):
            await a.mkdir(ROOT, 1, f"d{i}".encode(), 0o755)
        await trio.sleep(5)
        statistics = a.statistics()
        assert statistics["leases"] + statistics["cached entries"] <= 50
        for i in range(300):
            assert (await a.lookup(1, f"n{i}".encode())).is_regular is False


async def test_what_the_kernel_forgets_is_given_back(autojump_clock: Clock) -> None:
    async with cluster(0) as made, made.mount() as a:
        inos = [(await a.mknod(ROOT, 1, f"n{i}".encode(), 0o10644, 0)).ino for i in range(100)]
        before = a.statistics()["leases"]
        for ino in inos:
            a.forget(ino)
        await trio.sleep(3)
        assert a.statistics()["leases"] == before - 100
        assert a.attribute_ttl_s(inos[0]) == 0
        await a.lookup(1, b"n0")
        assert a.attribute_ttl_s(inos[0]) > 5


async def test_ttls_end_with_the_session(autojump_clock: Clock) -> None:
    async with cluster(0) as made, made.mount() as a, made.mount() as b:
        inode = await a.mkdir(ROOT, 1, b"d", 0o755)
        assert a.entry_ttl_s(Ino(1)) > 5
        await b.mkdir(ROOT, 1, b"e", 0o755)
        assert a.entry_ttl_s(Ino(1)) == 0
        assert a.attribute_ttl_s(inode.ino) > 5
        await made.kill("metadata", METADATA)
        await trio.sleep(11)
        assert a.attribute_ttl_s(inode.ino) == 0
        await made.start_metadata()
        await a.lookup(1, b"d")


class Recorder:
    """What the caches above are told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    async def inode(self, ino: Ino, *, attributes_only: bool) -> None:
        self.told.append(ino)

    async def entry(self, parent: Ino, name: bytes) -> None:
        self.told.append((parent, name))


async def test_the_caches_above_are_invalidated_before_another_client_gets_its_answer(autojump_clock: Clock) -> None:
    async with cluster(0) as made, made.mount() as b:
        recorder = Recorder()
        runtime = memory_runtime(made.network, 77)
        async with open_filesystem(runtime, [METADATA], "default", OPTIONS, recorder) as a:
            inode = await a.mkdir(ROOT, 1, b"d", 0o755)
            with pytest.raises(NotFound):
                await a.lookup(1, b"absent")
            await b.mkdir(ROOT, 1, b"absent", 0o755)
            assert (1, b"absent") in recorder.told
            assert 1 in recorder.told
            await b.setattr(ROOT, inode.ino, mode=0o700)
            assert inode.ino in recorder.told
            assert (await a.getattr(inode.ino)).mode & 0o777 == 0o700


async def test_the_next_metadata_address_is_tried(autojump_clock: Clock) -> None:
    async with cluster(0) as made:
        runtime = memory_runtime(made.network, 78)
        async with open_filesystem(runtime, ["nobody:1", METADATA], "default", OPTIONS) as a:
            await a.mkdir(ROOT, 1, b"d", 0o755)


async def test_faults_of_opening_are_plain_errors(autojump_clock: Clock) -> None:
    async with cluster(0) as made:
        runtime = memory_runtime(made.network, 79)
        with pytest.raises(NotFound):
            async with open_filesystem(runtime, [METADATA], "nosuch", OPTIONS):
                pass
        with pytest.raises(ConfigurationError, match="fifo"):
            async with open_filesystem(runtime, [METADATA], "default", ClientOptions(cache_policy="fifo")):
                pass
        with pytest.raises(ZeroDivisionError):
            async with open_filesystem(runtime, [METADATA], "default", OPTIONS):
                raise ZeroDivisionError
    with pytest.raises(Unreachable):
        async with open_filesystem(memory_runtime(MemoryNetwork()), ["nobody:1"], "default", OPTIONS):
            pass
