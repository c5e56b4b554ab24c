"""Going on with the session of a process that died: what its log says is put into this one's memory, then the servers
are asked.

    log -> files with their unwritten bytes, journal, handles, numbers                    nothing is asked yet
    ResumeSession(adopt) -> the leases that the session has           evicted meanwhile: lost as ever, and said so
    requests of write-back, then the journal, under the numbers that they had (I11)
    unwritten files: where their bytes are by now, under the leases that were never given up
    recalls are answered from now on; other requests are sent again, for the calls that ask for them

A recall waits until the unwritten files are known; nothing of that waits for anybody's recall: requests of write-back and the
journal pass by guards (metadata.tree), and an inode's record is looked at without a lease.
"""

import logging

import trio

from fsd.client.answers import Answers
from fsd.client.core import Core
from fsd.client.file import File, FileHandle, content_of
from fsd.client.replay import Handle, Pending, Restored, load
from fsd.client.session import SessionReplaced
from fsd.client.state import ClientState, Unlogged, subject_of
from fsd.core.errors import CorruptData, FsError, PosixError, ProtocolError, WriteLost
from fsd.core.ids import Ino, RequestNumber
from fsd.protocol.metadata import Entry, InspectInode, LeaseMode
from fsd.runtime.state import StateDirectory
from fsd.wire.codec import number_of_message

log = logging.getLogger(__name__)


def open_state(directory: StateDirectory, bytes_limit: int) -> tuple[ClientState, Restored | None]:
    """The log to write to, and what the one before says. A damaged log is not gone on with: what it promised is lost."""
    restored: Restored | None = None
    try:
        restored = load(directory)
    except (CorruptData, ProtocolError) as error:
        log.error("the write-back log cannot be read, what was in it alone is lost: %s", error)
        for segment in directory.segments():
            directory.remove(segment)
    if restored is None:
        return ClientState(
            directory, incarnation=0, segment=next_segment(directory), number=1, bytes_limit=bytes_limit
        ), None
    state = ClientState(
        directory,
        incarnation=restored.basis.incarnation + 1,
        segment=restored.last_segment + 1,
        number=restored.last_number + 1,
        bytes_limit=bytes_limit,
    )
    return state, restored


def next_segment(directory: StateDirectory) -> int:
    return max(directory.segments(), default=0) + 1


def sent_before(restored: Restored) -> tuple[RequestNumber, int] | None:
    """I11: what was sent is sent again under its numbers."""
    return restored.sent()


def handles_of(restored: Restored) -> list[Handle]:
    """Who had a file open has it open still."""
    return list(restored.handles.values())


class Resume:
    """One process's going on. `prepare` before the session starts, `finish` when it is live."""

    def __init__(self, core: Core, state: Unlogged, restored: Restored) -> None:
        self._core = core
        self._state = state
        self._restored = restored
        self.session = restored.basis.session
        self.answers = Answers(restored.done)
        self.handles: dict[int, FileHandle] = {}

    # --- before anybody is asked --------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Everything as it was in the other process, except what can be asked for again."""
        core, restored = self._core, self._restored
        now = core.runtime.clock.monotonic()
        for file in restored.files.values():
            file.keep_log(self._state)
            file.dirty_since = now
            core.files[file.ino] = file
        self._open_handles()
        for locks in restored.locks.values():
            core.locks.adopt(locks)
        self._restore_journal()
        core.session.restore(restored.basis, restored.next_number, restored.unanswered())
        for ino in self._inos():
            core.leases.get(ino).mode = LeaseMode.EXCLUSIVE  # claimed; nothing is done under it before it is granted
        self._state.restore(restored)
        for pending in restored.requests.values():
            if pending.call:
                self.answers.expect(pending.call, number_of_message(pending.request.operation))

    def _open_handles(self) -> None:
        core = self._core
        for handle in handles_of(self._restored):
            file = core.files.get(handle.ino)
            if file is None:
                file = core.files[handle.ino] = File(handle.ino, self._restored.basis.chunk_size, self._state)
            file.handles += 1
            file.told_open = True
            self.handles[handle.number] = FileHandle(file, handle.flags, core.options.read_ahead_bytes, handle.number)

    def _restore_journal(self) -> None:
        restored, core = self._restored, self._core
        entries = [restored.entries[position][0] for position in sorted(restored.entries)]
        for entry in entries:
            entry.ticket = core.overlaps.begin(entry.inos, change=True, here=True)
        core.journal.restore(restored.answered, entries, sent_before(restored))

    def _inos(self) -> list[Ino]:
        files = [file.ino for file in self._restored.files.values()]
        return list(
            dict.fromkeys([*files, *(ino for entry, _ in self._restored.entries.values() for ino in entry.inos)])
        )

    # --- when the session is live -------------------------------------------------------------------------------------

    async def finish(self) -> None:
        """Returns when nothing that the other process answered is in this log alone and unknown to this memory."""
        core, session = self._core, self._core.session.id
        same = session == self._restored.basis.session
        requests = list(self._restored.requests.values()) if same else []
        if not same:
            self.answers.lose_all()
        async with trio.open_nursery() as nursery:
            for pending in requests:
                if pending.urgent:
                    nursery.start_soon(self._carry_out, pending)
        for pending in requests:
            if not pending.urgent:
                core.nursery.start_soon(self._carry_out, pending)
        await core.journal.drain()
        files = [file for file in self._restored.files.values() if file.unwritten]
        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(self._load, file)
        core.restored.set()
        for file in files:
            core.write_back.account(file)
        log.info(
            "session %d goes on in a new process: %d handles, %d operations, %d requests, %d bytes in %d files to be written",
            session, len(self.handles), len(self._restored.entries), len(requests),
            sum(file.unwritten_bytes for file in files), len(files),
        )  # fmt: skip

    async def _carry_out(self, pending: Pending) -> None:
        """Ask again, under the same number, what may have been carried out."""
        operation, call = pending.request.operation, pending.call
        kind = number_of_message(operation)
        try:
            await self._core.session.carry_out(pending.request)
        except PosixError as error:
            log.debug("%s was refused: %s", operation, error)
            if call:
                self.answers.settle(call, kind, None)
        except (FsError, SessionReplaced) as error:
            log.warning("nobody knows whether %s was carried out: %s", operation, error)
            if call:
                self.answers.lose(call, kind)
        else:
            if call:
                self.answers.settle(call, kind, subject_of(operation))

    async def _load(self, file: File) -> None:
        """Where the bytes below the unwritten ones are. Without a lease, which the session has and nobody can be given."""
        core = self._core
        if core.leases.get(file.ino).mode is not LeaseMode.EXCLUSIVE:
            if file.unwritten:
                file.lose(WriteLost(f"writes to inode {file.ino} are lost: its lease is gone"))
            return
        reply: Entry = await core.session.ask(lambda _: InspectInode(core.volume.layer, file.ino))
        content = None if reply.inode is None else content_of(reply.inode)
        if core.leases.get(file.ino).mode is not LeaseMode.EXCLUSIVE:
            return  # evicted meanwhile, and said so
        if content is None:
            file.discard()  # the inode is gone for good
        else:
            file.load_below(content)
