"""A memory view, alone and under an overlay, holds what was committed; `apply` costs what it may."""

import time

from hypothesis import given
from hypothesis import strategies as st

from fsd.core.ids import ROOT_INO, DataId, Ino, PoolId
from fsd.namespace import operations as op
from fsd.namespace.apply import apply
from fsd.namespace.memory import MemoryView
from fsd.namespace.overlay import Overlay, key_of
from fsd.namespace.records import DeadData, Dentry, Inode
from fsd.namespace.view import (
    Change,
    Collect,
    DropDentry,
    DropInode,
    DropOrphan,
    DropXattr,
    PutDentry,
    PutInode,
    PutOrphan,
    PutVolume,
    PutXattr,
)
from tests.namespace.trees import LAYER, VOLUME, Tree

inos = st.integers(1, 3).map(Ino)
names = st.sampled_from((b"a", b"b"))
changes = st.one_of(
    inos.map(lambda ino: PutInode(Inode(ino, 0o100644, 0, 0, 1, 0, 0, 0, 0))),
    inos.map(DropInode),
    st.builds(PutDentry, inos, names, st.builds(Dentry, inos, st.just(0o100000))),
    st.builds(DropDentry, inos, names),
    st.builds(PutXattr, inos, names, st.binary(max_size=2)),
    st.builds(DropXattr, inos, names),
    inos.map(PutOrphan),
    inos.map(DropOrphan),
    st.just(PutVolume(VOLUME)),
    st.just(Collect(DeadData(DataId(9), PoolId(1), 0, 1))),
)


def everything(view: MemoryView | Overlay) -> list[object]:
    return [
        view.volume(),
        *[(view.inode(Ino(ino)), view.is_orphan(Ino(ino)), view.xattr_names(Ino(ino))) for ino in range(1, 4)],
        *[view.dentry(Ino(ino), name) for ino in range(1, 4) for name in (b"a", b"b")],
        *[view.xattr(Ino(ino), name) for ino in range(1, 4) for name in (b"a", b"b")],
    ]


@given(st.lists(changes), st.lists(changes))
def test_an_overlay_shows_what_a_commit_would(below: list[Change], above: list[Change]) -> None:
    view = MemoryView.empty(VOLUME)
    view.commit(below)
    untouched = everything(view)
    overlay = Overlay(view)
    overlay.stage(above)
    assert everything(view) == untouched
    staged = overlay.changes()
    assert len({key_of(change) for change in staged}) == len(staged)
    shown = everything(overlay)
    view.commit(staged)
    assert everything(view) == shown


@given(st.lists(changes))
def test_committing_in_one_or_in_many_batches_is_the_same(program: list[Change]) -> None:
    one, many = MemoryView.empty(VOLUME), MemoryView.empty(VOLUME)
    one.commit(program)
    for change in program:
        many.commit([change])
    assert everything(one) == everything(many)


def test_apply_writes_nothing_itself_and_names_each_key_once(tree: Tree) -> None:
    parent = tree.directory(b"d")
    before = list(tree.view.inodes()), list(tree.view.dentries())
    applied = apply(tree.view, op.Create(LAYER, 9, 0, 0, parent, b"a", Ino(900), 0o644))
    assert (list(tree.view.inodes()), list(tree.view.dentries())) == before
    assert len({key_of(change) for change in applied.changes}) == len(applied.changes) == 4


def test_a_create_stays_cheap() -> None:
    """About 7 us where this was written; the bound is for machines that are busy with something else."""
    view = MemoryView.empty(VOLUME)
    best = float("inf")
    for batch in range(20):
        started = time.perf_counter()
        for number in range(100):
            serial = batch * 100 + number
            view.commit(
                apply(view, op.Create(LAYER, 9, 0, 0, ROOT_INO, b"%d" % serial, Ino(900 + serial), 0o644)).changes
            )
        best = min(best, (time.perf_counter() - started) / 100)
    assert best < 60e-6
