"""Files with one writer each: whatever happens to that client, its file is as it was behind one of its flushes.

A flush takes all that is dirty, so a flush boundary is a moment in the sequence of the writes: of the regions in several chunks
and the records appended behind them, those up to some write are there, and nothing later; what was synced is there in any case.

A state is (what the file is, what else it may fall back to when the buffer is lost); all that are possible are kept.
"""

import os
from random import Random
from typing import NamedTuple

import trio

from fsd.client.file import FileHandle
from fsd.client.filesystem import Caller, FileSystem
from fsd.core.errors import FsError, NotFound
from fsd.core.ids import ROOT_INO
from tests.simulation.kernel import Fault
from tests.simulation.workload import CHUNK_SIZE, RECORD, Client, History, pattern, read_number, read_whole

ROOT = Caller(0, 0)
SPOTS = ((1000, 3000), (60_000, 10_000), (CHUNK_SIZE + 5_000, 2_000), (2 * CHUNK_SIZE + 100, 30_000))
BASE = 2 * CHUNK_SIZE + 70_000  # records are appended from here on, in the last chunk and behind it


class Content(NamedTuple):
    """Numbers of the writes that the file shows."""

    spots: tuple[int, ...]
    tail: tuple[int, ...]

    def after(self, spot: int | None, number: int) -> "Content":
        if spot is None:
            return Content(self.spots, (*self.tail, number))
        return Content((*self.spots[:spot], number, *self.spots[spot + 1 :]), self.tail)


State = tuple[Content, frozenset[Content]]
EMPTY = Content((0,) * len(SPOTS), ())


class OwnFile:
    """What is known of one file, over all lives of its writer."""

    def __init__(self, history: History, name: bytes, steps: int) -> None:
        self.history = history
        self.name = name
        self.steps = steps
        self.is_made = False
        self.states: frozenset[State] = frozenset({(EMPTY, frozenset())})
        self.before: frozenset[State] = frozenset()  # the write that is under way

    def write(self, spot: int | None, number: int) -> None:
        self.states = frozenset((now.after(spot, number), disk | {now}) for now, disk in self.states)

    def synced(self) -> None:
        self.states = frozenset((now, frozenset[Content]()) for now, _ in self.states)

    def lost(self) -> None:
        """The writer's buffer is gone."""
        self.states = frozenset((each, frozenset[Content]()) for now, disk in self.states for each in (now, *disk))

    def daemon_died(self) -> None:
        """The writer's buffer is in its log; the write that was under way may be in it or not."""
        self.states |= self.before
        self.before = frozenset()

    def perhaps_lost_before(self, spot: int | None, number: int, before: frozenset[State]) -> None:
        """The buffer went while the write was under way: before it, or with it."""
        self.lost()
        after, self.states = self.states, before
        self.lost()
        self.write(spot, number)
        self.states |= after

    def seen(self, content: Content) -> None:
        """Raises Fault if the file cannot be like this."""
        self.history.kernel.trace("own", self.name, content)
        possible = frozenset(state for state in self.states if state[0] == content)
        if not possible:
            known = sorted({now for now, _ in self.states})[:4]
            raise Fault(f"{self.name.decode()} is at no flush boundary: {content}, may be {known}")
        self.states = possible


class Flusher:
    """The writer, in one life of its client."""

    def __init__(self, client: Client, own: OwnFile, random: Random) -> None:
        self.client = client
        self.own = own
        self.random = random
        self.fs: FileSystem = client.fs
        self.evictions = self._evictions()

    def _evictions(self) -> int:
        return self.fs.statistics().get("evictions", 0)

    async def run(self) -> None:
        handle = await self._open()
        await self.look(handle)
        while self.own.steps > 0:
            self.own.steps -= 1
            await trio.sleep(self.random.uniform(0, 2 * self.client.think_s))
            try:
                await self._step(handle)
            except FsError as error:
                self._note_eviction()
                if not self.client.allows(error) and self.evictions == 0:
                    raise Fault(f"{self.own.name.decode()}: {type(error).__name__}: {error}") from error

    async def _open(self) -> FileHandle:
        flags = os.O_RDWR
        while not self.own.is_made:
            try:
                inode = await self.fs.lookup(ROOT_INO, self.own.name)
                handle = await self.fs.open(inode.ino, flags)
            except NotFound:
                _, handle = await self.fs.create(ROOT, ROOT_INO, self.own.name, 0o644, flags)
            await self.fs.setattr(ROOT, handle.ino, size=BASE)
            await self.fs.fsync(handle)
            await self.fs.sync()
            self.own.is_made = self._evictions() == 0
            await self.fs.release(handle)
        return await self.fs.open((await self.fs.lookup(ROOT_INO, self.own.name)).ino, flags)

    async def _step(self, handle: FileHandle) -> None:
        spots: list[int | None] = [None, *range(len(SPOTS))]
        for spot in self.random.sample(spots, self.random.choice((1, 2, 3, 5))):
            await self._write(handle, spot)
        roll = self.random.random()
        if roll < 0.4:
            before = self._evictions()
            await self.fs.fsync(handle)
            self._note_eviction()
            if self._evictions() == before:
                self.own.synced()
        elif roll < 0.55:
            await self.look(handle)

    async def _write(self, handle: FileHandle, spot: int | None) -> None:
        self._note_eviction()
        number, before = self.own.history.number(), self.own.states
        self.own.before = before
        self.own.write(spot, number)  # from now on it may be there
        if spot is None:
            length, offset = RECORD, (await self.fs.getattr(handle.ino)).size
        else:
            offset, length = SPOTS[spot]
        if self._note_eviction(spot, number, before):
            return  # it is among what may have happened, and so may be that it has not
        await self.fs.write(handle, offset, pattern(number, length))
        self.own.before = frozenset()
        self._note_eviction(spot, number, before)

    def _note_eviction(self, spot: int | None = None, number: int = 0, before: frozenset[State] = frozenset()) -> bool:
        now = self._evictions()
        if now == self.evictions:
            return False
        self.evictions = now
        if number:
            self.own.perhaps_lost_before(spot, number, before)
        else:
            self.own.lost()
        return True

    async def look(self, handle: FileHandle) -> None:
        before = self._evictions()
        self._note_eviction()
        try:
            content = await look_at(self.fs, handle)
        except Fault:
            if self._note_eviction():
                return  # in the midst of looking: it shrank
            raise
        self._note_eviction()
        if self._evictions() == before:
            self.own.seen(content)


async def look_at(fs: FileSystem, handle: FileHandle) -> Content:
    content = await read_whole(fs, handle)
    if len(content) < BASE or (len(content) - BASE) % RECORD:
        raise Fault(f"a file of {len(content)} bytes was never written")
    spots = tuple(read_number(content[offset : offset + length], length) for offset, length in SPOTS)
    tail = content[BASE:]
    return Content(spots, tuple(read_number(tail[at : at + RECORD], RECORD) for at in range(0, len(tail), RECORD)))


async def verify(client: Client, own: OwnFile) -> None:
    """By anybody, when its writer has ended."""
    if own.is_made:
        inode = await client.fs.lookup(ROOT_INO, own.name)
        own.seen(await look_at(client.fs, await client.fs.open(inode.ino, os.O_RDONLY)))
