"""Names and attributes: lookups from the cached tree while a lease covers them, changes as one request each."""

import dataclasses
import logging
import stat
from collections.abc import Callable
from math import inf

import trio

from fsd.client.contents import Contents
from fsd.client.core import Core
from fsd.client.file import DirectoryHandle
from fsd.client.foresight import Foresight
from fsd.client.journal import Entry as JournalEntry
from fsd.client.options import Caller
from fsd.client.overlap import Ticket, Token
from fsd.client.session import SessionReplaced
from fsd.client.tree import ABSENT
from fsd.core.errors import FsError, InvalidArgument, NameTooLong, NoAttribute, NotADirectory, NotFound, StaleHandle
from fsd.core.ids import ROOT_INO, Ino, SessionId
from fsd.core.units import NAME_MAX
from fsd.namespace.keys import FIRST_COOKIE, cookie_of
from fsd.namespace.operations import (
    Create,
    Link,
    Mkdir,
    Mknod,
    Operation,
    RemoveXattr,
    Rename,
    RenameFlag,
    Rmdir,
    SetAttributes,
    SetXattr,
    Symlink,
    Unlink,
)
from fsd.namespace.records import Inode, InodeFlag
from fsd.protocol.metadata import (
    DirectoryEntry,
    DirectoryPage,
    Entry,
    GetXattr,
    LeaseMode,
    ListXattrs,
    Lookup,
    ReadDirectory,
    StatVolume,
    VolumeSpace,
    XattrNames,
    XattrValue,
)

NOBODY = ROOT_INO  # "no inode loses its last name": the root never does
log = logging.getLogger(__name__)

PAGE_ENTRIES = 1024
COMPLETE_NAMES = 4096  # a directory up to this is learned as a whole by whoever changes it
MAX_LEARNED = 1024
MAX_UNREAD = 65_536
LEARN_AGAIN_S = 1.0
MAX_PAGE_ENTRIES = 32_768  # a page grows only while all of its entries have one cookie


class Names:
    """See the module."""

    def __init__(self, core: Core, contents: Contents) -> None:
        self._core = core
        self._contents = contents
        self._learned: dict[tuple[Ino, bool], float] = {}  # when a directory may be learned again
        self._names_ahead = Foresight()
        self._contents_ahead = Foresight()
        self._unread: dict[Ino, tuple[Ino, bytes]] = {}  # where small files are that were not read yet
        contents.neighbours = self.neighbours

    # --- looking ------------------------------------------------------------------------------------------------------

    async def lookup(self, parent: Ino, name: bytes) -> Inode:
        """The inode of a name. Raises NotFound, NotADirectory, NameTooLong."""
        check_name(name)
        known = await self._learned_entry(parent, name)
        if known is None:
            await self._page_ahead(self._names_ahead, parent, name, contents=False)
            known = self.known_entry(parent, name)
        if known == ABSENT:
            raise NotFound(f"no {name!r} in inode {parent}")
        if known is not None:
            try:
                return await self.getattr(known)
            except StaleHandle:
                log.debug("inode %d is gone while %r was looked up", known, name)
        await self._core.journal.settle([parent])
        with self._core.ticket([parent, (parent, name)], change=False) as ticket:
            self._core.counts["lookup misses"] += 1
            reply: Entry = await self._core.session.ask(lambda session: Lookup(session, parent, name))
            inode = reply.inode
            child = ABSENT if inode is None else inode.ino
            self._core.remember_entry(parent, name, child, ticket, reply.grants)
            if inode is None:
                raise NotFound(f"no {name!r} in inode {parent}")
            self._remember_found(inode, ticket, reply)
            return self._core.cached_inode(inode.ino) or self._core.shown(inode)

    def _remember_found(self, inode: Inode, ticket: Ticket, reply: Entry) -> None:
        """Which inode the answer is about was not known when it was asked for: cached only if nothing of ours may have
        changed it since, that is with a grant in this answer under which nothing was sent."""
        busy = self._core.overlaps.is_unsettled(inode.ino) or inode.ino in self._core.files
        granted = any(
            grant.ino == inode.ino and grant.serial == self._core.leases.since(inode.ino) for grant in reply.grants
        )
        if granted and not busy:
            self._core.tree.put_inode(inode)

    def known_entry(self, parent: Ino, name: bytes) -> Ino | None:
        """The inode of a name or ABSENT, certainly so; None if nothing is known."""
        if not self._core.leases.usable(parent, LeaseMode.SHARED) or self._core.is_in_doubt(parent, (parent, name)):
            return None
        child = self._core.tree.resolve(parent, name)
        if child is not None:
            if child == ABSENT:
                self._core.tree.put_entry(parent, name, ABSENT)  # told: to be invalidated above with the lease
            self._core.leases.touch(parent)
            self._core.counts["lookup hits"] += 1
            self._names_ahead.hit(parent)
        return child

    async def getattr(self, ino: Ino) -> Inode:
        """Attributes, this client's unwritten size and times included. Raises StaleHandle."""
        inode = self._core.cached_inode(ino)
        if inode is not None:
            self._core.counts["attribute hits"] += 1
            return inode
        self._core.counts["attribute misses"] += 1
        return self._core.shown(await self._core.fetch_inode(ino, LeaseMode.SHARED))

    async def readlink(self, ino: Ino) -> bytes:
        inode = await self.getattr(ino)
        if not inode.is_symlink:
            raise InvalidArgument(f"inode {ino} is no symbolic link")
        if inode.inline is None:
            inode = await self._core.fetch_inode(ino, LeaseMode.SHARED)
        return inode.inline or b""

    # --- changing -----------------------------------------------------------------------------------------------------

    async def _change(
        self,
        tokens: list[Token],
        make: Callable[[int], Operation],
        *,
        removes: Ino | None = None,
    ) -> Inode | None:
        """One operation, here or at the server, made with the server's time; made again if the session was replaced before it
        was sent. What it is about, as it is then."""
        while True:
            try:
                entry = await self._change_here(tokens, make, self._core.session.id)
                if entry is not None:
                    return entry.subject
                executed = await self._core.change(
                    tokens,
                    make(self._core.session.now_ns()),
                    lease=LeaseMode.EXCLUSIVE,
                    removes=removes,
                    session=self._core.session.id,
                )
                return executed.inodes[0] if executed.inodes else None
            except SessionReplaced:
                continue

    async def _change_here(
        self, tokens: list[Token], make: Callable[[int], Operation], session: SessionId
    ) -> JournalEntry | None:
        """Carry the operation out here if that can be; see fsd.client.local."""
        await self._core.journal.room()
        names = [token for token in tokens if isinstance(token, tuple)]
        for parent, name in names:
            await self._prepare(parent, name)
        entry = self._core.local.change(make(self._core.session.now_ns()), session)
        self._core.counts["changes here" if entry is not None else "changes at the server"] += 1
        return entry

    async def _new(
        self,
        parent: Ino,
        name: bytes,
        make: Callable[[int, Ino], Operation],
        before: Callable[[Ino], None] | None = None,
    ) -> Inode:
        """Create a name with a new inode; `before` hears of its number before anybody else can."""
        check_name(name)
        while True:
            session: SessionId = self._core.session.id
            ino = Ino(await self._core.session.new_id())
            if before is not None:
                before(ino)
            tokens: list[Token] = [parent, (parent, name), ino]
            try:
                entry = await self._change_here(tokens, lambda now, ino=ino: make(now, ino), session)
                if entry is not None and entry.subject is not None:
                    return self._core.shown(entry.subject)
                executed = await self._core.change(
                    tokens,
                    make(self._core.session.now_ns(), ino),
                    lease=LeaseMode.EXCLUSIVE,
                    session=session,
                )
                return self._core.shown(executed.inodes[0])
            except SessionReplaced:
                continue

    async def create(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, before: Callable[[Ino], None] | None = None
    ) -> Inode:
        """A new regular file, with an exclusive lease on it."""
        layer = self._core.volume.layer
        return await self._new(
            parent,
            name,
            lambda now, ino: Create(layer, now, caller.uid, caller.gid, parent, name, ino, stat.S_IMODE(mode)),
            before,
        )

    async def mkdir(self, caller: Caller, parent: Ino, name: bytes, mode: int) -> Inode:
        layer = self._core.volume.layer
        return await self._new(
            parent,
            name,
            lambda now, ino: Mkdir(layer, now, caller.uid, caller.gid, parent, name, ino, stat.S_IMODE(mode)),
        )

    async def mknod(self, caller: Caller, parent: Ino, name: bytes, mode: int, rdev: int) -> Inode:
        layer = self._core.volume.layer
        return await self._new(
            parent,
            name,
            lambda now, ino: Mknod(layer, now, caller.uid, caller.gid, parent, name, ino, mode, rdev),
        )

    async def symlink(self, caller: Caller, parent: Ino, name: bytes, target: bytes) -> Inode:
        layer = self._core.volume.layer
        inode = await self._new(
            parent,
            name,
            lambda now, ino: Symlink(layer, now, caller.uid, caller.gid, parent, name, ino, target),
        )
        cached = self._core.tree.inode(inode.ino)
        if cached is not None and cached.inline is None:
            self._core.tree.put_inode(dataclasses.replace(cached, inline=target))
        return dataclasses.replace(inode, inline=target)

    async def link(self, caller: Caller, ino: Ino, parent: Ino, name: bytes) -> Inode:
        check_name(name)
        layer = self._core.volume.layer
        inode = await self._change(
            [ino, parent, (parent, name)],
            lambda now: Link(layer, now, caller.uid, caller.gid, ino, parent, name),
        )
        assert inode is not None, "a link is about an inode"
        return self._core.shown(inode)

    async def unlink(self, caller: Caller, parent: Ino, name: bytes) -> None:
        """A file that is open here lives until its last handle, here and anywhere, is gone."""
        check_name(name)
        layer = self._core.volume.layer
        child = await self._child(parent, name)
        await self._change(
            [parent, (parent, name), child],
            lambda now: Unlink(layer, now, caller.uid, caller.gid, parent, name),
            removes=child,
        )

    async def rmdir(self, caller: Caller, parent: Ino, name: bytes) -> None:
        check_name(name)
        layer = self._core.volume.layer
        child = await self._child(parent, name)
        await self._change(
            [parent, (parent, name), child],
            lambda now: Rmdir(layer, now, caller.uid, caller.gid, parent, name),
            removes=child,
        )

    async def rename(
        self, caller: Caller, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int
    ) -> None:
        """A replaced file that is open here lives on, as with unlink."""
        check_name(name)
        check_name(new_name)
        layer = self._core.volume.layer
        child = await self._child(parent, name)
        target = await self._child_or_absent(new_parent, new_name)
        exchange = bool(flags & RenameFlag.EXCHANGE)
        tokens: list[Token] = [parent, new_parent, (parent, name), (new_parent, new_name), child]
        await self._change(
            tokens if target == ABSENT else [*tokens, target],
            lambda now: Rename(layer, now, caller.uid, caller.gid, parent, name, new_parent, new_name, flags),
            removes=NOBODY if exchange or target == ABSENT else target,
        )

    async def _child(self, parent: Ino, name: bytes) -> Ino:
        known = self.known_entry(parent, name)
        if known is not None and known != ABSENT:
            return known
        return (await self.lookup(parent, name)).ino

    async def _child_or_absent(self, parent: Ino, name: bytes) -> Ino:
        try:
            return await self._child(parent, name)
        except NotFound:
            return ABSENT

    # --- knowing enough to change a directory here --------------------------------------------------------------------

    async def _learned_entry(self, parent: Ino, name: bytes) -> Ino | None:
        """`known_entry`, after learning all names of a directory that this client is changing."""
        known = self.known_entry(parent, name)
        if known is None and self._core.leases.usable(parent, LeaseMode.EXCLUSIVE):
            await self._prepare(parent, name)
            known = self.known_entry(parent, name)
        return known

    async def _prepare(self, parent: Ino, name: bytes) -> None:
        """In a directory that is this client's alone: wait for what it has asked of the server, and learn whether the name is
        there, or get the lease on what it names, together with its neighbours'."""
        core = self._core
        if not core.leases.usable(parent, LeaseMode.EXCLUSIVE):
            return
        await core.quiet(parent)
        child = core.tree.resolve(parent, name)
        if child == ABSENT or not core.leases.usable(parent, LeaseMode.EXCLUSIVE):
            return
        if child is None:
            await self._learn(parent, name, attributes=False)
        elif not self._is_own(child):
            await self._learn(parent, name, attributes=True)

    def _is_own(self, ino: Ino) -> bool:
        return self._core.leases.usable(ino, LeaseMode.EXCLUSIVE) and self._core.tree.inode(ino) is not None

    async def _learn(self, parent: Ino, name: bytes, *, attributes: bool) -> None:
        """Read the directory, or the part of a large one that is about to be changed; not again and again where that is of no
        use."""
        key = (parent, attributes)
        directory = self._core.tree.inode(parent)
        if directory is None or trio.current_time() < self._learned.get(key, -inf):
            return
        large = directory.size > COMPLETE_NAMES
        if large and not attributes:
            return
        if len(self._learned) >= MAX_LEARNED:
            self._learned.clear()
        self._learned[key] = trio.current_time() + LEARN_AGAIN_S
        self._core.counts["directories learned"] += 1
        cookie = cookie_of(name) if large else FIRST_COOKIE
        await self._read_pages(parent, cookie, once=large, lease=LeaseMode.EXCLUSIVE, attributes=attributes)
        child = self._core.tree.resolve(parent, name)
        if child == ABSENT or (child is not None and (not attributes or self._is_own(child))):
            self._learned.pop(key, None)

    async def _read_pages(
        self, parent: Ino, cookie: int, *, once: bool, lease: LeaseMode, attributes: bool = True
    ) -> None:
        """One page from `cookie` on, or all of them."""
        while True:
            page = await self._ask_page(parent, cookie, PAGE_ENTRIES, attributes, lease)
            if page.end or once or not page.entries:
                break
            cookie = page.entries[-1].cookie + 1

    # --- reading ahead ------------------------------------------------------------------------------------------------

    async def _page_ahead(self, foresight: Foresight, parent: Ino, name: bytes, *, contents: bool) -> None:
        """Something of the directory is not known: if it is asked for one after the other, read it page by page."""
        cookie = foresight.missed(parent, cookie_of(name))
        if cookie is None:
            return
        page: DirectoryPage | None = None
        try:
            page = await self._ask_page(parent, cookie, PAGE_ENTRIES, attributes=True, contents=contents)
        finally:
            entries = page.entries if page is not None else ()
            foresight.read(parent, entries[-1].cookie if entries else None, page is not None and page.end)

    async def neighbours(self, ino: Ino) -> None:
        """The bytes of a small file are wanted: if others of its directory were wanted before, ask for those of many."""
        inode = self._core.tree.inode(ino)
        if inode is not None and inode.inline is not None:
            self.was_read(ino)
            return
        place = self._unread.pop(ino, None)
        if place is None:
            return
        try:
            await self._page_ahead(self._contents_ahead, *place, contents=True)
        except FsError as error:
            log.debug("small files beside inode %d are not read ahead: %s", ino, error)

    def was_read(self, ino: Ino) -> None:
        """A small file's bytes were wanted and known."""
        place = self._unread.pop(ino, None)
        if place is not None:
            self._contents_ahead.hit(place[0])

    def _place(self, parent: Ino, name: bytes, inode: Inode) -> None:
        """Remember where a small file is that was not read yet."""
        if inode.is_inline and inode.size and inode.ino not in self._core.files:
            if len(self._unread) >= MAX_UNREAD:
                self._unread.clear()
            self._unread[inode.ino] = (parent, name)

    # --- attributes ---------------------------------------------------------------------------------------------------

    async def set_attributes(
        self,
        caller: Caller,
        ino: Ino,
        *,
        mode: int | None,
        uid: int | None,
        gid: int | None,
        atime_ns: int | None,
        mtime_ns: int | None,
    ) -> None:
        layer = self._core.volume.layer
        file = self._core.files.get(ino)
        times_only = mode is None and uid is None and gid is None
        if file is not None and times_only and self._contents.holds(file, LeaseMode.EXCLUSIVE):
            self._contents.set_times(file, atime_ns, mtime_ns)
            return
        if file is not None and file.unwritten and (mtime_ns is not None or atime_ns is not None):
            operation = SetAttributes(
                layer, self._core.session.now_ns(), caller.uid, caller.gid, ino, mode, uid, gid, atime_ns, mtime_ns
            )
            await self._contents.set_attributes(file, operation)
            return
        await self._change(
            [ino],
            lambda now: SetAttributes(layer, now, caller.uid, caller.gid, ino, mode, uid, gid, atime_ns, mtime_ns),
        )

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """Raises NoAttribute."""
        if await self._has_no_xattrs(ino):
            raise NoAttribute(f"inode {ino} has no {name!r}")
        await self._core.journal.settle([ino])
        reply: XattrValue = await self._core.session.ask(lambda session: GetXattr(session, ino, name))
        return reply.value

    async def listxattr(self, ino: Ino) -> tuple[bytes, ...]:
        if await self._has_no_xattrs(ino):
            return ()
        await self._core.journal.settle([ino])
        reply: XattrNames = await self._core.session.ask(lambda session: ListXattrs(session, ino))
        return reply.names

    async def _has_no_xattrs(self, ino: Ino) -> bool:
        inode = await self.getattr(ino)
        return not inode.flags & InodeFlag.HAS_XATTRS

    async def setxattr(self, caller: Caller, ino: Ino, name: bytes, value: bytes, flags: int) -> None:
        """Raises AlreadyExists, NoAttribute by flags."""
        layer = self._core.volume.layer
        await self._change(
            [ino],
            lambda now: SetXattr(layer, now, caller.uid, caller.gid, ino, name, value, flags),
        )

    async def removexattr(self, caller: Caller, ino: Ino, name: bytes) -> None:
        layer = self._core.volume.layer
        await self._change([ino], lambda now: RemoveXattr(layer, now, caller.uid, caller.gid, ino, name))

    async def space(self) -> VolumeSpace:
        await self._core.journal.drain()
        reply: VolumeSpace = await self._core.session.ask(StatVolume)
        return reply

    # --- directories --------------------------------------------------------------------------------------------------

    async def open_directory(self, ino: Ino) -> DirectoryHandle:
        """Raises NotADirectory."""
        inode = await self.getattr(ino)
        if not inode.is_directory:
            raise NotADirectory(f"inode {ino} is no directory")
        return DirectoryHandle(ino)

    async def read_directory(self, handle: DirectoryHandle, cookie: int, attributes: bool) -> list[DirectoryEntry]:
        """The next entries behind `cookie`; none at the end. No page ends among entries of equal cookies."""
        if not self._page_serves(handle, cookie, attributes) and not self._page_here(handle):
            await self._fetch_page(handle, cookie, attributes)
        return [
            dataclasses.replace(entry, inode=self._core.cached_inode(entry.ino)) if attributes else entry
            for entry in handle.page
            if entry.cookie > cookie
        ]

    def _page_serves(self, handle: DirectoryHandle, cookie: int, attributes: bool) -> bool:
        """Whether the last page has what is wanted and is still true."""
        if handle.stamp is None or handle.stamp != self._stamp(handle.ino):
            return False
        if attributes and not handle.page_attributes:
            return False
        if not self._core.leases.usable(handle.ino, LeaseMode.SHARED) or cookie < handle.page_after:
            return False
        if self._core.is_in_doubt(handle.ino, handle.ino):
            return False
        return handle.page_end or bool(handle.page and handle.page[-1].cookie > cookie)

    def _page_here(self, handle: DirectoryHandle) -> bool:
        """Make a page of all names of a complete directory that is not too large."""
        ino, tree = handle.ino, self._core.tree
        directory = tree.inode(ino)
        if directory is None or directory.size > COMPLETE_NAMES or not tree.is_complete(ino):
            return False
        if not self._core.leases.usable(ino, LeaseMode.SHARED) or self._core.is_in_doubt(ino, ino):
            return False
        page: list[DirectoryEntry] = []
        for name, child in tree.children(ino):
            inode = tree.inode(child)
            if inode is None:
                return False
            page.append(DirectoryEntry(name, child, stat.S_IFMT(inode.mode), cookie_of(name)))
        handle.page = sorted(page, key=lambda entry: (entry.cookie, entry.name))
        handle.page_after, handle.page_end, handle.page_attributes = 0, True, True
        handle.stamp = self._stamp(ino)
        self._core.counts["directories read here"] += 1
        return True

    def _stamp(self, ino: Ino) -> tuple[int, int]:
        return self._core.leases.since(ino), self._core.tree.version(ino)

    async def _fetch_page(self, handle: DirectoryHandle, cookie: int, attributes: bool) -> None:
        limit = PAGE_ENTRIES
        while True:
            version = self._core.tree.version(handle.ino)
            reply = await self._ask_page(handle.ino, cookie + 1, limit, attributes)
            page = whole_cookies(reply)
            if page or reply.end or limit >= MAX_PAGE_ENTRIES:
                break
            limit *= 2
        handle.page, handle.page_after, handle.page_end = page, cookie, reply.end
        handle.page_attributes = attributes
        since = self._core.leases.since(handle.ino)
        unbroken = any(grant.ino == handle.ino and since <= grant.serial for grant in reply.grants)
        good = since and unbroken and version == self._core.tree.version(handle.ino)
        handle.stamp = (since, version) if good else None

    async def _ask_page(
        self,
        ino: Ino,
        cookie: int,
        limit: int,
        attributes: bool,
        lease: LeaseMode = LeaseMode.SHARED,
        *,
        contents: bool = False,
    ) -> DirectoryPage:
        await self._core.journal.settle([ino])
        with self._core.ticket([ino], change=False) as ticket:
            reply: DirectoryPage = await self._core.session.ask(
                lambda session: ReadDirectory(session, ino, cookie, limit, attributes, lease, contents)
            )
            clean = ticket.clean(ino) and self._core.covered(ino, ticket, reply.grants)
            serials = {grant.ino: grant.serial for grant in reply.grants}
            for entry in reply.entries:
                if clean and not self._core.overlaps.is_unsettled((ino, entry.name)):
                    self._core.tree.put_entry(ino, entry.name, entry.ino)
                if entry.inode is not None:
                    self._remember_listed(entry.inode, serials.get(entry.ino, 0))
                    self._place(ino, entry.name, entry.inode)
            return reply

    def _remember_listed(self, inode: Inode, serial: int) -> None:
        """As `_remember_found`; a file that is open but neither read nor written yet may be learned too."""
        file = self._core.files.get(inode.ino)
        in_use = file is not None and (file.unwritten or file.content is not None)
        busy = in_use or self._core.overlaps.is_unsettled(inode.ino)
        if busy or not serial:
            return
        if serial == self._core.leases.since(inode.ino) or self._only_adds_contents(inode):
            self._core.tree.put_inode(inode)

    def _only_adds_contents(self, inode: Inode) -> bool:
        """The attributes are the ones that are known, so nothing has changed since: what is new are inline bytes."""
        known = self._core.tree.inode(inode.ino)
        return (
            known is not None
            and inode.inline is not None
            and self._core.leases.usable(inode.ino, LeaseMode.SHARED)
            and dataclasses.replace(inode, inline=known.inline) == known
        )


def whole_cookies(page: DirectoryPage) -> list[DirectoryEntry]:
    """The page without its last group of equal cookies, which may go on in the next; all of it at the end."""
    if page.end or not page.entries:
        return list(page.entries)
    last = page.entries[-1].cookie
    return [entry for entry in page.entries if entry.cookie != last]


def check_name(name: bytes) -> None:
    """Raises NameTooLong."""
    if len(name) > NAME_MAX:
        raise NameTooLong(f"a name of {len(name)} bytes, at most {NAME_MAX} are allowed")
