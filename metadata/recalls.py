"""Taking leases back: ask every holder at once and wait; evict who is gone, or renews and never gives back.

A holder that keeps its session alive may be waiting for chunkservers to write back what it has answered for: evicting it would
turn that pause into lost bytes. It says so with every renewal, and as long as it does it is waited for. One that does not say
so has PATIENCE_TTLS ttls.
"""

import logging

import trio

from fsd.core.errors import FsError, Unreachable
from fsd.core.ids import Ino, SessionId
from fsd.protocol.metadata import LeaseMode, Recall, Recalled, RecallItem, Release
from fsd.runtime import Clock
from metadata.leases import Conflict, InodeKey
from metadata.live import LiveSession, Sessions
from metadata.sessions import DRIFT

log = logging.getLogger(__name__)

PAUSE_S = 0.02  # before a holder that answered without giving up is asked again
PATIENCE_TTLS = 2  # how long a holder that renews, and waits for nobody, may take to give up a lease


class Recaller:
    """Used by requests that hold the guards of the inodes concerned."""

    def __init__(self, sessions: Sessions, clock: Clock) -> None:
        self._sessions = sessions
        self._clock = clock
        self.sent = 0  # recalls, of whatever many inodes

    async def clear(self, session: SessionId, keys: list[InodeKey], wanted: LeaseMode) -> bool:
        """Return when nobody but `session` holds anything on `keys` that cannot stand beside `wanted`; whether somebody
        had to give something up for it."""
        contended = False
        while True:
            conflicts = self._conflicts(session, keys, wanted)
            if not conflicts:
                return contended
            contended = True
            await self._recall_all(conflicts)

    async def _recall_all(self, conflicts: list[Conflict]) -> None:
        holders: dict[SessionId, list[Conflict]] = {}
        for conflict in conflicts:
            holders.setdefault(conflict.session, []).append(conflict)
        async with trio.open_nursery() as nursery:
            for holder, items in holders.items():
                nursery.start_soon(self._recall, holder, items)

    async def ask_once(self, session: SessionId, keys: list[InodeKey], wanted: LeaseMode) -> None:
        """Without guards: return when all that others hold now on `keys` and cannot stand beside `wanted` was given up. It may
        be theirs again by then."""
        await self._recall_all(self._conflicts(session, keys, wanted))

    def _conflicts(self, session: SessionId, keys: list[InodeKey], wanted: LeaseMode) -> list[Conflict]:
        return [conflict for key in keys for conflict in self._sessions.leases.conflicts(key, session, wanted)]

    async def _recall(self, holder: SessionId, conflicts: list[Conflict]) -> None:
        self.sent += 1
        live = self._sessions.live(holder)
        assert live is not None, f"session {holder} is gone and holds leases"
        now = self._clock.monotonic()
        await trio.sleep(max(self._sessions.leases.hold_left_s(conflict, now) for conflict in conflicts))
        ino = conflicts[0].key.ino
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._grow_impatient, live, ino)
            nursery.start_soon(self._end_with, live, nursery.cancel_scope)
            await self._ask_until_released(live, conflicts)
            nursery.cancel_scope.cancel()

    @staticmethod
    async def _end_with(live: LiveSession, scope: trio.CancelScope) -> None:
        await live.gone.wait()
        scope.cancel()

    async def _grow_impatient(self, live: LiveSession, ino: Ino) -> None:
        ttl_s = self._sessions.table.ttl_s * (1 + DRIFT)
        idle = waited = 0
        while True:
            await trio.sleep(ttl_s)
            waited += 1
            idle = 0 if live.writing_back else idle + 1
            if idle >= PATIENCE_TTLS:
                break
            why = "it waits for chunkservers" if live.writing_back else "it does not say why"
            log.warning("session %d has kept inode %d for %.0f s: %s", live.state.session, ino, waited * ttl_s, why)
        await self._sessions.evict(live, f"did not give up its lease on inode {ino}")

    async def _ask_until_released(self, live: LiveSession, conflicts: list[Conflict]) -> None:
        while not live.gone.is_set():
            left = self._still_held(conflicts)
            if not left:
                return
            peer, changed = live.peer, live.changed
            if peer is None or live.state.evicting:
                await changed.wait()
                continue
            items = tuple(RecallItem(c.key.ino, c.serial, c.keep) for c in left)
            try:
                await peer.call(Recall(live.state.session, items))
            except Unreachable:
                await trio.sleep(PAUSE_S)
            except FsError as error:
                log.warning("session %d answers a recall with: %s", live.state.session, error)
                await trio.sleep(PAUSE_S)
            else:
                if self._still_held(left):
                    await trio.sleep(PAUSE_S)

    def _still_held(self, conflicts: list[Conflict]) -> list[Conflict]:
        """What of `conflicts` is still there, with the serials of now."""
        left: list[Conflict] = []
        for conflict in conflicts:
            now = self._sessions.leases.current(conflict)
            if now is not None:
                left.append(now)
        return left

    # --- what comes back ----------------------------------------------------------------------------------------------

    def recalled(self, live: LiveSession, message: Recalled) -> None:
        """Called in the order of arrival, so that a release is seen before whatever the client asked afterwards."""
        self.release(live, message.releases)

    def release(self, live: LiveSession, releases: tuple[Release, ...]) -> None:
        """Take leases back, and reap what nobody has open any more."""
        state = live.state
        for item in releases:
            key = InodeKey(state.layer, item.ino)
            taken = self._sessions.leases.release(
                state.session, key, serial=item.serial, keep=item.keep, still_open=item.open
            )
            if taken and not item.open and item.keep is LeaseMode.NONE:
                self._sessions.reap_unused([key])
