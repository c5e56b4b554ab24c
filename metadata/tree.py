"""Requests about the tree: reading it, changing it, with leases kept coherent (I14).

    admit ─> guards of the inodes concerned ─> recall what others hold ─> apply and grant in one step ─> durable ─> answer

From the last recall's answer to the grant nothing waits, so nobody can come in between.

A request that waits for a recall never holds up what that recall demands. What a holder may have to send before it can give
a lease back takes no guard and waits for no lease, whatever its sender believes to hold: write-back (`must_be_of_the_holder`)
and journals (metadata.batches). Somebody else may hold the guard, waiting for just that.
"""

import dataclasses
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from fsd.core.errors import (
    InvalidArgument,
    NoAttribute,
    NoSpace,
    NotADirectory,
    PosixError,
    StaleHandle,
    error_from_wire,
)
from fsd.core.ids import Ino, LayerId, RequestNumber
from fsd.namespace.apply import apply
from fsd.namespace.keys import FIRST_COOKIE
from fsd.namespace.operations import Operation, Reap
from fsd.namespace.overlay import Overlay
from fsd.namespace.records import Dentry, Inode
from fsd.namespace.touched import grows, is_of_the_holder, new_ids, touched
from fsd.namespace.view import (
    Applied,
    Change,
    Collect,
    DropDentry,
    DropInode,
    PutDentry,
    PutInode,
    PutOrphan,
    View,
)
from fsd.protocol.metadata import (
    ANY_INODE,
    DirectoryEntry,
    DirectoryPage,
    Entry,
    Execute,
    Executed,
    GetInode,
    GetXattr,
    Grant,
    LeaseMode,
    ListXattrs,
    Lookup,
    NameChange,
    ReadDirectory,
    XattrNames,
    XattrValue,
)
from fsd.runtime import Clock
from fsd.runtime.storage import KeyChange
from metadata.guards import Guards
from metadata.leases import InodeKey, stronger
from metadata.live import LiveSession, Sessions
from metadata.recalls import Recaller
from metadata.records import ResultRecord
from metadata.space import Space
from metadata.store import Store, StoreView, drop, put, result_key

NO_INODE = Ino(0)
CLOCK_TOLERANCE_NS = 10_000_000
ENTRY_BYTES = 200  # of an entry's numbers and its grant
MAX_PAGE_BYTES = 1 << 20  # of one answer; symbolic links carry their targets
MAX_PAGE = 1024  # entries of a directory in one answer


class Cleared(NamedTuple):
    """Inodes that nobody else has a lease on that stands in the way. `contended`: somebody had one."""

    inos: tuple[Ino, ...]
    contended: bool


class Outcome(NamedTuple):
    """What an operation changes. `reaped`: inodes that it removed for good; `gone`: those of them, and others without a name,
    that the session has no lease on any more."""

    applied: Applied
    reaped: tuple[Ino, ...]
    gone: tuple[Ino, ...]


class TreeService:
    """All methods return what is durable, or raise an error that is as durable."""

    def __init__(
        self,
        clock: Clock,
        store: Store,
        sessions: Sessions,
        recaller: Recaller,
        space: Space,
        collect: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._store = store
        self._sessions = sessions
        self._leases = sessions.leases
        self._recaller = recaller
        self._space = space
        self._collect = collect
        self.guards = Guards()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def lookup(self, live: LiveSession, request: Lookup) -> Entry:
        view = self._view(live)

        def concerned() -> tuple[Ino, ...]:
            dentry = view.dentry(request.parent, request.name)
            return (request.parent,) if dentry is None else (request.parent, dentry.ino)

        async with self._cleared(live, LeaseMode.SHARED, concerned) as cleared:
            inos = cleared.inos
            parent = _present(view, request.parent)
            if not parent.is_directory:
                raise NotADirectory(f"inode {request.parent} is no directory")
            inode = _present(view, inos[1]) if len(inos) > 1 else None
            grants = tuple(self._grant(live, ino, LeaseMode.SHARED) for ino in inos)
        return Entry(inode, grants)

    async def get_inode(self, live: LiveSession, request: GetInode) -> Entry:
        view = self._view(live)
        wanted = stronger(request.lease, LeaseMode.SHARED)
        async with self._cleared(live, wanted, lambda: (request.ino,)):
            inode = _present(view, request.ino)
            grant = self._grant(live, request.ino, wanted)
            if inode.nlink == 0:
                self._leases.set_open(live.state.session, self._key(live, request.ino), True)
        return Entry(inode, (grant,))

    async def read_directory(self, live: LiveSession, request: ReadDirectory) -> DirectoryPage:
        view = self._view(live)
        if request.attributes:
            await self._clear_entries(live, request)
        async with self._cleared(live, LeaseMode.SHARED, lambda: (request.ino,)):
            if not _present(view, request.ino).is_directory:
                raise NotADirectory(f"inode {request.ino} is no directory")
            rows, end = self._page(live.state.layer, request)
            grants = [self._grant(live, request.ino, self._opportune(live, request.ino, request.lease))]
            entries: list[DirectoryEntry] = []
            room = MAX_PAGE_BYTES
            for cookie, name, dentry in rows:
                if room <= 0 and cookie != entries[-1].cookie:
                    end = False
                    break
                inode = self._attributes(live, view, dentry.ino, grants, request) if request.attributes else None
                entries.append(DirectoryEntry(name, dentry.ino, dentry.type, cookie, inode))
                room -= ENTRY_BYTES + len(name) + (len(inode.inline or b"") if inode is not None else 0)
        return DirectoryPage(tuple(entries), end, tuple(grants))

    def _page(self, layer: LayerId, request: ReadDirectory) -> tuple[list[tuple[int, bytes, Dentry]], bool]:
        """Entries and whether they are the last. Names with equal cookies are never parted: the next page begins after
        the last cookie."""
        limit = max(1, min(request.limit, MAX_PAGE))
        start = max(request.cookie, FIRST_COOKIE)
        more = 1
        while True:
            rows = self._store.names(layer, request.ino, start, limit + more)
            if len(rows) < limit + more:
                return rows, True
            cut = next((at for at in range(limit, len(rows)) if rows[at][0] != rows[at - 1][0]), None)
            if cut is not None:
                return rows[:cut], False
            more *= 2

    async def _clear_entries(self, live: LiveSession, request: ReadDirectory) -> None:
        """Ask each exclusive holder of entries' inodes once for all that the page will show, so that nobody needs to look
        at them one by one. They may be taken again meanwhile: then the page leaves their attributes out."""
        async with self._cleared(live, LeaseMode.SHARED, lambda: (request.ino,)):
            rows, _ = self._page(live.state.layer, request)
        keys = [self._key(live, dentry.ino) for _, _, dentry in rows]
        taken = [key for key in keys if not self._leases.is_free(key, live.state.session, LeaseMode.SHARED)]
        if taken:
            await self._recaller.ask_once(live.state.session, taken, LeaseMode.SHARED)
            live.check()

    def _attributes(
        self, live: LiveSession, view: StoreView, ino: Ino, grants: list[Grant], request: ReadDirectory
    ) -> Inode | None:
        """An entry's attributes with a lease, unless somebody may be changing them just now."""
        key = self._key(live, ino)
        if self.guards.is_held(key) or not self._leases.is_free(key, live.state.session, LeaseMode.SHARED):
            return None
        inode = view.inode(ino)
        if inode is None:
            return None
        grants.append(self._grant(live, ino, self._opportune(live, ino, request.lease)))
        return inode if request.contents else without_inline(inode)

    def _opportune(self, live: LiveSession, ino: Ino, wanted: LeaseMode) -> LeaseMode:
        """What of `wanted` can be had without taking anything from anybody, or from under a request at work."""
        key = self._key(live, ino)
        alone = self._leases.is_free(key, live.state.session, wanted) and not self.guards.is_held(key)
        return wanted if alone else LeaseMode.SHARED

    async def get_xattr(self, live: LiveSession, request: GetXattr) -> XattrValue:
        """Attributes change at the server alone: no lease is needed to see them as they are."""
        view = self._view(live)
        _present(view, request.ino)
        value = view.xattr(request.ino, request.name)
        if value is None:
            raise NoAttribute(f"inode {request.ino} has no attribute {request.name!r}")
        return XattrValue(value)

    async def list_xattrs(self, live: LiveSession, request: ListXattrs) -> XattrNames:
        view = self._view(live)
        _present(view, request.ino)
        return XattrNames(view.xattr_names(request.ino))

    # --- changing -----------------------------------------------------------------------------------------------------

    async def execute(self, live: LiveSession, request: Execute) -> Executed:
        """Once for each number (I11); a number that is being worked on is waited for."""
        state = live.state
        state.advance(RequestNumber(min(request.floor, request.number)))
        while True:
            remembered = state.remembered(request.number)
            if remembered is not None:
                return self._repeat(live, request, remembered)
            state.check_number(request.number)
            twin = live.running.get(request.number)
            if twin is None:
                break
            await twin.wait()
        done = live.running[request.number] = trio.Event()
        try:
            return await self.execute_once(live, request)
        finally:
            del live.running[request.number]
            done.set()

    async def execute_once(self, live: LiveSession, request: Execute) -> Executed:
        """`execute` for a number that is known to be new."""
        try:
            operation = self.admitted(live, request.operation)
            full = self._space.full_because() if grows(operation) else None
            if full is not None:
                raise NoSpace(full)
            if self.is_write_back(live, request, operation):
                return self._carry_out(live, request, operation, Cleared((), False))
            view = self._view(live)
            async with self._cleared(live, LeaseMode.EXCLUSIVE, lambda: touched(view, operation)) as cleared:
                return self._carry_out(live, request, operation, cleared)
        except PosixError as error:
            live.state.results[request.number] = ResultRecord(error.number, str(error), ())
            raise

    def admitted(self, live: LiveSession, operation: Operation) -> Operation:
        """The operation as it will be carried out. Raises InvalidArgument."""
        state = live.state
        if isinstance(operation, Reap) or operation.layer != state.layer:
            raise InvalidArgument(f"session {state.session} may not ask for {type(operation).__name__} there")
        for new in new_ids(operation):
            if not state.owns(new):
                raise InvalidArgument(f"session {state.session} does not own id {new}")
        return not_from_the_future(operation, self._clock.time_ns())

    def is_write_back(self, live: LiveSession, request: Execute, operation: Operation) -> bool:
        """Whether the operation is to be carried out at once, past guards and recalls: nobody else has a lease on its inode.
        Raises StaleHandle."""
        if not is_of_the_holder(operation):
            return False
        ino = touched(self._view(live), operation)[0]
        if self._leases.mode(self._key(live, ino), live.state.session) is LeaseMode.EXCLUSIVE:
            return True
        if request.write_back:
            self.must_be_of_the_holder(live, ino)
        return False

    @staticmethod
    def must_be_of_the_holder(live: LiveSession, ino: Ino) -> None:
        """A write-back without the lease is too late: the last name of its inode went, and the lease with it. It must not wait,
        since somebody may be waiting for its sender."""
        raise StaleHandle(f"inode {ino} is not session {live.state.session}'s to write back")

    def _carry_out(self, live: LiveSession, request: Execute, operation: Operation, cleared: Cleared) -> Executed:
        """Apply, remember and grant, in one synchronous step and one batch (I10, I11)."""
        inos = cleared.inos
        applied, reaped, gone = self.apply(
            live, self._view(live), operation, keep_open=request.keep_open, removes=request.removes
        )
        inodes = changed_inodes(applied, reaped)
        self.store(live, applied.changes, reaped, request.number, ResultRecord(0, "", inodes, gone=gone))
        others = LeaseMode.SHARED if cleared.contended else request.others
        subject = applied.subject
        present = dict.fromkeys(inos)
        if subject is not None and inos:
            present[subject.ino] = None
        grants = [
            self._grant(
                live, ino, stronger(request.lease, others) if subject is not None and ino == subject.ino else others
            )
            for ino in present
            if self.may_cache(live, self._view(live).inode(ino))
        ]
        return Executed(inodes, tuple(grants), changed_names(applied), gone)

    def store(
        self,
        live: LiveSession,
        changes: Sequence[Change],
        reaped: Iterable[Ino],
        number: RequestNumber,
        record: ResultRecord,
    ) -> None:
        """One batch of what was changed and of what is remembered of it (I10, I11)."""
        self._store.commit(live.state.layer, changes, self._remember(live, number, record))
        for ino in reaped:
            self._leases.drop_inode(self._key(live, ino))
        if any(isinstance(change, Collect) for change in changes):
            self._collect()

    def apply(
        self, live: LiveSession, view: View, operation: Operation, *, keep_open: bool, removes: Ino = ANY_INODE
    ) -> Outcome:
        """What the operation changes, together with the reaping of inodes that it left without name and user (the others'
        leases were recalled and said what is open; this session says it with `keep_open`)."""
        applied = apply(view, operation)
        orphans = [change.ino for change in applied.changes if isinstance(change, PutOrphan)]
        reaped: list[Ino] = []
        gone: list[Ino] = []
        overlay = Overlay(view)
        overlay.stage(applied.changes)
        for ino in orphans:
            if removes in (ANY_INODE, ino):  # else what the session said is not about this one: its lease keeps it
                if keep_open:
                    self._leases.set_open(live.state.session, self._key(live, ino), True)
                    continue
                self._leases.surrender(live.state.session, self._key(live, ino))
                gone.append(ino)
            if not self._leases.is_in_use(self._key(live, ino)):
                overlay.stage(apply(overlay, Reap(operation.layer, operation.time_ns, 0, 0, ino)).changes)
                reaped.append(ino)
        applied = Applied(applied.subject, overlay.changes()) if reaped else applied
        return Outcome(applied, tuple(reaped), tuple(dict.fromkeys([*gone, *reaped])))

    def _remember(self, live: LiveSession, number: RequestNumber, record: ResultRecord) -> list[KeyChange]:
        state = live.state
        state.results[number] = record
        batch = [drop("session", result_key(state.session, number)) for number in state.take_forgotten()]
        batch.append(put("session", result_key(state.session, number), record))
        return batch

    def _repeat(self, live: LiveSession, request: Execute, record: ResultRecord) -> Executed:
        """The same answer as before, with the inodes as they are now and the leases that are free now."""
        if record.error:
            raise error_from_wire(record.error, record.text)
        view = self._view(live)
        grants: list[Grant] = []
        inodes: list[Inode] = []
        for at, then in enumerate(record.inodes):
            now = view.inode(then.ino)
            inodes.append(then if now is None else without_inline(now))
            if now is not None:
                grants.extend(self.free_grant(live, then.ino, request.lease if at == 0 else LeaseMode.SHARED))
        return Executed(tuple(inodes), tuple(grants), gone=record.gone)

    def free_grant(self, live: LiveSession, ino: Ino, wanted: LeaseMode) -> list[Grant]:
        """The strongest lease up to `wanted` that can be had at once, if any."""
        key = self._key(live, ino)
        if self.guards.is_held(key):
            return []
        for mode in (stronger(wanted, LeaseMode.SHARED), LeaseMode.SHARED):
            if self._leases.is_free(key, live.state.session, mode):
                return [self._grant(live, ino, mode)]
        return []

    # --- small things -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _cleared(
        self, live: LiveSession, wanted: LeaseMode, concerned: Callable[[], tuple[Ino, ...]]
    ) -> AsyncGenerator[Cleared]:
        """Guard the inodes concerned and take from others what cannot stand beside `wanted`. Which inodes are concerned
        is asked again after every wait."""
        while True:
            inos = concerned()
            keys = [self._key(live, ino) for ino in inos]
            async with self.guards.hold(keys):
                if concerned() == inos:
                    contended = await self._recaller.clear(live.state.session, keys, wanted)
                    live.check()
                    if concerned() == inos:
                        yield Cleared(inos, contended)
                        return

    def may_cache(self, live: LiveSession, inode: Inode | None) -> bool:
        """Whether the inode is still there, with a name or open in this session."""
        return inode is not None and (
            inode.nlink > 0 or self._leases.has_open(live.state.session, self._key(live, inode.ino))
        )

    def is_its_own(self, live: LiveSession, ino: Ino) -> bool:
        """Whether nobody else has any lease on the inode: then nobody is concerned by what the session does to it."""
        return self._leases.is_free(self._key(live, ino), live.state.session, LeaseMode.EXCLUSIVE)

    async def make_its_own(self, live: LiveSession, inos: Iterable[Ino]) -> None:
        """Take from others what they hold on the inodes. No guard is waited for: its holder may wait for the very journal
        whose operation this is about."""
        await self._recaller.clear(live.state.session, [self._key(live, ino) for ino in inos], LeaseMode.EXCLUSIVE)
        live.check()

    def _grant(self, live: LiveSession, ino: Ino, mode: LeaseMode) -> Grant:
        mode = stronger(mode, LeaseMode.SHARED)
        return self._leases.grant(self._key(live, ino), live.state.session, mode, self._clock.monotonic())

    def _key(self, live: LiveSession, ino: Ino) -> InodeKey:
        return InodeKey(live.state.layer, ino)

    def _view(self, live: LiveSession) -> StoreView:
        return self._store.view(live.state.layer)


def _present(view: StoreView, ino: Ino) -> Inode:
    inode = view.inode(ino)
    if inode is None:
        raise StaleHandle(f"inode {ino} is gone")
    return inode


def without_inline(inode: Inode) -> Inode:
    """The inode without a regular file's bytes (a symbolic link's target stays)."""
    return dataclasses.replace(inode, inline=None) if inode.is_inline and inode.inline else inode


def changed_inodes(applied: Applied, reaped: Iterable[Ino]) -> tuple[Inode, ...]:
    """The inodes that an operation changed, as they are afterwards, the subject first."""
    gone = {change.ino for change in applied.changes if isinstance(change, DropInode)} | set(reaped)
    subject = applied.subject
    first = [] if subject is None or subject.ino in gone else [subject]
    rest = [change.inode for change in applied.changes if isinstance(change, PutInode)]
    others = [inode for inode in rest if inode.ino not in gone and (subject is None or inode.ino != subject.ino)]
    return tuple(without_inline(inode) for inode in (*first, *others))


def changed_names(applied: Applied) -> tuple[NameChange, ...]:
    """The names that an operation changed, as they are afterwards."""
    names: dict[tuple[Ino, bytes], Ino] = {}
    for change in applied.changes:
        match change:
            case PutDentry(parent, name, dentry):
                names[parent, name] = dentry.ino
            case DropDentry(parent, name):
                names[parent, name] = NO_INODE
            case _:
                pass
    return tuple(NameChange(parent, name, ino) for (parent, name), ino in names.items())


def not_from_the_future(operation: Operation, now_ns: int) -> Operation:
    """A host whose clock is ahead does not write times from the future; what a client shows already is not changed for
    the little by which it can misjudge the server's clock."""
    return (
        operation
        if operation.time_ns <= now_ns + CLOCK_TOLERANCE_NS
        else dataclasses.replace(operation, time_ns=now_ns)
    )
