"""Names that go: unlink, rmdir; and the end of an inode without names."""

from dataclasses import replace

from fsd.core.errors import InvalidArgument, IsADirectory, NotADirectory, NotEmpty
from fsd.core.ids import Ino
from fsd.namespace import rules
from fsd.namespace.draft import Draft, touched
from fsd.namespace.operations import Reap, Rmdir, Unlink
from fsd.namespace.records import Inode
from fsd.namespace.view import DropOrphan, DropXattr


def unlink(draft: Draft, op: Unlink) -> Ino:
    """Raises NotFound, NotPermitted (sticky), IsADirectory."""
    directory = draft.directory(op.parent)
    rules.check_name(op.name, IsADirectory)
    inode = draft.child(op.parent, op.name)
    rules.check_sticky(op.uid, directory, inode)
    if inode.is_directory:
        raise IsADirectory(f"{op.name!r} in directory {op.parent} is a directory")
    lose_name(draft, inode, op.time_ns)
    draft.put(touched(directory, op.time_ns, entries=-1))
    draft.drop_name(op.parent, op.name)
    return inode.ino


def rmdir(draft: Draft, op: Rmdir) -> Ino:
    """Raises NotFound, NotPermitted (sticky), NotADirectory, NotEmpty."""
    directory = draft.directory(op.parent)
    rules.check_name(op.name, InvalidArgument if op.name == b"." else NotEmpty)
    inode = draft.child(op.parent, op.name)
    rules.check_sticky(op.uid, directory, inode)
    if not inode.is_directory:
        raise NotADirectory(f"{op.name!r} in directory {op.parent} is no directory")
    lose_name(draft, inode, op.time_ns)
    draft.put(touched(directory, op.time_ns, entries=-1, subdirectories=-1))
    draft.drop_name(op.parent, op.name)
    return inode.ino


def lose_name(draft: Draft, inode: Inode, time_ns: int) -> None:
    """One name less; without any, the inode becomes an orphan. Raises NotEmpty for a directory with entries."""
    if inode.is_directory and inode.size:
        raise NotEmpty(f"directory {inode.ino} has {inode.size} entries")
    nlink = 0 if inode.is_directory else inode.nlink - 1
    draft.put(replace(inode, nlink=nlink, ctime_ns=time_ns))
    if nlink == 0:
        draft.orphan(inode.ino)


def reap(draft: Draft, op: Reap) -> None:
    """Raises StaleHandle if it is gone already, InvalidArgument if it is no orphan."""
    inode = draft.inode(op.ino)
    if inode.nlink or not draft.view.is_orphan(op.ino):
        raise InvalidArgument(f"inode {op.ino} has {inode.nlink} names and is no orphan")
    for name in draft.view.xattr_names(op.ino):
        draft.add(DropXattr(op.ino, name))
    draft.collect(inode)
    draft.use(-inode.size if not inode.is_directory else 0, -1)
    draft.drop_inode(op.ino)
    draft.add(DropOrphan(op.ino))
