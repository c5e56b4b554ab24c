import stat

import pytest

from fsd.core import errors
from fsd.core.ids import ROOT_INO
from fsd.namespace import operations as op
from fsd.namespace.operations import XattrFlag
from fsd.namespace.records import InodeFlag
from tests.namespace.trees import Tree


def test_only_what_is_given_changes_and_ctime_always_does(tree: Tree) -> None:
    ino = tree.file(b"f", uid=1, gid=2)
    before = tree.inode(ino)
    tree.do(op.SetAttributes, ino, mode=stat.S_IFDIR | 0o7711)
    after = tree.inode(ino)
    assert after.mode == stat.S_IFREG | 0o7711  # the type stays
    assert (after.uid, after.gid, after.mtime_ns, after.ctime_ns) == (1, 2, before.mtime_ns, tree.now)
    tree.do(op.SetAttributes, ino, atime_ns=-5, mtime_ns=7)
    assert (tree.inode(ino).atime_ns, tree.inode(ino).mtime_ns) == (-5, 7)


@pytest.mark.parametrize("uid", [0, 1])
def test_a_new_owner_takes_the_set_id_bits(tree: Tree, uid: int) -> None:
    ino = tree.file(b"f", mode=0o6755)
    tree.do(op.SetAttributes, ino, new_uid=3, uid=uid)
    assert tree.inode(ino).mode & 0o7777 == 0o755
    assert tree.inode(ino).uid == 3


def test_set_gid_without_group_execution_and_directories_keep_their_bits(tree: Tree) -> None:
    locked, directory = tree.file(b"f", mode=0o2644), tree.directory(b"d")
    tree.do(op.SetAttributes, directory, mode=0o6755)
    for ino in (locked, directory):
        before = tree.inode(ino).mode
        tree.do(op.SetAttributes, ino, new_gid=3)
        assert tree.inode(ino).mode == before


def test_a_mode_that_comes_with_the_owner_is_taken(tree: Tree) -> None:
    ino = tree.file(b"f")
    tree.do(op.SetAttributes, ino, mode=0o4755, new_uid=3)
    assert tree.inode(ino).mode & 0o7777 == 0o4755


def test_impossible_owners_and_missing_inodes_are_refused(tree: Tree) -> None:
    ino = tree.file(b"f")
    tree.refuses(errors.InvalidArgument, op.SetAttributes, ino, new_uid=0xFFFF_FFFF)
    tree.refuses(errors.InvalidArgument, op.SetAttributes, ino, new_gid=-1)
    tree.refuses(errors.StaleHandle, op.SetAttributes, 9999, mode=0)


def test_attributes_are_set_replaced_and_removed(tree: Tree) -> None:
    ino = tree.file(b"f")
    tree.do(op.SetXattr, ino, b"user.a", b"1", XattrFlag.CREATE)
    tree.refuses(errors.AlreadyExists, op.SetXattr, ino, b"user.a", b"2", XattrFlag.CREATE)
    tree.do(op.SetXattr, ino, b"user.a", b"2", XattrFlag.REPLACE)
    assert tree.view.xattr(ino, b"user.a") == b"2"
    assert tree.inode(ino).ctime_ns == tree.now
    tree.do(op.RemoveXattr, ino, b"user.a")
    assert tree.view.xattr(ino, b"user.a") is None
    tree.refuses(errors.NoAttribute, op.RemoveXattr, ino, b"user.a")
    tree.refuses(errors.NoAttribute, op.SetXattr, ino, b"user.a", b"2", XattrFlag.REPLACE)


def test_the_flag_tells_whether_there_is_any_attribute(tree: Tree) -> None:
    ino = tree.file(b"f")
    for name in (b"user.a", b"user.b"):
        tree.do(op.SetXattr, ino, name, b"")
    tree.do(op.RemoveXattr, ino, b"user.a")
    assert tree.inode(ino).flags == InodeFlag.HAS_XATTRS
    tree.do(op.RemoveXattr, ino, b"user.b")
    assert tree.inode(ino).flags == 0


@pytest.mark.parametrize(
    ("name", "value", "flags", "error"),
    [
        (b"", b"", 0, errors.ResultTooSmall),
        (b"user." + b"x" * 251, b"", 0, errors.ResultTooSmall),
        (b"user.a", b"x" * (64 * 1024 + 1), 0, errors.TooBig),
        (b"user.a", b"", 4, errors.InvalidArgument),
        (b"user.", b"", 0, errors.InvalidArgument),
        (b"system.posix_acl_access", b"", 0, errors.NotSupported),
        (b"nothing", b"", 0, errors.NotSupported),
    ],
)
def test_limits_of_attributes(tree: Tree, name: bytes, value: bytes, flags: int, error: type[errors.FsError]) -> None:
    tree.refuses(error, op.SetXattr, tree.file(b"f"), name, value, flags)


def test_the_largest_attribute_fits(tree: Tree) -> None:
    tree.do(op.SetXattr, tree.file(b"f"), b"user." + b"x" * 250, b"v" * 64 * 1024)


def test_user_attributes_are_for_files_and_directories(tree: Tree) -> None:
    link = tree.do(op.Symlink, ROOT_INO, b"s", tree.new_ino(), b"t").ino
    tree.refuses(errors.NotPermitted, op.SetXattr, link, b"user.a", b"")
    tree.do(op.SetXattr, link, b"trusted.a", b"")
    tree.do(op.SetXattr, ROOT_INO, b"user.a", b"")


def test_no_more_names_than_can_be_listed(tree: Tree) -> None:
    ino = tree.file(b"f")
    for number in range(256):
        tree.do(op.SetXattr, ino, b"user.%0250d" % number, b"")
    tree.refuses(errors.NoSpace, op.SetXattr, ino, b"user.more", b"")
    tree.do(op.SetXattr, ino, b"user.%0250d" % 0, b"replaced")


def test_a_write_takes_capabilities_away_roots_too(tree: Tree) -> None:
    ino = tree.file(b"f")
    for kind, fields in ((op.WriteInline, (b"x",)), (op.Truncate, (3,)), (op.CommitSize, (9, 9, 70))):
        tree.do(op.SetXattr, ino, b"security.capability", b"cap")
        tree.do(kind, ino, *fields)
        assert tree.view.xattr(ino, b"security.capability") is None
        assert tree.inode(ino).flags == 0
    tree.do(op.SetXattr, ino, b"security.capability", b"cap")
    tree.do(op.SetXattr, ino, b"user.a", b"")
    tree.do(op.SetAttributes, ino, new_uid=4)
    assert tree.view.xattr_names(ino) == (b"user.a",)
    assert tree.inode(ino).flags == InodeFlag.HAS_XATTRS
