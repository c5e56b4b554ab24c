"""Answers without waiting: what the client knows for sure, told to the kernel before the event loop has heard of the request.

    request ──> known here, under a lease, nothing to wait for?  ── yes ──> answered, 30-40 us
                                      └─ no ──> libfuse, pyfuse3, a task, a handler of Operations (the ordinary way)

A loop that creates, looks up and closes small files sends five or six requests for each of them, one after the other; most of
what the ordinary way costs is the way itself. Nothing here decides anything that Operations would decide otherwise: both ask
`fsd.client`, and what is not plain (privileges to be taken away, appends, "..", special files) goes the ordinary way.
"""

import errno
import logging
import struct
from collections.abc import Callable

from fsd.client.filesystem import FileSystem
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
_ATTRIBUTES_OUT = struct.Struct("<QII" + _ATTRIBUTES)  # struct fuse_attr_out: valid, its nanoseconds, dummy
_ENTRY_OUT = struct.Struct(
    "<QQQQII" + _ATTRIBUTES
)  # struct fuse_entry_out: node, generation, entry and attribute validity
_FLUSH_IN = struct.Struct("<QIIQ")  # fh, unused, padding, lock owner
_NO_ATTRIBUTES = (0,) * 16
_NANO = 1_000_000_000
_U64 = (1 << 64) - 1


class Instant:
    """See the module; `operations` are the handlers of the ordinary way."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._handlers: dict[int, Callable[[int, bytes], Answer]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.FLUSH: self._flush,
        }
        self.opcodes = tuple(Opcode(opcode) for opcode in self._handlers)

    def answer(self, opcode: int, inode: int, uid: int, gid: int, pid: int, body: bytes) -> Answer:
        """See fsd.mount.companion.InstantAnswers."""
        if not self._operations.attached:
            return None
        try:
            return self._handlers[opcode](inode, body)
        except FsError as error:
            return error.errno
        except Exception:
            log.exception("%s of inode %d: bug", Opcode(opcode).name, inode)
            return errno.EIO

    @property
    def _fs(self) -> FileSystem:
        return self._operations.fs

    def _lookup(self, parent: int, body: bytes) -> Answer:
        name = body[:-1]
        if self._operations.is_gone(parent) or name in (b".", b"..") or len(name) > NAME_MAX:
            return None
        child = self._fs.known_entry(Ino(parent), name)
        if child is None:
            return None
        if child == ABSENT:
            valid, nanos = _validity(self._operations.entry_ttl_s(Ino(parent)))
            return _ENTRY_OUT.pack(0, 0, valid, 0, nanos, 0, *_NO_ATTRIBUTES)
        inode = self._fs.peek(child)
        return None if inode is None else self._entry(inode, Ino(parent))

    def _getattr(self, ino: int, body: bytes) -> Answer:
        if self._operations.is_gone(ino):
            return None
        inode = self._fs.peek(Ino(ino))
        if inode is None or _is_special(inode):
            return None
        valid, nanos = _validity(self._operations.attribute_ttl_s(inode.ino))
        return _ATTRIBUTES_OUT.pack(valid, nanos, 0, *self._attributes(inode))

    def _flush(self, ino: int, body: bytes) -> Answer:
        fh, _, _, owner = _FLUSH_IN.unpack_from(body)
        handle = self._operations.file(fh)
        if not self._fs.locks.closed_here(handle.ino, owner):
            return None
        self._fs.tell_error(handle)
        return 0

    # --- answers ------------------------------------------------------------------------------------------------------

    def _entry(self, inode: Inode, parent: Ino) -> Answer:
        if _is_special(inode):
            return None
        self._operations.count_lookup(inode.ino)
        entry, entry_nanos = _validity(self._operations.entry_ttl_s(parent))
        attributes, attribute_nanos = _validity(self._operations.attribute_ttl_s(inode.ino))
        return _ENTRY_OUT.pack(inode.ino, 0, entry, attributes, entry_nanos, attribute_nanos, *self._attributes(inode))

    def _attributes(self, inode: Inode) -> tuple[int, ...]:
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


def _is_special(inode: Inode) -> bool:
    """A device, whose number libfuse knows how to tell."""
    return inode.rdev != 0


def _validity(ttl_s: float) -> tuple[int, int]:
    """Seconds and nanoseconds for which the kernel may believe it."""
    seconds = int(ttl_s)
    return seconds, int((ttl_s - seconds) * _NANO)
