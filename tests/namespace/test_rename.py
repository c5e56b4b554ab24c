from dataclasses import replace

import pytest

from fsd.core import errors, units
from fsd.core.ids import ROOT_INO
from fsd.namespace import operations as op
from fsd.namespace import rename
from fsd.namespace.operations import RenameFlag
from fsd.namespace.view import PutInode
from tests.namespace.trees import Tree

EXCHANGE, NOREPLACE = RenameFlag.EXCHANGE, RenameFlag.NOREPLACE


def test_a_file_moves_and_both_directories_are_touched(tree: Tree) -> None:
    a, b = tree.directory(b"a"), tree.directory(b"b")
    file = tree.file(b"f", parent=a)
    subject = tree.do(op.Rename, a, b"f", b, b"g")
    assert (subject.ino, subject.nlink, subject.ctime_ns) == (file, 1, tree.now)
    assert subject.mtime_ns < tree.now
    assert [tree.inode(ino).size for ino in (a, b)] == [0, 1]
    assert [tree.inode(ino).mtime_ns for ino in (a, b)] == [tree.now, tree.now]
    assert tree.view.dentry(a, b"f") is None


def test_a_directory_moves_with_its_link_and_its_parent(tree: Tree) -> None:
    a, b = tree.directory(b"a"), tree.directory(b"b")
    moving = tree.directory(b"d", parent=a)
    tree.do(op.Rename, a, b"d", b, b"d")
    assert tree.inode(moving).parent == b
    assert [tree.inode(ino).nlink for ino in (a, b)] == [2, 3]


def test_within_one_directory_the_count_stays(tree: Tree) -> None:
    tree.file(b"a")
    tree.do(op.Rename, ROOT_INO, b"a", ROOT_INO, b"b")
    assert tree.inode(ROOT_INO).size == 1


def test_the_replaced_file_loses_its_name(tree: Tree) -> None:
    a = tree.file(b"a")
    b = tree.file(b"b")
    tree.do(op.Rename, ROOT_INO, b"a", ROOT_INO, b"b")
    assert tree.view.is_orphan(b)
    assert tree.inode(b).ctime_ns == tree.now
    assert tree.inode(ROOT_INO).size == 1
    dentry = tree.view.dentry(ROOT_INO, b"b")
    assert dentry is not None
    assert dentry.ino == a


def test_a_directory_replaces_an_empty_one_only(tree: Tree) -> None:
    tree.directory(b"a")
    full, empty = tree.directory(b"full"), tree.directory(b"empty")
    tree.file(b"f", parent=full)
    tree.refuses(errors.NotEmpty, op.Rename, ROOT_INO, b"a", ROOT_INO, b"full")
    tree.do(op.Rename, ROOT_INO, b"a", ROOT_INO, b"empty")
    assert tree.view.is_orphan(empty)
    assert (tree.inode(ROOT_INO).nlink, tree.inode(ROOT_INO).size) == (4, 2)


def test_types_must_match_to_replace(tree: Tree) -> None:
    tree.directory(b"d")
    tree.file(b"f")
    tree.refuses(errors.IsADirectory, op.Rename, ROOT_INO, b"f", ROOT_INO, b"d")
    tree.refuses(errors.NotADirectory, op.Rename, ROOT_INO, b"d", ROOT_INO, b"f")


def test_two_names_of_one_inode_stay_as_they_are(tree: Tree) -> None:
    ino = tree.file(b"a")
    tree.do(op.Link, ino, ROOT_INO, b"b")
    assert tree.execute(op.Rename, ROOT_INO, b"a", ROOT_INO, b"b").changes == ()
    assert tree.execute(op.Rename, ROOT_INO, b"a", ROOT_INO, b"a").changes == ()
    assert tree.execute(op.Rename, ROOT_INO, b"a", ROOT_INO, b"b", EXCHANGE).changes == ()


def test_a_directory_never_moves_below_itself(tree: Tree) -> None:
    a = tree.directory(b"a")
    b = tree.directory(b"b", parent=a)
    c = tree.directory(b"c", parent=b)
    for below in (a, b, c):
        tree.refuses(errors.InvalidArgument, op.Rename, ROOT_INO, b"a", below, b"x")
    tree.refuses(errors.NotEmpty, op.Rename, b, b"c", ROOT_INO, b"a")
    tree.refuses(errors.InvalidArgument, op.Rename, b, b"c", ROOT_INO, b"a", EXCHANGE)
    tree.refuses(errors.InvalidArgument, op.Rename, ROOT_INO, b"a", b, b"c", EXCHANGE)


def test_noreplace_refuses_what_is_there(tree: Tree) -> None:
    tree.file(b"a")
    tree.file(b"b")
    tree.refuses(errors.AlreadyExists, op.Rename, ROOT_INO, b"a", ROOT_INO, b"b", NOREPLACE)
    tree.do(op.Rename, ROOT_INO, b"a", ROOT_INO, b"c", NOREPLACE)


def test_exchange_swaps_names_links_and_parents(tree: Tree) -> None:
    a, b = tree.directory(b"a"), tree.directory(b"b")
    directory, file = tree.directory(b"d", parent=a), tree.file(b"f", parent=b)
    subject = tree.do(op.Rename, a, b"d", b, b"f", EXCHANGE)
    assert subject.ino == directory
    assert tree.inode(directory).parent == b
    assert [tree.inode(ino).nlink for ino in (a, b)] == [2, 3]
    assert [tree.inode(ino).size for ino in (a, b)] == [1, 1]
    assert tree.inode(file).ctime_ns == tree.now
    tree.refuses(errors.NotFound, op.Rename, a, b"d", b, b"missing", EXCHANGE)


def test_exchange_of_two_directories_in_two_directories(tree: Tree) -> None:
    a, b = tree.directory(b"a"), tree.directory(b"b")
    x, y = tree.directory(b"x", parent=a), tree.directory(b"y", parent=b)
    tree.file(b"inside", parent=x)
    tree.do(op.Rename, a, b"x", b, b"y", EXCHANGE)
    assert (tree.inode(x).parent, tree.inode(y).parent) == (b, a)


@pytest.mark.parametrize("flags", [3, 4, 8])
def test_unknown_flags_and_both_at_once_are_refused(tree: Tree, flags: int) -> None:
    tree.refuses(errors.InvalidArgument, op.Rename, ROOT_INO, b"a", ROOT_INO, b"b", flags)


def test_errors_of_the_names(tree: Tree) -> None:
    file, gone = tree.file(b"f"), tree.directory(b"d")
    tree.do(op.Rmdir, ROOT_INO, b"d")
    tree.refuses(errors.NotFound, op.Rename, ROOT_INO, b"missing", ROOT_INO, b"b")
    tree.refuses(errors.NotADirectory, op.Rename, ROOT_INO, b"f", file, b"b")
    tree.refuses(errors.NameTooLong, op.Rename, ROOT_INO, b"f", ROOT_INO, b"x" * 256)
    tree.refuses(errors.Busy, op.Rename, ROOT_INO, b"f", ROOT_INO, b"..")
    tree.refuses(errors.Busy, op.Rename, ROOT_INO, b".", ROOT_INO, b"f")
    tree.refuses(errors.NotFound, op.Rename, ROOT_INO, b"f", gone, b"f")
    tree.refuses(errors.StaleHandle, op.Rename, ROOT_INO, b"f", 9999, b"f")


def test_sticky_directories_guard_what_leaves_and_what_is_replaced(tree: Tree) -> None:
    sticky, free = tree.directory(b"tmp", mode=0o1777), tree.directory(b"free", mode=0o777)
    tree.file(b"theirs", parent=sticky, uid=2)
    tree.file(b"mine", parent=free, uid=1)
    tree.refuses(errors.NotPermitted, op.Rename, sticky, b"theirs", free, b"x", uid=1)
    tree.refuses(errors.NotPermitted, op.Rename, free, b"mine", sticky, b"theirs", uid=1)
    tree.refuses(errors.NotPermitted, op.Rename, free, b"mine", sticky, b"theirs", EXCHANGE, uid=1)
    tree.do(op.Rename, free, b"mine", sticky, b"mine", uid=1)


def test_a_loop_in_a_damaged_tree_is_reported_and_not_walked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree()
    a = tree.directory(b"a")
    b = tree.directory(b"b", parent=a)
    tree.directory(b"c")
    tree.view.commit([PutInode(replace(tree.inode(a), parent=b))])
    monkeypatch.setattr(rename, "MAX_DEPTH", 50)
    assert units.MAX_DEPTH > 50
    tree.refuses(errors.CorruptData, op.Rename, ROOT_INO, b"c", b, b"x")
