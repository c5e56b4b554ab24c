from dataclasses import replace

import pytest

from fsd.core import errors
from fsd.core.ids import ROOT_INO, SessionId
from fsd.core.units import MAX_FILE_SIZE
from fsd.namespace import operations as op
from fsd.namespace.records import MAX_FLUSHES, NO_DATA, DeadData, FlushRecord
from tests.namespace.trees import VOLUME, Tree


def test_inline_contents_are_size_and_times(tree: Tree) -> None:
    ino = tree.file(b"f")
    created = tree.now
    tree.do(op.WriteInline, ino, b"hello")
    file = tree.inode(ino)
    assert (file.size, file.inline, file.mtime_ns, file.ctime_ns) == (5, b"hello", tree.now, tree.now)
    assert file.atime_ns == created
    tree.do(op.WriteInline, ino, b"hi")
    assert tree.view.volume().used_bytes == 2


def test_inline_contents_end_at_the_limit(tree: Tree) -> None:
    ino = tree.file(b"f")
    tree.do(op.WriteInline, ino, b"x" * VOLUME.inline_limit)
    tree.refuses(errors.WrongLayout, op.WriteInline, ino, b"x" * (VOLUME.inline_limit + 1))


def test_a_file_moves_to_chunks_with_its_first_commit(tree: Tree) -> None:
    ino = tree.file(b"f", b"bytes")
    tree.refuses(errors.WrongLayout, op.CommitSize, ino, 100, 5)
    tree.do(op.CommitSize, ino, 100, 5, 300)
    file = tree.inode(ino)
    assert (file.size, file.data, file.inline, file.mtime_ns, file.ctime_ns) == (100, 300, None, 5, tree.now)
    assert tree.view.volume().used_bytes == 100
    tree.refuses(errors.WrongLayout, op.WriteInline, ino, b"x")
    tree.refuses(errors.WrongLayout, op.CommitSize, ino, 200, 5, 301)
    tree.do(op.CommitSize, ino, 200, 6)
    tree.do(op.CommitSize, ino, 200, 7, 300)


def test_a_commit_never_makes_a_file_shorter(tree: Tree) -> None:
    ino = tree.chunked(b"f", 100, data=300)
    tree.do(op.CommitSize, ino, 50, 9)
    assert (tree.inode(ino).size, tree.inode(ino).mtime_ns) == (100, 9)


def test_inline_files_are_cut_and_filled_with_zeros(tree: Tree) -> None:
    ino = tree.file(b"f", b"bytes")
    tree.do(op.Truncate, ino, 2)
    tree.do(op.Truncate, ino, 4)
    assert tree.inode(ino).inline == b"by\0\0"


def test_an_empty_file_grows_into_chunks_but_one_with_bytes_must_move_first(tree: Tree) -> None:
    ino = tree.file(b"f")
    tree.refuses(errors.WrongLayout, op.Truncate, ino, 65)
    tree.do(op.Truncate, ino, 1 << 40, 300)
    assert (tree.inode(ino).data, tree.inode(ino).inline) == (300, None)
    other = tree.file(b"g", b"bytes")
    tree.refuses(errors.WrongLayout, op.Truncate, other, 65, 301)


def test_a_small_truncate_leaves_the_offered_data_alone(tree: Tree) -> None:
    ino = tree.file(b"f")
    tree.do(op.Truncate, ino, 10, 300)
    assert tree.inode(ino).data == NO_DATA


def test_a_cut_file_must_be_trimmed_before_it_grows(tree: Tree) -> None:
    ino = tree.chunked(b"f", 1000, data=300)
    tree.do(op.Truncate, ino, 400)
    assert tree.inode(ino).trim_end == 1000
    tree.do(op.Truncate, ino, 300)
    assert tree.inode(ino).trim_end == 1000
    tree.do(op.Truncate, ino, 300)
    tree.do(op.CommitSize, ino, 300, 5)
    tree.refuses(errors.WrongLayout, op.Truncate, ino, 301)
    tree.refuses(errors.WrongLayout, op.CommitSize, ino, 301, 5)
    before = tree.inode(ino)
    tree.do(op.TrimDone, ino, 300, 1000, 300)
    assert tree.inode(ino) == replace(before, trim_end=0)
    tree.do(op.CommitSize, ino, 301, 5)


def test_trims_that_came_too_late_change_nothing(tree: Tree) -> None:
    ino = tree.chunked(b"f", 1000, data=300)
    assert tree.execute(op.TrimDone, ino, 300, 0).changes == ()
    tree.do(op.Truncate, ino, 400)
    assert tree.execute(op.TrimDone, ino, 301, 1000).changes == ()
    assert tree.execute(op.TrimDone, ino, 300, 999).changes == ()
    tree.do(op.Truncate, ino, 100)
    tree.do(op.TrimDone, ino, 300, 1000, 400)  # [400, 1000) was trimmed, then it was cut to 100
    assert tree.inode(ino).trim_end == 400
    inline = tree.file(b"g")
    assert tree.execute(op.TrimDone, inline, NO_DATA, 0).changes == ()


def test_truncated_to_nothing_a_file_is_inline_again_and_its_chunks_are_collected(tree: Tree) -> None:
    ino = tree.chunked(b"f", 1000, data=300)
    tree.do(op.Truncate, ino, 400)
    tree.do(op.Truncate, ino, 0)
    file = tree.inode(ino)
    assert (file.size, file.data, file.inline, file.trim_end) == (0, NO_DATA, b"", 0)
    assert tree.view.dead == [DeadData(300, VOLUME.pool, 0, 1000)]
    assert tree.view.volume().used_bytes == 0
    tree.do(op.WriteInline, ino, b"again")


def test_only_regular_files_have_bytes(tree: Tree) -> None:
    directory = tree.directory(b"d")
    link = tree.do(op.Symlink, ROOT_INO, b"s", tree.new_ino(), b"t").ino
    for kind, fields in ((op.Truncate, (0,)), (op.WriteInline, (b"",)), (op.CommitSize, (0, 0))):
        tree.refuses(errors.IsADirectory, kind, directory, *fields)
        tree.refuses(errors.InvalidArgument, kind, link, *fields)
        tree.refuses(errors.StaleHandle, kind, 9999, *fields)


def test_sizes_have_bounds(tree: Tree) -> None:
    ino = tree.chunked(b"f", 1000, data=300)
    for kind, rest in ((op.Truncate, ()), (op.CommitSize, (5,))):
        tree.refuses(errors.InvalidArgument, kind, ino, -1, *rest)
        tree.refuses(errors.FileTooLarge, kind, ino, MAX_FILE_SIZE + 1, *rest)
    tree.do(op.Truncate, ino, MAX_FILE_SIZE)


@pytest.mark.parametrize(
    ("kind", "fields"), [(op.WriteInline, (b"x",)), (op.Truncate, (1,)), (op.CommitSize, (1, 1, 300))]
)
def test_a_write_by_others_than_root_takes_the_set_id_bits(tree: Tree, kind: type, fields: tuple[object, ...]) -> None:
    ino = tree.file(b"f", mode=0o6777)
    tree.do(kind, ino, *fields, uid=0)
    assert tree.inode(ino).mode & 0o7777 == 0o6777
    tree.do(kind, ino, *fields, uid=1)
    assert tree.inode(ino).mode & 0o7777 == 0o777


def test_an_unlinked_file_can_still_be_written(tree: Tree) -> None:
    ino = tree.file(b"f")
    tree.do(op.Unlink, ROOT_INO, b"f")
    tree.do(op.WriteInline, ino, b"bytes")
    tree.do(op.CommitSize, ino, 100, 1, 300)
    assert tree.view.volume().used_bytes == 100


def test_quota_counts_committed_sizes() -> None:
    tree = Tree(replace(VOLUME, quota_bytes=1000))
    ino = tree.chunked(b"f", 600, data=300)
    tree.refuses(errors.QuotaExceeded, op.CommitSize, ino, 1001, 1)
    tree.refuses(errors.QuotaExceeded, op.Truncate, ino, 1001)
    tree.do(op.CommitSize, ino, 1000, 1)
    tree.close()


def test_a_flush_in_two_phases_leaves_its_record_until_it_is_applied(tree: Tree) -> None:
    ino = tree.chunked(b"f", 100, data=300)
    first, second = (FlushRecord(SessionId(9), number, (0, 1)) for number in (1, 2))
    tree.do(op.CommitSize, ino, 100, 5, NO_DATA, first)
    tree.do(op.CommitSize, ino, 100, 5, NO_DATA, first)
    assert tree.inode(ino).flushes == (first,)
    tree.do(op.CommitSize, ino, 200, 6, NO_DATA, second, ((8, 1),))
    assert tree.inode(ino).flushes == (first, second)
    tree.do(op.CommitSize, ino, 200, 7, NO_DATA, None, ((9, 1),))
    assert tree.inode(ino).flushes == (second,)
    tree.do(op.Truncate, ino, 0)
    assert tree.inode(ino).flushes == ()


def test_a_file_has_a_bounded_number_of_flushes_that_are_not_applied(tree: Tree) -> None:
    ino = tree.chunked(b"f", 100, data=300)
    for number in range(MAX_FLUSHES):
        tree.do(op.CommitSize, ino, 100, 5, NO_DATA, FlushRecord(SessionId(9), number, (0, 1)))
    one_more = FlushRecord(SessionId(9), MAX_FLUSHES, (0, 1))
    tree.refuses(errors.InvalidArgument, op.CommitSize, ino, 100, 5, NO_DATA, one_more)
    tree.do(op.CommitSize, ino, 100, 5, NO_DATA, one_more, ((9, 0),))
    assert len(tree.inode(ino).flushes) == MAX_FLUSHES
