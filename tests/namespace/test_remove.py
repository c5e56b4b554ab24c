from dataclasses import replace

import pytest

from fsd.core import errors
from fsd.core.ids import ROOT_INO
from fsd.namespace import operations as op
from fsd.namespace.apply import apply
from fsd.namespace.overlay import Overlay
from fsd.namespace.records import DeadData
from fsd.namespace.view import DropInode
from tests.namespace.trees import LAYER, VOLUME, Tree


def test_an_unlinked_file_lives_as_an_orphan_until_it_is_reaped(tree: Tree) -> None:
    ino = tree.chunked(b"f", 1000, data=500)
    tree.do(op.SetXattr, ino, b"user.x", b"1")
    subject = tree.do(op.Unlink, ROOT_INO, b"f")
    assert (subject.ino, subject.nlink, subject.ctime_ns) == (ino, 0, tree.now)
    assert tree.view.is_orphan(ino)
    assert tree.view.volume().used_bytes == 1000
    tree.close()

    assert tree.execute(op.Reap, ino).subject is None
    assert tree.view.inode(ino) is None
    assert not tree.view.is_orphan(ino)
    assert tree.view.xattr_names(ino) == ()
    assert (tree.view.volume().used_bytes, tree.view.volume().used_inodes) == (0, 1)
    assert tree.view.dead == [DeadData(500, VOLUME.pool, 0, 1000)]


def test_only_the_last_name_makes_an_orphan(tree: Tree) -> None:
    ino = tree.file(b"a")
    tree.do(op.Link, ino, ROOT_INO, b"b")
    assert tree.do(op.Unlink, ROOT_INO, b"a").nlink == 1
    assert not tree.view.is_orphan(ino)
    tree.refuses(errors.InvalidArgument, op.Reap, ino)


def test_reaping_twice_says_that_it_is_gone(tree: Tree) -> None:
    ino = tree.file(b"a")
    tree.do(op.Unlink, ROOT_INO, b"a")
    tree.execute(op.Reap, ino)
    tree.refuses(errors.StaleHandle, op.Reap, ino)


def test_unlink_and_reap_can_be_one_batch(tree: Tree) -> None:
    ino = tree.file(b"a", b"bytes")
    overlay = Overlay(tree.view)
    overlay.stage(apply(overlay, op.Unlink(LAYER, 9, 0, 0, ROOT_INO, b"a")).changes)
    overlay.stage(apply(overlay, op.Reap(LAYER, 9, 0, 0, ino)).changes)
    changes = overlay.changes()
    assert DropInode(ino) in changes
    tree.view.commit(changes)
    assert tree.view.inode(ino) is None
    assert tree.view.volume().used_inodes == 1


def test_rmdir_takes_only_empty_directories(tree: Tree) -> None:
    parent = tree.directory(b"d")
    below = tree.directory(b"e", parent=parent)
    tree.refuses(errors.NotEmpty, op.Rmdir, ROOT_INO, b"d")
    assert tree.do(op.Rmdir, parent, b"e").nlink == 0
    assert tree.view.is_orphan(below)
    assert tree.inode(parent).nlink == 2
    tree.do(op.Rmdir, ROOT_INO, b"d")
    tree.execute(op.Reap, below)
    tree.execute(op.Reap, parent)
    assert tree.view.volume().used_inodes == 1


def test_unlink_is_for_files_and_rmdir_for_directories(tree: Tree) -> None:
    tree.directory(b"d")
    tree.file(b"f")
    tree.refuses(errors.IsADirectory, op.Unlink, ROOT_INO, b"d")
    tree.refuses(errors.NotADirectory, op.Rmdir, ROOT_INO, b"f")


@pytest.mark.parametrize("kind", [op.Unlink, op.Rmdir])
def test_errors_of_the_name(tree: Tree, kind: type) -> None:
    file = tree.file(b"f")
    tree.refuses(errors.NotFound, kind, ROOT_INO, b"missing")
    tree.refuses(errors.NameTooLong, kind, ROOT_INO, b"x" * 256)
    tree.refuses(errors.NotADirectory, kind, file, b"x")
    tree.refuses(errors.StaleHandle, kind, 9999, b"x")


def test_dots_are_refused_as_linux_does(tree: Tree) -> None:
    tree.refuses(errors.InvalidArgument, op.Rmdir, ROOT_INO, b".")
    tree.refuses(errors.NotEmpty, op.Rmdir, ROOT_INO, b"..")
    tree.refuses(errors.IsADirectory, op.Unlink, ROOT_INO, b".")


def test_from_a_sticky_directory_only_owners_and_root_remove(tree: Tree) -> None:
    sticky = tree.directory(b"tmp", mode=0o1777, uid=1)
    for name in (b"a", b"b", b"c"):
        tree.file(name, parent=sticky, uid=2)
    tree.directory(b"d", parent=sticky, uid=2)
    tree.refuses(errors.NotPermitted, op.Unlink, sticky, b"a", uid=3)
    tree.refuses(errors.NotPermitted, op.Rmdir, sticky, b"d", uid=3)
    tree.refuses(errors.NotPermitted, op.Rmdir, sticky, b"a", uid=3)  # before NotADirectory
    tree.do(op.Unlink, sticky, b"a", uid=2)
    tree.do(op.Unlink, sticky, b"b", uid=1)
    tree.do(op.Unlink, sticky, b"c", uid=0)


def test_a_name_without_an_inode_is_damage_and_not_absence() -> None:
    tree = Tree()
    ino = tree.file(b"a")
    tree.view.commit([DropInode(ino)])
    tree.refuses(errors.CorruptData, op.Unlink, ROOT_INO, b"a")


def test_over_the_quota_one_may_still_remove() -> None:
    tree = Tree(replace(VOLUME, quota_inodes=2))
    tree.file(b"a", b"bytes")
    tree.do(op.Unlink, ROOT_INO, b"a")
    tree.close()


def test_a_reaped_overlay_hides_its_attributes(tree: Tree) -> None:
    ino = tree.file(b"a")
    tree.do(op.SetXattr, ino, b"user.a", b"1")
    overlay = Overlay(tree.view)
    overlay.stage(apply(overlay, op.Unlink(LAYER, 9, 0, 0, ROOT_INO, b"a")).changes)
    assert overlay.is_orphan(ino)
    overlay.stage(apply(overlay, op.Reap(LAYER, 9, 0, 0, ino)).changes)
    assert overlay.xattr(ino, b"user.a") is None
    assert overlay.xattr_names(ino) == ()
    assert not overlay.is_orphan(ino)
