"""Random programs on directories: several clients, one call at a time, against a dictionary as oracle. Most calls run in a
client's own journal; the next client's call must see them all the same (I14)."""

import random
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from fsd.client.filesystem import FileSystem
from fsd.core.errors import (
    AlreadyExists,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    PosixError,
)
from fsd.core.ids import ROOT_INO, Ino
from fsd.namespace.operations import RenameFlag
from tests.client.cluster import ROOT, cluster, get, put
from tests.client.test_random_programs import disturb, up

Clock = trio.testing.MockClock
NAMES = (b"a", b"b", b"c", b"d")
CALLS = ("mkdir", "put", "put", "symlink", "unlink", "rmdir", "rename", "rename", "exchange", "link", "chmod", "xattr")
LOOKS = ("look", "look", "list", "read", "fsync", "sync", "wait")


@dataclass
class Node:
    """An inode as it should be. `names` of a directory, `text` of a file or a link."""

    kind: int
    text: bytes = b""
    names: dict[bytes, Ino] = field(default_factory=dict[bytes, Ino])
    mode: int = 0o755
    xattr: bytes = b""


class Program:
    def __init__(self, seed: int, clients: list[FileSystem]) -> None:
        self.random = random.Random(seed)
        self.clients = clients
        self.nodes = {ROOT_INO: Node(stat.S_IFDIR)}
        self.log: list[str] = []
        self.client = clients[0]

    async def step(self) -> None:
        if self.random.random() < 0.2:
            self.client = self.random.choice(self.clients)
            await self.walk(ROOT_INO)
        call = self.random.choice(CALLS + LOOKS)
        self.log.append(f"{self.clients.index(self.client)} {call}")
        await getattr(self, call)()

    async def walk(self, ino: Ino) -> None:
        """A client knows inodes by their names alone: others' numbers may not even be at the server yet."""
        for name, child in list(self.nodes[ino].names.items()):
            assert (await self.client.lookup(ino, name)).ino == child, self.log
            await self.walk(child)

    # --- the oracle ---

    def directory(self) -> Ino:
        """One that can be reached."""
        ino = ROOT_INO
        while self.random.random() < 0.6:
            below = [child for child in self.nodes[ino].names.values() if self.nodes[child].kind == stat.S_IFDIR]
            if not below:
                break
            ino = self.random.choice(below)
        return ino

    def slot(self) -> tuple[Ino, bytes]:
        return self.directory(), self.random.choice(NAMES)

    def find(self, slot: tuple[Ino, bytes]) -> Ino | None:
        return self.nodes[slot[0]].names.get(slot[1])

    def is_below(self, ino: Ino, above: Ino) -> bool:
        return ino == above or any(self.is_below(ino, child) for child in self.nodes[above].names.values())

    def links(self, ino: Ino) -> int:
        if self.nodes[ino].kind != stat.S_IFDIR:
            return sum(list(node.names.values()).count(ino) for node in self.nodes.values())
        return 2 + sum(self.nodes[child].kind == stat.S_IFDIR for child in self.nodes[ino].names.values())

    async def expect(self, error: type[PosixError] | None, call: Callable[[], Awaitable[object]]) -> bool:
        """Whether the call was to succeed, and did."""
        self.log[-1] += f" {error.__name__ if error else ''}"
        if error is None:
            await call()
            return True
        with pytest.raises(error):
            await call()
        return False

    # --- changes ---

    async def new(self, node: Node, make: Callable[[Ino, bytes], Awaitable[Ino]]) -> None:
        parent, name = slot = self.slot()
        self.log[-1] += f" {slot}"
        made: list[Ino] = []

        async def call() -> None:
            made.append(await make(parent, name))

        if await self.expect(AlreadyExists if self.find(slot) else None, call):
            self.nodes[parent].names[name] = made[0]
            self.nodes[made[0]] = node

    async def mkdir(self) -> None:
        async def make(parent: Ino, name: bytes) -> Ino:
            return (await self.client.mkdir(ROOT, parent, name, 0o755)).ino

        await self.new(Node(stat.S_IFDIR), make)

    async def symlink(self) -> None:
        async def make(parent: Ino, name: bytes) -> Ino:
            return (await self.client.symlink(ROOT, parent, name, b"target")).ino

        await self.new(Node(stat.S_IFLNK, b"target", mode=0o777), make)

    async def put(self) -> None:
        text = self.random.randbytes(self.random.choice((0, 10, 3000, 30_000)))
        slot = self.slot()
        if self.find(slot) is None:
            ino = Ino(await put(self.client, slot[1], text, slot[0]))
            self.nodes[slot[0]].names[slot[1]] = ino
            self.nodes[ino] = Node(stat.S_IFREG, text, mode=0o644)

    async def link(self) -> None:
        old, new = self.slot(), self.slot()
        ino = self.find(old)
        if ino is None or self.nodes[ino].kind == stat.S_IFDIR:
            return
        error = AlreadyExists if self.find(new) else None
        if await self.expect(error, lambda: self.client.link(ROOT, ino, new[0], new[1])):
            self.nodes[new[0]].names[new[1]] = ino

    def gone(self, slot: tuple[Ino, bytes]) -> None:
        ino = self.nodes[slot[0]].names.pop(slot[1])
        if not any(ino in node.names.values() for node in self.nodes.values()):
            del self.nodes[ino]

    async def unlink(self) -> None:
        slot = self.slot()
        self.log[-1] += f" {slot}"
        ino = self.find(slot)
        error = NotFound if ino is None else IsADirectory if self.nodes[ino].kind == stat.S_IFDIR else None
        if await self.expect(error, lambda: self.client.unlink(ROOT, *slot)):
            self.gone(slot)

    async def rmdir(self) -> None:
        slot = self.slot()
        self.log[-1] += f" {slot}"
        ino = self.find(slot)
        error: type[PosixError] | None = None
        if ino is None:
            error = NotFound
        elif self.nodes[ino].kind != stat.S_IFDIR:
            error = NotADirectory
        elif self.nodes[ino].names:
            error = NotEmpty
        if await self.expect(error, lambda: self.client.rmdir(ROOT, *slot)):
            self.gone(slot)

    async def rename(self) -> None:
        old, new = self.slot(), self.slot()
        self.log[-1] += f" {old} {new}"
        if not await self.expect(self.why_not(old, new), lambda: self.client.rename(ROOT, *old, *new)):
            return
        if self.find(old) != self.find(new):
            ino = self.nodes[old[0]].names.pop(old[1])
            if self.find(new) is not None:
                self.gone(new)
            self.nodes[new[0]].names[new[1]] = ino

    def why_not(self, old: tuple[Ino, bytes], new: tuple[Ino, bytes]) -> type[PosixError] | None:
        source, target = self.find(old), self.find(new)
        if source is None:
            return NotFound
        moves = self.nodes[source].kind == stat.S_IFDIR
        if old[0] != new[0] and moves and self.is_below(new[0], source):
            return InvalidArgument
        if target is None or target == source:
            return None
        if old[0] != new[0] and self.is_below(old[0], target):
            return NotEmpty
        if moves != (self.nodes[target].kind == stat.S_IFDIR):
            return NotADirectory if moves else IsADirectory
        return NotEmpty if self.nodes[target].names else None

    async def exchange(self) -> None:
        old, new = self.slot(), self.slot()
        one, other = self.find(old), self.find(new)
        if one is None or other is None or one == other:
            return
        loops = old[0] != new[0] and (self.is_below(new[0], one) or self.is_below(old[0], other))
        error = InvalidArgument if loops else None
        flags = int(RenameFlag.EXCHANGE)
        if await self.expect(error, lambda: self.client.rename(ROOT, *old, *new, flags)):
            self.nodes[old[0]].names[old[1]], self.nodes[new[0]].names[new[1]] = other, one

    async def chmod(self) -> None:
        ino = self.find(self.slot())
        if ino is not None and self.nodes[ino].kind != stat.S_IFLNK:
            self.nodes[ino].mode = self.random.randrange(0o1000)
            await self.client.setattr(ROOT, ino, mode=self.nodes[ino].mode)

    async def xattr(self) -> None:
        ino = self.find(self.slot())
        if ino is not None and self.nodes[ino].kind != stat.S_IFLNK:
            self.nodes[ino].xattr = self.random.randbytes(5)
            await self.client.setxattr(ROOT, ino, b"user.x", self.nodes[ino].xattr)

    # --- looks ---

    async def look(self) -> None:
        slot = self.slot()
        ino = self.find(slot)
        if ino is None:
            with pytest.raises(NotFound):
                await self.client.lookup(*slot)
            return
        await self.check(ino, await self.client.lookup(*slot))

    async def check(self, ino: Ino, inode: object) -> None:
        node = self.nodes[ino]
        assert inode == await self.client.getattr(ino), self.log
        now = await self.client.getattr(ino)
        size = len(node.names) if node.kind == stat.S_IFDIR else len(node.text)
        assert (now.ino, stat.S_IFMT(now.mode), stat.S_IMODE(now.mode)) == (ino, node.kind, node.mode), self.log
        assert (now.size, now.nlink) == (size, self.links(ino)), self.log
        if node.xattr:
            assert await self.client.getxattr(ino, b"user.x") == node.xattr, self.log

    async def list(self) -> None:
        ino = self.directory()
        handle = await self.client.open_directory(ino)
        found: dict[bytes, Ino] = {}
        cookie = 0
        while entries := await self.client.read_directory(handle, cookie, self.random.random() < 0.5):
            for entry in entries:
                found[entry.name] = entry.ino
                assert entry.type == self.nodes[entry.ino].kind, self.log
            cookie = entries[-1].cookie
        assert found == self.nodes[ino].names, self.log

    async def read(self) -> None:
        slot = self.slot()
        ino = self.find(slot)
        if ino is None or self.nodes[ino].kind == stat.S_IFDIR:
            return
        if self.nodes[ino].kind == stat.S_IFLNK:
            assert await self.client.readlink(ino) == b"target"
        else:
            assert await get(self.client, slot[1], slot[0]) == self.nodes[ino].text, self.log

    async def fsync(self) -> None:
        await self.client.fsync_directory(self.directory())

    async def sync(self) -> None:
        await self.client.sync()

    async def wait(self) -> None:
        await trio.sleep(self.random.choice((0.001, 0.01, 0.1, 2.0)))

    async def finish(self) -> None:
        for client in self.clients:
            self.client = client
            await self.walk(ROOT_INO)
            for ino, node in self.nodes.items():
                await self.check(ino, await client.getattr(ino))
                for name, child in node.names.items():
                    assert (await client.lookup(ino, name)).ino == child
            statistics = client.statistics()
            wrong = ("refused promises", "lost operations", "lost bytes", "evictions")
            assert [name for name in wrong if statistics.get(name, 0)] == []


@pytest.mark.parametrize("seed", range(12))
async def test_a_tree_is_the_same_to_every_client(seed: int, autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b, made.mount(metadata_cache_entries=16) as c:
        program = Program(seed, [a, b, c])
        for _ in range(200):
            with trio.fail_after(30):
                await program.step()
        await program.finish()


@pytest.mark.parametrize("seed", range(200, 206))
async def test_a_tree_survives_faults(seed: int, autojump_clock: Clock) -> None:
    async with cluster() as made, made.mount() as a, made.mount() as b:
        program = Program(seed, [a, b])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disturb, made, seed)
            for _ in range(200):
                with trio.fail_after(180):
                    await program.step()
                await trio.sleep(0.05)
            await program.finish()
            nursery.cancel_scope.cancel()
        await up(made)
