"""Looking for rot before a reader meets it, and healing it (I8, R13).

    light   the primary compares orders and checksums of its groups with every other member's, from the indexes
    deep    every member reads every block of its copies and verifies it; a secondary asks its primary to mend what is bad

Mending is the same in all cases: under the chunk's lock the primary makes sure of its own copy (repaired from a member's copy
of the same order if need be) and pushes it whole, under a new order, to all. A chunk without a good copy is told, counted as
lost and answers EIO; it is never hidden.
"""

import logging
from dataclasses import dataclass
from typing import Never

import trio

from chunkserver import resync
from chunkserver.budget import Rate
from chunkserver.carrier import Carrier
from chunkserver.leader import PAGE, Leader
from chunkserver.members import Members
from chunkserver.replica import Group, RowChanged, check_asker, check_known, check_primary, others
from chunkserver.report import Membership
from chunkserver.store import ChunkStore
from fsd.cluster.map import Row
from fsd.core.errors import CorruptData, FsError, NotServing
from fsd.core.ids import ChunkId, Member, PgId
from fsd.protocol.chunk import ChunkList, ChunkSummary, InspectChunks, ListChunks, MendChunk, ScrubStatus
from fsd.rpc.client import ChannelPool
from fsd.runtime import Runtime
from fsd.wire.handshake import Done

log = logging.getLogger(__name__)

LIGHT_EVERY_S = 86_400.0
DEEP_EVERY_S = 7 * 86_400.0
LOOK_S = 60.0
MAX_LOST = 4096  # remembered
MEND_TIMEOUT_S = 30.0
LIGHT, DEEP = b"light", b"deep"


@dataclass(slots=True)
class Figures:
    """Of this life, and of the pass that runs or ran last."""

    rotten: int = 0
    repaired: int = 0
    running: bool = False
    deep: bool = False
    groups_done: int = 0
    groups: int = 0
    chunks: int = 0
    bytes: int = 0
    began: float = 0.0
    spent_s: float = 0.0


class Scrubber:
    """`rate_bytes_per_s`: of a deep pass's reading; 0 is no bound."""

    def __init__(
        self,
        runtime: Runtime,
        store: ChunkStore,
        membership: Membership,
        members: Members,
        carrier: Carrier,
        leader: Leader,
        peers: ChannelPool,
        rate_bytes_per_s: int,
    ) -> None:
        self._runtime = runtime
        self._store = store
        self._membership = membership
        self._members = members
        self._carrier = carrier
        self._leader = leader
        self._peers = peers
        self.rate = Rate(rate_bytes_per_s)
        self._wanted: list[bool] = []  # passes asked for: deep or not
        self._woken = trio.Event()
        self.lost: dict[tuple[PgId, ChunkId], None] = {}
        self.repairs_of_carrier = 0
        self.figures = Figures()

    # --- when ---------------------------------------------------------------------------------------------------------

    async def run(self) -> Never:
        """Passes when they are due or asked for, until cancelled."""
        self._spread_out()
        while True:
            with trio.move_on_after(LOOK_S):
                await self._woken.wait()
            self._woken = trio.Event()
            wanted, self._wanted = self._wanted, []
            if self._membership.map is None:
                continue
            if any(wanted) or self.age_s(DEEP) >= DEEP_EVERY_S:
                await self._pass(deep=True)
            elif wanted or self.age_s(LIGHT) >= LIGHT_EVERY_S:
                await self._pass(deep=False)

    def request(self, *, deep: bool) -> ScrubStatus:
        """A pass as soon as the present one ends."""
        if len(self._wanted) < 2:
            self._wanted.append(deep)
        else:
            self._wanted[-1] = self._wanted[-1] or deep
        self.figures.running = True
        self._woken.set()
        return self.status()

    def status(self) -> ScrubStatus:
        f = self.figures
        spent = trio.current_time() - f.began if f.running and f.began else f.spent_s
        return ScrubStatus(
            f.running, f.deep, f.groups_done, f.groups, f.chunks, f.bytes, f.rotten, f.repaired, len(self.lost), spent
        )

    def age_s(self, kind: bytes) -> float:
        """How long ago the last whole pass ended; negative if never. A light pass is part of a deep one."""
        ended = self._store.noted_time(kind)
        return -1.0 if ended is None else max(0.0, (self._runtime.clock.time_ns() - ended) / 1e9)

    def _spread_out(self) -> None:
        """A new disk's first passes are due at some time within the first period: not all nodes at once."""
        for kind, period_s in ((LIGHT, LIGHT_EVERY_S), (DEEP, DEEP_EVERY_S)):
            if self._store.noted_time(kind) is None:
                early_ns = int(self._runtime.random.random() * period_s * 1e9)
                self._store.note_time(kind, self._runtime.clock.time_ns() - early_ns)

    # --- passes -------------------------------------------------------------------------------------------------------

    async def _pass(self, *, deep: bool) -> None:
        me = self._membership.me
        rows = [row for row in self._membership.known_map().rows if me in row.in_sync]
        f = self.figures
        f.running, f.deep, f.groups_done, f.groups, f.chunks, f.bytes = True, deep, 0, len(rows), 0, 0
        f.began = trio.current_time()
        whole = True
        for row in rows:
            try:
                await self._scrub(row, deep=deep)
            except RowChanged:
                whole = False
            except FsError as error:
                whole = False
                log.info("scrub of placement group %d ends early: %s", row.pg, error)
            f.groups_done += 1
        f.spent_s = trio.current_time() - f.began
        if whole:
            for kind in (LIGHT, DEEP) if deep else (LIGHT,):
                self._store.note_time(kind, self._runtime.clock.time_ns())
        f.running = bool(self._wanted)
        log.info(
            "%s scrub: %d groups, %d chunks, %d bytes in %.1f s; in this life %d rotten, %d repaired, %d lost",
            "deep" if deep else "light",
            f.groups,
            f.chunks,
            f.bytes,
            f.spent_s,
            f.rotten,
            f.repaired,
            len(self.lost),
        )

    async def _scrub(self, row: Row, *, deep: bool) -> None:
        group = self._leader.group(row.pg)
        if row.primary == self._membership.me and row.active:
            for member in others(row.in_sync, self._membership.me):
                await self._compare(group, row, member)
        if deep:
            self.lost = {key: None for key in self.lost if key[0] != row.pg}
            await self._read_all(group, row)

    # --- light --------------------------------------------------------------------------------------------------------

    async def _compare(self, group: Group, row: Row, member: Member) -> None:
        after: ChunkId | None = resync.BEFORE_ALL
        while after is not None:
            message = ListChunks(group.pg, row.epoch, self._membership.me.incarnation, after, PAGE)
            reply = await self._members.ask_once(member, message)
            group.check_still(row)
            if reply is None:
                raise NotServing(f"node {member.node} does not answer")
            assert isinstance(reply.message, ChunkList)
            mine = self._store.page(group.pg, after, PAGE)
            self.figures.chunks += len(mine.chunks)
            difference = resync.compare(mine, reply.message)
            for chunk in sorted(difference.push + difference.remove):
                await self._look_again(group, row, member, chunk)
            after = difference.upto

    async def _look_again(self, group: Group, row: Row, member: Member, chunk: ChunkId) -> None:
        """With nothing under way for the chunk: if the copies still differ, they are made equal."""
        async with self._carrier.locks.hold((group.pg, chunk)):
            group.check_still(row)
            await self._carrier.mend(group, row, chunk)
            reply = await self._members.ask_once(member, InspectChunks(group.pg, (chunk,)))
            if reply is None:
                return
            theirs: tuple[ChunkSummary, ...] = reply.message.chunks
            mine = self._store.summary(group.pg, chunk)
            if theirs == ((mine,) if mine else ()):
                return
            self.figures.rotten += 1
            log.error("copies of chunk %s differ: %s here, %s on node %d", tuple(chunk), mine, theirs, member.node)
            await self._mend_locked(group, row, chunk)

    # --- deep ---------------------------------------------------------------------------------------------------------

    async def _read_all(self, group: Group, row: Row) -> None:
        after = resync.BEFORE_ALL
        while True:
            page = self._store.page(group.pg, after, PAGE)
            for summary in page.chunks:
                await self.rate.take(summary.length)
                group.check_still(row)
                await self._read(group, row, summary)
            if page.end:
                return
            after = page.chunks[-1].chunk

    async def _read(self, group: Group, row: Row, summary: ChunkSummary) -> None:
        self.figures.chunks += 1
        self.figures.bytes += summary.length
        snapshot = self._store.look(group.pg, summary.chunk)
        try:
            await self._store.read(snapshot, 0, snapshot.length)
            await self._store.read_pending(snapshot)
            self.lost.pop((group.pg, summary.chunk), None)
        except CorruptData as error:
            self.figures.rotten += 1
            log.error("%s", error)
            await self._heal(group, row, summary.chunk)

    async def _heal(self, group: Group, row: Row, chunk: ChunkId) -> None:
        """This disk's copy is bad: by the primary's hand, whoever that is."""
        if row.primary == self._membership.me:
            async with self._carrier.locks.hold((group.pg, chunk)):
                group.check_still(row)
                await self._mend_locked(group, row, chunk)
            return
        assert row.primary is not None
        address = self._membership.address_of(row.primary)
        if address is None:
            raise RowChanged
        try:
            with trio.fail_after(MEND_TIMEOUT_S):
                await self._peers.to(address).call(MendChunk(group.pg, row.epoch, chunk))
            self.figures.repaired += 1
        except trio.TooSlowError:
            raise NotServing(f"node {row.primary.node} does not mend chunk {tuple(chunk)} in time") from None
        except CorruptData as error:
            self._lose(group.pg, chunk, error)

    async def _mend_locked(self, group: Group, row: Row, chunk: ChunkId) -> None:
        before = self._carrier.repaired
        try:
            await self._carrier.carry_out(group, row, chunk, None)
            self.repairs_of_carrier += self._carrier.repaired - before
            self.figures.repaired += 1
            self.lost.pop((group.pg, chunk), None)
        except CorruptData as error:
            group.dirty.pop(chunk, None)
            self._lose(group.pg, chunk, error)

    def _lose(self, pg: PgId, chunk: ChunkId, error: CorruptData) -> None:
        log.error("chunk %s of placement group %d is lost: %s", tuple(chunk), pg, error)
        if len(self.lost) < MAX_LOST:
            self.lost[pg, chunk] = None

    # --- for members --------------------------------------------------------------------------------------------------

    async def mend(self, message: MendChunk) -> Done:
        """A member's copy is bad: push a good one to all. Raises CorruptData if there is none, StaleMap."""
        group = self._leader.group(message.pg)
        row = check_known(group.row, message.pg)
        check_primary(row, self._membership.me)
        check_asker(row, message.epoch)
        try:
            async with self._carrier.locks.hold((group.pg, message.chunk)):
                group.check_still(row)
                await self._carrier.carry_out(group, row, message.chunk, None)
        except RowChanged:
            raise NotServing(f"placement group {message.pg} has a new row") from None
        return Done()
