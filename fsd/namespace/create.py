"""New names: create, mkdir, mknod, symlink, link."""

import stat
from dataclasses import replace

from fsd.core.errors import AlreadyExists, InvalidArgument, NotPermitted
from fsd.core.ids import ROOT_INO, Ino
from fsd.namespace import rules
from fsd.namespace.draft import Draft, touched
from fsd.namespace.operations import Create, Link, Mkdir, Mknod, Symlink
from fsd.namespace.records import Inode

_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_NODES = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, *_DEVICES)


def root_inode(time_ns: int, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Inode:
    """The root of a new layer. Its volume begins with `used_inodes` 1."""
    mode = stat.S_IFDIR | mode & rules.PERMISSIONS
    return Inode(ROOT_INO, mode, uid, gid, 2, 0, time_ns, time_ns, time_ns, parent=ROOT_INO)


def place_for(draft: Draft, parent: Ino, name: bytes) -> Inode:
    """The directory, in which the name is free. Raises NotADirectory, NotFound (removed directory), AlreadyExists and
    what check_name raises."""
    directory = draft.directory(parent)
    rules.check_name(name)
    rules.check_alive(directory)
    if draft.view.dentry(parent, name) is not None:
        raise AlreadyExists(f"{name!r} exists in directory {parent}")
    return directory


def _insert(draft: Draft, directory: Inode, name: bytes, child: Inode) -> None:
    """Give a new inode its first name."""
    if draft.view.inode(child.ino) is not None:
        raise InvalidArgument(f"inode number {child.ino} is in use")
    draft.use(child.size if child.inline else 0, 1)
    subdirectories = 1 if stat.S_ISDIR(child.mode) else 0
    draft.put(child)
    draft.put(touched(directory, child.ctime_ns, entries=1, subdirectories=subdirectories))
    draft.put_name(directory.ino, name, child)


def create(draft: Draft, op: Create) -> Ino:
    directory = place_for(draft, op.parent, op.name)
    gid = rules.inherited_gid(directory, op.gid)
    mode = stat.S_IFREG | op.mode & rules.PERMISSIONS
    now = op.time_ns
    _insert(draft, directory, op.name, Inode(op.ino, mode, op.uid, gid, 1, 0, now, now, now, inline=b""))
    return op.ino


def mkdir(draft: Draft, op: Mkdir) -> Ino:
    """There is no limit on subdirectories: LINK_MAX is for names of a file."""
    directory = place_for(draft, op.parent, op.name)
    gid = rules.inherited_gid(directory, op.gid)
    mode = rules.directory_mode(directory, op.mode)
    now = op.time_ns
    _insert(draft, directory, op.name, Inode(op.ino, mode, op.uid, gid, 2, 0, now, now, now, parent=op.parent))
    return op.ino


def mknod(draft: Draft, op: Mknod) -> Ino:
    """No type bits mean a regular file. NotPermitted for a directory, InvalidArgument for other types."""
    kind = stat.S_IFMT(op.mode) or stat.S_IFREG
    if kind == stat.S_IFDIR:
        raise NotPermitted("mknod makes no directories")
    if kind not in _NODES:
        raise InvalidArgument(f"mknod cannot make type {kind:#o}")
    directory = place_for(draft, op.parent, op.name)
    gid = rules.inherited_gid(directory, op.gid)
    rdev = op.rdev if kind in _DEVICES else 0
    inline = b"" if kind == stat.S_IFREG else None
    now = op.time_ns
    mode = kind | op.mode & rules.PERMISSIONS
    _insert(draft, directory, op.name, Inode(op.ino, mode, op.uid, gid, 1, 0, now, now, now, rdev, inline=inline))
    return op.ino


def symlink(draft: Draft, op: Symlink) -> Ino:
    rules.check_target(op.target)
    directory = place_for(draft, op.parent, op.name)
    gid = rules.inherited_gid(directory, op.gid)
    now = op.time_ns
    size = len(op.target)
    mode = stat.S_IFLNK | 0o777
    _insert(draft, directory, op.name, Inode(op.ino, mode, op.uid, gid, 1, size, now, now, now, inline=op.target))
    return op.ino


def link(draft: Draft, op: Link) -> Ino:
    """AlreadyExists comes before NotPermitted and TooManyLinks, as in Linux."""
    inode = draft.inode(op.ino)
    directory = place_for(draft, op.parent, op.name)
    rules.check_links(inode)
    draft.put(replace(inode, nlink=inode.nlink + 1, ctime_ns=op.time_ns))
    draft.put(touched(directory, op.time_ns, entries=1))
    draft.put_name(op.parent, op.name, inode)
    return op.ino
