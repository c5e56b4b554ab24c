"""What clients and the metadata server say to each other.

The connection works both ways: a client asks, the server recalls leases. An answer leaves the server only when all that
it could have seen is durable (I0).

Leases. `Grant(ino, mode, serial)` comes along with the answer to a normal request; `serial` grows within a session with
every grant. Either side names the serial up to which it means a release or a recall, so that a grant that crosses it on
the way is neither lost nor kept by mistake: a client that has answered a recall of serial s refuses grants of that inode
with a serial <= s that arrive later, and the server ignores a release that names an older serial than the last granted.
"""

from dataclasses import dataclass
from enum import Enum

from fsd.core.ids import Ino, LayerId, MapEpoch, RequestNumber, SessionId
from fsd.namespace.locks import LockKind, LockSpace
from fsd.namespace.operations import Operation
from fsd.namespace.records import Inode, Volume
from fsd.wire.codec import wire


class LeaseMode(Enum):
    """Ordered by strength of `value`."""

    NONE = 0
    SHARED = 1  # may cache attributes and data; of a directory also names and the absence of names
    EXCLUSIVE = 2  # may also change them and tell later


@wire(200)
@dataclass(frozen=True, slots=True)
class Grant:
    """The session's lease on `ino` is now `mode` (it may be stronger than asked, and never weaker than what it had).
    `open_elsewhere`: another session has handles on the inode, and will read what is written here even when its last name is
    gone; nobody else begins to while the lease is exclusive."""

    ino: Ino
    mode: LeaseMode
    serial: int
    open_elsewhere: bool = False


# --- sessions ---------------------------------------------------------------------------------------------------------


@wire(201)
@dataclass(frozen=True, slots=True)
class OpenSession:
    """Answer: SessionOpened. Errors: NotFound (no such volume), Busy (single-access volume that another session has)."""

    client: str
    volume: str


@wire(202)
@dataclass(frozen=True, slots=True)
class SessionOpened:
    """`secret` proves the session when it is resumed. The session owns ids [first_id, first_id + id_count).
    `may_promise` as in Alive.

    The session lives until `ttl_s` after the send time of the last request that renewed it was answered."""

    session: SessionId
    secret: bytes
    ttl_s: float
    server_time_ns: int
    first_id: int
    id_count: int
    volume: Volume
    map_epoch: MapEpoch
    may_promise: bool = False


@wire(203)
@dataclass(frozen=True, slots=True)
class HeldLease:
    """What a client says it holds when it resumes; `open` if it has handles on the inode."""

    ino: Ino
    mode: LeaseMode
    open: bool


@wire(250)
@dataclass(frozen=True, slots=True)
class HeldLock:
    """A lock of one owner: for fcntl the kernel's lock owner (of a process, or of an open file for OFD locks), for flock the
    client's file handle; taken through the file handle `handle`. Bytes [start, end)."""

    ino: Ino
    space: LockSpace
    owner: int
    kind: LockKind
    start: int
    end: int
    pid: int
    handle: int


@wire(204)
@dataclass(frozen=True, slots=True)
class ResumeSession:
    """Go on with a session over a new connection. Answer: SessionResumed. Errors: SessionEvicted, SessionUnknown.

    Everything the client holds is in `held` (to a server that has not restarted it repeats what that one knows). `adopt`: the
    client's process died and this is another one, which knows only some of it: what the server knows stays, except that
    handles are those of `held`. Otherwise the client's locks are exactly `locks`. Places in queues for locks are given up: who
    still waits asks again."""

    session: SessionId
    secret: bytes
    held: tuple[HeldLease, ...]
    adopt: bool = False
    locks: tuple[HeldLock, ...] = ()


@wire(205)
@dataclass(frozen=True, slots=True)
class SessionResumed:
    """`grants` are all leases that the session has now, with new serials; what is not in them is gone (if it was adopted:
    there may be more than are told). `locks`: those of a session that was adopted."""

    ttl_s: float
    server_time_ns: int
    grants: tuple[Grant, ...]
    map_epoch: MapEpoch
    may_promise: bool = False
    locks: tuple[HeldLock, ...] = ()


@wire(206)
@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Answer: Alive. Errors: SessionEvicted, SessionUnknown. `writing_back`: a recall waits for chunkservers that do not
    answer; evicting the session for its slowness would lose what it has answered for."""

    session: SessionId
    writing_back: bool = False


@wire(207)
@dataclass(frozen=True, slots=True)
class Alive:
    """`may_promise`: no quota and no full disk can refuse what the session does under exclusive leases and tells later."""

    server_time_ns: int
    map_epoch: MapEpoch
    may_promise: bool = False


@wire(208)
@dataclass(frozen=True, slots=True)
class CloseSession:
    """Give everything back. The client has flushed before. Answer: Done."""

    session: SessionId


@wire(209)
@dataclass(frozen=True, slots=True)
class AllocateIds:
    """Another range for new inodes and data. Answer: IdRange."""

    session: SessionId


@wire(210)
@dataclass(frozen=True, slots=True)
class IdRange:
    first_id: int
    id_count: int


# --- reading the tree -------------------------------------------------------------------------------------------------


@wire(211)
@dataclass(frozen=True, slots=True)
class Lookup:
    """One name. Grants a shared lease on the directory and on the child where these are free. Answer: Entry."""

    session: SessionId
    parent: Ino
    name: bytes


@wire(212)
@dataclass(frozen=True, slots=True)
class Entry:
    """`inode` is None if the name does not exist. Inline bytes of regular files are included."""

    inode: Inode | None
    grants: tuple[Grant, ...]


@wire(213)
@dataclass(frozen=True, slots=True)
class GetInode:
    """Attributes, and a lease of at least `lease` (waits until it can be had). Answer: Entry. Errors: StaleHandle."""

    session: SessionId
    ino: Ino
    lease: LeaseMode


@wire(214)
@dataclass(frozen=True, slots=True)
class ReadDirectory:
    """Entries with a cookie of at least `cookie`, at most `limit`. Grants a shared lease on the directory, and on the
    entries' inodes where they are free and `attributes` is set; EXCLUSIVE ones where `lease` says so and nobody else has
    anything on the inode. `contents`: with the bytes of inline files. Answer: DirectoryPage, which is of bounded size."""

    session: SessionId
    ino: Ino
    cookie: int
    limit: int
    attributes: bool
    lease: LeaseMode = LeaseMode.SHARED
    contents: bool = False


@wire(215)
@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """`inode` (inline bytes left out unless they were asked for) only where attributes were asked for and nobody else may be
    changing them."""

    name: bytes
    ino: Ino
    type: int
    cookie: int
    inode: Inode | None = None


@wire(216)
@dataclass(frozen=True, slots=True)
class DirectoryPage:
    """`end`: no more entries after these. "." and ".." are not among them."""

    entries: tuple[DirectoryEntry, ...]
    end: bool
    grants: tuple[Grant, ...]


@wire(217)
@dataclass(frozen=True, slots=True)
class GetXattr:
    """Answer: XattrValue. Errors: NoAttribute."""

    session: SessionId
    ino: Ino
    name: bytes


@wire(218)
@dataclass(frozen=True, slots=True)
class XattrValue:
    value: bytes


@wire(219)
@dataclass(frozen=True, slots=True)
class ListXattrs:
    """Answer: XattrNames."""

    session: SessionId
    ino: Ino


@wire(220)
@dataclass(frozen=True, slots=True)
class XattrNames:
    names: tuple[bytes, ...]


@wire(221)
@dataclass(frozen=True, slots=True)
class StatVolume:
    """Answer: VolumeSpace."""

    session: SessionId


@wire(222)
@dataclass(frozen=True, slots=True)
class VolumeSpace:
    """For statfs(2): the smaller of the quota and what the cluster has room for (copies counted). `by_quota`: which of them it
    is."""

    total_bytes: int
    free_bytes: int
    total_inodes: int
    free_inodes: int
    by_quota: bool = False


# --- changing the tree ------------------------------------------------------------------------------------------------


ANY_INODE = Ino(0)


@wire(223)
@dataclass(frozen=True, slots=True)
class Execute:
    """Carry out one operation, once: `number` grows within the session, a repeated number gets the same answer (I11).
    Answers to numbers below `floor` have arrived and are forgotten.

    `lease` is wanted on the operation's subject where it is free, `others` on the other inodes that it changes if nobody had
    to give anything up for it. `keep_open`: the session has handles on the inode that loses a name here, which it
    believes to be `removes` (ANY_INODE: whichever it is). If it is another one, the session gives its lease back when it sees
    the answer. Who does not say `keep_open` has nothing unwritten of the inode either: its lease goes with the last name.

    `write_back`: part of giving back an exclusive lease, or of keeping the promises made under it. It never waits for
    anybody: whoever does not hold that lease gets StaleHandle. Answer: Executed. Errors: every PosixError; SessionEvicted.
    """

    session: SessionId
    number: RequestNumber
    floor: RequestNumber
    operation: Operation
    lease: LeaseMode = LeaseMode.NONE
    keep_open: bool = False
    others: LeaseMode = LeaseMode.SHARED
    removes: Ino = ANY_INODE
    write_back: bool = False


@wire(238)
@dataclass(frozen=True, slots=True)
class NameChange:
    """What a name names now; `ino` 0: nothing."""

    parent: Ino
    name: bytes
    ino: Ino


@wire(224)
@dataclass(frozen=True, slots=True)
class Executed:
    """`inodes` are all inodes that the operation changed, as they are now (inline bytes left out), the subject first if
    there is one. `names` are the names that it changed, empty in an answer that is given again. `gone` are the inodes that lost
    their last name and are removed, or at least not this session's any more: it has no lease on them."""

    inodes: tuple[Inode, ...]
    grants: tuple[Grant, ...]
    names: tuple[NameChange, ...] = ()
    gone: tuple[Ino, ...] = ()


# --- leases -----------------------------------------------------------------------------------------------------------


@wire(225)
@dataclass(frozen=True, slots=True)
class Release:
    """One lease given back, down to `keep`. `open`: the session still has handles on the inode."""

    ino: Ino
    serial: int  # the last grant of this inode that the client has seen, or the recalled serial if that is higher
    keep: LeaseMode
    open: bool


@wire(226)
@dataclass(frozen=True, slots=True)
class ReleaseLeases:
    """Of the client's own accord; also tells that the last handle of an inode is gone (`keep` NONE, not `open`).
    Answer: Done."""

    session: SessionId
    releases: tuple[Release, ...]


@wire(227)
@dataclass(frozen=True, slots=True)
class RecallItem:
    ino: Ino
    serial: int
    keep: LeaseMode  # what the client may keep: NONE or SHARED


@wire(228)
@dataclass(frozen=True, slots=True)
class Recall:
    """Server to client: write back, invalidate, then answer Recalled. Within the session's ttl, or it is evicted."""

    session: SessionId
    items: tuple[RecallItem, ...]


@wire(229)
@dataclass(frozen=True, slots=True)
class Recalled:
    releases: tuple[Release, ...]


@wire(230)
@dataclass(frozen=True, slots=True)
class MapChanged:
    """Server to everybody, one way: fetch the map."""

    map_epoch: MapEpoch


@wire(231)
@dataclass(frozen=True, slots=True)
class InspectInode:
    """For administration, without a session or a lease: what is stored. Answer: Entry (no grants)."""

    layer: LayerId
    ino: Ino


# --- the journal ------------------------------------------------------------------------------------------------------


@wire(232)
@dataclass(frozen=True, slots=True)
class BatchItem:
    """One operation of a journal. `keep_open` as in Execute."""

    operation: Operation
    keep_open: bool = False


@wire(233)
@dataclass(frozen=True, slots=True)
class ExecuteBatch:
    """Carry out operations that were done under exclusive leases already, in their order; item n has number `number` + n.
    New inodes come with an exclusive lease. Answer: BatchExecuted. Errors: SessionEvicted."""

    session: SessionId
    number: RequestNumber
    floor: RequestNumber
    items: tuple[BatchItem, ...]


@wire(234)
@dataclass(frozen=True, slots=True)
class BatchError:
    """Item `index` was refused. `error` is the number of a PosixError."""

    index: int
    error: int
    text: str


@wire(236)
@dataclass(frozen=True, slots=True)
class PromiseNothing:
    """Server to client: there is a quota now; ask before answering (`may_promise` of Alive ends at once). Answer: Done."""


@wire(237)
@dataclass(frozen=True, slots=True)
class Evicted:
    """Server to client: the session has no rights any more, whatever time is left. The client drops everything, then answers
    Done."""

    session: SessionId


@wire(235)
@dataclass(frozen=True, slots=True)
class BatchExecuted:
    errors: tuple[BatchError, ...]
    grants: tuple[Grant, ...]
