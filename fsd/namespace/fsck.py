"""Does a layer hold together (I12)? One pure pass over each family; nothing is repaired here. A pass yields None for every
record that it has looked at, so that whoever runs it decides when others have their turn.

Memory: a tuple of six numbers for each inode. What is found is one line each, worded for an operator.
"""

import stat
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from fsd.core.ids import ROOT_INO, Ino
from fsd.namespace.records import NO_DATA, Dentry, Inode, InodeFlag, Volume


class Tree(Protocol):
    """Every record of one layer; each is read through once, in any order."""

    def inodes(self) -> Iterable[Inode]: ...

    def dentries(self) -> Iterable[tuple[Ino, bytes, Dentry]]:
        """(directory, name, what it names)."""
        ...

    def xattrs(self) -> Iterable[tuple[Ino, bytes]]: ...

    def orphans(self) -> Iterable[Ino]: ...

    def volume(self) -> Volume: ...


class _Row(NamedTuple):
    """What is remembered of an inode."""

    mode: int
    nlink: int
    size: int
    parent: Ino
    flags: int


class _Names:
    """What the names say about the inodes."""

    __slots__ = ("entries", "names", "subdirectories")

    def __init__(self) -> None:
        self.names: dict[Ino, int] = {}  # of an inode
        self.entries: dict[Ino, int] = {}  # in a directory
        self.subdirectories: dict[Ino, int] = {}


def check(tree: Tree) -> Iterator[str]:
    """Every fault of the layer, one line each; nothing if it is clean."""
    return (found for found in steps(tree, sys.maxsize) if found is not None)


def steps(tree: Tree, turn: int) -> Iterator[str | None]:
    """As `check`, with None after every `turn` records: a moment to let others work. The tree must stay as it is."""
    rows: dict[Ino, _Row] = {}
    names = _Names()
    orphans: dict[Ino, None] = {}
    passes: tuple[Iterable[str | None], ...] = (
        _fill(orphans, tree.orphans()),
        _check_inodes(tree, rows),
        _check_names(tree, rows, names),
        _check_xattrs(tree, rows),
        _check_orphans(orphans, rows, names),
        _check_all_counts(rows, names, orphans),
        check_reachable(rows),
    )
    count = 0
    for one in passes:
        for found in one:
            if found is not None:
                yield found
            count += 1
            if count % turn == 0:
                yield None


def _fill(orphans: dict[Ino, None], found: Iterable[Ino]) -> Iterator[None]:
    for ino in found:
        orphans[ino] = None
        yield None


def _check_all_counts(rows: dict[Ino, _Row], names: _Names, orphans: dict[Ino, None]) -> Iterator[str | None]:
    for ino, row in rows.items():
        yield None
        yield from _check_counts(ino, row, names, ino in orphans)


def _check_inodes(tree: Tree, rows: dict[Ino, _Row]) -> Iterator[str | None]:
    used_bytes = 0
    owner_of_data: dict[int, Ino] = {}
    for inode in tree.inodes():
        yield None
        rows[inode.ino] = _Row(inode.mode, inode.nlink, inode.size, inode.parent, inode.flags)
        if inode.is_regular or inode.is_symlink:
            used_bytes += inode.size
        if inode.data != NO_DATA:
            other = owner_of_data.setdefault(inode.data, inode.ino)
            if other != inode.ino:
                yield f"inodes {other} and {inode.ino} share the chunks of data {inode.data}"
        yield from check_contents(inode)
    yield from check_usage(tree.volume(), used_bytes, len(rows))
    root = rows.get(ROOT_INO)
    if root is None or not stat.S_ISDIR(root.mode):
        yield "the layer has no root directory"


def check_usage(volume: Volume, used_bytes: int, used_inodes: int) -> Iterator[str]:
    if volume.used_bytes != used_bytes:
        yield f"volume {volume.name} counts {volume.used_bytes} bytes, its inodes hold {used_bytes}"
    if volume.used_inodes != used_inodes:
        yield f"volume {volume.name} counts {volume.used_inodes} inodes, there are {used_inodes}"


def check_contents(inode: Inode) -> Iterator[str]:
    """Where the bytes are and how many."""
    ino = inode.ino
    if inode.is_inline or inode.is_symlink:
        if inode.inline is None or len(inode.inline) != inode.size:
            held = "no" if inode.inline is None else len(inode.inline)
            yield f"inode {ino} of {inode.size} bytes holds {held} bytes inline"
    elif inode.inline is not None:
        yield f"inode {ino} holds {len(inode.inline)} bytes inline that do not belong there"
    if inode.data != NO_DATA and not inode.is_regular:
        yield f"inode {ino} is no regular file and has data {inode.data}"
    if inode.trim_end and (inode.data == NO_DATA or inode.trim_end <= inode.size):
        yield f"inode {ino} of {inode.size} bytes is to be trimmed up to {inode.trim_end}"
    if inode.flushes and inode.data == NO_DATA:
        yield f"inode {ino} has {len(inode.flushes)} flushes and no chunks"
    if inode.size < 0 or (inode.size and not (inode.is_regular or inode.is_symlink or inode.is_directory)):
        yield f"inode {ino} has size {inode.size}"


def _check_names(tree: Tree, rows: dict[Ino, _Row], names: _Names) -> Iterator[str | None]:
    for parent, name, dentry in tree.dentries():
        yield None
        names.names[dentry.ino] = names.names.get(dentry.ino, 0) + 1
        names.entries[parent] = names.entries.get(parent, 0) + 1
        directory, child = rows.get(parent), rows.get(dentry.ino)
        if directory is None or not stat.S_ISDIR(directory.mode):
            yield f"name {name!r} lies in {parent}, which is no directory"
        if child is None:
            yield f"name {name!r} in directory {parent} leads to inode {dentry.ino}, which does not exist"
            continue
        if stat.S_IFMT(child.mode) != dentry.type:
            yield f"name {name!r} in directory {parent} has type {dentry.type:#o}, inode {dentry.ino} another"
        if stat.S_ISDIR(child.mode):
            names.subdirectories[parent] = names.subdirectories.get(parent, 0) + 1
            if child.parent != parent:
                yield f"directory {dentry.ino} is named in {parent} and says it is in {child.parent}"


def _check_xattrs(tree: Tree, rows: dict[Ino, _Row]) -> Iterator[str | None]:
    with_xattrs: dict[Ino, None] = {}
    for ino, name in tree.xattrs():
        yield None
        with_xattrs[ino] = None
        if ino not in rows:
            yield f"attribute {name!r} belongs to inode {ino}, which does not exist"
    for ino, row in rows.items():
        yield None
        if bool(row.flags & InodeFlag.HAS_XATTRS) != (ino in with_xattrs):
            yield f"inode {ino} is {'' if row.flags & InodeFlag.HAS_XATTRS else 'not '}marked to have attributes, wrongly"


def _check_orphans(orphans: dict[Ino, None], rows: dict[Ino, _Row], names: _Names) -> Iterator[str | None]:
    for ino in orphans:
        yield None
        row = rows.get(ino)
        if row is None:
            yield f"orphan {ino} does not exist"
        elif row.nlink or ino in names.names:
            yield f"orphan {ino} counts {row.nlink} names and has {names.names.get(ino, 0)}"


def _check_counts(ino: Ino, row: _Row, names: _Names, is_orphan: bool) -> Iterator[str]:
    """Link count and, of a directory, its size, against what the names say."""
    count = names.names.get(ino, 0)
    if row.nlink == 0 and not is_orphan:
        yield f"inode {ino} counts no names and is no orphan"
    if not stat.S_ISDIR(row.mode):
        if row.nlink != count:
            yield f"inode {ino} counts {row.nlink} names and has {count}"
        return
    if row.size != names.entries.get(ino, 0):
        yield f"directory {ino} counts {row.size} entries and has {names.entries.get(ino, 0)}"
    links = 0 if is_orphan else 2 + names.subdirectories.get(ino, 0)
    if row.nlink != links:
        yield f"directory {ino} counts {row.nlink} links instead of {links}"
    named = 0 if is_orphan or ino == ROOT_INO else 1
    if count != named:
        yield f"directory {ino} has {count} names instead of {named}"


def check_reachable(rows: dict[Ino, _Row]) -> Iterator[str | None]:
    """Every live directory's way up ends at the root; each directory is passed once in all."""
    reaches = {ROOT_INO: True}
    for ino, row in rows.items():
        yield None
        if not stat.S_ISDIR(row.mode) or row.nlink == 0:
            continue
        way: list[Ino] = []
        while ino not in reaches:
            reaches[ino] = False  # until the root is seen: whoever meets it again on this way is in a loop
            way.append(ino)
            above = rows.get(ino)
            if above is None or not stat.S_ISDIR(above.mode) or above.nlink == 0:
                break
            ino = above.parent
        if reaches[ino]:
            reaches.update(dict.fromkeys(way, True))
        elif way:
            yield f"directory {way[0]} is not below the root"
