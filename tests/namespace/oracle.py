"""The same program on two trees: `apply` over a `MemoryView` with a little client, and an ordinary local directory.

Steps name directories and inodes by number, taken modulo what there is; so every step means something, and the same on
both sides. The little client does with contents what the real one does: inline up to the limit, then chunks; trim first.
"""

import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsd.core.errors import FsError
from fsd.core.ids import ROOT_INO, DataId, Ino
from fsd.namespace import operations as op
from fsd.namespace.apply import apply
from fsd.namespace.memory import MemoryView
from fsd.namespace.records import NO_DATA, Inode
from tests.namespace.trees import LAYER, VOLUME

MAX_HANDLES = 4


class Model:
    """Our side. Methods return 0 or an errno."""

    def __init__(self) -> None:
        self.view = MemoryView.empty(VOLUME, 1, 0o777)
        self.now = 1
        self.next_id = 100
        self.chunks: dict[DataId, bytearray] = {}
        self.open: list[Ino] = []
        self.uid = 0

    def fresh(self) -> int:
        self.next_id += 1
        return self.next_id

    def execute(self, kind: Callable[..., Any], *fields: Any, **named: Any) -> None:
        self.now += 1
        self.view.commit(apply(self.view, kind(LAYER, self.now, self.uid, self.uid, *fields, **named)).changes)
        self.reap()

    def reap(self) -> None:
        for ino in sorted(self.view.orphans()):
            if ino not in self.open:
                self.view.commit(apply(self.view, op.Reap(LAYER, self.now, 0, 0, ino)).changes)

    def inode(self, ino: Ino) -> Inode:
        inode = self.view.inode(ino)
        assert inode is not None
        return inode

    def write(self, ino: Ino, file_offset: int, data: bytes) -> None:
        inode = self.inode(ino)
        end = file_offset + len(data)
        if inode.is_inline and max(end, inode.size) <= VOLUME.inline_limit:
            contents = bytearray((inode.inline or b"").ljust(end, b"\0"))
            contents[file_offset:end] = data
            self.execute(op.WriteInline, ino, bytes(contents))
            return
        inode = self.out_of_line(inode)
        if end > inode.size:
            self.trim(inode)
        put(self.chunks[inode.data], file_offset, data)
        self.execute(op.CommitSize, ino, end, self.now + 1)

    def out_of_line(self, inode: Inode) -> Inode:
        if inode.is_inline:
            data = DataId(self.fresh())
            self.chunks[data] = bytearray(inode.inline or b"")
            self.execute(op.CommitSize, inode.ino, inode.size, self.now + 1, data)
        return self.inode(inode.ino)

    def trim(self, inode: Inode) -> None:
        if inode.trim_end > inode.size:
            del self.chunks[inode.data][inode.size :]
            self.execute(op.TrimDone, inode.ino, inode.data, inode.trim_end, inode.size)

    def truncate(self, ino: Ino, size: int) -> None:
        inode = self.inode(ino)
        new_data = NO_DATA
        if inode.is_regular and size > inode.size:
            if inode.is_inline and size > VOLUME.inline_limit:
                if inode.size:
                    inode = self.out_of_line(inode)
                else:
                    new_data = DataId(self.fresh())
                    self.chunks[new_data] = bytearray()
            self.trim(inode)
        self.execute(op.Truncate, ino, size, new_data)

    def contents(self, inode: Inode) -> bytes:
        if inode.data == NO_DATA:
            return inode.inline or b""
        return bytes(self.chunks[inode.data][: inode.size].ljust(inode.size, b"\0"))

    # --- looking around ---

    def paths(self) -> dict[str, Ino]:
        """Every path with its inode, parents first, in the order of names."""
        found: dict[str, Ino] = {"": ROOT_INO}
        todo = [("", ROOT_INO)]
        while todo:
            path, ino = todo.pop(0)
            for name, dentry in sorted(self.view.names_in(ino).items()):
                below = f"{path}/{os.fsdecode(name)}"
                found[below] = dentry.ino
                if stat.S_ISDIR(dentry.type):
                    todo.append((below, dentry.ino))
        return found

    def describe(self, ino: Ino) -> tuple[Any, ...]:
        inode = self.inode(ino)
        xattrs = {name: self.view.xattr(ino, name) for name in self.view.xattr_names(ino) if name.startswith(b"user.")}
        size = None if inode.is_directory else inode.size
        contents = self.contents(inode) if inode.is_regular or inode.is_symlink else None
        return inode.mode, inode.uid, inode.gid, inode.nlink, size, inode.rdev, contents, xattrs

    def times(self) -> dict[str, tuple[int, int]]:
        return {path: (self.inode(ino).mtime_ns, self.inode(ino).ctime_ns) for path, ino in self.paths().items()}


class Local:
    """The other side: a directory of this machine. Methods raise OSError."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        os.chmod(self.root, 0o777)
        self.handles: list[int] = []

    def at(self, path: str) -> str:
        return self.root + path

    def paths(self) -> list[str]:
        found: list[str] = [""]
        for folder, folders, files in os.walk(self.root):
            found.extend(os.path.join(folder, name)[len(self.root) :] for name in folders + files)
        return found

    def describe(self, path: str) -> tuple[Any, ...]:
        at = self.at(path)
        status = os.lstat(at)
        contents: bytes | None = None
        xattrs: dict[bytes, bytes] = {}
        if stat.S_ISREG(status.st_mode):
            contents = Path(at).read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            contents = os.readlink(os.fsencode(at))
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            xattrs = {os.fsencode(name): os.getxattr(at, name) for name in os.listxattr(at) if name.startswith("user.")}
        return *_status(status), contents, xattrs

    def describe_handle(self, fd: int) -> tuple[Any, ...]:
        status = os.fstat(fd)
        xattrs = {os.fsencode(name): os.getxattr(fd, name) for name in os.listxattr(fd) if name.startswith("user.")}
        return *_status(status), os.pread(fd, status.st_size, 0), xattrs

    def times(self) -> dict[str, tuple[int, int]]:
        found = {path: os.lstat(self.at(path)) for path in self.paths()}
        return {path: (status.st_mtime_ns, status.st_ctime_ns) for path, status in found.items()}

    def close(self) -> None:
        for fd in self.handles:
            os.close(fd)


def _status(status: os.stat_result) -> tuple[Any, ...]:
    size = None if stat.S_ISDIR(status.st_mode) else status.st_size
    return status.st_mode, status.st_uid, status.st_gid, status.st_nlink, size, status.st_rdev


def put(into: bytearray, offset: int, data: bytes) -> None:
    if len(into) < offset:
        into.extend(bytes(offset - len(into)))
    into[offset : offset + len(data)] = data


@contextmanager
def acting_as(uid: int) -> Generator[None, None, None]:
    """The caller of the local side: user and group `uid`, no other groups."""
    if uid == 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def errno_of(call: Callable[[], object]) -> int:
    """What a call on either side ended with."""
    try:
        call()
    except FsError as error:
        return error.errno
    except OSError as error:
        assert error.errno is not None
        return error.errno
    return 0


@dataclass(frozen=True)
class Step:
    """`where`, `other` pick a directory; `what` an inode; the rest is per kind."""

    kind: str
    where: int = 0
    other: int = 0
    what: int = 0
    name: bytes = b"a"
    new_name: bytes = b"b"
    mode: int = 0o644
    number: int = 0
    size: int = 0
    data: bytes = b""
    uid: int = 0


KERNEL_TICK_S = 0.006  # file times are taken from a clock that ticks every 4 ms (HZ 250), finer only now and then


class Pair:
    """Runs one step on both sides and compares what each says."""

    def __init__(self, root: Path, *, compare_times: bool) -> None:
        self.model = Model()
        self.local = Local(root)
        self.compare_times = compare_times

    def run(self, step: Step) -> None:
        self.model.uid = step.uid
        if self.compare_times:
            time.sleep(KERNEL_TICK_S)  # else a change may get the time that its inode has already
        before = self._times() if self.compare_times else None
        pair = getattr(self, step.kind)(step)
        if pair is None:
            return
        ours, theirs = pair
        with acting_as(step.uid):
            expected = errno_of(theirs)
        got = errno_of(ours)
        assert errno.errorcode.get(got, "ok") == errno.errorcode.get(expected, "ok"), step
        if before is not None and got == 0:
            self._check_times(before, step)

    def compare(self) -> None:
        paths = self.model.paths()
        assert sorted(paths) == sorted(self.local.paths())
        for path, ino in paths.items():
            assert self.model.describe(ino) == self.local.describe(path), path
        for ino, fd in zip(self.model.open, self.local.handles, strict=True):
            assert self.model.describe(ino) == self.local.describe_handle(fd)

    def _times(self) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
        return self.model.times(), self.local.times()

    def _check_times(self, before: tuple[dict[str, Any], dict[str, Any]], step: Step) -> None:
        """Of every path that was there before and after: whether mtime and ctime moved, on both sides alike."""
        after = self._times()
        for path in sorted(before[0].keys() & after[0].keys()):
            ours = [a != b for a, b in zip(before[0][path], after[0][path], strict=True)]
            theirs = [a != b for a, b in zip(before[1][path], after[1][path], strict=True)]
            assert ours == theirs, (step, path)

    # --- what steps mean ---

    def directory(self, number: int) -> tuple[Ino, str]:
        found = [(ino, path) for path, ino in self.model.paths().items() if self.model.inode(ino).is_directory]
        return found[number % len(found)]

    def any_inode(self, number: int) -> tuple[Ino, str]:
        found = [(ino, path) for path, ino in self.model.paths().items()]
        return found[number % len(found)]

    def create(self, step: Step) -> Any:
        parent, at = self._place(step)

        def theirs() -> None:
            os.close(os.open(at, os.O_CREAT | os.O_EXCL | os.O_WRONLY, step.mode))

        ino = self.model.fresh()
        return lambda: self.model.execute(op.Create, parent, step.name, ino, step.mode), theirs

    def mkdir(self, step: Step) -> Any:
        parent, at = self._place(step)
        mode = step.mode | 0o777
        ino = self.model.fresh()
        return lambda: self.model.execute(op.Mkdir, parent, step.name, ino, mode), lambda: os.mkdir(at, mode)

    def mknod(self, step: Step) -> Any:
        parent, at = self._place(step)
        mode = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG)[step.number % 3] | step.mode
        ino = self.model.fresh()
        return lambda: self.model.execute(op.Mknod, parent, step.name, ino, mode, 0), lambda: os.mknod(at, mode)

    def symlink(self, step: Step) -> Any:
        parent, at = self._place(step)
        target = step.new_name
        ino = self.model.fresh()
        return lambda: self.model.execute(op.Symlink, parent, step.name, ino, target), lambda: os.symlink(target, at)

    def link(self, step: Step) -> Any:
        parent, at = self._place(step)
        ino, path = self.any_inode(step.what)
        source = self.local.at(path)
        self.model.uid = 0  # Linux's protected_hardlinks is the kernel's matter
        return lambda: self.model.execute(op.Link, ino, parent, step.name), as_root(
            lambda: os.link(source, at, follow_symlinks=False)
        )

    def unlink(self, step: Step) -> Any:
        parent, at = self._place(step)
        return lambda: self.model.execute(op.Unlink, parent, step.name), lambda: os.unlink(at)

    def rmdir(self, step: Step) -> Any:
        parent, at = self._place(step)
        return lambda: self.model.execute(op.Rmdir, parent, step.name), lambda: os.rmdir(at)

    def rename(self, step: Step) -> Any:
        parent, at = self._place(step)
        new_parent, path = self.directory(step.other)
        new_at = os.fsencode(self.local.at(path)) + b"/" + step.new_name
        flags = step.number % 3
        return (
            lambda: self.model.execute(op.Rename, parent, step.name, new_parent, step.new_name, flags),
            lambda: renameat2(at, new_at, flags),
        )

    def chmod(self, step: Step) -> Any:
        """By root: who may is not ours to say. Directories stay open to all users of the program."""
        ino, path = self.any_inode(step.what)
        inode = self.model.inode(ino)
        if inode.is_symlink:
            return None
        self.model.uid = 0
        mode = step.mode | (0o777 if inode.is_directory else 0)
        return lambda: self.model.execute(op.SetAttributes, ino, mode=mode), as_root(
            lambda: os.chmod(self.local.at(path), mode)
        )

    def chown(self, step: Step) -> Any:
        ino, path = self.any_inode(step.what)
        self.model.uid = 0
        uid, gid = (step.number % 3) * 1000, (step.number % 2) * 1000
        return lambda: self.model.execute(op.SetAttributes, ino, new_uid=uid, new_gid=gid), as_root(
            lambda: os.lchown(self.local.at(path), uid, gid)
        )

    def write(self, step: Step) -> Any:
        ino, path = self.any_inode(step.what)
        if not self.model.inode(ino).is_regular or not step.data:
            return None

        def theirs() -> None:
            """Opened as root, written as the caller: what the kernel does to the mode is the caller's doing."""
            self._as_caller(
                step, os.open(self.local.at(path), os.O_WRONLY), lambda fd: os.pwrite(fd, step.data, step.size)
            )

        return lambda: self.model.write(ino, step.size, step.data), as_root(theirs)

    def truncate(self, step: Step) -> Any:
        ino, path = self.any_inode(step.what)
        if not self.model.inode(ino).is_regular:
            return None

        def theirs() -> None:
            self._as_caller(step, os.open(self.local.at(path), os.O_WRONLY), lambda fd: os.ftruncate(fd, step.size))

        return lambda: self.model.truncate(ino, step.size), as_root(theirs)

    def _as_caller(self, step: Step, fd: int, call: Callable[[int], object]) -> None:
        try:
            with acting_as(step.uid):
                call(fd)
        finally:
            os.close(fd)

    def setxattr(self, step: Step) -> Any:
        ino, path = self.any_inode(step.what)
        self.model.uid = 0
        name = b"user." + step.name[:200]
        flags = step.number % 3
        value = (
            step.data + b"%d" % self.model.fresh()
        )  # a new one each time: ext4 ignores a value that is there already
        return lambda: self.model.execute(op.SetXattr, ino, name, value, flags), as_root(
            lambda: os.setxattr(self.local.at(path), name, value, flags, follow_symlinks=False)
        )

    def removexattr(self, step: Step) -> Any:
        ino, path = self.any_inode(step.what)
        if not (self.model.inode(ino).is_regular or self.model.inode(ino).is_directory):
            return None
        self.model.uid = 0
        name = b"user." + step.name[:200]
        return lambda: self.model.execute(op.RemoveXattr, ino, name), as_root(
            lambda: os.removexattr(self.local.at(path), name)
        )

    def open(self, step: Step) -> Any:
        ino, path = self.any_inode(step.what)
        if not self.model.inode(ino).is_regular or len(self.local.handles) == MAX_HANDLES:
            return None
        self.local.handles.append(os.open(self.local.at(path), os.O_RDWR))
        self.model.open.append(ino)
        return None

    def write_handle(self, step: Step) -> Any:
        if not self.local.handles or not step.data:
            return None
        which = step.what % len(self.local.handles)
        fd, ino = self.local.handles[which], self.model.open[which]
        return (
            lambda: self.model.write(ino, step.size, step.data),
            lambda: os.pwrite(fd, step.data, step.size),
        )

    def close_handle(self, step: Step) -> Any:
        if self.local.handles:
            which = step.what % len(self.local.handles)
            os.close(self.local.handles.pop(which))
            self.model.open.pop(which)
            self.model.reap()
        return None

    def _place(self, step: Step) -> tuple[Ino, bytes]:
        parent, path = self.directory(step.where)
        return parent, os.fsencode(self.local.at(path)) + b"/" + step.name


def as_root(call: Callable[[], object]) -> Callable[[], object]:
    """For steps whose permission is not ours to check."""

    def run() -> object:
        uid, gid = os.geteuid(), os.getegid()
        if uid == 0:
            return call()
        os.seteuid(0)
        os.setegid(0)
        try:
            return call()
        finally:
            os.setegid(gid)
            os.seteuid(uid)

    return run


def renameat2(source: bytes, target: bytes, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd = -100
    if libc.renameat2(at_cwd, source, at_cwd, target, flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
