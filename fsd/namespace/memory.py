"""A layer held in dictionaries: for tests, and for a client's cached tree."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import assert_never

from fsd.core.ids import Ino
from fsd.namespace.create import root_inode
from fsd.namespace.records import DeadData, Dentry, Inode, Volume
from fsd.namespace.view import (
    Change,
    Collect,
    DropDentry,
    DropInode,
    DropOrphan,
    DropXattr,
    PutDentry,
    PutInode,
    PutOrphan,
    PutVolume,
    PutXattr,
)


class MemoryView:
    """A `View` that takes changes, and a `fsck.Tree`. Only `volume` must be there; a whole layer begins with `empty`."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._inodes: dict[Ino, Inode] = {}
        self._names: dict[Ino, dict[bytes, Dentry]] = {}
        self._xattrs: dict[Ino, dict[bytes, bytes]] = {}
        self._orphans: dict[Ino, None] = {}  # a dict and no set: the order of insertion is the same in every run
        self.dead: list[DeadData] = []

    @classmethod
    def empty(cls, volume: Volume, time_ns: int = 0, mode: int = 0o755) -> "MemoryView":
        """A new layer with nothing but its root."""
        view = cls(volume)
        view.commit((PutVolume(_with_one_inode(volume)), PutInode(root_inode(time_ns, mode))))
        return view

    # --- View ---

    def inode(self, ino: Ino) -> Inode | None:
        return self._inodes.get(ino)

    def dentry(self, parent: Ino, name: bytes) -> Dentry | None:
        names = self._names.get(parent)
        return None if names is None else names.get(name)

    def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        return self._xattrs.get(ino, {}).get(name)

    def xattr_names(self, ino: Ino) -> tuple[bytes, ...]:
        return tuple(sorted(self._xattrs.get(ino, ())))

    def is_orphan(self, ino: Ino) -> bool:
        return ino in self._orphans

    def volume(self) -> Volume:
        return self._volume

    # --- the whole layer ---

    def names_in(self, parent: Ino) -> dict[bytes, Dentry]:
        """A directory's names; a copy."""
        return dict(self._names.get(parent, {}))

    def inodes(self) -> Iterator[Inode]:
        yield from self._inodes.values()

    def dentries(self) -> Iterator[tuple[Ino, bytes, Dentry]]:
        for parent, names in self._names.items():
            for name, dentry in names.items():
                yield parent, name, dentry

    def xattrs(self) -> Iterator[tuple[Ino, bytes]]:
        for ino, values in self._xattrs.items():
            for name in values:
                yield ino, name

    def orphans(self) -> Iterator[Ino]:
        yield from self._orphans

    # --- changing ---

    def commit(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._commit_one(change)

    def _commit_one(self, change: Change) -> None:
        match change:
            case PutInode(inode):
                self._inodes[inode.ino] = inode
            case DropInode(ino):
                self._inodes.pop(ino, None)
            case PutDentry(parent, name, dentry):
                self._names.setdefault(parent, {})[name] = dentry
            case DropDentry(parent, name):
                _drop(self._names, parent, name)
            case PutXattr(ino, name, value):
                self._xattrs.setdefault(ino, {})[name] = value
            case DropXattr(ino, name):
                _drop(self._xattrs, ino, name)
            case PutOrphan(ino):
                self._orphans[ino] = None
            case DropOrphan(ino):
                self._orphans.pop(ino, None)
            case PutVolume(volume):
                self._volume = volume
            case Collect(dead):
                self.dead.append(dead)
            case _:
                assert_never(change)


def _drop(of: dict[Ino, dict[bytes, Dentry]] | dict[Ino, dict[bytes, bytes]], ino: Ino, name: bytes) -> None:
    """Take a name out, and an inode's table with its last name."""
    names = of.get(ino)
    if names is not None:
        names.pop(name, None)
        if not names:
            del of[ino]


def _with_one_inode(volume: Volume) -> Volume:
    return replace(volume, used_bytes=0, used_inodes=1)
