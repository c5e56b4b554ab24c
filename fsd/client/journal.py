"""The journal: operations that were carried out here under exclusive leases and that the server has not confirmed yet.

    append ──> waiting ──> under way (one batch at a time, in order) ──> answered
                  └──────────────┴──── the session is evicted ──> lost

What is shipped is always a prefix (I15). A batch leaves when the one before it is answered and somebody waits for it, or it
is large enough, or LINGER_S have passed: every batch costs the server a flush of its disk, for which the answers to other
requests wait too (cp -r of a cold tree took twice as long while single operations left at once). Nothing in the journal waits
for anybody else: the leases are here. Barriers wait for a prefix too: `settle` up to the last operation that touched an inode
(a recall, an fsync), `drain` for all. Bounded in operations and bytes: `room` makes the next caller wait.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import trio

from fsd.client.overlap import Ticket
from fsd.client.state import UNLOGGED, Unlogged
from fsd.core.errors import FsError, error_from_wire
from fsd.core.ids import Ino, RequestNumber
from fsd.namespace.operations import Operation, SetXattr, Symlink, WriteInline
from fsd.namespace.records import Inode
from fsd.protocol.metadata import BatchExecuted, BatchItem

log = logging.getLogger(__name__)

MAX_ITEMS = 16_384
MAX_BYTES = 32 << 20
BATCH_ITEMS = 512
BATCH_BYTES = 1 << 20
LINGER_S = 0.05
ITEM_BYTES = 160  # of an operation without its contents, names and all, about


@dataclass(slots=True, eq=False)
class Entry:
    """One operation. `inos` are those that it changes, the new one included; `subject` what it is about, as it is now."""

    operation: Operation
    inos: tuple[Ino, ...]
    ticket: Ticket
    subject: Inode | None
    keep_open: bool = False
    new: Ino | None = None
    gone: tuple[Ino, ...] = ()
    position: int = 0
    error: FsError | None = None

    @property
    def size_bytes(self) -> int:
        match self.operation:
            case WriteInline():
                return ITEM_BYTES + len(self.operation.contents)
            case SetXattr():
                return ITEM_BYTES + len(self.operation.value)
            case Symlink():
                return ITEM_BYTES + len(self.operation.target)
            case _:
                return ITEM_BYTES


class Ship(Protocol):
    """`sent_as`: the number of the first, if they have been sent before by another process."""

    def __call__(
        self, items: tuple[BatchItem, ...], sent_as: RequestNumber | None = None
    ) -> Awaitable[BatchExecuted]: ...


Ended = Callable[[Entry], None]


class Journal:
    """See the module. `ship` sends a batch until it is answered, under new numbers or those that it was sent under before;
    `ended` hears of every operation's end, in order."""

    def __init__(self, ship: Ship, ended: Ended, state: Unlogged = UNLOGGED) -> None:
        self._ship = ship
        self._state = state
        self._sent_before: tuple[RequestNumber, int] | None = None
        self._ended = ended
        self._entries: deque[Entry] = deque()
        self._last: dict[Ino, int] = {}  # position of the last unanswered operation that touches it
        self._new: dict[Ino, None] = {}
        self._appended = 0
        self._answered = 0
        self._lives = 0
        self._wanted = 0  # somebody waits until all up to this position is answered
        self._some = trio.Event()
        self._hurry = trio.Event()
        self._progress = trio.Event()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    # --- adding -------------------------------------------------------------------------------------------------------

    def is_full(self) -> bool:
        return len(self._entries) >= MAX_ITEMS or self.size_bytes >= MAX_BYTES

    async def room(self) -> None:
        """Back-pressure: return when there is room for one more."""
        while self.is_full():
            self._hurry.set()
            await self._progress.wait()

    def append(self, entry: Entry) -> Entry:
        """The operation is done here and promised."""
        self._appended += 1
        entry.position = self._appended
        self._state.journalled(entry)
        self._add(entry)
        return entry

    def restore(self, answered: int, entries: list[Entry], sent: tuple[RequestNumber, int] | None) -> None:
        """Go on with another process's journal: what it had not been answered for; `sent` is the number of the first and how
        many it had sent."""
        self._answered = self._appended = answered
        self._sent_before = sent
        for entry in entries:
            self._appended = entry.position
            self._add(entry)
        self._wanted = self._appended

    def _add(self, entry: Entry) -> None:
        self._entries.append(entry)
        self.size_bytes += entry.size_bytes
        for ino in entry.inos:
            self._last[ino] = entry.position
        if entry.new is not None:
            self._new[entry.new] = None
        self._some.set()
        if self._is_worth_a_batch():
            self._hurry.set()

    def _is_worth_a_batch(self) -> bool:
        return len(self._entries) >= BATCH_ITEMS or self.size_bytes >= BATCH_BYTES or self.is_full()

    # --- barriers -----------------------------------------------------------------------------------------------------

    def pending(self, ino: Ino) -> bool:
        """Whether the server does not know all that was done to the inode."""
        return ino in self._last

    def unborn(self, ino: Ino) -> bool:
        """Whether the server may not know the inode at all."""
        return ino in self._new

    async def settle(self, inos: Iterable[Ino]) -> None:
        """Return when all that was done to the inodes so far is at the server, durably (or lost)."""
        await self._until(max((self._last.get(ino, 0) for ino in inos), default=0))

    async def drain(self) -> None:
        """Return when all that was done so far is at the server, durably (or lost)."""
        await self._until(self._appended)

    async def answered(self, entry: Entry) -> None:
        """Return when the operation is durable. Raises why it never will be."""
        await self._until(entry.position)
        if entry.error is not None:
            raise entry.error

    async def _until(self, position: int) -> None:
        self._wanted = max(self._wanted, position)
        while self._answered < position:
            self._hurry.set()
            await self._progress.wait()

    # --- shipping -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ship until cancelled."""
        while True:
            while not self._entries:
                self._some = trio.Event()
                await self._some.wait()
            await self._gather()
            batch = self.take_batch()
            if batch:  # else the session was evicted meanwhile
                await self._ship_batch(batch)

    async def _gather(self) -> None:
        """Wait for company, unless somebody waits for us."""
        if self._wanted > self._answered or self._is_worth_a_batch():
            return
        self._hurry = trio.Event()
        with trio.move_on_after(LINGER_S):
            await self._hurry.wait()

    def take_batch(self) -> list[Entry]:
        """The oldest operations, as many as go into one message. They stay in the journal until they are answered."""
        if self._sent_before is not None:
            return list(self._entries)[: self._sent_before[1]]  # what was numbered together is sent together again
        batch: list[Entry] = []
        room = BATCH_BYTES
        for entry in self._entries:
            if batch and (len(batch) >= BATCH_ITEMS or room < entry.size_bytes):
                break
            batch.append(entry)
            room -= entry.size_bytes
        return batch

    async def _ship_batch(self, batch: list[Entry]) -> None:
        life = self._lives
        number = None if self._sent_before is None else self._sent_before[0]
        self._sent_before = None
        try:
            items = tuple(BatchItem(entry.operation, entry.keep_open) for entry in batch)
            executed = await (self._ship(items) if number is None else self._ship(items, number))
        except FsError as error:
            if life == self._lives:
                self._end(batch, dict.fromkeys(range(len(batch)), error))
            return
        if life == self._lives:
            self._end(
                batch, {refused.index: error_from_wire(refused.error, refused.text) for refused in executed.errors}
            )

    def _end(self, batch: list[Entry], errors: dict[int, FsError]) -> None:
        for index, entry in enumerate(batch):
            assert self._entries[0] is entry, "the journal is answered in order"
            self._entries.popleft()
            entry.error = errors.get(index)
            self._answer(entry)
        self._state.journal_answered(self._answered)
        self._wake()

    def _answer(self, entry: Entry) -> None:
        self.size_bytes -= entry.size_bytes
        self._answered = entry.position
        for ino in entry.inos:
            if self._last.get(ino) == entry.position:
                del self._last[ino]
        if entry.new is not None:
            self._new.pop(entry.new, None)
        self._ended(entry)

    def _wake(self) -> None:
        progress, self._progress = self._progress, trio.Event()
        progress.set()

    def lose(self, error: FsError) -> int:
        """The session is gone: nothing of what is here will be carried out. How many operations that are."""
        lost = len(self._entries)
        self._lives += 1
        self._sent_before = None
        while self._entries:
            entry = self._entries.popleft()
            entry.error = error
            self._answer(entry)
        self._wake()
        return lost
