"""The cached tree as `apply` reads it: what is not known raises NotCached, and the operation goes to the server. Pure."""

import stat

from fsd.client.tree import ABSENT, Tree
from fsd.core.ids import Ino
from fsd.namespace.operations import Create, Mkdir, Mknod, Operation, Rename, RenameFlag, Symlink, Truncate
from fsd.namespace.records import Dentry, Inode, InodeFlag, Volume

NEW_NAMES = (Create, Mkdir, Mknod, Symlink)


class NotCached(Exception):
    """The cache cannot tell; the server can."""


class LocalView:
    """fsd.namespace.view.View for one operation under exclusive leases. `new`: the inode that it makes; nobody has it yet.
    `whole`: whether inline bytes are needed."""

    def __init__(self, tree: Tree, volume: Volume, new: Ino | None, *, whole: bool) -> None:
        self._tree = tree
        self._volume = volume
        self._new = new
        self._whole = whole

    def inode(self, ino: Ino) -> Inode | None:
        if ino == self._new:
            return None
        inode = self._tree.inode(ino)
        if inode is None or (self._whole and inode.is_inline and inode.inline is None):
            raise NotCached
        return inode

    def dentry(self, parent: Ino, name: bytes) -> Dentry | None:
        child = self._tree.resolve(parent, name)
        if child is None:
            raise NotCached
        if child == ABSENT:
            return None
        inode = self._tree.inode(child)
        if inode is None:
            raise NotCached
        return Dentry(child, stat.S_IFMT(inode.mode))

    def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        self._check_no_xattrs(ino)
        return None

    def xattr_names(self, ino: Ino) -> tuple[bytes, ...]:
        self._check_no_xattrs(ino)
        return ()

    def _check_no_xattrs(self, ino: Ino) -> None:
        inode = self.inode(ino)
        if inode is None or inode.flags & InodeFlag.HAS_XATTRS:
            raise NotCached

    def is_orphan(self, ino: Ino) -> bool:
        raise NotCached

    def volume(self) -> Volume:
        return self._volume


def is_local(tree: Tree, operation: Operation) -> bool:
    """Whether all that decides about the operation is in the inodes that it changes. A directory that moves into another one
    is not: what is above that one may be moved by anybody."""
    if not isinstance(operation, Rename) or operation.parent == operation.new_parent:
        return True
    names = [(operation.parent, operation.name), (operation.new_parent, operation.new_name)]
    for name in names if operation.flags == RenameFlag.EXCHANGE else names[:1]:
        child = tree.resolve(*name)
        inode = tree.inode(child) if child else None
        if inode is None or inode.is_directory:
            return False
    target = tree.resolve(*names[1])
    inode = tree.inode(target) if target else None
    return target == ABSENT or (inode is not None and not inode.is_directory)


def needs_contents(operation: Operation) -> bool:
    """Whether the outcome depends on a file's inline bytes."""
    return isinstance(operation, Truncate)
