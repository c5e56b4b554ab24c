"""Answers without waiting: what the client knows or may do by itself, told to the kernel before the event loop has heard of it.

    request ──> known here, under a lease, with nothing to wait for?  ── yes ──> done and answered at once
                                      └─ no ──> libfuse, pyfuse3, a task, a handler of Operations (the ordinary way)

A loop that creates, writes and closes small files sends six requests for each of them, one after the other; most of what the
ordinary way costs is the way itself. Nothing here decides anything that Operations would decide otherwise: both ask
`fsd.client`, and what is not plain (privileges to be taken away, "..", special files, what a dead daemon may have done
already) goes the ordinary way.
"""

import errno
import logging
import stat
import struct
from collections.abc import Callable
from typing import NamedTuple

from fsd.client.calls import CALL
from fsd.client.file import DirectoryHandle
from fsd.client.filesystem import FileSystem
from fsd.client.options import Caller
from fsd.client.tree import ABSENT
from fsd.core.errors import FsError
from fsd.core.ids import Ino
from fsd.core.units import NAME_MAX
from fsd.mount.attributes import PREFERRED_IO, blocks_of
from fsd.mount.companion import Opcode
from fsd.mount.operations import Operations
from fsd.namespace.records import Inode

log = logging.getLogger(__name__)

Answer = bytes | int | None

# linux/fuse.h
_ATTRIBUTES = "QQQQQQIIIIIIIIII"  # struct fuse_attr
_ATTRIBUTES_OUT = struct.Struct("<QII" + _ATTRIBUTES)  # valid, its nanoseconds, dummy
_ENTRY_OUT = struct.Struct("<QQQQII" + _ATTRIBUTES)  # node, generation, validity of the entry and of the attributes
_OPEN_IN = struct.Struct("<II")  # flags, open_flags
_OPEN_OUT = struct.Struct("<QII")  # fh, open_flags, padding
_HANDLE_IN = struct.Struct("<Q")  # fh, first in RELEASE and RELEASEDIR
_FLUSH_IN = struct.Struct("<QIIQ")  # fh, unused, padding, lock owner
_CREATE_IN = struct.Struct("<IIII")  # flags, mode, umask, open_flags; then the name
_MKDIR_IN = struct.Struct("<II")  # mode, umask; then the name
_RENAME_IN = struct.Struct("<Q")  # the new directory; then both names
_RENAME2_IN = struct.Struct("<QII")  # the new directory, flags, padding; then both names
_SETATTR_IN = struct.Struct("<II8x8x8xQQ8xIIIIIII4x")
_READ_IN = struct.Struct("<QQI")  # fh, offset, size, …
_WRITE_IN = struct.Struct("<QQIIQII")  # fh, offset, size, write_flags, lock_owner, flags, padding; then the bytes
_WRITE_OUT = struct.Struct("<II")  # size, padding
_OPEN_KILL_SUIDGID = 1 << 0
_WRITE_CACHE, _WRITE_KILL_SUIDGID = 1 << 0, 1 << 2
_FOPEN_DIRECT_IO, _FOPEN_KEEP_CACHE = 1 << 0, 1 << 1
_FATTR_MODE, _FATTR_UID, _FATTR_GID, _FATTR_ATIME, _FATTR_MTIME = 1 << 0, 1 << 1, 1 << 2, 1 << 4, 1 << 5
_FATTR_FH, _FATTR_LOCKOWNER = 1 << 6, 1 << 9
_FATTR_PLAIN = _FATTR_MODE | _FATTR_UID | _FATTR_GID | _FATTR_ATIME | _FATTR_MTIME | _FATTR_FH | _FATTR_LOCKOWNER
_MAX_READ = 64 * 1024  # more is worth a task: it may be fetched, and read ahead
_NO_ATTRIBUTES = (0,) * 16
_NANO = 1_000_000_000
_U64 = (1 << 64) - 1


class Request(NamedTuple):
    """`body` is what follows the kernel's header."""

    node: Ino
    caller: Caller
    body: bytes


class Instant:
    """See the module; `operations` are the handlers of the ordinary way."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._handlers: dict[int, Callable[[Request], Answer]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FLUSH: self._flush,
            Opcode.RELEASE: self._release,
            Opcode.OPENDIR: self._opendir,
            Opcode.RELEASEDIR: self._releasedir,
        }
        self.opcodes = tuple(Opcode(opcode) for opcode in self._handlers)

    def answer(self, opcode: int, unique: int, inode: int, uid: int, gid: int, pid: int, body: bytes) -> Answer:
        """See fsd.mount.companion.InstantAnswers."""
        if not self._operations.attached:
            return None
        before = CALL.set(unique)
        try:
            return self._handlers[opcode](Request(Ino(inode), Caller(uid, gid, pid), body))
        except FsError as error:
            return error.errno
        except Exception:
            log.exception("%s of inode %d: bug", Opcode(opcode).name, inode)
            return errno.EIO
        finally:
            CALL.reset(before)

    @property
    def _fs(self) -> FileSystem:
        return self._operations.fs

    # --- names --------------------------------------------------------------------------------------------------------

    def _lookup(self, request: Request) -> Answer:
        parent, name = request.node, request.body[:-1]
        if self._operations.is_gone(parent) or name in (b".", b"..") or len(name) > NAME_MAX:
            return None
        child = None if self._fs.lookups_pin else self._fs.known_entry(parent, name)
        if child is None:
            return None
        if child == ABSENT:
            valid, nanos = _validity(self._operations.entry_ttl_s(parent))
            return _ENTRY_OUT.pack(0, 0, valid, 0, nanos, 0, *_NO_ATTRIBUTES)
        inode = self._fs.peek(child)
        return None if inode is None or inode.rdev else self._entry(inode, parent)

    def _readlink(self, request: Request) -> Answer:
        inode = self._fs.peek(request.node)
        return inode.inline if inode is not None and inode.is_symlink else None

    def _mkdir(self, request: Request) -> Answer:
        mode, _ = _MKDIR_IN.unpack_from(request.body)
        name = request.body[_MKDIR_IN.size : -1]
        inode = self._fs.instant.mkdir(request.caller, request.node, name, stat.S_IMODE(mode))
        return None if inode is None else self._entry(inode, request.node)

    def _unlink(self, request: Request) -> Answer:
        return 0 if self._fs.instant.unlink(request.caller, request.node, request.body[:-1]) else None

    def _rmdir(self, request: Request) -> Answer:
        name = request.body[:-1]
        directory = self._directory_at(request.node, name)
        if directory is None or not self._fs.instant.rmdir(request.caller, request.node, name):
            return None
        self._operations.remember_gone(directory)
        return 0

    def _rename(self, request: Request) -> Answer:
        (new_parent,) = _RENAME_IN.unpack_from(request.body)
        return self._move(request, Ino(new_parent), request.body[_RENAME_IN.size :], 0)

    def _rename2(self, request: Request) -> Answer:
        new_parent, flags, _ = _RENAME2_IN.unpack_from(request.body)
        return self._move(request, Ino(new_parent), request.body[_RENAME2_IN.size :], flags)

    def _move(self, request: Request, new_parent: Ino, names: bytes, flags: int) -> Answer:
        name, new_name, _ = names.split(b"\0", 2)
        replaced = self._directory_at(new_parent, new_name)
        if not self._fs.instant.rename(request.caller, request.node, name, new_parent, new_name, flags):
            return None
        if replaced is not None:
            self._operations.remember_gone(replaced)
        return 0

    def _directory_at(self, parent: Ino, name: bytes) -> Inode | None:
        """The directory that is about to be removed, if one is known there."""
        child = self._fs.known_entry(parent, name)
        inode = self._fs.peek(child) if child else None
        return inode if inode is not None and inode.is_directory else None

    def _opendir(self, request: Request) -> Answer:
        inode = None if self._operations.is_gone(request.node) else self._fs.peek(request.node)
        if inode is None or not inode.is_directory:
            return None
        return _OPEN_OUT.pack(self._operations.opened_directory(DirectoryHandle(request.node)), 0, 0)

    def _releasedir(self, request: Request) -> Answer:
        self._operations.closed_directory(_HANDLE_IN.unpack_from(request.body)[0])
        return 0

    # --- attributes ---------------------------------------------------------------------------------------------------

    def _getattr(self, request: Request) -> Answer:
        inode = None if self._operations.is_gone(request.node) else self._fs.peek(request.node)
        return None if inode is None or inode.rdev else self._attributes_out(inode)

    def _setattr(self, request: Request) -> Answer:
        valid, _, atime, mtime, atime_nanos, mtime_nanos, _, mode, _, uid, gid = _SETATTR_IN.unpack_from(request.body)
        if valid & ~_FATTR_PLAIN:
            return None
        inode = self._fs.instant.set_attributes(
            request.caller,
            request.node,
            mode=stat.S_IMODE(mode) if valid & _FATTR_MODE else None,
            uid=uid if valid & _FATTR_UID else None,
            gid=gid if valid & _FATTR_GID else None,
            atime_ns=_time_ns(atime, atime_nanos) if valid & _FATTR_ATIME else None,
            mtime_ns=_time_ns(mtime, mtime_nanos) if valid & _FATTR_MTIME else None,
        )
        return None if inode is None else self._attributes_out(inode)

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _open(self, request: Request) -> Answer:
        flags, open_flags = _OPEN_IN.unpack_from(request.body)
        if open_flags & _OPEN_KILL_SUIDGID:
            return None
        handle = self._fs.instant.open(request.node, flags, self._operations.next_number())
        if handle is None:
            return None
        return _OPEN_OUT.pack(handle.number, self._cached_how(*self._operations.opened(handle)), 0)

    def _create(self, request: Request) -> Answer:
        flags, mode, _, open_flags = _CREATE_IN.unpack_from(request.body)
        if open_flags & _OPEN_KILL_SUIDGID:
            return None
        name = request.body[_CREATE_IN.size : -1]
        made = self._fs.instant.create(
            request.caller, request.node, name, stat.S_IMODE(mode), flags, self._operations.next_number()
        )
        if made is None:
            return None
        inode, handle = made
        how = self._cached_how(*self._operations.opened(handle))
        return self._entry(inode, request.node) + _OPEN_OUT.pack(handle.number, how, 0)

    def _cached_how(self, direct_io: bool, keep_cache: bool) -> int:
        return _FOPEN_DIRECT_IO * direct_io | _FOPEN_KEEP_CACHE * keep_cache

    def _read(self, request: Request) -> Answer:
        fh, offset, size = _READ_IN.unpack_from(request.body)
        handle = self._operations.file(fh)
        if size > _MAX_READ or self._operations.reads_under_way(handle.ino):
            return None
        data = self._fs.instant.read(handle, offset, size)
        if data is not None and self._operations.extras is not None:
            self._operations.extras.reading(handle.ino)
        return data

    def _write(self, request: Request) -> Answer:
        fh, offset, size, write_flags, *_ = _WRITE_IN.unpack_from(request.body)
        extras, handle = self._operations.extras, self._operations.file(fh)
        if write_flags & (_WRITE_CACHE | _WRITE_KILL_SUIDGID) or extras is None:
            return None
        if not extras.is_plain_write(handle, fh):
            return None
        data = request.body[_WRITE_IN.size : _WRITE_IN.size + size]
        return _WRITE_OUT.pack(size, 0) if self._fs.instant.write(handle, offset, data) else None

    def _flush(self, request: Request) -> Answer:
        fh, _, _, owner = _FLUSH_IN.unpack_from(request.body)
        handle = self._operations.file(fh)
        if not self._fs.locks.closed_here(handle.ino, owner):
            return None
        self._fs.tell_error(handle)
        return 0

    def _release(self, request: Request) -> Answer:
        self._operations.released(_HANDLE_IN.unpack_from(request.body)[0])
        return 0

    # --- answers ------------------------------------------------------------------------------------------------------

    def _entry(self, inode: Inode, parent: Ino) -> bytes:
        self._operations.count_lookup(inode.ino)
        entry, entry_nanos = _validity(self._operations.entry_ttl_s(parent))
        attributes, attribute_nanos = _validity(self._operations.attribute_ttl_s(inode.ino))
        return _ENTRY_OUT.pack(inode.ino, 0, entry, attributes, entry_nanos, attribute_nanos, *self._attributes(inode))

    def _attributes_out(self, inode: Inode) -> bytes:
        valid, nanos = _validity(self._operations.attribute_ttl_s(inode.ino))
        return _ATTRIBUTES_OUT.pack(valid, nanos, 0, *self._attributes(inode))

    def _attributes(self, inode: Inode) -> tuple[int, ...]:
        """Of anything but a device, whose number libfuse knows how to tell."""
        inode = self._operations.shown(inode)
        atime, atime_nanos = divmod(inode.atime_ns, _NANO)
        mtime, mtime_nanos = divmod(inode.mtime_ns, _NANO)
        ctime, ctime_nanos = divmod(inode.ctime_ns, _NANO)
        return (
            inode.ino,
            inode.size,
            blocks_of(inode),
            atime & _U64,
            mtime & _U64,
            ctime & _U64,
            atime_nanos,
            mtime_nanos,
            ctime_nanos,
            inode.mode,
            inode.nlink,
            inode.uid,
            inode.gid,
            0,
            PREFERRED_IO,
            0,
        )


def _validity(ttl_s: float) -> tuple[int, int]:
    """Seconds and nanoseconds for which the kernel may believe it."""
    seconds = int(ttl_s)
    return seconds, int((ttl_s - seconds) * _NANO)


def _time_ns(seconds: int, nanos: int) -> int:
    """The kernel's seconds are signed, on their way through an unsigned field."""
    return (seconds - (1 << 64) if seconds >> 63 else seconds) * _NANO + nanos
