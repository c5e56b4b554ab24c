"""Each kind of damage is found, and named so that an operator can look for it."""

import stat
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fsd.core.ids import ROOT_INO, Ino
from fsd.namespace import operations as op
from fsd.namespace.fsck import check
from fsd.namespace.records import Dentry
from fsd.namespace.view import DropDentry, DropInode, DropOrphan, PutDentry, PutInode, PutOrphan, PutVolume, PutXattr
from tests.namespace.trees import Tree


class Planted(Tree):
    """One of everything: 101 inline "f", 102 chunked "g", 103 directory "d", 104 directory "d/e", 105 symbolic link "s",
    106 orphan, 107 FIFO "p"."""

    def __init__(self) -> None:
        super().__init__()
        self.file(b"f", b"bytes")
        self.chunked(b"g", 1000, data=500)
        below = self.directory(b"e", parent=self.directory(b"d"))
        self.do(op.Symlink, ROOT_INO, b"s", self.new_ino(), b"t")
        self.file(b"h")
        self.do(op.Unlink, ROOT_INO, b"h")
        self.do(op.Mknod, ROOT_INO, b"p", self.new_ino(), stat.S_IFIFO, 0)
        self.do(op.SetXattr, 101, b"user.a", b"1")
        assert below == 104
        self.close()

    def edit(self, ino: int, **fields: Any) -> None:
        self.view.commit([PutInode(replace(self.inode(ino), **fields))])

    def edit_volume(self, **more: int) -> None:
        volume = self.view.volume()
        changed = {name: getattr(volume, name) + by for name, by in more.items()}
        self.view.commit([PutVolume(replace(volume, **changed))])

    def add_name(self, parent: int, name: bytes, ino: int, kind: int = stat.S_IFREG) -> None:
        self.view.commit([PutDentry(Ino(parent), name, Dentry(Ino(ino), kind))])

    def loop(self) -> None:
        """d and d/e hold each other; nobody above knows them."""
        self.view.commit([DropDentry(ROOT_INO, b"d")])
        self.add_name(104, b"d", 103, stat.S_IFDIR)
        self.edit(103, parent=Ino(104))
        self.edit(104, nlink=3, size=1)
        root = self.inode(ROOT_INO)
        self.edit(ROOT_INO, nlink=root.nlink - 1, size=root.size - 1)


DAMAGE: dict[str, tuple[Callable[[Planted], Any], str]] = {
    "bytes of the volume": (lambda t: t.edit_volume(used_bytes=1), "counts 1007 bytes, its inodes hold 1006"),
    "inodes of the volume": (lambda t: t.edit_volume(used_inodes=-1), "counts 7 inodes, there are 8"),
    "link count of a file": (lambda t: t.edit(101, nlink=2), "inode 101 counts 2 names and has 1"),
    "a name too many": (lambda t: t.add_name(103, b"x", 101), "inode 101 counts 1 names and has 2"),
    "a lost name": (lambda t: t.view.commit([DropDentry(ROOT_INO, b"f")]), "inode 101 counts 1 names and has 0"),
    "link count of a directory": (lambda t: t.edit(103, nlink=2), "directory 103 counts 2 links instead of 3"),
    "size of a directory": (lambda t: t.edit(103, size=2), "directory 103 counts 2 entries and has 1"),
    "size of the root": (lambda t: t.edit(ROOT_INO, size=0), "directory 1 counts 0 entries and has 5"),
    "parent of a directory": (
        lambda t: t.edit(104, parent=ROOT_INO),
        "directory 104 is named in 103 and says it is in 1",
    ),
    "two names of a directory": (lambda t: t.add_name(1, b"x", 104, stat.S_IFDIR), "directory 104 has 2 names"),
    "a name of the root": (lambda t: t.add_name(104, b"x", 1, stat.S_IFDIR), "directory 1 has 1 names instead of 0"),
    "type in a name": (lambda t: t.add_name(1, b"f", 101, stat.S_IFDIR), "name b'f' in directory 1 has type"),
    "a name of nothing": (lambda t: t.view.commit([DropInode(Ino(101))]), "leads to inode 101, which does not exist"),
    "a name nowhere": (lambda t: t.add_name(999, b"x", 101), "lies in 999, which is no directory"),
    "a name in a file": (lambda t: t.add_name(102, b"x", 101), "lies in 102, which is no directory"),
    "a loop": (Planted.loop, "is not below the root"),
    "no root": (lambda t: t.view.commit([DropInode(ROOT_INO)]), "no root directory"),
    "an orphan with a name": (lambda t: t.view.commit([PutOrphan(Ino(101))]), "orphan 101 counts 1 names and has 1"),
    "an orphan of nothing": (lambda t: t.view.commit([PutOrphan(Ino(999))]), "orphan 999 does not exist"),
    "a forgotten orphan": (
        lambda t: t.view.commit([DropOrphan(Ino(106))]),
        "inode 106 counts no names and is no orphan",
    ),
    "bytes that are missing": (lambda t: t.edit(101, inline=b"byte"), "inode 101 of 5 bytes holds 4 bytes inline"),
    "bytes that are nowhere": (lambda t: t.edit(101, inline=None), "inode 101 of 5 bytes holds no bytes inline"),
    "a target that is cut": (lambda t: t.edit(105, inline=b""), "inode 105 of 1 bytes holds 0 bytes inline"),
    "bytes twice": (lambda t: t.edit(102, inline=b"x"), "inode 102 holds 1 bytes inline that do not belong there"),
    "shared chunks": (lambda t: t.edit(101, inline=None, data=500), "inodes 101 and 102 share the chunks of data 500"),
    "chunks of a directory": (lambda t: t.edit(103, data=501), "inode 103 is no regular file and has data 501"),
    "a trim of nothing": (lambda t: t.edit(102, trim_end=1000), "inode 102 of 1000 bytes is to be trimmed up to 1000"),
    "a FIFO with a size": (lambda t: t.edit(107, size=3), "inode 107 has size 3"),
    "a negative size": (lambda t: t.edit(102, size=-3), "inode 102 has size -3"),
    "attributes of nothing": (
        lambda t: t.view.commit([PutXattr(Ino(999), b"user.x", b"")]),
        "inode 999, which does not",
    ),
    "attributes unmarked": (lambda t: t.edit(101, flags=0), "inode 101 is not marked to have attributes, wrongly"),
    "a mark without attributes": (lambda t: t.edit(102, flags=1), "inode 102 is marked to have attributes, wrongly"),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_planted_damage_is_found(damage: str) -> None:
    plant, words = DAMAGE[damage]
    tree = Planted()
    plant(tree)
    found = list(check(tree.view))
    assert any(words in line for line in found), found
    assert all("\n" not in line for line in found)


def test_a_deep_tree_is_checked_without_recursion(tree: Tree) -> None:
    parent = ROOT_INO
    for _ in range(3000):
        parent = tree.directory(b"d", parent=parent)
