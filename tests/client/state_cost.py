"""What the write-back log costs a client: `python -m tests.client.state_cost [ROUNDS]`, CPU of its process for each call, with
and without it in turn, medians. The first pass of each kind is not counted: it makes the log's memory, once. No mount: in one,
the kernel's and pyfuse3's part comes on top of both."""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from fsd.client.filesystem import FileSystem, open_filesystem
from fsd.client.options import Caller, ClientOptions
from fsd.core.ids import ROOT_INO
from fsd.core.units import MIB
from fsd.runtime.local import real_runtime
from fsd.runtime.localstate import LocalState
from tests.client.servers import servers

ROOT = Caller(0, 0)
CREATES, SMALL_WRITES, LARGE_WRITES = 3000, 20_000, 256
ROUNDS = 3

Work = Callable[[FileSystem, int], Awaitable[int]]


async def creates(fs: FileSystem, tag: int) -> int:
    directory = await fs.mkdir(ROOT, ROOT_INO, b"c%d" % tag, 0o755)
    for at in range(CREATES):
        _, handle = await fs.create(ROOT, directory.ino, b"%d" % at, 0o644, os.O_RDWR, number=at + 1)
        await fs.release(handle)
    await fs.sync()
    return CREATES


async def small_writes(fs: FileSystem, tag: int) -> int:
    _, handle = await fs.create(ROOT, ROOT_INO, b"s%d" % tag, 0o644, os.O_RDWR, number=100_000)
    data = os.urandom(4096)
    for at in range(SMALL_WRITES):
        await fs.write(handle, at % 4096 * 4096, data)
    await fs.fsync(handle)
    await fs.release(handle)
    return SMALL_WRITES


async def large_writes(fs: FileSystem, tag: int) -> int:
    _, handle = await fs.create(ROOT, ROOT_INO, b"l%d" % tag, 0o644, os.O_RDWR, number=100_000)
    data = os.urandom(MIB)
    for at in range(LARGE_WRITES):
        await fs.write(handle, at * MIB, data)
    await fs.fsync(handle)
    await fs.release(handle)
    return LARGE_WRITES


WORKS: dict[str, Work] = {"create": creates, "write 4 KiB": small_writes, "write 1 MiB": large_writes}


async def measure(address: str, state: str | None, tag: int) -> dict[str, float]:
    kept = None if state is None else LocalState(state)
    async with open_filesystem(real_runtime(), (address,), "default", ClientOptions(name="cost"), None, kept) as fs:
        found: dict[str, float] = {}
        for name, work in WORKS.items():
            await work(fs, 2 * tag)
            begin = time.process_time()
            calls = await work(fs, 2 * tag + 1)
            found[name] = (time.process_time() - begin) / calls * 1e6
        return found


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    told: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    temporary = tempfile.TemporaryDirectory
    with temporary() as root, temporary(dir=memory) as state, servers(Path(root)) as address:
        for tag in range(2 * rounds):
            logged = bool(tag % 2)
            told[logged].append(trio.run(measure, address, f"{state}/{tag}" if logged else None, tag))
    for name in WORKS:
        without, with_log = (statistics.median(each[name] for each in told[logged]) for logged in (False, True))
        print(f"{name:12} {without:8.1f} us without, {with_log:8.1f} us with the log: {with_log / without - 1:+.1%}")


if __name__ == "__main__":
    main()
