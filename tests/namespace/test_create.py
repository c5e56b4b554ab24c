import stat
from dataclasses import replace

import pytest

from fsd.core import errors
from fsd.core.ids import ROOT_INO
from fsd.core.units import LINK_MAX
from fsd.namespace import operations as op
from fsd.namespace.view import PutInode
from tests.namespace.trees import LAYER, VOLUME, Tree


def test_a_new_file_is_empty_and_inline_and_its_directory_knows(tree: Tree) -> None:
    ino = tree.do(op.Create, ROOT_INO, b"a", tree.new_ino(), 0o640, uid=5, gid=6).ino
    file, root = tree.inode(ino), tree.inode(ROOT_INO)
    assert (file.mode, file.uid, file.gid, file.nlink, file.size) == (stat.S_IFREG | 0o640, 5, 6, 1, 0)
    assert file.inline == b""
    assert file.is_inline
    assert file.atime_ns == file.mtime_ns == file.ctime_ns == root.mtime_ns == root.ctime_ns == tree.now
    assert root.atime_ns == 1
    assert (root.nlink, root.size) == (2, 1)
    assert tree.view.volume().used_inodes == 2


def test_a_new_directory_has_two_links_and_gives_its_parent_one(tree: Tree) -> None:
    ino = tree.directory(b"d", mode=0o7755)
    directory = tree.inode(ino)
    assert (directory.nlink, directory.size, directory.parent) == (2, 0, ROOT_INO)
    assert directory.mode == stat.S_IFDIR | 0o1755  # mkdir(2) takes no set-id bits
    assert tree.inode(ROOT_INO).nlink == 3


def test_what_is_made_in_a_set_gid_directory_belongs_to_its_group(tree: Tree) -> None:
    parent = tree.directory(b"d")
    tree.do(op.SetAttributes, parent, mode=0o2775, new_gid=50)
    file = tree.inode(tree.file(b"f", parent=parent, uid=1, gid=1))
    below = tree.inode(tree.directory(b"e", parent=parent, uid=1, gid=1))
    assert (file.gid, file.mode & stat.S_ISGID) == (50, 0)
    assert (below.gid, below.mode & stat.S_ISGID) == (50, stat.S_ISGID)


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG, 0])
def test_mknod_makes_every_type_but_only_devices_have_a_number(tree: Tree, kind: int) -> None:
    inode = tree.do(op.Mknod, ROOT_INO, b"n", tree.new_ino(), kind | 0o600, 0x103)
    assert stat.S_IFMT(inode.mode) == (kind or stat.S_IFREG)
    assert inode.rdev == (0x103 if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0)
    assert inode.is_inline == inode.is_regular


def test_mknod_refuses_directories_and_unknown_types(tree: Tree) -> None:
    tree.refuses(errors.NotPermitted, op.Mknod, ROOT_INO, b"n", 50, stat.S_IFDIR | 0o755, 0)
    tree.refuses(errors.InvalidArgument, op.Mknod, ROOT_INO, b"n", 50, stat.S_IFLNK | 0o755, 0)


def test_a_symbolic_link_holds_its_target_and_uses_its_bytes(tree: Tree) -> None:
    inode = tree.do(op.Symlink, ROOT_INO, b"s", tree.new_ino(), b"../x")
    assert (inode.mode, inode.size, inode.inline) == (stat.S_IFLNK | 0o777, 4, b"../x")
    assert tree.view.volume().used_bytes == 4


def test_a_symbolic_link_needs_a_target_that_fits_a_path(tree: Tree) -> None:
    tree.refuses(errors.NotFound, op.Symlink, ROOT_INO, b"s", 50, b"")
    tree.refuses(errors.NameTooLong, op.Symlink, ROOT_INO, b"s", 50, b"x" * 4096)
    tree.refuses(errors.InvalidArgument, op.Symlink, ROOT_INO, b"s", 50, b"a\0b")
    tree.do(op.Symlink, ROOT_INO, b"s", 50, b"x" * 4095)


def test_a_hard_link_is_one_more_name_of_the_same_inode(tree: Tree) -> None:
    ino = tree.file(b"a", b"bytes")
    tree.do(op.Link, ino, ROOT_INO, b"b")
    inode = tree.inode(ino)
    assert (inode.nlink, inode.ctime_ns) == (2, tree.now)
    assert inode.mtime_ns < tree.now
    assert tree.view.volume().used_bytes == 5
    assert tree.view.dentry(ROOT_INO, b"b") == tree.view.dentry(ROOT_INO, b"a")


def test_link_refuses_directories_but_an_existing_name_first(tree: Tree) -> None:
    directory = tree.directory(b"d")
    tree.file(b"f")
    tree.refuses(errors.AlreadyExists, op.Link, directory, ROOT_INO, b"f")
    tree.refuses(errors.NotPermitted, op.Link, directory, ROOT_INO, b"g")
    tree.refuses(errors.StaleHandle, op.Link, 9999, ROOT_INO, b"g")


def test_an_inode_takes_no_more_names_than_link_max() -> None:
    tree = Tree()
    ino = tree.file(b"f")
    tree.view.commit([PutInode(replace(tree.inode(ino), nlink=LINK_MAX))])
    tree.refuses(errors.TooManyLinks, op.Link, ino, ROOT_INO, b"g")


def test_an_unlinked_file_gets_no_new_name(tree: Tree) -> None:
    ino = tree.file(b"f")
    tree.do(op.Unlink, ROOT_INO, b"f")
    tree.refuses(errors.NotFound, op.Link, ino, ROOT_INO, b"g")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"x" * 256, errors.NameTooLong),
        (b"", errors.InvalidArgument),
        (b"a/b", errors.InvalidArgument),
        (b"a\0b", errors.InvalidArgument),
        (b".", errors.AlreadyExists),
        (b"..", errors.AlreadyExists),
    ],
)
def test_names_that_are_none_are_refused(tree: Tree, name: bytes, error: type[errors.FsError]) -> None:
    ino = tree.file(b"f")
    tree.refuses(error, op.Create, ROOT_INO, name, 50, 0o644)
    tree.refuses(error, op.Mkdir, ROOT_INO, name, 50, 0o755)
    tree.refuses(error, op.Mknod, ROOT_INO, name, 50, stat.S_IFIFO, 0)
    tree.refuses(error, op.Symlink, ROOT_INO, name, 50, b"t")
    tree.refuses(error, op.Link, ino, ROOT_INO, name)


def test_a_name_of_255_bytes_fits(tree: Tree) -> None:
    tree.file(b"\xff" * 255)


def test_errors_of_the_place_come_in_linuxs_order(tree: Tree) -> None:
    file, gone = tree.file(b"f"), tree.directory(b"d")
    tree.do(op.Rmdir, ROOT_INO, b"d")
    tree.refuses(errors.NotADirectory, op.Create, file, b"x" * 256, 50, 0o644)
    tree.refuses(errors.StaleHandle, op.Create, 9999, b"x", 50, 0o644)
    tree.refuses(errors.NotFound, op.Create, gone, b"x", 50, 0o644)
    tree.refuses(errors.AlreadyExists, op.Mkdir, ROOT_INO, b"f", 50, 0o644)


def test_an_inode_number_is_used_once(tree: Tree) -> None:
    ino = tree.file(b"f")
    tree.refuses(errors.InvalidArgument, op.Create, ROOT_INO, b"g", ino, 0o644)
    tree.refuses(errors.InvalidArgument, op.Mkdir, ROOT_INO, b"g", ROOT_INO, 0o755)


def test_an_operation_of_another_layer_is_refused(tree: Tree) -> None:
    operation = op.Create(LAYER, 1, 0, 0, ROOT_INO, b"a", tree.new_ino(), 0o644)
    with pytest.raises(errors.InvalidArgument):
        tree.execute(lambda *_, **__: replace(operation, layer=LAYER + 1))


def test_quotas_stop_what_grows_and_nothing_else() -> None:
    tree = Tree(replace(VOLUME, quota_bytes=10, quota_inodes=3))
    ino = tree.file(b"a", b"123456789")
    tree.refuses(errors.QuotaExceeded, op.WriteInline, ino, b"12345678901")
    tree.refuses(errors.QuotaExceeded, op.Symlink, ROOT_INO, b"s", 50, b"12")
    tree.file(b"b")
    tree.refuses(errors.QuotaExceeded, op.Create, ROOT_INO, b"c", 50, 0o644)
    tree.refuses(errors.QuotaExceeded, op.Mkdir, ROOT_INO, b"c", 50, 0o755)
    tree.do(op.WriteInline, ino, b"1")
    tree.do(op.Link, ino, ROOT_INO, b"l")
    tree.do(op.Unlink, ROOT_INO, b"b")
    tree.close()
