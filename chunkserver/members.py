"""Asking the other members of a placement group's row, and asking for the row without a silent one (R5)."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from chunkserver import replica
from chunkserver.replica import Group, RowChanged
from chunkserver.report import Membership
from fsd.cluster.map import Row
from fsd.core.errors import (
    BadChecksum,
    BaseMismatch,
    ConnectionRefused,
    CorruptData,
    FsError,
    NoSpace,
    NotALeader,
    NotServing,
    Overloaded,
    Unreachable,
)
from fsd.core.ids import Member
from fsd.protocol.chunk import AskSpace, Replicate, SpaceLeft
from fsd.protocol.cluster import DropMember
from fsd.rpc.client import ChannelPool
from fsd.rpc.connection import Call, Reply
from fsd.runtime import Runtime
from fsd.wire.frame import Buffer

log = logging.getLogger(__name__)

RETRY_S = 0.05
SLOWEST_S = 6.0  # of waiting for one answer of a member that lives
LOW_S = 1.0  # between questions to a member whose disk is full


@dataclass(slots=True)
class _Attempt:
    """`under_way`: the member was asked and has not answered, neither yes nor no."""

    under_way: bool = False


class Members:
    """`timeout_s`: how long a member may be silent before the primary asks to drop it. One that only is slow, and says
    so when asked, gets more time, up to SLOWEST_S in one go."""

    def __init__(self, runtime: Runtime, membership: Membership, peers: ChannelPool, timeout_s: float) -> None:
        self._runtime = runtime
        self._membership = membership
        self._peers = peers
        self._timeout_s = timeout_s
        self._low_until: dict[Member, float] = {}  # members that are down to their reserve, and when to ask them again

    async def ask(self, group: Group, row: Row, member: Member, message: Any, payload: Buffer = b"") -> Reply:
        """A member's answer, asked for until it comes or the member has left the row. Raises RowChanged, NotServing (the
        lease ended) and the member's own definite errors: BaseMismatch, CorruptData, NoSpace (for a copy)."""
        patience_s = self._timeout_s
        attempt = _Attempt()
        while True:
            with trio.move_on_after(patience_s) as waited:
                reply = await self._ask_patiently(group, row, member, message, payload, attempt)
                if reply is not None:
                    return reply
            group.check_still(row)
            slow = waited.cancelled_caught and attempt.under_way and patience_s < SLOWEST_S
            if slow and await self.ask_once(member, AskSpace()) is not None:
                log.info("placement group %d: node %d is slow, asking again", group.pg, member.node)
                patience_s *= 2  # it lives and its disk is busy; asking again does no harm
            else:
                await self._drop(group, row, member)
                patience_s = self._timeout_s
            group.check_still(row)

    def begin(self, member: Member, message: Any, payload: Buffer) -> Call | None:
        """Send a request to a member now, to wait for the answer later; None: it has to be asked with `ask`."""
        address = self._membership.address_of(member)
        try:
            return None if address is None else self._peers.to(address).begin(message, payload)
        except FsError as error:
            log.debug("node %d: %s", member.node, error)
            return None

    async def finish(self, member: Member, call: Call) -> bool:
        """Whether a begun request is answered well, and soon; if not, `ask` again, which does no harm, and whose patience
        is what decides how long a member may be silent."""
        with trio.move_on_after(self._timeout_s / 4):
            try:
                self._note_space(member, await call.reply())
                return True
            except FsError as error:
                log.debug("node %d: %s", member.node, error)
        return False

    async def _ask_patiently(
        self, group: Group, row: Row, member: Member, message: Any, payload: Buffer, attempt: "_Attempt"
    ) -> Reply | None:
        """None if only dropping the member helps."""
        address = self._membership.address_of(member)
        while address is not None:
            try:
                attempt.under_way = True
                return self._note_space(member, await self._peers.to(address).call(message, payload))
            except (BaseMismatch, CorruptData):
                raise
            except ConnectionRefused:
                return None
            except NotALeader as error:
                log.info("placement group %d epoch %d: node %d says: %s", group.pg, row.epoch, member.node, error)
                attempt.under_way = False
                await self._refresh_quietly()
            except (Unreachable, Overloaded, BadChecksum, NotServing) as error:
                log.debug("placement group %d: node %d: %s", group.pg, member.node, error)
            except FsError as error:
                if isinstance(error, NoSpace) and isinstance(message, Replicate) and message.resync:
                    raise
                log.warning("placement group %d: node %d cannot follow: %s", group.pg, member.node, error)
                return None
            attempt.under_way = False
            group.check_still(row)
            await trio.sleep(RETRY_S)
            group.check_still(row)
        return None

    async def _refresh_quietly(self) -> None:
        try:
            await self._membership.refresh()
        except NotServing as error:
            log.debug("no map now: %s", error)

    async def _drop(self, group: Group, row: Row, member: Member) -> None:
        """Ask once, and give the new row time to arrive; the asker repeats while the row stays as it is."""
        if row.active:
            replica.check_lease(self._runtime.clock.monotonic(), self._membership.lease_until)
        log.warning(
            "placement group %d epoch %d: node %d is silent, asking to drop it", group.pg, row.epoch, member.node
        )
        await self._membership.change_row(DropMember(group.pg, row.epoch, self._membership.me, member))
        group.check_still(row)
        await trio.sleep(RETRY_S)
        group.check_still(row)

    def _note_space(self, member: Member, reply: Reply) -> Reply:
        if isinstance(reply.message, SpaceLeft):
            if reply.message.low:
                self._low_until[member] = trio.current_time() + LOW_S
            else:
                self._low_until.pop(member, None)
        return reply

    async def check_space(self, row: Row) -> None:
        """Before a write is begun: no member is down to its reserve. Raises NoSpace."""
        if not self._low_until:
            return
        for member in row.members():
            if self._low_until.get(member, float("inf")) <= trio.current_time():
                self._low_until[member] = trio.current_time() + LOW_S
                reply = await self.ask_once(member, AskSpace())
                if reply is not None:
                    self._note_space(member, reply)
            if member in self._low_until:
                raise NoSpace(f"node {member.node} is down to its reserve")

    def forget(self, alive: Iterable[Member]) -> None:
        """Of lives that are over."""
        kept = [member for member in alive if member in self._low_until]
        self._low_until = {member: self._low_until[member] for member in kept}

    async def ask_once(self, member: Member, message: Any) -> Reply | None:
        """An answer that one can do without."""
        address = self._membership.address_of(member)
        if address is None:
            return None
        with trio.move_on_after(self._timeout_s):
            try:
                return await self._peers.to(address).call(message)
            except FsError as error:
                log.warning("node %d does not help with %s: %s", member.node, type(message).__name__, error)
        return None


async def together(tasks: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run all at once; the first failure ends the rest and is raised, alone."""
    failures: list[Exception] = []

    async def guarded(task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except (FsError, RowChanged) as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for task in tasks[1:]:
            nursery.start_soon(guarded, task)
        if tasks:
            await guarded(tasks[0])
    if failures:
        raise failures[0]
