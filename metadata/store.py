"""The metadata server's records in its key-value store, and the view of a tree that `apply` reads through.

Families `inode`, `dentry`, `xattr`, `volume`, `orphan`, `collect` are told in fsd.namespace.keys. The other two:

    family   key                                    value
    session  "s", session u64                       SessionRecord
    session  "r", session u64, number u64           ResultRecord
    cluster  "c"                                    Counters
    cluster  "f"                                    FileSystemRecord
    cluster  "m"                                    MapHead
    cluster  "p", pg u32                            RowRecord
    cluster  "x", layer u32                         PurgeRecord

One writer: the event loop. `commit` makes one batch of all that one operation changes, its remembered result included
(I10, I11); what is applied is visible at once, and every answer waits until it is durable (I0).
"""

import struct
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, assert_never

from fsd.core.ids import Ino, LayerId, RequestNumber, SessionId
from fsd.namespace import keys
from fsd.namespace.records import DeadData, Dentry, Inode, Volume
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
from fsd.runtime.storage import Frozen, KeyChange, KeyValue
from fsd.wire.codec import decode, encode
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

T = TypeVar("T")

CACHED_INODES = 65_536
CACHED_INLINE_BYTES = 1024  # inodes with more inline bytes are not kept decoded: bounds the cache's memory
SCAN_PAGE = 512

_SESSION = struct.Struct(">cQ")
_RESULT = struct.Struct(">cQQ")
_CLUSTER = struct.Struct(">cI")
COUNTERS_KEY, FILE_SYSTEM_KEY, MAP_KEY, AUTHORITY_KEY = b"c", b"f", b"m", b"a"


def session_key(session: SessionId) -> bytes:
    return _SESSION.pack(b"s", session)


def result_key(session: SessionId, number: RequestNumber) -> bytes:
    return _RESULT.pack(b"r", session, number)


def row_key(pg: int) -> bytes:
    return _CLUSTER.pack(b"p", pg)


def purge_key(layer: LayerId) -> bytes:
    return _CLUSTER.pack(b"x", layer)


def put(family: str, key: bytes, record: Any) -> KeyChange:
    return KeyChange(family, key, encode(record))


def drop(family: str, key: bytes) -> KeyChange:
    return KeyChange(family, key, None)


class Store:
    """All records. Reads see what was applied."""

    def __init__(self, keyvalue: KeyValue) -> None:
        self._keyvalue = keyvalue
        self._inodes: OrderedDict[tuple[LayerId, Ino], Inode] = OrderedDict()
        self._volumes: dict[LayerId, Volume] = {}
        self._views: dict[LayerId, StoreView] = {}
        for _, value in self.scan("volume", b"", b"\xff" * 5):
            volume = decode(Volume, value)
            self._volumes[volume.layer] = volume

    # --- batches ------------------------------------------------------------------------------------------------------

    def commit(self, layer: LayerId, changes: Iterable[Change], extra: Sequence[KeyChange] = ()) -> int:
        """Apply the changes of one operation together with `extra` as one batch; its sequence number."""
        batch = [self._key_change(layer, change) for change in changes]
        batch.extend(extra)
        return self._keyvalue.apply(batch)

    def apply(self, batch: Sequence[KeyChange]) -> int:
        """One batch of records that no view caches."""
        return self._keyvalue.apply(batch)

    async def durable(self, sequence: int | None = None) -> None:
        """Return when everything applied up to now (or up to `sequence`) is on stable storage."""
        wanted = self._keyvalue.applied_sequence if sequence is None else sequence
        if wanted > self._keyvalue.durable_sequence:
            await self._keyvalue.durable(wanted)

    def _key_change(self, layer: LayerId, change: Change) -> KeyChange:
        match change:
            case PutInode(inode):
                self._remember(layer, inode)
                return put("inode", keys.inode_key(layer, inode.ino), inode)
            case DropInode(ino):
                self._inodes.pop((layer, ino), None)
                return drop("inode", keys.inode_key(layer, ino))
            case PutDentry(parent, name, dentry):
                return put("dentry", keys.dentry_key(layer, parent, name), dentry)
            case DropDentry(parent, name):
                return drop("dentry", keys.dentry_key(layer, parent, name))
            case PutXattr(ino, name, value):
                return KeyChange("xattr", keys.xattr_key(layer, ino, name), value)
            case DropXattr(ino, name):
                return drop("xattr", keys.xattr_key(layer, ino, name))
            case PutOrphan(ino):
                return KeyChange("orphan", keys.orphan_key(layer, ino), b"")
            case DropOrphan(ino):
                return drop("orphan", keys.orphan_key(layer, ino))
            case PutVolume(volume):
                self._volumes[layer] = volume
                return put("volume", keys.volume_key(layer), volume)
            case Collect(dead):
                return put("collect", keys.collect_key(dead.data, dead.start), dead)
            case _:
                assert_never(change)

    def _remember(self, layer: LayerId, inode: Inode) -> None:
        key = (layer, inode.ino)
        if inode.inline is not None and len(inode.inline) > CACHED_INLINE_BYTES:
            self._inodes.pop(key, None)
            return
        self._inodes[key] = inode
        self._inodes.move_to_end(key)
        if len(self._inodes) > CACHED_INODES:
            self._inodes.popitem(last=False)

    # --- the tree -----------------------------------------------------------------------------------------------------

    def view(self, layer: LayerId) -> "StoreView":
        """The tree of one volume."""
        if layer not in self._views:
            self._views[layer] = StoreView(self, layer)
        return self._views[layer]

    def inode(self, layer: LayerId, ino: Ino) -> Inode | None:
        cached = self._inodes.get((layer, ino))
        if cached is not None:
            self._inodes.move_to_end((layer, ino))
            return cached
        inode = self.get(Inode, "inode", keys.inode_key(layer, ino))
        if inode is not None:
            self._remember(layer, inode)
        return inode

    def volumes(self) -> list[Volume]:
        """All volumes, by name."""
        return sorted(self._volumes.values(), key=lambda volume: volume.name)

    def volume(self, layer: LayerId) -> Volume | None:
        return self._volumes.get(layer)

    def volume_named(self, name: str) -> Volume | None:
        return next((volume for volume in self._volumes.values() if volume.name == name), None)

    def forget_volume(self, layer: LayerId) -> None:
        """The volume's record is being deleted: nothing of it may be answered from memory."""
        self._volumes.pop(layer, None)
        self._views.pop(layer, None)
        for key in [key for key in self._inodes if key[0] == layer]:
            del self._inodes[key]

    def names(self, layer: LayerId, parent: Ino, cookie: int, limit: int) -> list[tuple[int, bytes, Dentry]]:
        """(cookie, name, dentry) of at most `limit` entries with a cookie of at least `cookie`, in order."""
        start, end = keys.directory_range(layer, parent, cookie)
        found: list[tuple[int, bytes, Dentry]] = []
        for key, value in self._keyvalue.scan("dentry", start, end, limit):
            _, _, at, name = keys.split_dentry_key(key)
            found.append((at, name, decode(Dentry, value)))
        return found

    def orphans(self) -> Iterator[tuple[LayerId, Ino]]:
        for key, _ in self.scan("orphan", b"", b"\xff" * 16):
            layer, ino, _ = keys.split_layer_ino(key)
            yield layer, ino

    def dead_data(self, after: bytes, limit: int) -> list[tuple[bytes, DeadData]]:
        """(key, record) of chunks to be collected, in order of keys after `after`."""
        pairs = self._keyvalue.scan("collect", after + b"\0" if after else b"", b"\xff" * 17, limit)
        return [(key, decode(DeadData, value)) for key, value in pairs]

    # --- sessions and cluster -----------------------------------------------------------------------------------------

    def sessions(self) -> list[SessionRecord]:
        return [decode(SessionRecord, value) for _, value in self.scan("session", b"s", b"t")]

    def results(self, session: SessionId) -> list[tuple[RequestNumber, ResultRecord]]:
        start, end = _SESSION.pack(b"r", session), _SESSION.pack(b"r", session + 1)
        found = self.scan("session", start, end)
        return [(RequestNumber(_RESULT.unpack(key)[2]), decode(ResultRecord, value)) for key, value in found]

    def counters(self) -> Counters | None:
        return self.get(Counters, "cluster", COUNTERS_KEY)

    def file_system(self) -> FileSystemRecord | None:
        return self.get(FileSystemRecord, "cluster", FILE_SYSTEM_KEY)

    async def begin_authority(self) -> int:
        """The epoch of this life of the authority, one higher than ever before, durably (R14)."""
        before = self.get(AuthorityRecord, "cluster", AUTHORITY_KEY)
        record = AuthorityRecord(1 if before is None else before.epoch + 1)
        await self.durable(self.apply([put("cluster", AUTHORITY_KEY, record)]))
        return record.epoch

    def map_head(self) -> MapHead | None:
        return self.get(MapHead, "cluster", MAP_KEY)

    def rows(self) -> list[RowRecord]:
        return [decode(RowRecord, value) for _, value in self.scan("cluster", b"p", b"q")]

    def purges(self) -> list[PurgeRecord]:
        return [decode(PurgeRecord, value) for _, value in self.scan("cluster", b"x", b"y")]

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, cls: type[T], family: str, key: bytes) -> T | None:
        value = self._keyvalue.get(family, key)
        return None if value is None else decode(cls, value)

    def raw(self, family: str, key: bytes) -> bytes | None:
        return self._keyvalue.get(family, key)

    def page(self, family: str, start: bytes, end: bytes, limit: int = SCAN_PAGE) -> list[tuple[bytes, bytes]]:
        return self._keyvalue.scan(family, start, end, limit)

    def scan(self, family: str, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All pairs of a range, read in pages."""
        return scan_pages(self._keyvalue, family, start, end)

    def freeze(self) -> Frozen:
        """Everything as it is now, for a reader that takes its time."""
        return self._keyvalue.freeze()


def scan_pages(
    source: KeyValue | Frozen, family: str, start: bytes, end: bytes, page: int = SCAN_PAGE
) -> Iterator[tuple[bytes, bytes]]:
    """All pairs of a range."""
    while True:
        found = source.scan(family, start, end, page)
        yield from found
        if len(found) < page:
            return
        start = found[-1][0] + b"\0"


class StoreView:
    """fsd.namespace.view.View over the store, for one layer."""

    def __init__(self, store: Store, layer: LayerId) -> None:
        self._store = store
        self.layer = layer

    def inode(self, ino: Ino) -> Inode | None:
        return self._store.inode(self.layer, ino)

    def dentry(self, parent: Ino, name: bytes) -> Dentry | None:
        return self._store.get(Dentry, "dentry", keys.dentry_key(self.layer, parent, name))

    def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        return self._store.raw("xattr", keys.xattr_key(self.layer, ino, name))

    def xattr_names(self, ino: Ino) -> tuple[bytes, ...]:
        start, end = keys.xattr_range(self.layer, ino)
        return tuple(keys.split_layer_ino(key)[2] for key, _ in self._store.scan("xattr", start, end))

    def is_orphan(self, ino: Ino) -> bool:
        return self._store.raw("orphan", keys.orphan_key(self.layer, ino)) is not None

    def volume(self) -> Volume:
        volume = self._store.volume(self.layer)
        assert volume is not None, f"layer {self.layer} has no volume"
        return volume
