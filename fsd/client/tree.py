"""The cached tree: inodes and names, absent names too. Pure. Whether it may be used is the lease table's to say.

A directory is *complete* when as many of its names are known as it has: then every other name is known to be absent. Nobody
has to remember that it was read to its end, or was made here; and nothing is left behind when something is forgotten.
"""

import dataclasses

from fsd.core.ids import Ino
from fsd.namespace.records import Inode

ABSENT = Ino(0)  # the name is known not to exist


class Tree:
    """Inodes as the server last told, and entries by directory."""

    def __init__(self) -> None:
        self._inodes: dict[Ino, Inode] = {}
        self._entries: dict[Ino, dict[bytes, Ino]] = {}
        self._present: dict[Ino, int] = {}  # names that are known to be there
        self._versions: dict[Ino, int] = {}
        self._changes = 0
        self.entry_count = 0
        self.inline_bytes = 0

    def inode(self, ino: Ino) -> Inode | None:
        return self._inodes.get(ino)

    def put_inode(self, inode: Inode) -> None:
        """Answers leave inline bytes out; those that are known and still fit are kept."""
        old = self.drop_inode(inode.ino)
        if inode.is_inline and inode.inline is None:
            if inode.size == 0:
                inode = dataclasses.replace(inode, inline=b"")
            elif old is not None and old.is_inline and old.size == inode.size:
                inode = dataclasses.replace(inode, inline=old.inline)
        elif inode.is_symlink and inode.inline is None and old is not None:
            inode = dataclasses.replace(inode, inline=old.inline)
        self._inodes[inode.ino] = inode
        self.inline_bytes += len(inode.inline or b"")

    def drop_inode(self, ino: Ino) -> Inode | None:
        """Forget the attributes, not the names below."""
        old = self._inodes.pop(ino, None)
        if old is not None:
            self.inline_bytes -= len(old.inline or b"")
        return old

    def entry(self, parent: Ino, name: bytes) -> Ino | None:
        """The child, ABSENT, or None if nothing is known."""
        entries = self._entries.get(parent)
        return entries.get(name) if entries is not None else None

    def resolve(self, parent: Ino, name: bytes) -> Ino | None:
        """As `entry`; a name that a complete directory does not have is ABSENT."""
        child = self.entry(parent, name)
        return ABSENT if child is None and self.is_complete(parent) else child

    def is_complete(self, parent: Ino) -> bool:
        """Whether every name of the directory is known."""
        directory = self._inodes.get(parent)
        return directory is not None and directory.is_directory and directory.size == self._present.get(parent, 0)

    def children(self, parent: Ino) -> list[tuple[bytes, Ino]]:
        """The names that are known to be there."""
        return [(name, child) for name, child in self._entries.get(parent, {}).items() if child != ABSENT]

    def put_entry(self, parent: Ino, name: bytes, child: Ino) -> None:
        """`child` may be ABSENT."""
        entries = self._entries.setdefault(parent, {})
        before = entries.get(name)
        if before is None:
            self.entry_count += 1
        self._count(parent, (child != ABSENT) - bool(before))
        entries[name] = child

    def _count(self, parent: Ino, more: int) -> None:
        if more:
            self._present[parent] = self._present.get(parent, 0) + more

    def drop_entry(self, parent: Ino, name: bytes) -> None:
        """Nothing is known about the name any more."""
        entries = self._entries.get(parent)
        before = entries.pop(name, None) if entries is not None else None
        if before is not None:
            self.entry_count -= 1
            self._count(parent, -bool(before))

    def names(self, parent: Ino) -> list[bytes]:
        """All names of which something is known."""
        return list(self._entries.get(parent, ()))

    def version(self, parent: Ino) -> int:
        """Differs once this client has changed the directory: what was read of it is out of date."""
        return self._versions.get(parent, 0)

    def changed(self, parent: Ino) -> None:
        """See `version`."""
        self._changes += 1
        self._versions[parent] = self._changes

    def drop(self, ino: Ino) -> None:
        """The lease is gone: forget attributes and names."""
        self.drop_inode(ino)
        self.entry_count -= len(self._entries.pop(ino, ()))
        self._present.pop(ino, None)
        self._versions.pop(ino, None)

    def clear(self) -> None:
        """Forget everything."""
        self._versions.clear()
        self._inodes.clear()
        self._entries.clear()
        self._present.clear()
        self.entry_count = self.inline_bytes = 0
