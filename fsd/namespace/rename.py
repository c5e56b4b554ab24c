"""rename and its two flags. The order of the errors is Linux's (do_renameat2, vfs_rename)."""

from dataclasses import replace

from fsd.core.errors import (
    AlreadyExists,
    Busy,
    CorruptData,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    PosixError,
)
from fsd.core.ids import ROOT_INO, Ino
from fsd.core.units import MAX_DEPTH
from fsd.namespace import rules
from fsd.namespace.draft import Draft, touched
from fsd.namespace.operations import Rename, RenameFlag
from fsd.namespace.records import Inode
from fsd.namespace.remove import lose_name

_FLAGS = (RenameFlag.NONE, RenameFlag.NOREPLACE, RenameFlag.EXCHANGE)


def rename(draft: Draft, op: Rename) -> Ino:
    """Two names of the same inode: nothing happens. Raises InvalidArgument (flags; into itself), NotFound, AlreadyExists
    (NOREPLACE), NotPermitted (sticky), NotADirectory, IsADirectory, NotEmpty, Busy ("." and "..")."""
    if op.flags not in _FLAGS:
        raise InvalidArgument(f"rename with flags {op.flags:#x}")
    draft.directory(op.parent)
    draft.directory(op.new_parent)
    rules.check_name(op.name, Busy)
    source = draft.child(op.parent, op.name)
    rules.check_name(op.new_name, Busy)
    target = find_target(draft, op)
    check_no_loop(draft, op, source, target)
    if target is not None and target.ino == source.ino:
        return source.ino
    rules.check_sticky(op.uid, draft.directory(op.parent), source)
    if target is None:
        rules.check_alive(draft.directory(op.new_parent))
        _move(draft, op, source)
    elif op.flags == RenameFlag.EXCHANGE:
        rules.check_sticky(op.uid, draft.directory(op.new_parent), target)
        _exchange(draft, op, source, target)
    else:
        rules.check_sticky(op.uid, draft.directory(op.new_parent), target)
        check_replaceable(source, target)
        _replace(draft, op, source, target)
    return source.ino


def find_target(draft: Draft, op: Rename) -> Inode | None:
    """What the new name names now. Raises AlreadyExists (NOREPLACE) and NotFound (EXCHANGE)."""
    if op.flags == RenameFlag.EXCHANGE:
        return draft.child(op.new_parent, op.new_name)
    if draft.view.dentry(op.new_parent, op.new_name) is None:
        return None
    if op.flags == RenameFlag.NOREPLACE:
        raise AlreadyExists(f"{op.new_name!r} exists in directory {op.new_parent}")
    return draft.child(op.new_parent, op.new_name)


def check_no_loop(draft: Draft, op: Rename, source: Inode, target: Inode | None) -> None:
    """A directory cannot move below itself, nor replace one that it is below."""
    if op.parent == op.new_parent:
        return
    if source.is_directory and is_ancestor(draft, source.ino, op.new_parent):
        raise InvalidArgument(f"directory {source.ino} cannot move below itself")
    if target is not None and target.is_directory and is_ancestor(draft, target.ino, op.parent):
        error: type[PosixError] = InvalidArgument if op.flags == RenameFlag.EXCHANGE else NotEmpty
        raise error(f"directory {target.ino} holds what is to take its place")


def is_ancestor(draft: Draft, ancestor: Ino, ino: Ino) -> bool:
    """Whether `ancestor` is directory `ino` itself or one above it. Raises CorruptData if the way up never ends."""
    for _ in range(MAX_DEPTH):
        if ino == ancestor:
            return True
        if ino == ROOT_INO:
            return False
        ino = draft.directory(ino).parent
    raise CorruptData(f"directory {ino} is more than {MAX_DEPTH} deep or below itself")


def check_replaceable(source: Inode, target: Inode) -> None:
    if source.is_directory and not target.is_directory:
        raise NotADirectory(f"inode {target.ino} is no directory and {source.ino} is")
    if target.is_directory and not source.is_directory:
        raise IsADirectory(f"inode {target.ino} is a directory and {source.ino} is not")


def _move(draft: Draft, op: Rename, source: Inode) -> None:
    subdirectories = int(source.is_directory)
    _change_directory(draft, op.parent, op.time_ns, entries=-1, subdirectories=-subdirectories)
    _change_directory(draft, op.new_parent, op.time_ns, entries=1, subdirectories=subdirectories)
    _settle(draft, op, source)
    draft.drop_name(op.parent, op.name)


def _replace(draft: Draft, op: Rename, source: Inode, target: Inode) -> None:
    lose_name(draft, target, op.time_ns)
    subdirectories = int(source.is_directory)
    _change_directory(draft, op.parent, op.time_ns, entries=-1, subdirectories=-subdirectories)
    _change_directory(draft, op.new_parent, op.time_ns)  # one comes and one of the same kind goes
    _settle(draft, op, source)
    draft.drop_name(op.parent, op.name)


def _exchange(draft: Draft, op: Rename, source: Inode, target: Inode) -> None:
    shift = int(source.is_directory) - int(target.is_directory)
    _change_directory(draft, op.parent, op.time_ns, subdirectories=-shift)
    _change_directory(draft, op.new_parent, op.time_ns, subdirectories=shift)
    _settle(draft, op, source)
    draft.put(moved(target, op.parent, op.time_ns))
    draft.put_name(op.parent, op.name, target)


def _settle(draft: Draft, op: Rename, source: Inode) -> None:
    """The source under its new name."""
    draft.put(moved(source, op.new_parent, op.time_ns))
    draft.put_name(op.new_parent, op.new_name, source)


def _change_directory(draft: Draft, ino: Ino, time_ns: int, *, entries: int = 0, subdirectories: int = 0) -> None:
    draft.put(touched(draft.directory(ino), time_ns, entries=entries, subdirectories=subdirectories))


def moved(inode: Inode, parent: Ino, time_ns: int) -> Inode:
    return replace(inode, parent=parent if inode.is_directory else inode.parent, ctime_ns=time_ns)
