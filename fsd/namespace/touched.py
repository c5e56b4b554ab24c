"""Which inodes an operation changes (so that nobody else may cache them), and which it may without asking anybody. Pure."""

from typing import assert_never

from fsd.core.ids import Ino
from fsd.namespace.operations import (
    CommitSize,
    Create,
    Link,
    Mkdir,
    Mknod,
    Operation,
    Reap,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttributes,
    SetXattr,
    Symlink,
    TrimDone,
    Truncate,
    Unlink,
    WriteInline,
)
from fsd.namespace.view import View

OF_THE_HOLDER = (CommitSize, WriteInline, TrimDone, Truncate, SetAttributes)


def touched(view: View, operation: Operation) -> tuple[Ino, ...]:
    """Existing inodes whose records the operation may change, as the tree is now."""
    match operation:
        case Create() | Mkdir() | Mknod() | Symlink():
            return (operation.parent,)
        case Link():
            return (operation.ino, operation.parent)
        case Unlink() | Rmdir():
            return (operation.parent, *_child(view, operation.parent, operation.name))
        case Rename():
            moved = _child(view, operation.parent, operation.name)
            replaced = _child(view, operation.new_parent, operation.new_name)
            return tuple(dict.fromkeys((operation.parent, operation.new_parent, *moved, *replaced)))
        case (
            SetAttributes()
            | Truncate()
            | WriteInline()
            | CommitSize()
            | TrimDone()
            | SetXattr()
            | RemoveXattr()
            | Reap()
        ):
            return (operation.ino,)
        case _:
            assert_never(operation)


def is_of_the_holder(operation: Operation) -> bool:
    """Whether the session that holds the inode's exclusive lease may do this while another request waits for that very
    lease: it is how a recalled holder writes back."""
    return isinstance(operation, OF_THE_HOLDER)


def new_ids(operation: Operation) -> tuple[int, ...]:
    """Inode numbers and data ids that the operation brings into being."""
    match operation:
        case Create() | Mkdir() | Mknod() | Symlink():
            return (operation.ino,)
        case Truncate():
            return (operation.new_data,) if operation.new_data else ()
        case _:
            return ()


def born(operation: Operation) -> Ino | None:
    """The inode that the operation makes."""
    match operation:
        case Create() | Mkdir() | Mknod() | Symlink():
            return operation.ino
        case _:
            return None


def names_of(operation: Operation) -> tuple[tuple[Ino, bytes], ...]:
    """The names (directory, name) that the operation changes."""
    match operation:
        case Create() | Mkdir() | Mknod() | Symlink() | Link() | Unlink() | Rmdir():
            return ((operation.parent, operation.name),)
        case Rename():
            return (operation.parent, operation.name), (operation.new_parent, operation.new_name)
        case _:
            return ()


def grows(operation: Operation) -> bool:
    """Whether the operation needs room that is not promised yet. A CommitSize is about bytes that are stored already, a
    WriteInline about bytes that the client has taken."""
    return isinstance(operation, Create | Mkdir | Mknod | Symlink | Link | SetXattr)


def _child(view: View, parent: Ino, name: bytes) -> tuple[Ino, ...]:
    dentry = view.dentry(parent, name)
    return () if dentry is None else (dentry.ino,)
