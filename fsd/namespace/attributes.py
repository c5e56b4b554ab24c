"""What is said about an inode: owner, mode, times, extended attributes."""

import stat
from dataclasses import replace

from fsd.core.errors import AlreadyExists, InvalidArgument, NoAttribute, NoSpace
from fsd.core.ids import Ino
from fsd.core.units import XATTR_LIST_MAX
from fsd.namespace import rules
from fsd.namespace.draft import Draft
from fsd.namespace.operations import RemoveXattr, SetAttributes, SetXattr, XattrFlag
from fsd.namespace.records import Inode, InodeFlag
from fsd.namespace.view import DropXattr, PutXattr

_XATTR_FLAGS = int(XattrFlag.CREATE | XattrFlag.REPLACE)  # ints: ~ of an IntFlag forgets the bits that it does not know
_HAS_XATTRS = int(InodeFlag.HAS_XATTRS)


def set_attributes(draft: Draft, op: SetAttributes) -> Ino:
    """A change of owner takes the set-id bits and the file's capabilities away, root's too, unless a mode comes along."""
    rules.check_owner_id(op.new_uid)
    rules.check_owner_id(op.new_gid)
    inode = draft.inode(op.ino)
    mode = inode.mode
    if op.new_uid is not None or op.new_gid is not None:
        mode = rules.mode_without_privileges(inode, op.uid, op.gid)
        inode = without_capability(draft, inode)
    if op.mode is not None:
        mode = stat.S_IFMT(inode.mode) | op.mode & rules.PERMISSIONS
    changed = replace(
        inode,
        mode=mode,
        uid=inode.uid if op.new_uid is None else op.new_uid,
        gid=inode.gid if op.new_gid is None else op.new_gid,
        atime_ns=inode.atime_ns if op.atime_ns is None else op.atime_ns,
        mtime_ns=inode.mtime_ns if op.mtime_ns is None else op.mtime_ns,
        ctime_ns=op.time_ns,
    )
    draft.put(changed)
    return op.ino


def without_capability(draft: Draft, inode: Inode) -> Inode:
    """Who changes a file's bytes or owner, even root, takes its capabilities away (the kernel leaves that to us)."""
    if not inode.flags & _HAS_XATTRS or inode.is_directory:
        return inode
    if draft.view.xattr(inode.ino, rules.CAPABILITY) is None:
        return inode
    draft.add(DropXattr(inode.ino, rules.CAPABILITY))
    return replace(inode, flags=_flags_without(draft, inode, rules.CAPABILITY))


def set_xattr(draft: Draft, op: SetXattr) -> Ino:
    """Raises AlreadyExists (CREATE), NoAttribute (REPLACE), NoSpace (more names than can be listed), and what
    check_xattr_name and check_xattr_value raise."""
    inode = draft.inode(op.ino)
    if op.flags & ~_XATTR_FLAGS:
        raise InvalidArgument(f"setxattr with flags {op.flags:#x}")
    rules.check_xattr_name(op.name, inode)
    rules.check_xattr_value(op.value)
    exists = draft.view.xattr(op.ino, op.name) is not None
    if exists and op.flags & XattrFlag.CREATE:
        raise AlreadyExists(f"inode {op.ino} has {op.name!r}")
    if not exists and op.flags & XattrFlag.REPLACE:
        raise NoAttribute(f"inode {op.ino} has no {op.name!r}")
    if not exists:
        check_room_for_name(draft, op.ino, op.name)
    draft.add(PutXattr(op.ino, op.name, op.value))
    draft.put(replace(inode, ctime_ns=op.time_ns, flags=inode.flags | _HAS_XATTRS))
    return op.ino


def check_room_for_name(draft: Draft, ino: Ino, name: bytes) -> None:
    listed = sum(len(other) + 1 for other in draft.view.xattr_names(ino))
    if listed + len(name) + 1 > XATTR_LIST_MAX:
        raise NoSpace(f"inode {ino} has {listed} bytes of attribute names, at most {XATTR_LIST_MAX} can be listed")


def remove_xattr(draft: Draft, op: RemoveXattr) -> Ino:
    inode = draft.inode(op.ino)
    rules.check_xattr_name(op.name, inode)
    if draft.view.xattr(op.ino, op.name) is None:
        raise NoAttribute(f"inode {op.ino} has no {op.name!r}")
    draft.add(DropXattr(op.ino, op.name))
    draft.put(replace(inode, ctime_ns=op.time_ns, flags=_flags_without(draft, inode, op.name)))
    return op.ino


def _flags_without(draft: Draft, inode: Inode, name: bytes) -> int:
    """The flags of the inode once attribute `name` is gone."""
    if any(other != name for other in draft.view.xattr_names(inode.ino)):
        return inode.flags
    return inode.flags & ~_HAS_XATTRS
