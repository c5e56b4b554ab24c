"""Changes of the tree that are carried out here: `apply` on the cached tree under exclusive leases, answered at once, and
told to the server by the journal.

    everything that decides is cached, and everything that changes is held exclusively?
        yes: apply, cache, append to the journal, answer
        no:  the operation goes to the server alone, when the journal is empty (I15)

Nothing is promised that the server could refuse: not while a quota or a full cluster may (`may_promise`). A refusal all the
same means that a lease was lost, or a bug: it is said loudly.
"""

import dataclasses
from collections.abc import Callable, Iterable

from fsd.client.cache import BlockCache
from fsd.client.file import File
from fsd.client.journal import Entry, Journal
from fsd.client.leases import LeaseTable
from fsd.client.overlap import Overlaps, Token
from fsd.client.session import Session, SessionReplaced
from fsd.client.state import UNLOGGED, Unlogged
from fsd.client.tree import ABSENT, Tree
from fsd.client.view import LocalView, NotCached, is_local, needs_contents
from fsd.core.ids import Ino, SessionId
from fsd.namespace.apply import apply
from fsd.namespace.operations import Operation
from fsd.namespace.records import Volume
from fsd.namespace.touched import born, names_of, touched
from fsd.namespace.view import Change, DropDentry, PutDentry, PutInode, PutOrphan
from fsd.protocol.metadata import LeaseMode


class Local:
    """See the module. `refused` hears of promises that the server did not keep; `discarded` of a file whose bytes nobody can
    read any more; `close_later` of one whose bytes are still on their way while its last name goes."""

    def __init__(
        self,
        session: Session,
        leases: LeaseTable,
        tree: Tree,
        overlaps: Overlaps,
        files: dict[Ino, File],
        blocks: BlockCache,
        refused: Callable[[Entry], None],
        discarded: Callable[[File], None],
        close_later: Callable[[File], None],
        state: Unlogged = UNLOGGED,
    ) -> None:
        self._session = session
        self._leases = leases
        self._tree = tree
        self._overlaps = overlaps
        self._files = files
        self._blocks = blocks
        self._refused = refused
        self._discarded = discarded
        self._close_later = close_later
        self._unlimited: tuple[Volume, Volume] | None = None
        self.journal = Journal(session.execute_batch, self._ended, state)

    def change(self, operation: Operation, session: SessionId, *, written_back: bool = False) -> Entry | None:
        """Carry out the operation here, synchronously; None if it must be asked for. `written_back`: it is part of giving a
        lease back, which may not be acted under any more. Raises what `apply` raises, SessionReplaced."""
        if session != self._session.id:
            raise SessionReplaced
        if not self._session.may_promise or not is_local(self._tree, operation):
            return None
        view = LocalView(self._tree, self._volume(), born(operation), whole=needs_contents(operation))
        try:
            inos = touched(view, operation)
            tokens: list[Token] = [*inos, *names_of(operation)]
            if not self.is_held(inos, written_back) or any(self._overlaps.is_changing(token) for token in tokens):
                return None
            applied = apply(view, operation)
        except NotCached:
            return None
        if any(isinstance(change, PutOrphan) and self.is_read_elsewhere(change.ino) for change in applied.changes):
            return None
        return self._promise(
            operation, inos, tokens, applied.changes, None if applied.subject is None else applied.subject.ino
        )

    def is_held(self, inos: Iterable[Ino], written_back: bool) -> bool:
        """Whether nobody else knows these inodes."""
        if written_back:
            return all(self._leases.get(ino).mode is LeaseMode.EXCLUSIVE for ino in inos)
        return all(self._leases.usable(ino, LeaseMode.EXCLUSIVE) for ino in inos)

    def is_read_elsewhere(self, ino: Ino) -> bool:
        """Whether others, who have the inode open, will read what is not written back yet."""
        file = self._files.get(ino)
        return file is not None and file.unwritten and self._leases.get(ino).open_elsewhere

    def _volume(self) -> Volume:
        """The volume without the quotas that it may have had when the session began: `may_promise` tells what is now."""
        volume = self._session.volume
        assert volume is not None
        if self._unlimited is None or self._unlimited[0] is not volume:
            self._unlimited = (volume, dataclasses.replace(volume, quota_bytes=0, quota_inodes=0))
        return self._unlimited[1]

    def _promise(
        self,
        operation: Operation,
        inos: tuple[Ino, ...],
        tokens: list[Token],
        changes: Iterable[Change],
        subject: Ino | None,
    ) -> Entry:
        new = born(operation)
        changed = inos if new is None else (*inos, new)
        ticket = self._overlaps.begin([*tokens, *changed], change=True, here=True)
        entry = Entry(operation, changed, ticket, None, new=new)
        orphans = [ino for change in changes if (ino := self._cache(change)) is not None]
        entry.subject = None if subject is None else self._tree.inode(subject)
        if new is not None:
            self._leases.born(new)
        for ino in orphans:
            file = self._files.get(ino)
            if file is not None and (file.handles or file.is_under_way):
                entry.keep_open = file.told_open = True
                if not file.handles:
                    self._close_later(file)
            else:
                entry.gone += (ino,)
                self._bury(ino, file)
        return self.journal.append(entry)

    def _cache(self, change: Change) -> Ino | None:
        """Keep what the change says; an inode that has lost its last name is told."""
        match change:
            case PutInode(inode):
                self._tree.put_inode(inode)
            case PutDentry(parent, name, dentry):
                self._tree.put_entry(parent, name, dentry.ino)
                self._tree.changed(parent)
            case DropDentry(parent, name):
                self._tree.put_entry(parent, name, ABSENT)
                self._tree.changed(parent)
            case PutOrphan(ino):
                return ino
            case _:
                pass  # usage and dead data are the server's; extended attributes are not cached
        return None

    def _bury(self, ino: Ino, file: File | None) -> None:
        """Nobody can reach the inode any more; the server takes the lease back with the name."""
        if file is not None:
            file.discard()
            file.unload()
            self._discarded(file)
        self._tree.drop(ino)
        self._blocks.drop(ino)
        self._leases.lower_usable(self._leases.get(ino), LeaseMode.NONE)

    def _ended(self, entry: Entry) -> None:
        self._overlaps.end(entry.ticket)
        if entry.error is not None:
            self._refused(entry)
            return
        for ino in entry.gone:
            self._leases.surrendered(ino)
