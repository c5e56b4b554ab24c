"""A small tree to try operations on: builders with defaults, and the checks that every test ends with."""

from collections.abc import Callable
from typing import Any

import pytest

from fsd.core.errors import FsError
from fsd.core.ids import ROOT_INO, Ino, LayerId, PoolId
from fsd.namespace import operations as op
from fsd.namespace.apply import apply
from fsd.namespace.fsck import check
from fsd.namespace.memory import MemoryView
from fsd.namespace.records import Inode, Volume
from fsd.namespace.view import Applied

LAYER = LayerId(7)
VOLUME = Volume(name="default", layer=LAYER, pool=PoolId(1), replicas=2, min_replicas=1, inline_limit=64)


class Tree:
    """A `MemoryView` with a clock and an inode counter; every operation is root's unless `uid` is given."""

    def __init__(self, volume: Volume = VOLUME, mode: int = 0o755) -> None:
        self.view = MemoryView.empty(volume, 1, mode)
        self.now = 1
        self.next_ino = 100

    def do(self, kind: Callable[..., Any], *fields: Any, uid: int = 0, gid: int = 0, **named: Any) -> Inode:
        """Carry out an operation; its subject, which must be."""
        subject = self.execute(kind, *fields, uid=uid, gid=gid, **named).subject
        assert subject is not None
        return subject

    def execute(self, kind: Callable[..., Any], *fields: Any, uid: int = 0, gid: int = 0, **named: Any) -> Applied:
        self.now += 1
        applied = apply(self.view, kind(LAYER, self.now, uid, gid, *fields, **named))
        self.view.commit(applied.changes)
        return applied

    def refuses(self, error: type[FsError], kind: Callable[..., Any], *fields: Any, **named: Any) -> None:
        with pytest.raises(error) as caught:
            self.execute(kind, *fields, **named)
        assert type(caught.value) is error
        assert "\n" not in str(caught.value)

    def new_ino(self) -> Ino:
        self.next_ino += 1
        return Ino(self.next_ino)

    def file(self, name: bytes, contents: bytes = b"", parent: int = ROOT_INO, mode: int = 0o644, **by: int) -> Ino:
        ino = self.do(op.Create, parent, name, self.new_ino(), mode, **by).ino
        if contents:
            self.do(op.WriteInline, ino, contents)
        return ino

    def chunked(self, name: bytes, size: int, data: int, mode: int = 0o644) -> Ino:
        ino = self.file(name, mode=mode)
        self.do(op.CommitSize, ino, size, self.now, data)
        return ino

    def directory(self, name: bytes, parent: int = ROOT_INO, mode: int = 0o755, **by: int) -> Ino:
        return self.do(op.Mkdir, parent, name, self.new_ino(), mode, **by).ino

    def inode(self, ino: int) -> Inode:
        inode = self.view.inode(Ino(ino))
        assert inode is not None
        return inode

    def close(self) -> None:
        """What every test ends with."""
        assert list(check(self.view)) == []
