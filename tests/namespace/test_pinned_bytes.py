"""The stored and sent bytes of one example of every record and operation. A change here is a change of format."""

import dataclasses

import pytest

from fsd.core.errors import ProtocolError
from fsd.core.ids import DataId, Ino, LayerId, PoolId, SessionId
from fsd.namespace import keys
from fsd.namespace import operations as op
from fsd.namespace.records import AccessMode, DeadData, Dentry, FlushRecord, Inode, Volume
from fsd.wire.codec import decode, encode, number_of, registered

L, T, U, G = LayerId(7), 1_700_000_000_000_000_000, 1000, 1001
P, N, D = Ino(1), Ino(300), DataId(301)

EXAMPLES = [
    Inode(N, 0o100644, U, G, 1, 5, T, T + 1, T + 2, 0, DataId(0), b"abc", 0, Ino(0), 1, ()),
    Dentry(N, 0o100000),
    Volume("default", L, PoolId(1), 2, 1, 1 << 40, 1000, 5, 2, AccessMode.SINGLE, 16384, T, (("a", "b"),)),
    DeadData(D, PoolId(1), 0, 1 << 30),
    FlushRecord(SessionId(9), 5, (0, 300)),
    op.Create(L, T, U, G, P, b"a", N, 0o644),
    op.Mkdir(L, T, U, G, P, b"a", N, 0o755),
    op.Mknod(L, T, U, G, P, b"a", N, 0o020600, 0x103),
    op.Symlink(L, T, U, G, P, b"a", N, b"target"),
    op.Link(L, T, U, G, N, P, b"b"),
    op.Unlink(L, T, U, G, P, b"a"),
    op.Rmdir(L, T, U, G, P, b"a"),
    op.Rename(L, T, U, G, P, b"a", Ino(2), b"b", 2),
    op.SetAttributes(L, T, U, G, N, 0o600, None, G, None, T),
    op.Truncate(L, T, U, G, N, 70000, D),
    op.WriteInline(L, T, U, G, N, b"bytes"),
    op.CommitSize(L, T, U, G, N, 70000, T, D, FlushRecord(SessionId(9), 5, (0, 300)), ((9, 4),)),
    op.TrimDone(L, T, U, G, N, D, 70000, 4096),
    op.SetXattr(L, T, U, G, N, b"user.a", b"\x00\xff", 1),
    op.RemoveXattr(L, T, U, G, N, b"user.a"),
    op.Reap(L, T, U, G, N),
]

PINNED: dict[str, str] = {
    "Inode": "dc0010cd012ccd81a4cd03e8cd03e90105cf17979cfe362a0000cf17979cfe362a0001cf17979cfe362a00020000c40361626300000190",
    "Dentry": "92cd012ccd8000",
    "Volume": "9da764656661756c7407010201cf0000010000000000cd03e8050202cd4000cf17979cfe362a00009192a161a162",
    "DeadData": "94cd012d0100ce40000000",
    "FlushRecord": "9309059200cd012c",
    "Create": "9807cf17979cfe362a0000cd03e8cd03e901c40161cd012ccd01a4",
    "Mkdir": "9807cf17979cfe362a0000cd03e8cd03e901c40161cd012ccd01ed",
    "Mknod": "9907cf17979cfe362a0000cd03e8cd03e901c40161cd012ccd2180cd0103",
    "Symlink": "9807cf17979cfe362a0000cd03e8cd03e901c40161cd012cc406746172676574",
    "Link": "9707cf17979cfe362a0000cd03e8cd03e9cd012c01c40162",
    "Unlink": "9607cf17979cfe362a0000cd03e8cd03e901c40161",
    "Rmdir": "9607cf17979cfe362a0000cd03e8cd03e901c40161",
    "Rename": "9907cf17979cfe362a0000cd03e8cd03e901c4016102c4016202",
    "SetAttributes": "9a07cf17979cfe362a0000cd03e8cd03e9cd012ccd0180c0cd03e9c0cf17979cfe362a0000",
    "Truncate": "9707cf17979cfe362a0000cd03e8cd03e9cd012cce00011170cd012d",
    "WriteInline": "9607cf17979cfe362a0000cd03e8cd03e9cd012cc4056279746573",
    "CommitSize": "9a07cf17979cfe362a0000cd03e8cd03e9cd012cce00011170cf17979cfe362a0000cd012d9309059200cd012c91920904",
    "TrimDone": "9807cf17979cfe362a0000cd03e8cd03e9cd012ccd012dce00011170cd1000",
    "SetXattr": "9807cf17979cfe362a0000cd03e8cd03e9cd012cc406757365722e61c40200ff01",
    "RemoveXattr": "9607cf17979cfe362a0000cd03e8cd03e9cd012cc406757365722e61",
    "Reap": "9507cf17979cfe362a0000cd03e8cd03e9cd012c",
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_bytes_stay_and_come_back(example: object) -> None:
    data = encode(example)
    assert data.hex() == PINNED[type(example).__name__]
    assert decode(type(example), data) == example


def test_every_record_and_operation_has_an_example() -> None:
    here = {cls.__name__ for cls in registered().values() if cls.__module__ in (op.__name__, Inode.__module__)}
    assert here == {type(example).__name__ for example in EXAMPLES} == set(PINNED)


def test_numbers_of_the_format() -> None:
    assert [number_of(type(example)) for example in EXAMPLES] == [100, 101, 102, 103, 104, *range(120, 136)]


def test_fields_that_came_later_may_be_missing() -> None:
    old = encode(op.TrimDone(L, T, U, G, N, D, 70000))
    assert decode(op.TrimDone, old).start == 0
    with pytest.raises(ProtocolError):
        decode(op.Truncate, encode(op.Reap(L, T, U, G, N)))


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXAMPLES[0].ino = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_keys_are_pinned_and_in_order() -> None:
    assert keys.inode_key(L, N).hex() == "00000007000000000000012c"
    assert keys.dentry_key(L, P, b"name").hex() == "000000070000000000000001" + "2be049c21549b76d" + b"name".hex()
    assert keys.xattr_key(L, N, b"user.a") == keys.inode_key(L, N) + b"user.a"
    assert keys.volume_key(L).hex() == "00000007"
    assert keys.collect_key(D, 4096).hex() == "000000000000012d0000000000001000"
    assert keys.split_dentry_key(keys.dentry_key(L, P, b"name")) == (L, P, keys.cookie_of(b"name"), b"name")
    start, end = keys.directory_range(L, P)
    assert start < keys.dentry_key(L, P, b"") < end <= keys.dentry_key(L, Ino(2), b"")
    assert keys.inode_key(L, Ino(255)) < keys.inode_key(L, Ino(256)) < keys.layer_range(L)[1]
