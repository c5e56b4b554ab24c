"""What is stored of a tree. Every record's bytes are made by fsd.wire.codec; keys are in fsd.namespace.keys."""

import stat
from dataclasses import dataclass
from enum import Enum, IntFlag

from fsd.core.ids import DataId, Ino, LayerId, PoolId, SessionId
from fsd.wire.codec import wire

NO_DATA = DataId(0)
MAX_FLUSHES = 8  # records of flushes that one inode holds


class InodeFlag(IntFlag):
    """Facts about an inode that save a look elsewhere."""

    NONE = 0
    HAS_XATTRS = 1  # without it there is no extended attribute: who holds a lease need not ask for one


@wire(104)
@dataclass(frozen=True, slots=True)
class FlushRecord:
    """The commit record of a flush in two phases: what session `session` prepared under `number` in these chunks of the
    file's data counts. It stays until every one of them has applied it."""

    session: SessionId
    number: int
    chunks: tuple[int, ...]


@wire(100)
@dataclass(frozen=True, slots=True)
class Inode:
    """One inode. Times are nanoseconds since 1970 by the server's clock; `mode` holds the type bits.

    A regular file's bytes are inline while `data` is NO_DATA (then `inline` holds all `size` of them, or is None in an
    answer that leaves them out), else in the chunks of `data`. A symbolic link's target is in `inline`. A directory's
    `size` is its number of entries, `parent` the directory that holds it (itself for the root, 0 for other types).
    `flags` are InodeFlag's. `trim_end` > `size` says that chunks may still hold garbage in [size, trim_end): whoever
    extends the file trims first; else it is 0. `flushes` are committed and perhaps not applied in all chunks.
    """

    ino: Ino
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int = 0
    data: DataId = NO_DATA
    inline: bytes | None = None
    trim_end: int = 0
    parent: Ino = Ino(0)
    flags: int = 0
    flushes: tuple[FlushRecord, ...] = ()

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def is_inline(self) -> bool:
        """A regular file whose bytes live in this record."""
        return self.data == NO_DATA and stat.S_ISREG(self.mode)


@wire(101)
@dataclass(frozen=True, slots=True)
class Dentry:
    """A name in a directory; `type` is `stat.S_IFMT` of the child's mode."""

    ino: Ino
    type: int


class AccessMode(Enum):
    SHARED = 1  # many clients, strictly coherent
    SINGLE = 2  # one client at a time


@wire(102)
@dataclass(frozen=True, slots=True)
class Volume:
    """A tree with its own root. `used_bytes` is the sum of `size` of its regular files and symbolic links, `used_inodes`
    the number of its inodes, the root and unlinked open files included (I12). A quota of 0 is none. `labels` are its
    maker's, (name, value), by which tools find again what they made."""

    name: str
    layer: LayerId
    pool: PoolId
    replicas: int
    min_replicas: int
    quota_bytes: int = 0
    quota_inodes: int = 0
    used_bytes: int = 0
    used_inodes: int = 0
    access: AccessMode = AccessMode.SHARED
    inline_limit: int = 16 * 1024
    created_ns: int = 0  # 0: by a version that did not keep it
    labels: tuple[tuple[str, str], ...] = ()


@wire(103)
@dataclass(frozen=True, slots=True)
class DeadData:
    """Chunks that nobody refers to any more: all of `data` from byte `start` (chunk aligned) to `end`."""

    data: DataId
    pool: PoolId
    start: int
    end: int
