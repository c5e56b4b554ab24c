"""Changes that are not stored yet on top of a view: what several operations see that are to be one atomic batch."""

from collections.abc import Iterable

from fsd.core.ids import Ino
from fsd.namespace.records import Dentry, Inode, Volume
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
    View,
)

_Key = tuple[str, int, bytes]


class Overlay:
    """A `View`. `stage` what each operation changed, then store `changes()`: one for each key, the last that was staged."""

    def __init__(self, below: View) -> None:
        self._below = below
        self._staged: dict[_Key, Change] = {}

    def stage(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._staged[key_of(change)] = change

    def changes(self) -> tuple[Change, ...]:
        return tuple(self._staged.values())

    def inode(self, ino: Ino) -> Inode | None:
        change = self._staged.get(("inode", ino, b""))
        if change is None:
            return self._below.inode(ino)
        return change.inode if isinstance(change, PutInode) else None

    def dentry(self, parent: Ino, name: bytes) -> Dentry | None:
        change = self._staged.get(("dentry", parent, name))
        if change is None:
            return self._below.dentry(parent, name)
        return change.dentry if isinstance(change, PutDentry) else None

    def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        change = self._staged.get(("xattr", ino, name))
        if change is None:
            return self._below.xattr(ino, name)
        return change.value if isinstance(change, PutXattr) else None

    def xattr_names(self, ino: Ino) -> tuple[bytes, ...]:
        names = dict.fromkeys(self._below.xattr_names(ino))
        for change in self._staged.values():
            if isinstance(change, PutXattr) and change.ino == ino:
                names[change.name] = None
            elif isinstance(change, DropXattr) and change.ino == ino:
                names.pop(change.name, None)
        return tuple(sorted(names))

    def is_orphan(self, ino: Ino) -> bool:
        change = self._staged.get(("orphan", ino, b""))
        return self._below.is_orphan(ino) if change is None else isinstance(change, PutOrphan)

    def volume(self) -> Volume:
        change = self._staged.get(("volume", 0, b""))
        return change.volume if isinstance(change, PutVolume) else self._below.volume()


def key_of(change: Change) -> _Key:
    """(family, number, name) of the record that a change is about."""
    match change:
        case PutInode(inode):
            return "inode", inode.ino, b""
        case DropInode(ino):
            return "inode", ino, b""
        case PutDentry(parent, name) | DropDentry(parent, name):
            return "dentry", parent, name
        case PutXattr(ino, name) | DropXattr(ino, name):
            return "xattr", ino, name
        case PutOrphan(ino) | DropOrphan(ino):
            return "orphan", ino, b""
        case PutVolume():
            return "volume", 0, b""
        case Collect(dead):
            return "collect", dead.data, dead.start.to_bytes(8, "big")
