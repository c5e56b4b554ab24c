"""What `apply` reads through and what it answers with. A view belongs to one layer (volume)."""

from dataclasses import dataclass
from typing import Protocol

from fsd.core.ids import Ino
from fsd.namespace.records import DeadData, Dentry, Inode, Volume


class View(Protocol):
    """Records of one layer as they are now. The server's reads RocksDB; a client's, later, its cached tree."""

    def inode(self, ino: Ino) -> Inode | None:
        """The whole record, inline bytes included."""
        ...

    def dentry(self, parent: Ino, name: bytes) -> Dentry | None: ...

    def xattr(self, ino: Ino, name: bytes) -> bytes | None: ...

    def xattr_names(self, ino: Ino) -> tuple[bytes, ...]: ...

    def is_orphan(self, ino: Ino) -> bool: ...

    def volume(self) -> Volume: ...


@dataclass(frozen=True, slots=True)
class PutInode:
    inode: Inode


@dataclass(frozen=True, slots=True)
class DropInode:
    ino: Ino


@dataclass(frozen=True, slots=True)
class PutDentry:
    parent: Ino
    name: bytes
    dentry: Dentry


@dataclass(frozen=True, slots=True)
class DropDentry:
    parent: Ino
    name: bytes


@dataclass(frozen=True, slots=True)
class PutXattr:
    ino: Ino
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class DropXattr:
    ino: Ino
    name: bytes


@dataclass(frozen=True, slots=True)
class PutOrphan:
    """The inode has no name left and lives until its last handle in any session is gone."""

    ino: Ino


@dataclass(frozen=True, slots=True)
class DropOrphan:
    ino: Ino


@dataclass(frozen=True, slots=True)
class PutVolume:
    volume: Volume


@dataclass(frozen=True, slots=True)
class Collect:
    """Chunks to be removed from the chunkservers, some time."""

    dead: DeadData


Change = (
    PutInode | DropInode | PutDentry | DropDentry | PutXattr | DropXattr | PutOrphan | DropOrphan | PutVolume | Collect
)


@dataclass(frozen=True, slots=True)
class Applied:
    """`subject` is the inode that the operation was about, as it is afterwards (the created, linked, renamed or changed
    one; None for `Reap` and for a removal that left no inode). `changes` are in no particular order, at most one for a key,
    and are to be stored as one atomic batch (I10)."""

    subject: Inode | None
    changes: tuple[Change, ...]
