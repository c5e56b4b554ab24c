"""Instant answers: the same as the ordinary handlers give, and none where something must be waited for."""

import errno
import os
import stat
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pyfuse3

from fsd.client.filesystem import FileSystem
from fsd.core.ids import ROOT_INO
from fsd.mount.companion import Opcode
from fsd.mount.extras import Extras
from fsd.mount.instant import Instant
from fsd.mount.operations import Operations
from tests.client.cluster import ROOT, Cluster, cluster

ENTRY = struct.Struct("<QQQQII6Q10I")
ATTRIBUTES = struct.Struct("<QII6Q10I")
OPEN = struct.Struct("<QII")


class NoKernel:
    """What Extras asks of the companion without a kernel."""

    def current(self) -> object:
        raise AssertionError("instant answers take the request as it is")


class Told(NamedTuple):
    """An entry or attributes as the kernel would understand them."""

    ino: int
    size: int
    mode: int
    nlink: int
    owner: tuple[int, int]
    times_ns: tuple[int, int, int]
    attributes_valid: bool

    @classmethod
    def entry(cls, answer: object) -> "Told":
        assert isinstance(answer, bytes)
        node, _, _, valid, _, nanos, *rest = ENTRY.unpack_from(answer)
        told = cls._of(rest, bool(valid or nanos))
        assert node == told.ino
        return told

    @classmethod
    def attributes(cls, answer: object) -> "Told":
        assert isinstance(answer, bytes)
        valid, nanos, _, *rest = ATTRIBUTES.unpack(answer)
        return cls._of(rest, bool(valid or nanos))

    @classmethod
    def _of(cls, fields: list[int], valid: bool) -> "Told":
        ino, size, _, *seconds = fields[:6]
        nanos = fields[6:9]
        mode, nlink, uid, gid = fields[9:13]
        atime, mtime, ctime = (at * 10**9 + nano for at, nano in zip(seconds, nanos, strict=True))
        return cls(ino, size, mode, nlink, (uid, gid), (atime, mtime, ctime), valid)

    @classmethod
    def ordinary(cls, entry: pyfuse3.EntryAttributes) -> "Told":
        times = (entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns)
        owner = (entry.st_uid, entry.st_gid)
        valid = entry.attr_timeout > 0
        return cls(entry.st_ino, entry.st_size, entry.st_mode, entry.st_nlink, owner, times, valid)


class Kernel:
    """Sends requests to a mount's instant answers, by their bytes."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.operations = Operations(None)
        self.operations.attach(fs)
        self.operations.names_may_be_cached = True
        self.operations.extras = Extras(NoKernel(), self.operations)  # pyright: ignore[reportArgumentType]
        self.instant = Instant(self.operations)

    def ask(self, opcode: Opcode, node: int, body: bytes = b"") -> bytes | int | None:
        return self.instant.answer(opcode, 2, node, 1000, 1000, 77, body)

    def create(self, parent: int, name: bytes, flags: int = os.O_RDWR) -> tuple[int, int]:
        """Inode and handle."""
        answer = self.ask(Opcode.CREATE, parent, struct.pack("<IIII", flags, stat.S_IFREG | 0o640, 0, 0) + name + b"\0")
        assert isinstance(answer, bytes)
        return Told.entry(answer).ino, OPEN.unpack_from(answer, ENTRY.size)[0]

    def write(self, node: int, fh: int, offset: int, data: bytes, write_flags: int = 0) -> bytes | int | None:
        body = struct.pack("<QQIIQII", fh, offset, len(data), write_flags, 0, 0, 0)
        return self.ask(Opcode.WRITE, node, body + data)

    def read(self, node: int, fh: int, offset: int, size: int) -> bytes | int | None:
        return self.ask(Opcode.READ, node, struct.pack("<QQIIQII", fh, offset, size, 0, 0, 0, 0))


@asynccontextmanager
async def own_directory(made: Cluster) -> AsyncGenerator[tuple[Kernel, int]]:
    """A mount with a directory that it has made itself."""
    async with made.mount() as fs:
        kernel = Kernel(fs)
        yield kernel, (await fs.mkdir(ROOT, ROOT_INO, b"mine", 0o755)).ino


async def test_a_file_lives_its_life_without_a_task(autojump_clock: object) -> None:
    async with cluster() as made, own_directory(made) as (kernel, mine):
        ino, fh = kernel.create(mine, b"a")
        assert kernel.write(ino, fh, 0, b"hello") == struct.pack("<II", 5, 0)
        assert kernel.read(ino, fh, 1, 100) == b"ello"
        assert Told.attributes(kernel.ask(Opcode.GETATTR, ino)).size == 5
        assert kernel.ask(Opcode.FLUSH, ino, struct.pack("<QIIQ", fh, 0, 0, 9)) == 0
        assert kernel.ask(Opcode.RELEASE, ino, struct.pack("<QIIQ", fh, 0, 0, 0)) == 0
        assert kernel.ask(Opcode.RENAME2, mine, struct.pack("<QII", mine, 0, 0) + b"a\0b\0") == 0
        assert Told.entry(kernel.ask(Opcode.LOOKUP, mine, b"b\0")).ino == ino
        await kernel.fs.sync()
        async with made.mount() as other:
            there = (await other.lookup(ROOT_INO, b"mine")).ino
            handle = await other.open((await other.lookup(there, b"b")).ino, os.O_RDONLY)
            assert await other.read(handle, 0, 100) == b"hello"
            await other.release(handle)
        await made.fsck()


async def test_what_is_told_is_what_the_handlers_tell(autojump_clock: object) -> None:
    async with cluster() as made, own_directory(made) as (kernel, mine):
        ino, fh = kernel.create(mine, b"a")
        kernel.write(ino, fh, 3, b"xyz")
        for valid in (1, 16 | 32):  # the mode, then both times: one of them before 1970
            body = struct.pack("<II3Q3Q8I", valid, 0, 0, 0, 0, (1 << 64) - 5, 7, 0, 11, 22, 0, 0o4711, 0, 0, 0, 0)
            assert Told.attributes(kernel.ask(Opcode.SETATTR, ino, body)).attributes_valid
        kernel.ask(Opcode.MKDIR, mine, struct.pack("<II", 0o1777, 0) + b"d\0")
        context = None  # no handler below looks at it
        for name in (b"a", b"d"):
            ordinary = await kernel.operations.lookup(mine, name, context)  # pyright: ignore[reportArgumentType]
            told = Told.entry(kernel.ask(Opcode.LOOKUP, mine, name + b"\0"))
            expected = Told.ordinary(ordinary)
            if name == b"a":
                assert expected.times_ns[0] == -5 * 10**9 + 11
                expected = expected._replace(times_ns=((2**64 - 5) * 10**9 + 11, *expected.times_ns[1:]))
            assert told == expected


async def test_errors_are_the_ones_of_the_operations(autojump_clock: object) -> None:
    async with cluster() as made, own_directory(made) as (kernel, mine):
        kernel.ask(Opcode.MKDIR, mine, struct.pack("<II", 0o755, 0) + b"d\0")
        inner = Told.entry(kernel.ask(Opcode.LOOKUP, mine, b"d\0")).ino
        kernel.create(inner, b"x")
        assert kernel.ask(Opcode.RMDIR, mine, b"d\0") == errno.ENOTEMPTY
        assert kernel.ask(Opcode.UNLINK, mine, b"d\0") == errno.EISDIR
        absent = kernel.ask(Opcode.LOOKUP, mine, b"nothing\0")
        assert isinstance(absent, bytes)
        assert ENTRY.unpack(absent)[0] == 0
        assert kernel.ask(Opcode.FLUSH, 5, struct.pack("<QIIQ", 999, 0, 0, 0)) == errno.ESTALE


async def test_a_removed_directory_is_still_known_to_who_is_in_it(autojump_clock: object) -> None:
    async with cluster() as made, own_directory(made) as (kernel, mine):
        kernel.ask(Opcode.MKDIR, mine, struct.pack("<II", 0o755, 0) + b"d\0")
        gone = Told.entry(kernel.ask(Opcode.LOOKUP, mine, b"d\0")).ino
        assert kernel.ask(Opcode.RMDIR, mine, b"d\0") == 0
        assert kernel.ask(Opcode.GETATTR, gone) is None
        assert (await kernel.operations.getattr(gone, None)).st_nlink == 0  # pyright: ignore[reportArgumentType]


async def test_what_must_be_asked_for_goes_the_ordinary_way(autojump_clock: object) -> None:
    async with cluster() as made, made.mount() as other:
        theirs = await other.mkdir(ROOT, ROOT_INO, b"theirs", 0o755)
        _, handle = await other.create(ROOT, theirs.ino, b"f", 0o644, os.O_RDWR)
        await other.write(handle, 0, b"1")
        async with made.mount() as fs:
            kernel = Kernel(fs)
            create = struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"new\0"
            for opcode, node, body in (
                (Opcode.LOOKUP, theirs.ino, b"f\0"),
                (Opcode.GETATTR, theirs.ino, b""),
                (Opcode.OPEN, handle.ino, struct.pack("<II", os.O_RDONLY, 0)),
                (Opcode.CREATE, theirs.ino, create),
                (Opcode.UNLINK, theirs.ino, b"f\0"),
                (Opcode.OPENDIR, theirs.ino, struct.pack("<II", 0, 0)),
                (Opcode.LOOKUP, theirs.ino, b"n" * 256 + b"\0"),
            ):
                assert kernel.ask(opcode, node, body) is None, opcode.name
            assert fs.statistics().get("changes here", 0) == 0
        await other.release(handle)


async def test_what_is_not_plain_goes_the_ordinary_way(autojump_clock: object) -> None:
    kill_suidgid, from_page_cache, fattr_size = 1 << 2, 1 << 0, 1 << 3
    async with cluster() as made, own_directory(made) as (kernel, mine):
        ino, fh = kernel.create(mine, b"a")
        assert kernel.write(ino, fh, 0, b"x", kill_suidgid) is None
        assert kernel.write(ino, fh, 0, b"x", from_page_cache) is None
        size = struct.pack("<II3Q3Q8I", fattr_size, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        assert kernel.ask(Opcode.SETATTR, ino, size) is None
        assert kernel.ask(Opcode.OPEN, ino, struct.pack("<II", os.O_RDWR | os.O_TRUNC, 0)) is None
        assert kernel.ask(Opcode.LOOKUP, mine, b"..\0") is None
        _, synced = kernel.create(mine, b"s", os.O_WRONLY | os.O_SYNC)
        assert kernel.write(ino, synced, 0, b"x") is None
        assert kernel.ask(Opcode.GETATTR, ino) is not None, "nothing was done by those"
        assert Told.attributes(kernel.ask(Opcode.GETATTR, ino)).size == 0


async def test_small_files_join_the_journal_and_an_fsync_waits_for_it(autojump_clock: object) -> None:
    async with cluster() as made, own_directory(made) as (kernel, mine):
        files = [kernel.create(mine, b"%d" % number) for number in range(50)]
        for ino, fh in files:
            kernel.write(ino, fh, 0, b"x" * 4096)
        handle = kernel.operations.file(files[-1][1])
        await kernel.fs.fsync(handle)
        async with made.mount() as other:
            there = (await other.lookup(ROOT_INO, b"mine")).ino
            sizes = [(await other.lookup(there, b"%d" % number)).size for number in range(50)]
        assert sizes == [4096] * 50
        await made.fsck()
