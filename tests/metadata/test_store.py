"""The store: one batch for an operation, caches that never lie, records that keep their bytes."""

import pytest
import trio

from fsd.cluster.map import Node, NodeState, Pool, Row
from fsd.core.ids import (
    Incarnation,
    Ino,
    LayerId,
    MapEpoch,
    Member,
    NodeId,
    PgEpoch,
    PgId,
    PoolId,
    RequestNumber,
    SessionId,
)
from fsd.namespace.keys import FAMILIES, cookie_of
from fsd.namespace.records import DeadData, Dentry, Inode, Volume
from fsd.namespace.view import (
    Collect,
    DropDentry,
    DropInode,
    PutDentry,
    PutInode,
    PutOrphan,
    PutVolume,
    PutXattr,
)
from fsd.protocol.metadata import IdRange
from fsd.wire.codec import decode, encode
from metadata import store as store_module
from metadata.records import (
    AuthorityRecord,
    Counters,
    FileSystemRecord,
    MapHead,
    PurgeRecord,
    ResultRecord,
    RowRecord,
    SessionRecord,
)
from metadata.store import Store, put, result_key, session_key
from tests.fakes import MemoryDirectory

LAYER = LayerId(1)
VOLUME = Volume("v", LAYER, PoolId(1), 2, 1)


def inode(number: int, size: int = 0) -> Inode:
    return Inode(Ino(number), 0o100644, 0, 0, 1, size, 1, 2, 3, inline=b"x" * size)


async def opened(directory: MemoryDirectory) -> Store:
    return Store(await directory.open_keyvalue("tree", FAMILIES))


async def test_what_was_durable_is_there_after_a_crash_and_the_rest_is_gone_as_a_whole():
    directory = MemoryDirectory()
    store = await opened(directory)
    store.commit(LAYER, [PutVolume(VOLUME), PutInode(inode(5)), PutDentry(Ino(1), b"a", Dentry(Ino(5), 0o100000))])
    await store.durable()
    store.commit(LAYER, [DropInode(Ino(5)), DropDentry(Ino(1), b"a")])
    assert store.view(LAYER).inode(Ino(5)) is None
    again = await opened(directory)
    assert again.view(LAYER).inode(Ino(5)) == inode(5)
    assert again.view(LAYER).dentry(Ino(1), b"a") == Dentry(Ino(5), 0o100000)
    assert again.view(LAYER).volume() == VOLUME


async def test_the_cache_of_inodes_is_bounded_and_answers_what_is_stored(monkeypatch):
    monkeypatch.setattr(store_module, "CACHED_INODES", 3)
    store = await opened(MemoryDirectory())
    for number in range(2, 12):
        store.commit(LAYER, [PutInode(inode(number, number))])
    assert [store.inode(LAYER, Ino(number)) for number in range(2, 12)] == [inode(n, n) for n in range(2, 12)]
    store.commit(LAYER, [PutInode(inode(11, 4))])
    assert store.inode(LAYER, Ino(11)) == inode(11, 4)
    big = inode(20, store_module.CACHED_INLINE_BYTES + 1)
    store.commit(LAYER, [PutInode(inode(20)), PutInode(big)])
    assert store.inode(LAYER, Ino(20)) == big


async def test_names_come_in_the_order_of_their_cookies_from_a_cookie_on():
    store = await opened(MemoryDirectory())
    names = sorted((b"name %d" % n for n in range(20)), key=cookie_of)
    store.commit(LAYER, [PutDentry(Ino(1), name, Dentry(Ino(5), 0o100000)) for name in names])
    store.commit(LAYER, [PutDentry(Ino(2), b"elsewhere", Dentry(Ino(5), 0o100000))])
    assert [name for _, name, _ in store.names(LAYER, Ino(1), 0, 100)] == names
    assert [name for _, name, _ in store.names(LAYER, Ino(1), cookie_of(names[7]), 3)] == names[7:10]


async def test_scans_go_on_over_pages(monkeypatch):
    monkeypatch.setattr(store_module, "SCAN_PAGE", 4)
    store = await opened(MemoryDirectory())
    store.commit(LAYER, [PutXattr(Ino(5), b"user.%02d" % n, b"v") for n in range(11)])
    store.commit(LAYER, [PutOrphan(Ino(n)) for n in range(2, 12)])
    assert len(store.view(LAYER).xattr_names(Ino(5))) == 11
    assert [ino for _, ino in store.orphans()] == list(range(2, 12))


async def test_results_belong_to_their_session_and_dead_data_is_read_in_pages():
    store = await opened(MemoryDirectory())
    record = SessionRecord(SessionId(3), b"s", "c", LAYER, ())
    result = ResultRecord(0, "", ())
    store.apply([put("session", session_key(SessionId(3)), record)])
    store.apply([put("session", result_key(SessionId(s), RequestNumber(n)), result) for s in (2, 3, 4) for n in (1, 2)])
    assert store.sessions() == [record]
    assert [number for number, _ in store.results(SessionId(3))] == [1, 2]
    for number in range(5):
        store.commit(LAYER, [Collect(DeadData(number + 1, PoolId(1), 0, 10))])
    first = store.dead_data(b"", 3)
    rest = store.dead_data(first[-1][0], 3)
    assert [dead.data for _, dead in first + rest] == [1, 2, 3, 4, 5]


NODE = Node(NodeId(1), 2, "h:1", "z", 3, NodeState.UP)
MEMBER = Member(NodeId(1), Incarnation(2))
EXAMPLES = [
    (SessionRecord(SessionId(1), b"s", "c", LAYER, (IdRange(2, 3),)), "9501c40173a16301919202 03"),
    (ResultRecord(1, "t", (inode(2),)), "9601a17491dc001002cd81a4000001000102030000c40000000090009090"),
    (
        MapHead(MapEpoch(1), (NODE,), (Pool(PoolId(1), 2, 1),), (SessionId(5),), SessionId(4), NodeId(2)),
        "970191990102a3683a31a17a0301c2c2c2919301020191050402c2",
    ),
    (
        RowRecord(Row(PgId(1), PgEpoch(2), MEMBER, (MEMBER,), (), (MEMBER,), True), (NodeId(3),)),
        "93970102920102919201029091920102c3910300",
    ),
    (Counters(1, SessionId(2), LayerId(3)), "93010203"),
    (FileSystemRecord("fs", 1, 2, 3), "94a26673010203"),
    (PurgeRecord(LAYER, PoolId(2)), "920102"),
    (AuthorityRecord(3), "9103"),
]


@pytest.mark.parametrize(("record", "expected"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_the_bytes_of_every_record_stay_as_they_are(record, expected):
    assert encode(record).hex() == expected.replace(" ", "")
    assert decode(type(record), encode(record)) == record


def test_records_of_the_first_version_are_understood():
    old = decode(MapHead, bytes.fromhex("960191960102a3683a31a17a0301919301020191050402"))
    assert (old.nodes[0].draining, old.paused) == (False, False)
    row = decode(RowRecord, bytes.fromhex("92970102920102919201029091920102c39103"))
    assert row.leaving == 0


async def test_durable_waits_for_nothing_when_all_is_on_disk():
    store = await opened(MemoryDirectory())
    store.commit(LAYER, [PutVolume(VOLUME)])
    await store.durable()
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.durable()
    assert not scope.cancelled_caught


async def test_every_life_of_the_authority_has_a_higher_epoch():
    directory = MemoryDirectory()
    for expected in (1, 2, 3):
        store = await opened(directory)
        assert await store.begin_authority() == expected
        directory.crash()
