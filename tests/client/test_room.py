"""On a volume with a quota the write that goes too far fails, not a flush that nobody hears of."""

import os

import pytest

from fsd.core.errors import QuotaExceeded
from fsd.core.ids import ROOT_INO
from fsd.core.units import KIB, MIB
from fsd.protocol.cluster import SetVolume
from tests.client.cluster import ROOT, Cluster, cluster

QUOTA = 1 * MIB


async def limited(made: Cluster) -> None:
    await made.ask(SetVolume("default", quota_bytes=QUOTA))


async def test_the_write_that_goes_too_far_fails(autojump_clock: object) -> None:
    async with cluster() as made:
        await limited(made)
        async with made.mount() as fs:
            _, handle = await fs.create(ROOT, ROOT_INO, b"f", 0o644, os.O_RDWR)
            for offset in range(0, QUOTA, 64 * KIB):
                await fs.write(handle, offset, b"x" * 64 * KIB)
            with pytest.raises(QuotaExceeded):
                await fs.write(handle, QUOTA, b"x")
            await fs.write(handle, 0, b"y" * 64 * KIB)  # no growth
            await fs.fsync(handle)
            await fs.release(handle)
            await fs.sync()


async def test_what_was_given_back_can_be_used_at_once(autojump_clock: object) -> None:
    async with cluster() as made:
        await limited(made)
        async with made.mount() as fs:
            _, first = await fs.create(ROOT, ROOT_INO, b"a", 0o644, os.O_RDWR)
            await fs.write(first, 0, b"x" * QUOTA)
            await fs.fsync(first)
            await fs.release(first)
            _, second = await fs.create(ROOT, ROOT_INO, b"b", 0o644, os.O_RDWR)
            with pytest.raises(QuotaExceeded):
                await fs.write(second, 0, b"x" * KIB)
            await fs.unlink(ROOT, ROOT_INO, b"a")
            assert await fs.write(second, 0, b"x" * KIB) == KIB
            await fs.fsync(second)
            await fs.release(second)


async def test_small_files_of_many_handles_count_together(autojump_clock: object) -> None:
    async with cluster() as made:
        await limited(made)
        async with made.mount() as fs:
            handles = [(await fs.create(ROOT, ROOT_INO, b"%d" % n, 0o644, os.O_RDWR))[1] for n in range(65)]
            for handle in handles[:64]:
                await fs.write(handle, 0, b"x" * 16 * KIB)
            with pytest.raises(QuotaExceeded):
                await fs.write(handles[64], 0, b"x")
            await fs.sync()
            for handle in handles:
                await fs.release(handle)
