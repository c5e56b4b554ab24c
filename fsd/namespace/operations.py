"""Operations: frozen records that carry everything needed to repeat one change of a tree, anywhere, at any time.

New inode numbers and data ids come from a range that the session owns; `time_ns` is the server's clock as the session
knows it; `uid` and `gid` are the caller's (file-system) ids. Which errors an operation may meet is told at its branch of
`fsd.namespace.apply`.
"""

from dataclasses import dataclass
from enum import IntFlag

from fsd.core.ids import DataId, Ino, LayerId
from fsd.namespace.records import NO_DATA, FlushRecord
from fsd.wire.codec import wire


class RenameFlag(IntFlag):
    """Linux's values, renameat2(2)."""

    NONE = 0
    NOREPLACE = 1
    EXCHANGE = 2


class XattrFlag(IntFlag):
    """Linux's values, setxattr(2)."""

    NONE = 0
    CREATE = 1
    REPLACE = 2


@dataclass(frozen=True, slots=True)
class Base:
    """What every operation carries."""

    layer: LayerId
    time_ns: int
    uid: int
    gid: int


@wire(120)
@dataclass(frozen=True, slots=True)
class Create(Base):
    """A new empty regular file. The name must not exist. `mode` is permission bits, the umask already applied."""

    parent: Ino
    name: bytes
    ino: Ino
    mode: int


@wire(121)
@dataclass(frozen=True, slots=True)
class Mkdir(Base):
    parent: Ino
    name: bytes
    ino: Ino
    mode: int


@wire(122)
@dataclass(frozen=True, slots=True)
class Mknod(Base):
    """A FIFO, socket, device or empty regular file; `mode` holds the type bits."""

    parent: Ino
    name: bytes
    ino: Ino
    mode: int
    rdev: int


@wire(123)
@dataclass(frozen=True, slots=True)
class Symlink(Base):
    parent: Ino
    name: bytes
    ino: Ino
    target: bytes


@wire(124)
@dataclass(frozen=True, slots=True)
class Link(Base):
    ino: Ino
    parent: Ino
    name: bytes


@wire(125)
@dataclass(frozen=True, slots=True)
class Unlink(Base):
    """An inode that loses its last name becomes an orphan; `Reap` removes it when no session has it open."""

    parent: Ino
    name: bytes


@wire(126)
@dataclass(frozen=True, slots=True)
class Rmdir(Base):
    parent: Ino
    name: bytes


@wire(127)
@dataclass(frozen=True, slots=True)
class Rename(Base):
    parent: Ino
    name: bytes
    new_parent: Ino
    new_name: bytes
    flags: int = 0


@wire(128)
@dataclass(frozen=True, slots=True)
class SetAttributes(Base):
    """None leaves a field as it is. Whether the caller may is the kernel's decision (`default_permissions`)."""

    ino: Ino
    mode: int | None = None
    new_uid: int | None = None
    new_gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@wire(129)
@dataclass(frozen=True, slots=True)
class Truncate(Base):
    """Set the size. To zero: the file becomes inline and empty. An inline file that holds bytes and is to grow over the
    inline limit must be moved to chunks first (`CommitSize`); an empty one gets `new_data`. A file that was cut before
    must be trimmed first (`TrimDone`). What was to come first and did not: WrongLayout."""

    ino: Ino
    size: int
    new_data: DataId = NO_DATA


@wire(130)
@dataclass(frozen=True, slots=True)
class WriteInline(Base):
    """The whole contents of an inline file, at most the inline limit. `time_ns` becomes mtime and ctime. WrongLayout for a
    file that has chunks, and for contents over the limit."""

    ino: Ino
    contents: bytes


@wire(131)
@dataclass(frozen=True, slots=True)
class CommitSize(Base):
    """Size and mtime behind bytes that are durable on the chunkservers (I17). `data` differs from the inode's when the
    file has just moved out of line, and is NO_DATA to keep what is there. Never makes a file shorter: a smaller `size`
    leaves it. WrongLayout if the file is inline and no `data` is given, has other `data`, or is to grow untrimmed.

    `flush`: what was prepared in its chunks counts from now on. `applied`: (session, number) of flushes that all their
    chunks have applied; their records go."""

    ino: Ino
    size: int
    mtime_ns: int
    data: DataId = NO_DATA
    flush: FlushRecord | None = None
    applied: tuple[tuple[int, int], ...] = ()


@wire(132)
@dataclass(frozen=True, slots=True)
class TrimDone(Base):
    """The chunks of `data` hold nothing in [start, trim_end) any more; without effect if the inode has other data or
    another `trim_end` by now. `start` is the size when it was trimmed: of a file that was cut further since, [its size,
    start) is still to be trimmed."""

    ino: Ino
    data: DataId
    trim_end: int
    start: int = 0


@wire(133)
@dataclass(frozen=True, slots=True)
class SetXattr(Base):
    ino: Ino
    name: bytes
    value: bytes
    flags: int = 0


@wire(134)
@dataclass(frozen=True, slots=True)
class RemoveXattr(Base):
    ino: Ino
    name: bytes


@wire(135)
@dataclass(frozen=True, slots=True)
class Reap(Base):
    """Remove an orphan for good: its inode, xattrs and usage; its chunks go to the collector."""

    ino: Ino


Operation = (
    Create
    | Mkdir
    | Mknod
    | Symlink
    | Link
    | Unlink
    | Rmdir
    | Rename
    | SetAttributes
    | Truncate
    | WriteInline
    | CommitSize
    | TrimDone
    | SetXattr
    | RemoveXattr
    | Reap
)
