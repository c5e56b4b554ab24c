"""The only code that knows what an operation does to a tree.

`apply` reads through a view, writes nothing and is deterministic: the same operation on the same records gives the same
result, on the server, on a client's cached tree and on a standby. The rules are POSIX's as Linux reads them, tried against an
ordinary local directory (tests/namespace/test_oracle.py). What each kind of operation does and refuses:

    create      Create Mkdir Mknod Symlink Link
    remove      Unlink Rmdir Reap
    rename      Rename
    attributes  SetAttributes SetXattr RemoveXattr
    contents    Truncate WriteInline CommitSize TrimDone
"""

from typing import assert_never

from fsd.core.errors import InvalidArgument
from fsd.core.ids import Ino
from fsd.namespace import attributes, contents, create, remove, rename
from fsd.namespace.draft import Draft
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
from fsd.namespace.view import Applied, View


def apply(view: View, operation: Operation) -> Applied:
    """What the operation changes, as one atomic batch. Raises a PosixError if it is refused, StaleHandle if an inode that
    it names by number is gone, CorruptData if the tree is damaged; then nothing is changed."""
    volume = view.volume()
    if operation.layer != volume.layer:
        raise InvalidArgument(
            f"an operation on layer {operation.layer} in volume {volume.name} of layer {volume.layer}"
        )
    draft = Draft(view, volume)
    return draft.applied(_subject_of(draft, operation))


def _subject_of(draft: Draft, operation: Operation) -> Ino | None:
    """Carry it out in the draft; the inode that it was about, if there still is one."""
    match operation:
        case Create():
            return create.create(draft, operation)
        case WriteInline():
            return contents.write_inline(draft, operation)
        case CommitSize():
            return contents.commit_size(draft, operation)
        case Unlink():
            return remove.unlink(draft, operation)
        case Reap():
            return remove.reap(draft, operation)
        case Rename():
            return rename.rename(draft, operation)
        case SetAttributes():
            return attributes.set_attributes(draft, operation)
        case Mkdir():
            return create.mkdir(draft, operation)
        case Rmdir():
            return remove.rmdir(draft, operation)
        case Truncate():
            return contents.truncate(draft, operation)
        case TrimDone():
            return contents.trim_done(draft, operation)
        case Link():
            return create.link(draft, operation)
        case Symlink():
            return create.symlink(draft, operation)
        case Mknod():
            return create.mknod(draft, operation)
        case SetXattr():
            return attributes.set_xattr(draft, operation)
        case RemoveXattr():
            return attributes.remove_xattr(draft, operation)
        case _:
            assert_never(operation)
