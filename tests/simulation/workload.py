"""What clients do, and what they saw: random work on few shared files and names, written down as a history.

    r0, r1      files cut into *regions*, each only written whole, with a number that never comes again
    log         records appended by everybody
    d0, d1      directories in which a few names come, go and move

Every number that is written is unique, so whoever reads knows which write it sees. Bytes of a region that are of two writes
fail the run at once.
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from math import inf
from random import Random
from typing import Any

import trio

from fsd.client.calls import CALL, RESENT
from fsd.client.file import FileHandle
from fsd.client.filesystem import Caller, FileSystem
from fsd.core.errors import AlreadyExists, CorruptData, FsError, NotFound, PosixError, StaleHandle
from fsd.core.ids import ROOT_INO, Ino
from fsd.namespace.operations import RenameFlag
from tests.simulation.check import Operation
from tests.simulation.kernel import Fault, Kernel

CHUNK_SIZE = 128 * 1024
INLINE_LIMIT = 4096
REGIONS = (
    (0, 100),
    (1000, 3000),  # a file with no more than these is inline
    (20_000, 40_000),
    (65_536, 65_536),
    (CHUNK_SIZE + 5_000, 2_000),
    (CHUNK_SIZE + 60_000, 20_000),  # over the edge of a block
    (2 * CHUNK_SIZE, 30_000),
)
FILES = (b"r0", b"r1")
DIRECTORIES = (b"d0", b"d1")
NAMES = (b"a", b"b", b"c")
LOG = b"log"
RECORD = 32
ROOT = Caller(0, 0)
EXPECTED = (CorruptData,)  # where a bit was flipped: a definite error, instead of wrong bytes


def pattern(number: int, length: int) -> bytes:
    return (number.to_bytes(4, "big") * (length // 4 + 1))[:length]


@dataclass
class Call:
    """A system call under way."""

    unique: int
    kind: str
    argument: Any
    call: Callable[[], Awaitable[Any]]
    note: Callable[[Operation], None]
    operation: Operation


@dataclass
class History:
    """Everything that was seen, in one sequence."""

    kernel: Kernel
    regions: dict[tuple[bytes, int], list[Operation]] = field(default_factory=dict)
    tree: list[Operation] = field(default_factory=list)
    appended: dict[bytes, str] = field(default_factory=dict)  # record -> "must" or "may" be in the log
    last_number: int = 0
    last_tick: int = 0
    count: int = 0
    corrupt_allowed: bool = False

    def tick(self) -> int:
        self.last_tick += 1
        return self.last_tick

    def number(self) -> int:
        self.last_number += 1
        return self.last_number

    def region(self, file: bytes, index: int, operation: Operation) -> None:
        self.count += 1
        self.regions.setdefault((file, index), []).append(operation)
        self.kernel.trace("region", file, index, operation)

    def name(self, operation: Operation) -> None:
        self.count += 1
        self.tree.append(operation)
        self.kernel.trace("tree", operation)


def read_number(content: bytes, length: int) -> int:
    """Which write the bytes of a region are of; 0 for a hole. Raises Fault if they are of none or of two."""
    content = content.ljust(length, b"\0")
    number = int.from_bytes(content[:4], "big")
    if content != pattern(number, length):
        pieces = sorted({int.from_bytes(content[at : at + 4], "big") for at in range(0, length - 3, 4)})
        raise Fault(f"a region of {length} bytes is of several writes: {pieces[:8]}")
    return number


class Worker:
    """One thread of an application on a client. `client` names the life of the client whose buffers it uses."""

    def __init__(self, client: "Client", random: Random, *, readers: bool = False) -> None:
        self.weights = self.READER_WEIGHTS if readers else self.WEIGHTS
        self.client = client
        self.history = client.history
        self.random = random
        self.waiting: Call | None = None  # for an answer of a daemon that is dead

    @property
    def fs(self) -> FileSystem:
        """That of the daemon which runs now."""
        return self.client.fs

    async def run(self, steps: int) -> None:
        if self.waiting is not None:
            call, self.waiting = self.waiting, None
            try:
                await self.carry_out(call, resent=True)
            except EXPECTED:
                if not self.history.corrupt_allowed:
                    raise
        for _ in range(steps):
            if self.random.random() < 0.7:
                await trio.sleep(self.random.uniform(0, self.client.think_s))
            action = self.random.choices(self.ACTIONS, self.weights)[0]
            try:
                await action(self)
            except EXPECTED:
                if not self.history.corrupt_allowed:
                    raise
            self.client.steps_left -= 1

    async def attempt(
        self, kind: str, argument: Any, call: Callable[[], Awaitable[Any]], note: Callable[[Operation], None]
    ) -> Any:
        """Run `call` and note what came of it. An error that says nothing definite leaves the end open."""
        start = self.history.tick()
        operation = Operation(self.client.name, kind, argument, None, start, inf)
        self.client.calls += 2
        return await self.carry_out(Call(self.client.calls, kind, argument, call, note, operation), resent=False)

    async def carry_out(self, asked: "Call", *, resent: bool) -> Any:
        """As the kernel does: what a dead daemon has not answered is asked of the next."""
        kind, argument, note, operation = asked.kind, asked.argument, asked.note, asked.operation
        CALL.set(asked.unique | (RESENT if resent else 0))
        try:
            result = await asked.call()
        except trio.Cancelled:
            if self.client.daemon_died:
                self.waiting = asked
            else:
                note(operation)
            raise
        except StaleHandle:
            if not resent:
                raise
            self.client.calls += 2  # what the dead daemon made is gone already: the kernel begins anew
            return await self.carry_out(replace(asked, unique=self.client.calls), resent=False)
        except Fault:
            note(operation)
            raise
        except FsError as error:
            self.client.look_at_session()
            note(operation)
            self.history.kernel.trace("error", self.client.name, kind, type(error).__name__, error)
            if self.client.allows(error):
                return None
            raise Fault(f"{self.client.name}: {kind} {argument}: {type(error).__name__}: {error}") from error
        note(operation._replace(result=result, end=self.history.tick()))
        self.client.look_at_session()
        return result

    # --- regions ---

    async def write_region(self) -> None:
        file, index = self.random.choice(FILES), self.random.randrange(len(REGIONS))
        offset, length = REGIONS[index]
        number = self.history.number()

        async def call() -> None:
            handle = await self.client.handle(file)
            written = await self.fs.write(handle, offset, pattern(number, length))
            if written != length:
                raise Fault(f"a write of {length} bytes took {written}")

        await self.attempt("write", number, call, lambda operation: self.history.region(file, index, operation))
        if self.random.random() < 0.25:
            await self.sync(file)

    async def read_region(self, file: bytes | None = None, index: int | None = None) -> None:
        file = file or self.random.choice(FILES)
        index = self.random.randrange(len(REGIONS)) if index is None else index
        offset, length = REGIONS[index]

        async def call() -> int:
            content = await self.fs.read(await self.client.handle(file), offset, length)
            return read_number(content, length)

        def note(operation: Operation) -> None:
            if operation.end < inf:
                self.history.region(file, index, operation)

        await self.attempt("read", None, call, note)

    async def sync(self, file: bytes) -> None:
        async def call() -> None:
            await self.fs.fsync(await self.client.handle(file))

        def note(operation: Operation) -> None:
            if operation.end < inf:
                for index in range(len(REGIONS)):
                    self.history.region(file, index, operation)

        await self.attempt("sync", None, call, note)

    async def sync_some(self) -> None:
        await self.sync(self.random.choice(FILES))

    async def truncate(self) -> None:
        file = self.random.choice(FILES)
        size = self.random.choice((0, 0, 1000, 20_000, 65_536, CHUNK_SIZE, 2 * CHUNK_SIZE, 4 * CHUNK_SIZE))

        async def call() -> None:
            await self.fs.setattr(ROOT, (await self.client.handle(file)).ino, size=size)

        def note(operation: Operation) -> None:
            for index, (offset, _) in enumerate(REGIONS):
                if offset >= size:
                    self.history.region(file, index, operation._replace(kind="write", argument=0))

        await self.attempt("truncate", size, call, note)

    async def append(self) -> None:
        record = f"{self.client.name} {self.history.number()}".encode().ljust(RECORD, b".")
        self.history.appended[record] = "may"

        async def call() -> None:
            await self.fs.write(await self.client.handle(LOG, os.O_RDWR | os.O_APPEND), 0, record)

        def note(operation: Operation) -> None:
            if operation.end < inf:
                self.client.unsynced.append(record)
            self.history.kernel.trace("append", self.client.name, record)

        await self.attempt("append", record, call, note)
        if self.random.random() < 0.3:
            await self.sync_log()

    async def sync_log(self) -> None:
        covered = list(self.client.unsynced)

        async def call() -> None:
            await self.fs.fsync(await self.client.handle(LOG, os.O_RDWR | os.O_APPEND))

        def note(operation: Operation) -> None:
            if operation.end < inf:
                for record in covered:
                    if record in self.client.unsynced:
                        self.client.unsynced.remove(record)
                        self.history.appended[record] = "must"

        await self.attempt("sync log", None, call, note)

    # --- names ---

    def slot(self) -> tuple[bytes, bytes]:
        return self.random.choice(DIRECTORIES), self.random.choice(NAMES)

    async def on_tree(self, kind: str, argument: Any, call: Callable[[], Awaitable[Any]]) -> Any:
        async def definite() -> Any:
            try:
                return await call()
            except (NotFound, AlreadyExists) as error:
                return type(error).__name__

        def note(operation: Operation) -> None:
            if operation.end < inf or kind != "lookup":
                self.history.name(operation)

        return await self.attempt(kind, argument, definite, note)

    async def create(self) -> None:
        directory, name = self.slot()

        async def call() -> int:
            inode, handle = await self.fs.create(
                ROOT,
                self.client.directories[directory],
                name,
                0o644,
                os.O_RDWR | os.O_EXCL,
                number=self.client.new_number(),
            )
            self.client.open.append(handle)
            return inode.ino

        await self.on_tree("create", slot_name(directory, name), call)

    async def unlink(self) -> None:
        directory, name = self.slot()

        async def call() -> str:
            await self.fs.unlink(ROOT, self.client.directories[directory], name)
            return "ok"

        await self.on_tree("unlink", slot_name(directory, name), call)

    async def lookup(self) -> None:
        directory, name = self.slot()

        async def call() -> int:
            return (await self.fs.lookup(self.client.directories[directory], name)).ino

        await self.on_tree("lookup", slot_name(directory, name), call)

    async def rename(self) -> None:
        kind, flags = self.random.choice(
            (("rename", 0), ("rename", 0), ("rename_new", RenameFlag.NOREPLACE), ("exchange", RenameFlag.EXCHANGE))
        )
        old, new = self.slot(), self.slot()
        if old == new:
            return
        directories = self.client.directories

        async def call() -> str:
            await self.fs.rename(ROOT, directories[old[0]], old[1], directories[new[0]], new[1], int(flags))
            return "ok"

        await self.on_tree(kind, (slot_name(*old), slot_name(*new)), call)

    async def link(self) -> None:
        old, new = self.slot(), self.slot()
        directories = self.client.directories

        start = self.history.tick()
        try:
            ino = (await self.fs.lookup(directories[old[0]], old[1])).ino
            self.history.name(Operation(self.client.name, "lookup", slot_name(*old), ino, start, self.history.tick()))
        except FsError:
            return

        async def call() -> str | None:
            try:
                await self.fs.link(ROOT, ino, directories[new[0]], new[1])
            except StaleHandle:
                return "NotFound"
            return "ok"

        await self.on_tree("link_inode", (ino, slot_name(*new)), call)

    async def list(self) -> None:
        """A listing is no atomic act (POSIX lets a name that moves meanwhile appear twice or not at all), so each name counts
        as looked up on its own."""
        directory = self.random.choice(DIRECTORIES)

        async def call() -> dict[bytes, int]:
            handle = await self.fs.open_directory(self.client.directories[directory])
            found: dict[bytes, int] = {}
            cookie = 0
            while True:
                entries = await self.fs.read_directory(handle, cookie, self.random.random() < 0.5)
                if not entries:
                    return found
                found.update((entry.name, entry.ino) for entry in entries)
                cookie = max(entry.cookie for entry in entries)

        def note(operation: Operation) -> None:
            if operation.end < inf:
                found: dict[bytes, int] = operation.result  # type: ignore[assignment]
                for name in (*NAMES, *sorted(set(found) - set(NAMES))):
                    slot, result = slot_name(directory, name), found.get(name, "NotFound")
                    self.history.name(operation._replace(kind="lookup", argument=slot, result=result))

        await self.attempt("list", directory.decode(), call, note)

    async def sync_names(self) -> None:
        directory = self.random.choice(DIRECTORIES)

        async def call() -> str:
            await self.fs.fsync_directory(self.client.directories[directory])
            return "ok"

        start = self.history.tick()
        evictions = self.client.evictions
        await call()
        self.client.look_at_session()
        if self.client.evictions == evictions:
            end = self.history.tick()
            self.history.name(Operation(self.client.name, "sync", directory.decode(), "ok", start, end))

    async def close_some(self) -> None:
        if self.client.open:
            await self.fs.release(self.client.open.pop(self.random.randrange(len(self.client.open))))

    ACTIONS = (
        write_region,
        read_region,
        sync_some,
        truncate,
        append,
        create,
        unlink,
        lookup,
        rename,
        link,
        list,
        close_some,
        sync_names,
    )
    READER_WEIGHTS = (3, 97, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    WEIGHTS = (26, 26, 4, 4, 8, 6, 4, 6, 4, 2, 4, 3, 2)


def slot_name(directory: bytes, name: bytes) -> str:
    return f"{directory.decode()}/{name.decode()}"


class Client:
    """One life of a client, in which its daemon may die and be followed by another: its handles, and what is known of its
    buffers."""

    def __init__(self, fs: FileSystem, history: History, name: str, steps: int, think_s: float) -> None:
        self.fs = fs
        self.history = history
        self.name = name
        self.steps_left = steps
        self.think_s = think_s
        self.directories: dict[bytes, Ino] = {}
        self.open: list[FileHandle] = []
        self.unsynced: list[bytes] = []
        self.evictions = 0
        self.ever_evicted = False
        self.daemon_died = False
        self.calls = 0
        self.workers: list[Worker] = []
        self._numbers = 0
        self._handles: dict[bytes, FileHandle] = {}
        self.session_seen = history.tick()

    def new_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def go_on(self, fs: FileSystem) -> None:
        """With another daemon. Handles are the kernel's, and are named to it by their numbers."""
        self.fs, self.evictions, self.daemon_died = fs, 0, False
        handles = fs.restored_handles
        try:
            self._handles = {name: handles[handle.number] for name, handle in self._handles.items()}
            self.open = [handles[handle.number] for handle in self.open]
        except KeyError as error:
            raise Fault(f"{self.name}: handle {error} is not known to the next daemon") from None
        self.look_at_session()

    def die(self) -> None:
        """The client's host is gone: calls that waited for the next daemon are never answered."""
        for worker in self.workers:
            if worker.waiting is not None:
                worker.waiting.note(worker.waiting.operation)
        self.lost(self.session_seen)  # it may have been evicted since then, and never have heard of it

    async def learn(self) -> None:
        for name in DIRECTORIES:
            self.directories[name] = (await self.fs.lookup(ROOT_INO, name)).ino

    async def handle(self, name: bytes, flags: int = os.O_RDWR) -> FileHandle:
        while name not in self._handles:
            inode = await self.fs.lookup(ROOT_INO, name)
            handle = await self.fs.open(inode.ino, flags, number=self.new_number())
            if name in self._handles:
                await self.fs.release(handle)
            else:
                self._handles[name] = handle
        return self._handles[name]

    def allows(self, error: FsError) -> bool:
        """Errors that a hard mount may show: what an eviction took away; corruption where bits were flipped."""
        if isinstance(error, CorruptData):
            return self.history.corrupt_allowed
        return self.ever_evicted and (isinstance(error, StaleHandle) or not isinstance(error, PosixError))

    def look_at_session(self) -> None:
        """Note an eviction: what was in the buffers at some time since the last look is gone."""
        evictions = self.fs.statistics().get("evictions", 0)
        if evictions != self.evictions:
            self.evictions = evictions
            self.ever_evicted = True
            self.unsynced.clear()
            self.lost(self.session_seen)
        self.session_seen = self.history.tick()

    def lost(self, since: int) -> None:
        end = self.history.tick()
        for file in FILES:
            for index in range(len(REGIONS)):
                self.history.region(file, index, Operation(self.name, "lost", None, None, since, end))
        self.history.name(Operation(self.name, "lost", None, None, since, end))

    def closed(self) -> None:
        """Everything was written back."""
        self.look_at_session()
        for record in self.unsynced:
            self.history.appended[record] = "must"
        self.unsynced.clear()


async def prepare(fs: FileSystem) -> None:
    """Make the shared files and directories."""
    for name in DIRECTORIES:
        await fs.mkdir(ROOT, ROOT_INO, name, 0o755)
    for name in (*FILES, LOG):
        _, handle = await fs.create(ROOT, ROOT_INO, name, 0o644, os.O_RDWR)
        await fs.release(handle)
    await fs.sync()  # the client that made them may die now: what others rely on is durable


async def verify(client: Client) -> None:
    """Read everything once, at the end."""
    worker = Worker(client, Random(0))
    for file in FILES:
        for index in range(len(REGIONS)):
            await worker.read_region(file, index)
    for _ in range(8):
        await worker.list()
    check_log(client.history, await read_whole(client.fs, await client.handle(LOG)))


async def read_whole(fs: FileSystem, handle: FileHandle) -> bytes:
    size = (await fs.getattr(handle.ino)).size
    content = b""
    while len(content) < size:
        piece = await fs.read(handle, len(content), min(100_000, size - len(content)))
        if not piece:
            raise Fault(f"a file of {size} bytes ends at {len(content)}")
        content += piece
    return content


def check_log(history: History, content: bytes) -> None:
    """Every record that must be there is there once, none is there twice, none was made up, none is cut."""
    records = [content[start : start + RECORD] for start in range(0, len(content), RECORD)]
    seen: set[bytes] = set()
    for record in records:
        if record not in history.appended:
            raise Fault(f"the log holds {record!r}, which nobody wrote")
        if record in seen:
            raise Fault(f"the log holds {record!r} twice")
        seen.add(record)
    for record, fate in history.appended.items():
        if fate == "must" and record not in seen:
            raise Fault(f"the log lost {record!r}")
