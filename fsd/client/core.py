"""What all parts of a client share: the session and what lives and dies with it.

Here is the meeting of answers and leases: `read` and `change` send requests and cache what the answers say, if the lease
was held without a break since the answer was computed and nothing of our own overlapped. Here too is what a recall, a lost
lease and an eviction do. The order of a recall: stop acting under the lease (at its arrival), write back, invalidate, then
answer.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

import trio

from fsd import __version__
from fsd.client.cache import BlockCache
from fsd.client.file import File, content_of
from fsd.client.journal import Entry
from fsd.client.leases import LeaseTable
from fsd.client.local import Local
from fsd.client.locks import Locks
from fsd.client.maps import MapCache
from fsd.client.options import ClientOptions, Invalidate
from fsd.client.overlap import Overlaps, Ticket, Token
from fsd.client.returns import Returns
from fsd.client.session import Session
from fsd.client.state import UNLOGGED, Unlogged
from fsd.client.tree import Tree
from fsd.cluster.map import ClusterMap
from fsd.core.errors import FsError, SessionEvicted, StaleHandle, Unreachable, WriteLost
from fsd.core.ids import Ino, MapEpoch, SessionId
from fsd.namespace.operations import Operation, Truncate, WriteInline
from fsd.namespace.records import Inode, Volume
from fsd.protocol.cluster import GetMap, MapReply
from fsd.protocol.locks import LockGranted, LockReply, LocksTold
from fsd.protocol.metadata import (
    ANY_INODE,
    Executed,
    GetInode,
    Grant,
    HeldLease,
    HeldLock,
    LeaseMode,
    Recall,
    Recalled,
    RecallItem,
    Release,
)
from fsd.protocol.metadata import Entry as Found
from fsd.rpc.client import ChannelPool
from fsd.runtime import Runtime
from fsd.wire.handshake import Hello

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_HELD = 50_000  # leases told when a session is resumed; a message holds no more
RECALL_READERS_S = 1.0  # how long a recall waits for readers at work


class WriteBack(Protocol):
    """Who writes dirty bytes back (fsd.client.contents)."""

    async def write_back_for_recall(self, file: File) -> None: ...

    async def last_handle_closed(self, file: File) -> None: ...

    def account(self, file: File) -> None: ...

    def is_waiting(self) -> bool: ...


class Removal(NamedTuple):
    """A name of `ino` is being removed by a request that was sent when its lease had `serial`."""

    ino: Ino
    keep_open: bool = False
    serial: int = 0


class Core:
    """See the module. `write_back` is set right after construction."""

    write_back: WriteBack

    def __init__(
        self,
        runtime: Runtime,
        nursery: trio.Nursery,
        metadata: Iterable[str],
        volume: str,
        options: ClientOptions,
        invalidate: Invalidate,
        state: Unlogged = UNLOGGED,
    ) -> None:
        self.runtime = runtime
        self.nursery = nursery
        self.options = options
        self.invalidate = invalidate
        self.counts: Counter[str] = Counter()
        self.state = state
        self.restored = (
            trio.Event()
        )  # what a process before this one left unwritten is known; else set from the beginning
        self.names_known = trio.Event()  # no kernel has names that only a process before this one knew of
        self.session = Session(runtime, nursery, tuple(metadata), volume, self._hello, self, self.counts, state)
        self.leases = LeaseTable(self.session.is_valid)
        self.tree = Tree()
        self.overlaps = Overlaps()
        self.files: dict[Ino, File] = {}
        self.blocks = BlockCache(options.cache_bytes, options.cache_policy)
        self.maps = MapCache(self._fetch_map)
        self.channels = ChannelPool(runtime, nursery, self._hello)
        self._lost: list[Ino] = []
        self.returns = Returns(self)
        self._removals: Counter[Ino] = Counter()
        self._removal_ended = trio.Event()
        self._change_ended = trio.Event()
        self._writing_back = 0
        self.local = Local(
            self.session,
            self.leases,
            self.tree,
            self.overlaps,
            self.files,
            self.blocks,
            self._refused,
            self._discarded,
            self._close_later,
            state,
        )
        self.journal = self.local.journal
        self.locks = Locks(
            self.session,
            self.leases,
            self.journal,
            self.files,
            nursery,
            self.counts,
            runtime.clock,
            state=state,
        )

    @property
    def volume(self) -> Volume:
        assert self.session.volume is not None
        return self.session.volume

    @property
    def chunk_size(self) -> int:
        assert self.maps.map is not None
        return self.maps.map.chunk_size

    def _hello(self) -> Hello:
        return Hello(
            "client", self.options.name, __version__, self.session.file_system if hasattr(self, "session") else ""
        )

    async def _fetch_map(self, known: MapEpoch) -> ClusterMap | None:
        reply: MapReply = await self.session.ask_urgently(lambda _: GetMap(known))
        return reply.map

    # --- requests and what is cached of their answers -----------------------------------------------------------------

    @contextmanager
    def ticket(self, tokens: Iterable[Token], *, change: bool) -> Generator[Ticket]:
        """A request is under way from here to the end of the block."""
        ticket = self.overlaps.begin(tokens, change=change)
        for token in ticket.tokens:
            if isinstance(token, int):
                ticket.stamps[token] = self.leases.since(token)
        try:
            yield ticket
        finally:
            self.overlaps.end(ticket)

    def covered(self, ino: Ino, ticket: Ticket, grants: Iterable[Grant]) -> bool:
        """Whether the lease has been held without a break since the answer was computed."""
        lease = self.leases.find(ino)
        if lease is None or lease.since == 0:
            return False
        if ticket.stamps.get(ino, 0) == lease.since:
            return True
        return any(grant.ino == ino and lease.since <= grant.serial for grant in grants)

    def remember(self, inodes: Iterable[Inode], ticket: Ticket, grants: tuple[Grant, ...]) -> None:
        """Cache attributes from an answer, where that is safe."""
        for inode in inodes:
            if ticket.clean(inode.ino) and self.covered(inode.ino, ticket, grants):
                self.tree.put_inode(inode)
            elif ticket.change:
                self.tree.drop_inode(inode.ino)  # it has changed, and what it is now is not known for sure

    def remember_entry(self, parent: Ino, name: bytes, child: Ino, ticket: Ticket, grants: tuple[Grant, ...]) -> None:
        """Cache a name, or its absence."""
        if ticket.clean((parent, name)) and self.covered(parent, ticket, grants):
            self.tree.put_entry(parent, name, child)
        elif ticket.change:
            self.tree.drop_entry(parent, name)

    def remember_names(self, executed: Executed, ticket: Ticket) -> None:
        """Cache the names of a change as the server tells them: they may be other inodes' than was thought here."""
        told = {(change.parent, change.name): change.ino for change in executed.names}
        for token in ticket.tokens:
            if isinstance(token, tuple):
                self.tree.changed(token[0])
                child = told.get(token)
                if child is None:
                    self.tree.drop_entry(*token)
                else:
                    self.remember_entry(*token, child, ticket, executed.grants)

    def _let_go(self, executed: Executed, removal: Removal) -> None:
        """Inodes have lost their last name. What the server took from us is forgotten, what it kept for us is given back when
        it is not needed any more."""
        for ino in executed.gone:
            self._bury(ino, removal)
        for inode in executed.inodes:
            if inode.nlink or inode.is_directory or inode.ino in executed.gone:
                continue
            file = self.files.get(inode.ino)
            if file is not None and file.handles:
                file.told_open = True
            elif removal.keep_open and inode.ino == removal.ino:
                self._close_later(file or self.files.setdefault(inode.ino, File(inode.ino, self.chunk_size)))
            else:
                self.returns.forget(inode.ino)

    def _bury(self, ino: Ino, removal: Removal) -> None:
        """The server has removed the inode, or it is others' alone."""
        file = self.files.get(ino)
        if file is not None and not file.handles:
            file.told_open = False
            file.discard()
            file.unload()
            self._discarded(file)
        self.tree.drop(ino)
        self.blocks.drop(ino)
        lease = self.leases.find(ino)
        if lease is None:
            return
        if ino == removal.ino and lease.serial == removal.serial:
            self.leases.surrendered(ino)
        else:  # another grant was under way: the server may count on its return
            self.leases.lower_usable(lease, LeaseMode.NONE)
            self.returns.forget(ino)

    def _close_later(self, file: File) -> None:
        """The server keeps an inode without a name for us, and nobody here has it open: told when all is written back."""
        file.told_open = True
        self.nursery.start_soon(self.write_back.last_handle_closed, file)

    async def fetch_inode(self, ino: Ino, mode: LeaseMode, *, load: File | None = None) -> Inode:
        """Ask for attributes and a lease; `load`: the file that is to learn where its bytes are. Raises StaleHandle."""
        await self.journal.settle([ino])
        with self.ticket([ino], change=False) as ticket:
            reply: Found = await self.session.ask(lambda session: GetInode(session, ino, mode))
            inode = reply.inode
            if inode is None:
                raise StaleHandle(f"inode {ino} is gone")
            self.remember([inode], ticket, reply.grants)
            content = content_of(inode)
            if (
                load is not None
                and content is not None
                and load.content is None  # then no change of ours to the bytes is under way
                and self.covered(ino, ticket, reply.grants)
            ):
                load.load(content)
            return inode

    async def change(
        self,
        tokens: Iterable[Token],
        operation: Operation,
        *,
        lease: LeaseMode = LeaseMode.NONE,
        removes: Ino | None = None,
        urgent: bool = False,
        session: SessionId | None = None,
    ) -> Executed:
        """Have the server carry out one operation, behind all that was done here before; `removes`: whose name goes,
        perhaps its last; `urgent`: write-back. Errors: Session.execute.

        A caller who gives up does not end it: what was sent may be carried out, and then the caches must learn of it.
        (`urgent` ones run in flushes, which are detached as a whole.)"""

        async def send() -> Executed:
            with self.ticket(tokens, change=True) as ticket, self.removal(removes) as removal:
                try:
                    executed = await self.session.execute(
                        operation,
                        lease=lease,
                        others=LeaseMode.EXCLUSIVE,
                        keep_open=removal.keep_open,
                        removes=removes or ANY_INODE,
                        write_back=urgent,
                        session=session,
                    )
                except FsError:
                    self._doubt(ticket)
                    raise
                self.remember(executed.inodes, ticket, executed.grants)
                self.remember_names(executed, ticket)
                self._let_go(executed, removal)
                return executed

        async def work() -> Executed:
            announced = self.overlaps.announce(tokens)
            try:
                await self.journal.drain()
                return await send()
            finally:
                self.overlaps.withdraw(announced)
                event, self._change_ended = self._change_ended, trio.Event()
                event.set()

        tokens = tuple(tokens)
        return await (work() if urgent else self.detached(work))

    async def commit(self, ino: Ino, operation: Operation, session: SessionId) -> Inode:
        """Write back: what the operation says is durable on return, in order with what was done here. The inode as it is
        then. Raises what `apply` raises, SessionReplaced, SessionEvicted."""
        await self.journal.room()
        entry = self.local.change(operation, session, written_back=True)
        if entry is None:
            executed = await self.change([ino], operation, urgent=True, session=session)
            return executed.inodes[0]
        await self.journal.answered(entry)
        assert entry.subject is not None, "a commit is about an inode"
        return entry.subject

    async def quiet(self, ino: Ino) -> None:
        """Wait until no change of the inode is at the server."""
        while self.overlaps.is_changing(ino):
            await self._change_ended.wait()

    def _refused(self, entry: Entry) -> None:
        """The server did not do what was promised."""
        error = entry.error
        assert error is not None
        if isinstance(error, SessionEvicted):  # said once for all of them
            file = self.files.get(entry.inos[0]) if isinstance(entry.operation, WriteInline) else None
            if file is not None:
                file.fail(WriteLost(f"writes to inode {file.ino} are lost: {error}"))
            return
        self.counts["refused promises"] += 1
        log.error("%s was answered here and is refused: %s: %s", entry.operation, type(error).__name__, error)
        for ino in entry.inos:
            self.tree.drop(ino)
            file = self.files.get(ino)
            if file is not None and (ino == entry.new or isinstance(entry.operation, Truncate | WriteInline)):
                file.fail(WriteLost(f"inode {ino} is not as it was said to be: {error}"))
            self.nursery.start_soon(self.invalidate_kernel, ino)

    def _discarded(self, file: File) -> None:
        """Nobody can read what was written to the file."""
        self.write_back.account(file)
        self.forget_file(file)

    @contextmanager
    def removal(self, ino: Ino | None) -> Generator[Removal]:
        """A name of `ino` is being removed. The server must keep the inode for handles here, and for what is not written back
        yet, which others may read who have it open; then it must be told when it is not needed any more. Until the block ends
        nobody opens it here, since the answer would come too late for the server."""
        if ino is None:
            yield Removal(ANY_INODE)
            return
        file, lease = self.files.get(ino), self.leases.find(ino)
        keep_open = file is not None and file.is_needed
        if file is not None and keep_open:
            file.told_open = True
        self._removals[ino] += 1
        try:
            yield Removal(ino, keep_open, 0 if lease is None else lease.serial)
        finally:
            self._removals[ino] -= 1
            if not self._removals[ino]:
                del self._removals[ino]
            self._removal_ended.set()
            self._removal_ended = trio.Event()

    def is_being_removed(self, ino: Ino) -> bool:
        """Whether a name of it is being removed by the server."""
        return ino in self._removals

    async def no_removal(self, ino: Ino) -> None:
        """Wait until no name of `ino` is being removed; what is done synchronously afterwards comes before the next one."""
        while ino in self._removals:
            await self._removal_ended.wait()

    def _doubt(self, ticket: Ticket) -> None:
        """The operation failed: the names may be other than they were thought to be."""
        for token in ticket.tokens:
            if isinstance(token, tuple):
                self.tree.drop_entry(*token)

    async def detached(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, which goes on to its end even if this caller is cancelled."""
        done = trio.Event()
        results: list[T] = []
        errors: list[Exception] = []

        async def run() -> None:
            try:
                results.append(await work())
            except Exception as raised:
                errors.append(raised)
            finally:
                done.set()

        self.nursery.start_soon(run)
        await done.wait()
        if results:
            return results[0]
        raise errors[0] if errors else Unreachable("the file system was closed meanwhile")

    def shown(self, inode: Inode) -> Inode:
        """The inode with this client's own unwritten size and time."""
        file = self.files.get(inode.ino)
        return inode if file is None else file.shown(inode)

    def cached_inode(self, ino: Ino) -> Inode | None:
        """Attributes that are certainly the newest, without asking."""
        if not self.leases.usable(ino, LeaseMode.SHARED) or self.is_in_doubt(ino, ino):
            return None
        inode = self.tree.inode(ino)
        if inode is None:
            return None
        self.leases.touch(ino)
        return self.shown(inode)

    def is_in_doubt(self, ino: Ino, token: Token) -> bool:
        """Whether others may see a change of ours already that is not cached here yet: its answer is on the way. Under an
        exclusive lease nobody else can look."""
        return self.overlaps.is_sent(token) and not self.leases.usable(ino, LeaseMode.EXCLUSIVE)

    def forget_file(self, file: File) -> None:
        """Drop a file's state that is closed and clean."""
        if file.handles == 0 and not file.unwritten and not file.flush_lock.locked():
            file.changes += 1
            if self.files.get(file.ino) is file:
                del self.files[file.ino]

    # --- the session says (fsd.client.session.Keeper) -----------------------------------------------------------------

    def map_heard(self, epoch: MapEpoch) -> None:
        self.maps.heard(epoch)

    def grants(self, grants: tuple[Grant, ...]) -> None:
        for grant in grants:
            self.leases.granted(grant)

    def recall_arrived(self, recall: Recall) -> None:
        for item in recall.items:
            self.leases.recall(item, self.session.calls)

    async def recall(self, recall: Recall) -> Recalled:
        """Give back what is asked for; see the module for the order."""
        self.counts["recalls"] += len(recall.items)
        releases: list[Release] = []
        async with trio.open_nursery() as nursery:
            for item in recall.items:
                nursery.start_soon(self._give_back, item, releases)
        return Recalled(tuple(sorted(releases, key=lambda release: release.ino)))

    async def _give_back(self, item: RecallItem, releases: list[Release]) -> None:
        ino, keep = item.ino, item.keep
        serial = self.leases.recall(item, self.session.calls)
        await self.restored.wait()
        await self.leases.wait_idle(ino, RECALL_READERS_S)
        await self.hand_locks_over(ino, keep)
        await self.write_back_before_release(ino, keep)
        await self.ship_before_release(ino)
        if keep is LeaseMode.NONE:
            await self.names_known.wait()
            await self.invalidate_kernel(ino)
        held = self.leases.get(ino).mode
        if self.leases.lower(ino, serial, keep) and keep is LeaseMode.NONE:
            self.drop_caches(ino)
        file = self.files.get(ino)
        is_open = file is not None and file.handles > 0
        if file is not None and is_open:
            file.told_open = True
        kept = keep if keep.value <= held.value else held
        releases.append(Release(ino, serial, kept, is_open))

    async def write_back_before_release(self, ino: Ino, keep: LeaseMode) -> None:
        """What is dirty goes to the servers before anybody else may have the lease. Bytes that are left of an exclusive lease
        that is gone (its inode lost its last name) are on their way like anybody's, behind whoever asks now: not waited for."""
        if self.leases.get(ino).mode is not LeaseMode.EXCLUSIVE:
            return
        file = self.files.get(ino)
        if file is not None and keep is not LeaseMode.EXCLUSIVE and (file.unwritten or file.is_under_way):
            self._writing_back += 1
            try:
                await self.write_back.write_back_for_recall(file)
            finally:
                self._writing_back -= 1

    def is_writing_back(self) -> bool:
        return self._writing_back > 0 and self.write_back.is_waiting()

    async def hand_locks_over(self, ino: Ino, keep: LeaseMode) -> None:
        """The server knows all locks of the inode before anybody else may ask for one."""
        if keep is not LeaseMode.EXCLUSIVE:
            await self.locks.hand_over(ino)

    async def ship_before_release(self, ino: Ino) -> None:
        """What was done to the inode here is at the server before anybody else may look."""
        await self.journal.settle([ino])

    async def invalidate_kernel(self, ino: Ino) -> None:
        """The caches above forget what they have under this lease."""
        for name in self.tree.names(ino):
            await self.invalidate.entry(ino, name)
        await self.invalidate.inode(ino, attributes_only=False)

    def drop_caches(self, ino: Ino) -> None:
        """Nothing of the inode is known any more."""
        self.tree.drop(ino)
        self.blocks.drop(ino)
        file = self.files.get(ino)
        if file is not None:
            file.unload()
            self.forget_file(file)

    def held(self) -> tuple[HeldLease, ...]:
        """For resuming: files that are open or dirty first, then the most recently used; what does not fit is let go."""
        first: list[HeldLease] = []
        rest: list[HeldLease] = []
        for file in self.files.values():
            if file.handles and self.leases.find(file.ino) is None:  # it may be made by a request whose answer was lost
                file.told_open = True
                first.append(HeldLease(file.ino, LeaseMode.NONE, True))
        for lease in reversed(list(self.leases.oldest())):
            file = self.files.get(lease.ino)
            is_open = file is not None and file.handles > 0
            if is_open or (file is not None and file.unwritten) or self.journal.pending(lease.ino):
                first.append(HeldLease(lease.ino, lease.mode, is_open))
            elif lease.mode is not LeaseMode.NONE:
                rest.append(HeldLease(lease.ino, lease.mode, False))
        return tuple((first + rest)[:MAX_HELD])

    def held_locks(self) -> tuple[HeldLock, ...]:
        return self.locks.claims()

    def locks_resumed(self, locks: tuple[HeldLock, ...] | None) -> None:
        if locks is not None:
            self.locks.adopt(locks)
        self.locks.ask_again()

    def lock_answered(self, reply: LockReply | LockGranted) -> None:
        if isinstance(reply, LockGranted):
            self.locks.told_granted(reply)
        else:
            self.locks.answered(reply)

    def tell_locks(self, ino: Ino) -> LocksTold:
        return self.locks.tell(ino)

    def resumed(self, grants: tuple[Grant, ...]) -> None:
        self._lost += self.leases.resumed(grants, self.journal.unborn)

    async def lost_leases(self) -> None:
        lost, self._lost = self._lost, []
        for ino in lost:
            self._lose(ino, "its lease was lost with the connection")
            await self.invalidate_kernel(ino)
            self.drop_caches(ino)

    async def evicted(self) -> None:
        """What was not written back is lost, and said so to every handle; all caches are dropped, the kernel's too."""
        inos = [lease.ino for lease in self.leases.oldest()]
        lost = self.journal.lose(SessionEvicted(f"session {self.session.id} was evicted"))
        if lost:
            self.counts["lost operations"] += lost
            log.error("%d changes of names and attributes are lost: session %d was evicted", lost, self.session.id)
        self.leases.clear()
        self.locks.lost(self.session.id)
        for ino in list(self.files):
            self._lose(ino, f"session {self.session.id} was evicted")
        for ino in inos:
            await self.invalidate_kernel(ino)
        for ino in list(self.files):
            self.files[ino].told_open = False
            self.drop_caches(ino)
        self.tree.clear()
        self.blocks.clear()

    def reopened(self) -> None:
        """There is a new session, which has nothing open yet at the server."""
        self.locks.ask_again()
        for file in list(self.files.values()):
            if file.handles:
                self.nursery.start_soon(self._open_again, file)

    async def _open_again(self, file: File) -> None:
        try:
            if file.handles:
                await self.fetch_inode(file.ino, LeaseMode.SHARED)
        except StaleHandle:
            log.warning("inode %d, which is open here, was removed while its session was gone", file.ino)
        except FsError as error:
            log.warning("inode %d could not be opened again: %s", file.ino, error)

    def _lose(self, ino: Ino, why: str) -> None:
        file = self.files.get(ino)
        if file is None:
            return
        unwritten = file.unwritten
        lost = file.lose(WriteLost(f"writes to inode {ino} are lost: {why}"))
        self.write_back.account(file)
        if unwritten:
            self.counts["lost bytes"] += lost
            log.error("%d bytes written to inode %d are lost: %s", lost, ino, why)
