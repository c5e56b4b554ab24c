"""Random programs: several clients, one call at a time, against a dictionary as oracle. Strict coherence (I14) means that it
does not matter which client makes a call. With faults, calls take longer, and that is all."""

import os
import random
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from fsd.client.file import FileHandle
from fsd.client.filesystem import FileSystem
from fsd.core.errors import NotFound
from fsd.core.units import KIB
from tests.client.cluster import METADATA, ROOT, Cluster, cluster

Clock = trio.testing.MockClock
NAMES = [b"a", b"b", b"c"]
LARGEST = 700 * KIB


@dataclass
class Model:
    """What the files hold. `files`: contents by identity; `names`: identity by name; `handles` by client."""

    files: dict[int, bytearray] = field(default_factory=dict)
    names: dict[bytes, int] = field(default_factory=dict)
    handles: list[tuple[FileSystem, FileHandle, int]] = field(default_factory=list)


class Program:
    def __init__(self, seed: int, clients: list[FileSystem]) -> None:
        self.random = random.Random(seed)
        self.clients = clients
        self.model = Model()
        self.log: list[str] = []

    async def step(self) -> None:
        kinds = ["open", "open", "write", "write", "write", "read", "read", "truncate", "unlink", "rename", "close"]
        kind = self.random.choice([*kinds, "stat", "list", "fsync", "link", "wait", "times"])
        await getattr(self, kind)()

    def pick(self) -> tuple[int, FileSystem]:
        index = self.random.randrange(len(self.clients))
        return index, self.clients[index]

    def offset(self) -> int:
        return self.random.choice([0, 10, 5000, 16 * KIB, 64 * KIB, 256 * KIB, self.random.randrange(LARGEST)])

    async def open(self) -> None:
        index, client = self.pick()
        name = self.random.choice(NAMES)
        self.log.append(f"{index} open {name}")
        inode, handle = await client.create(ROOT, 1, name, 0o644, os.O_RDWR)
        identity = self.model.names.setdefault(name, inode.ino)
        assert identity == inode.ino
        data = self.model.files.setdefault(identity, bytearray())
        assert inode.size == len(data)
        self.model.handles.append((client, handle, identity))

    def pick_handle(self) -> tuple[FileSystem, FileHandle, int] | None:
        return self.random.choice(self.model.handles) if self.model.handles else None

    async def write(self) -> None:
        picked = self.pick_handle()
        if picked is None:
            return
        client, handle, ino = picked
        offset, length = self.offset(), self.random.choice([1, 100, 4096, 20_000, 150_000])
        data = self.random.randbytes(length)
        self.log.append(f"{self.clients.index(client)} write {ino} {offset}+{length}")
        assert await client.write(handle, offset, data) == length
        contents = self.model.files[ino]
        contents.extend(bytes(max(0, offset - len(contents))))
        contents[offset : offset + length] = data

    async def read(self) -> None:
        picked = self.pick_handle()
        if picked is None:
            return
        client, handle, ino = picked
        offset, length = self.offset(), self.random.choice([1, 100, 4096, 20_000, 400_000])
        self.log.append(f"{self.clients.index(client)} read {ino} {offset}+{length}")
        self.same(await client.read(handle, offset, length), bytes(self.model.files[ino][offset : offset + length]))

    def same(self, got: bytes, wanted: bytes) -> None:
        if got != wanted:
            first = next((i for i, (x, y) in enumerate(zip(got, wanted, strict=False)) if x != y), -1)
            raise AssertionError(f"{len(got)} bytes, wanted {len(wanted)}, first difference at {first}: {self.log}")

    async def truncate(self) -> None:
        picked = self.pick_handle()
        if picked is None:
            return
        client, _, ino = picked
        size = self.offset()
        self.log.append(f"{self.clients.index(client)} truncate {ino} {size}")
        inode = await client.setattr(ROOT, ino, size=size)
        assert inode.size == size, self.log
        contents = self.model.files[ino]
        del contents[size:]
        contents.extend(bytes(size - len(contents)))

    async def unlink(self) -> None:
        index, client = self.pick()
        name = self.random.choice(NAMES)
        self.log.append(f"{index} unlink {name}")
        if name in self.model.names:
            await client.unlink(ROOT, 1, name)
            del self.model.names[name]
        else:
            with pytest.raises(NotFound):
                await client.unlink(ROOT, 1, name)

    async def rename(self) -> None:
        index, client = self.pick()
        old, new = self.random.sample(NAMES, 2)
        self.log.append(f"{index} rename {old} {new}")
        names = self.model.names
        if old not in names:
            with pytest.raises(NotFound):
                await client.rename(ROOT, 1, old, 1, new)
            return
        await client.rename(ROOT, 1, old, 1, new)
        if names.get(new) != names[old]:
            names[new] = names.pop(old)

    async def link(self) -> None:
        index, client = self.pick()
        old, new = self.random.sample(NAMES, 2)
        if old in self.model.names and new not in self.model.names:
            self.log.append(f"{index} link {old} {new}")
            await client.link(ROOT, self.model.names[old], 1, new)
            self.model.names[new] = self.model.names[old]

    async def close(self) -> None:
        picked = self.pick_handle()
        if picked is None:
            return
        client, handle, ino = picked
        self.log.append(f"{self.clients.index(client)} close {ino}")
        self.model.handles.remove(picked)
        await client.flush(handle)
        await client.release(handle)

    async def fsync(self) -> None:
        picked = self.pick_handle()
        if picked is not None:
            self.log.append(f"{self.clients.index(picked[0])} fsync {picked[2]}")
            await picked[0].fsync(picked[1])

    async def times(self) -> None:
        index, client = self.pick()
        if not self.model.names:
            return
        name = self.random.choice(sorted(self.model.names))
        mtime_ns = self.random.randrange(1, 10**9)
        self.log.append(f"{index} times {name}")
        await client.setattr(ROOT, self.model.names[name], mtime_ns=mtime_ns)
        inode = await self.pick()[1].lookup(1, name)
        assert inode.mtime_ns == mtime_ns, self.log
        assert inode.size == len(self.model.files[inode.ino]), self.log

    async def stat(self) -> None:
        index, client = self.pick()
        name = self.random.choice(NAMES)
        self.log.append(f"{index} stat {name}")
        if name not in self.model.names:
            with pytest.raises(NotFound):
                await client.lookup(1, name)
            return
        inode = await client.lookup(1, name)
        ino = self.model.names[name]
        assert inode.ino == ino, self.log
        assert inode.size == len(self.model.files[ino]), self.log
        assert inode.nlink == list(self.model.names.values()).count(ino), self.log

    async def list(self) -> None:
        index, client = self.pick()
        self.log.append(f"{index} list")
        handle = await client.open_directory(1)
        entries = await client.read_directory(handle, 0, True)
        assert {entry.name: entry.ino for entry in entries} == self.model.names, self.log
        for entry in entries:
            if entry.inode is not None:
                assert entry.inode.size == len(self.model.files[entry.ino]), self.log

    async def wait(self) -> None:
        await trio.sleep(self.random.choice([0.001, 0.01, 0.1, 2.0]))

    async def finish(self) -> None:
        while self.model.handles:
            await self.close()
        for client in self.clients:
            for name, ino in self.model.names.items():
                inode = await client.lookup(1, name)
                handle = await client.open(inode.ino, os.O_RDONLY)
                self.same(await client.read(handle, 0, LARGEST * 2), bytes(self.model.files[ino]))
                await client.release(handle)


async def disturb(made: Cluster, seed: int) -> None:
    """Kill and restart one server after the other; break connections."""
    chance = random.Random(seed)
    while True:
        await trio.sleep(chance.uniform(0.5, 6))
        kind = chance.choice(["node", "metadata", "cut"])
        if kind == "cut":
            made.network.cut(chance.choice([METADATA, "node0:1", "node1:1", "node2:1"]))
        elif kind == "metadata":
            await made.kill("metadata", METADATA)
            await trio.sleep(chance.uniform(0, 3))
            await made.start_metadata()
        else:
            index = chance.randrange(3)
            await made.kill(f"node{index}", f"node{index}:1")
            await trio.sleep(chance.uniform(0, 12))
            await made.start_node(index)
            await trio.sleep(25)  # two replicas: nobody else dies before it is back in sync


@pytest.mark.parametrize("seed", range(12))
async def test_it_does_not_matter_which_client_makes_a_call(seed: int, autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b, made.mount(cache_bytes=200 * KIB) as c:
        program = Program(seed, [a, b, c])
        for _ in range(150):
            with trio.fail_after(30):
                await program.step()
        await program.finish()
        check_nothing_lost(program)


@pytest.mark.parametrize("seed", range(100, 106))
async def test_faults_cost_time_and_nothing_else(seed: int, autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        program = Program(seed, [a, b])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disturb, made, seed)
            for _ in range(150):
                with trio.fail_after(180):
                    await program.step()
                await trio.sleep(0.1)
            await program.finish()
            nursery.cancel_scope.cancel()
        check_nothing_lost(program)
        await up(made)


async def up(made: Cluster) -> None:
    """For the fsck at the end."""
    if "metadata" not in made.lives:
        await made.start_metadata()
        await trio.sleep(15)


def check_nothing_lost(program: Program) -> None:
    for client in program.clients:
        statistics = client.statistics()
        assert statistics.get("lost bytes", 0) == 0
        assert statistics.get("evictions", 0) == 0
