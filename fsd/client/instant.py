"""System calls that need nobody else, carried out at once: the twins of FileSystem's coroutines for the case that everything is
known here, held under a lease, and has room. Where somebody would have to be waited for they return None (False) and have done
nothing; then the coroutine is called. They decide nothing of their own: both act through the same parts.
"""

import os
import stat

from fsd.client.contents import Contents
from fsd.client.core import Core
from fsd.client.file import FileHandle
from fsd.client.journal import Entry
from fsd.client.names import Names
from fsd.client.options import Caller
from fsd.client.tree import ABSENT
from fsd.core.ids import Ino
from fsd.core.units import MAX_FILE_SIZE, NAME_MAX
from fsd.namespace.operations import Create, Mkdir, Operation, Rename, RenameFlag, Rmdir, SetAttributes, Unlink
from fsd.namespace.records import Inode
from fsd.protocol.metadata import LeaseMode


class InstantCalls:
    """See the module. Errors are those of FileSystem's calls of the same names."""

    def __init__(self, core: Core, contents: Contents, names: Names) -> None:
        self._core = core
        self._contents = contents
        self._names = names

    # --- names --------------------------------------------------------------------------------------------------------

    def create(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, flags: int, number: int
    ) -> tuple[Inode, FileHandle] | None:
        if not self._is_free(parent, name):
            return None
        ino = self._core.session.spare_id()
        if ino is None:
            return None
        file = self._contents.file(Ino(ino))
        file.handles += 1  # before others can hear of it
        entry: Entry | None = None
        try:
            layer, now_ns = self._core.volume.layer, self._core.session.now_ns()
            mode = stat.S_IMODE(mode)
            entry = self._change(Create(layer, now_ns, caller.uid, caller.gid, parent, name, file.ino, mode))
        finally:
            if entry is None:
                file.handles -= 1
                self._core.forget_file(file)
        if entry is None or entry.subject is None:
            return None
        self._contents.ready(file, LeaseMode.EXCLUSIVE)
        return self._core.shown(entry.subject), self._contents.handle(file, flags, number)

    def mkdir(self, caller: Caller, parent: Ino, name: bytes, mode: int) -> Inode | None:
        if not self._is_free(parent, name):
            return None
        ino = self._core.session.spare_id()
        if ino is None:
            return None
        layer, now_ns = self._core.volume.layer, self._core.session.now_ns()
        mode = stat.S_IMODE(mode)
        entry = self._change(Mkdir(layer, now_ns, caller.uid, caller.gid, parent, name, Ino(ino), mode))
        return None if entry is None else entry.subject

    def unlink(self, caller: Caller, parent: Ino, name: bytes) -> bool:
        layer, now_ns = self._core.volume.layer, self._core.session.now_ns()
        return self._is_its_own(parent, name) and self._does(
            Unlink(layer, now_ns, caller.uid, caller.gid, parent, name)
        )

    def rmdir(self, caller: Caller, parent: Ino, name: bytes) -> bool:
        layer, now_ns = self._core.volume.layer, self._core.session.now_ns()
        return self._is_its_own(parent, name) and self._does(Rmdir(layer, now_ns, caller.uid, caller.gid, parent, name))

    def rename(self, caller: Caller, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int) -> bool:
        if flags & ~RenameFlag.NOREPLACE or not self._is_its_own(parent, name):
            return False
        if not self._is_free(new_parent, new_name) and not self._is_its_own(new_parent, new_name):
            return False
        layer, now_ns = self._core.volume.layer, self._core.session.now_ns()
        return self._does(Rename(layer, now_ns, caller.uid, caller.gid, parent, name, new_parent, new_name, flags))

    def set_attributes(
        self,
        caller: Caller,
        ino: Ino,
        *,
        mode: int | None,
        uid: int | None,
        gid: int | None,
        atime_ns: int | None,
        mtime_ns: int | None,
    ) -> Inode | None:
        file = self._core.files.get(ino)
        times = atime_ns is not None or mtime_ns is not None
        if file is not None and times and (file.unwritten or (mode is None and uid is None and gid is None)):
            if mode is not None or uid is not None or gid is not None:
                return None
            if not self._contents.holds(file, LeaseMode.EXCLUSIVE):
                return None
            self._contents.set_times(file, atime_ns, mtime_ns)
        else:
            layer, now_ns = self._core.volume.layer, self._core.session.now_ns()
            operation = SetAttributes(layer, now_ns, caller.uid, caller.gid, ino, mode, uid, gid, atime_ns, mtime_ns)
            if not self._does(operation):
                return None
        return self._core.cached_inode(ino)

    def _is_free(self, parent: Ino, name: bytes) -> bool:
        """Whether the name is known to be absent in a directory that is this client's alone."""
        alone = len(name) <= NAME_MAX and self._core.leases.usable(parent, LeaseMode.EXCLUSIVE)
        return alone and self._core.tree.resolve(parent, name) == ABSENT

    def _is_its_own(self, parent: Ino, name: bytes) -> bool:
        """Whether both the directory and what the name stands for are this client's alone."""
        if not self._core.leases.usable(parent, LeaseMode.EXCLUSIVE):
            return False
        child = self._core.tree.resolve(parent, name)
        return bool(child) and self._core.leases.usable(child, LeaseMode.EXCLUSIVE)

    def _change(self, operation: Operation) -> Entry | None:
        """The operation, carried out and in the journal."""
        if self._core.journal.is_full():
            return None
        entry = self._core.local.change(operation, self._core.session.id)
        if entry is not None:
            self._core.counts["changes here"] += 1
        return entry

    def _does(self, operation: Operation) -> bool:
        return self._change(operation) is not None

    # --- bytes --------------------------------------------------------------------------------------------------------

    def open(self, ino: Ino, flags: int, number: int) -> FileHandle | None:
        inode = self._core.cached_inode(ino)
        if inode is None or not inode.is_regular or flags & os.O_TRUNC or self._core.is_being_removed(ino):
            return None
        file = self._contents.file(ino)
        if not self._contents.ready(file, LeaseMode.SHARED):
            self._core.forget_file(file)
            return None
        file.handles += 1
        self._names.was_read(ino)
        return self._contents.handle(file, flags, number)

    def read(self, handle: FileHandle, offset: int, length: int) -> bytes | None:
        return self._contents.read_here(handle, offset, length)

    def write(self, handle: FileHandle, offset: int, data: bytes) -> bool:
        file = handle.file
        if handle.flags & (os.O_SYNC | os.O_DSYNC) or not self._contents.has_room:
            return False
        if not self._core.session.may_promise or not self._contents.ready(file, LeaseMode.EXCLUSIVE):
            return False
        handle.check_locks()
        at = file.size if handle.flags & os.O_APPEND else offset
        if at + len(data) > MAX_FILE_SIZE:
            return False
        self._contents.take(file, at, data)
        return True
