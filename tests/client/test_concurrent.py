"""Many calls at once from several clients on a few names: nobody waits for ever, and at the end all see the same."""

import os
import random

import pytest
import trio
import trio.testing

from fsd.client.filesystem import FileSystem
from fsd.core.errors import AlreadyExists, IsADirectory, NotADirectory, NotEmpty, NotFound, StaleHandle
from fsd.core.units import KIB
from fsd.protocol.cluster import FsckReply, RunFsck
from tests.client.cluster import ROOT, cluster

Clock = trio.testing.MockClock
EXPECTED = (NotFound, StaleHandle, AlreadyExists, IsADirectory, NotADirectory, NotEmpty)
NAMES = [b"a", b"b", b"c", b"d"]


async def one_call(client: FileSystem, chance: random.Random) -> None:
    name, other = chance.sample(NAMES, 2)
    match chance.randrange(10):
        case 0 | 1 | 2:
            flags = os.O_RDWR | chance.choice([0, os.O_TRUNC, os.O_APPEND])
            _, handle = await client.create(ROOT, 1, name, 0o644, flags)
            try:
                for _ in range(3):
                    offset = chance.choice([0, 1000, 16 * KIB, 300 * KIB])
                    await client.write(handle, offset, chance.randbytes(chance.choice([10, 5000, 70_000])))
                    await client.read(handle, chance.randrange(400 * KIB), 10_000)
                if chance.random() < 0.3:
                    await client.fsync(handle)
                await client.flush(handle)
            finally:
                await client.release(handle)
        case 3:
            await client.unlink(ROOT, 1, name)
        case 4:
            await client.rename(ROOT, 1, name, 1, other, chance.choice([0, 0, 1, 2]))
        case 5:
            inode = await client.lookup(1, name)
            await client.setattr(ROOT, inode.ino, size=chance.choice([0, 100, 20 * KIB, 300 * KIB]))
        case 6:
            inode = await client.lookup(1, name)
            await client.setattr(ROOT, inode.ino, mode=0o600, mtime_ns=chance.choice([None, 5]))
        case 7:
            inode = await client.lookup(1, name)
            await client.link(ROOT, inode.ino, 1, other)
        case 8:
            handle = await client.open_directory(1)
            await client.read_directory(handle, 0, True)
        case _:
            await client.getattr((await client.lookup(1, name)).ino)


async def worker(client: FileSystem, seed: int, calls: int) -> None:
    chance = random.Random(seed)
    for _ in range(calls):
        try:
            with trio.fail_after(60):
                await one_call(client, chance)
        except EXPECTED:
            pass
        await trio.sleep(chance.choice([0, 0, 0.001, 0.01, 0.5]))


async def everything(client: FileSystem) -> dict[bytes, tuple[int, int, bytes]]:
    found: dict[bytes, tuple[int, int, bytes]] = {}
    handle = await client.open_directory(1)
    for entry in await client.read_directory(handle, 0, False):
        inode = await client.lookup(1, entry.name)
        opened = await client.open(inode.ino, os.O_RDONLY)
        found[entry.name] = (inode.ino, inode.size, await client.read(opened, 0, 1024 * KIB))
        await client.release(opened)
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_nobody_waits_for_ever_and_all_agree(seed: int, autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b, made.mount(write_back_bytes=100_000) as c:
        async with trio.open_nursery() as nursery:
            for index, client in enumerate([a, b, c] * 3):
                nursery.start_soon(worker, client, seed * 100 + index, 40)
        seen = [await everything(client) for client in (a, b, c)]
        assert seen[0] == seen[1] == seen[2]
        for ino, size, data in seen[0].values():
            assert ino
            assert size == len(data)
        await trio.sleep(5)
        for client in (a, b, c):
            assert client.statistics()["dirty bytes"] == 0
            assert client.statistics()["open files"] == 0
            assert client.statistics().get("evictions", 0) == 0
            assert client.statistics().get("lost bytes", 0) == 0
        stored = await made.ask(RunFsck())
        assert isinstance(stored, FsckReply)
        assert stored.inodes == len({ino for ino, _, _ in seen[0].values()}) + 1, "an inode without a name is left"
