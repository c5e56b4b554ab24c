"""Counters under locks: read, add one, write, fsync, by everybody, under fcntl or flock locks across clients.

An increment that was acknowledged is in the file, and no two of them made the same number: else somebody was let in beside the
holder of the lock, or did something after its lock was lost. Who takes both counters' locks does so in any order, so that
deadlocks happen, and must be seen.
"""

import os
from dataclasses import dataclass, field
from random import Random

import trio

from fsd.client.file import FileHandle
from fsd.client.filesystem import FileSystem
from fsd.core.errors import CorruptData, Deadlock, FsError, LockConflict
from fsd.core.ids import ROOT_INO
from fsd.namespace.locks import LockKind, LockSpace
from fsd.protocol.metadata import HeldLock
from tests.simulation.kernel import Fault
from tests.simulation.workload import ROOT, Client

COUNTERS = (b"k0", b"k1", b"k2")
UNDER_FLOCK = b"k2"
SIZE = 8


@dataclass
class Counted:
    """What was seen of one counter. `begun`: increments that may have happened."""

    begun: int = 0
    acknowledged: dict[int, str] = field(default_factory=dict)

    def acknowledge(self, number: int, who: str) -> None:
        if number in self.acknowledged:
            raise Fault(f"{who} and {self.acknowledged[number]} have both counted to {number}: a lock was no lock")
        self.acknowledged[number] = who

    def check(self, number: int) -> None:
        if not max([0, len(self.acknowledged), *self.acknowledged]) <= number <= self.begun:
            raise Fault(f"a counter is {number}: {len(self.acknowledged)} of {self.begun} increments were acknowledged")


class Locker:
    """One process on a client. Its counter's locks are of one kind: fcntl and flock do not see each other."""

    def __init__(self, client: Client, random: Random, number: int, counted: dict[bytes, Counted]) -> None:
        self.client = client
        self.fs = client.fs
        self.random = random
        self.owner = number
        self.counted = counted

    async def begin(self) -> None:
        """Whoever had this number before died with all that it had, maybe together with its daemon."""
        for name in COUNTERS:
            ino = (await self.fs.lookup(ROOT_INO, name)).ino
            for space in LockSpace:
                await self.fs.locks.release(space, ino, self.owner)

    async def step(self) -> None:
        if self.random.random() < 0.5:
            await trio.sleep(self.random.uniform(0, self.client.think_s))
        names = [name for name in COUNTERS if name != UNDER_FLOCK]
        self.random.shuffle(names)
        if self.random.random() < 0.7:
            names = [self.random.choice(COUNTERS)]
        opened: list[tuple[FileHandle, HeldLock, bytes]] = []
        try:
            await self._count(names, opened)
        except (Deadlock, LockConflict) as error:
            self.client.history.kernel.trace("refused", self.client.name, self.owner, type(error).__name__)
        except CorruptData:
            if not self.client.history.corrupt_allowed:
                raise
        except FsError as error:
            self.client.look_at_session()
            if not self.client.allows(error):
                raise Fault(f"{self.client.name}: counting {names}: {type(error).__name__}: {error}") from error
        finally:
            for handle, lock, _ in opened:
                await self.fs.locks.release(lock.space, lock.ino, lock.owner)
                await self.fs.release(handle)
        self.client.look_at_session()

    async def _count(self, names: list[bytes], opened: list[tuple[FileHandle, HeldLock, bytes]]) -> None:
        wait = len(names) > 1 or self.random.random() < 0.8
        for name in names:
            handle = await self.fs.open((await self.fs.lookup(ROOT_INO, name)).ino, os.O_RDWR)
            space = LockSpace.FLOCK if name == UNDER_FLOCK else LockSpace.POSIX
            lock = HeldLock(handle.ino, space, self.owner, LockKind.WRITE, 0, SIZE, self.owner, self.owner)
            opened.append((handle, lock, name))
            await self.fs.locks.acquire(lock, wait=wait)
        for handle, _, name in opened:
            before = int.from_bytes(await self.fs.read(handle, 0, SIZE), "big")
            if self.random.random() < 0.3:
                await trio.sleep(self.random.uniform(0, self.client.think_s))
            self.counted[name].begun += 1
            await self.fs.write(handle, 0, (before + 1).to_bytes(SIZE, "big"))
            await self.fs.fsync(handle)
            self.counted[name].acknowledge(before + 1, self.client.name)


async def prepare_counters(fs: FileSystem) -> None:
    for name in COUNTERS:
        _, handle = await fs.create(ROOT, ROOT_INO, name, 0o644, os.O_RDWR)
        await fs.release(handle)
    await fs.sync()


async def check_counters(client: Client, counted: dict[bytes, Counted]) -> None:
    for name in COUNTERS:
        content = await client.fs.read(await client.handle(name), 0, SIZE)
        counted[name].check(int.from_bytes(content, "big"))
