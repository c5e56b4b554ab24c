"""Sessions as they live: their connections, their eviction, what is reaped when they let go.

Eviction (I13): the session is refused at once; then the map that fences it is made durable and published; only then its
leases are free, when its client has said that it has dropped everything, or its time is over. Whoever waits for such a
lease hears of that map before it hears of the lease (Audience.tell_first).
"""

import logging
from collections.abc import Callable

import trio

from fsd.core.errors import FsError, NotServing, SessionEvicted, SessionUnknown, Unreachable
from fsd.core.ids import Ino, LayerId, RequestNumber, SessionId
from fsd.namespace.apply import apply
from fsd.namespace.operations import Reap
from fsd.protocol.metadata import Evicted, MapChanged, PromiseNothing
from fsd.rpc.connection import Peer
from fsd.runtime import Runtime
from metadata.authority import Authority
from metadata.leases import InodeKey, LeaseTable
from metadata.sessions import DRIFT, Session, SessionTable
from metadata.store import Store, drop, result_key, session_key

log = logging.getLogger(__name__)

TICK_S = 0.5
PROMISES_S = 2.0  # how long whoever sets a quota waits for clients to hear of it
GOODBYE_S = 0.2  # how long an evicted session's connection is given to hear of it


class LiveSession:
    """A session with its connection. `changed` is set, and replaced, at every connection made or lost and at the end."""

    def __init__(self, state: Session) -> None:
        self.state = state
        self.peer: Peer | None = None
        self.closing = False  # by its client's own wish
        self.writing_back = False  # as its client said when it last renewed
        self.changed = trio.Event()
        self.gone = trio.Event()
        self.running: dict[RequestNumber, trio.Event] = {}

    def set_peer(self, peer: Peer | None) -> None:
        self.peer = peer
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def check(self) -> None:
        """Raises SessionEvicted once the session has no rights any more."""
        if self.state.evicting:
            raise SessionEvicted(f"session {self.state.session} is evicted")


class Sessions:
    """All live sessions, and the leases that they hold."""

    def __init__(
        self, runtime: Runtime, nursery: trio.Nursery, store: Store, authority: Authority, ttl_s: float
    ) -> None:
        self._clock = runtime.clock
        self._nursery = nursery
        self._store = store
        self._authority = authority
        self.table = SessionTable(ttl_s)
        self.leases = LeaseTable(runtime.clock.time_ns() // 1000)
        self.settled = trio.Event()  # every session from before the restart has resumed or is gone
        self.restarted = True
        self.collect: Callable[[], None] = lambda: None  # wakes the collector
        self.ended: list[Callable[[SessionId, LayerId], None]] = []  # called when a session has nothing any more
        self.evictions = 0  # since the start
        self._live: dict[SessionId, LiveSession] = {}
        authority.oldest_session = self._oldest

    def load(self) -> None:
        """Bring back the sessions of the last life; each gets its ttl again to resume. One that was fenced is gone."""
        now = self._clock.monotonic()
        for record in self._store.sessions():
            state = Session(record, now, since=now, resumed=False)
            state.results.update(self._store.results(record.session))
            if self._authority.map.is_fenced(record.session):
                self._forget(state)
            else:
                self.add(state)
        self.check_settled()

    def add(self, state: Session) -> LiveSession:
        self.table.add(state)
        live = self._live[state.session] = LiveSession(state)
        return live

    def live(self, session: SessionId) -> LiveSession | None:
        return self._live.get(session)

    def all(self) -> list[LiveSession]:
        return list(self._live.values())

    def of(self, peer: Peer, session: SessionId) -> LiveSession:
        """The session of a request, renewed by it. Raises SessionEvicted, SessionUnknown, NotServing."""
        live = self._known(session)
        if live.peer is not peer:
            raise NotServing(f"session {session} is not resumed on this connection")
        live.state.heard = self._clock.monotonic()
        return live

    def _known(self, session: SessionId) -> LiveSession:
        live = self._live.get(session)
        if live is None:
            if self._authority.map.is_fenced(session):
                raise SessionEvicted(f"session {session} is evicted")
            raise SessionUnknown(f"there is no session {session}")
        live.check()
        return live

    def resuming(self, session: SessionId, secret: bytes) -> LiveSession:
        """The session that wants to go on. Raises SessionEvicted, SessionUnknown."""
        live = self._known(session)
        if live.state.record.secret != secret:
            raise SessionUnknown(f"that is not the secret of session {session}")
        return live

    def connect(self, live: LiveSession, peer: Peer) -> None:
        """The session goes on over `peer`; what was its connection is closed. Raises Unreachable if `peer` is gone."""
        if peer.closed.is_set():
            raise Unreachable(f"{peer.address} is gone")
        old = live.peer
        peer.state = live
        live.state.heard = self._clock.monotonic()
        live.state.address = peer.address
        live.set_peer(peer)
        if old is not None and old is not peer:
            old.close()

    def disconnected(self, peer: Peer) -> None:
        live = peer.state
        if isinstance(live, LiveSession) and live.peer is peer:
            live.set_peer(None)

    # --- the end of a session -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Evict who is overdue, until cancelled."""
        last = self._clock.monotonic()
        while True:
            await trio.sleep(TICK_S)
            now = self._clock.monotonic()
            if now - last > 2 * TICK_S:
                self.table.forgive(now - last - TICK_S)
            last = now
            for state in self.table.overdue(now):
                self.start_eviction(self._live[state.session], f"silent for {now - state.heard:.1f} s")

    async def evict(self, live: LiveSession, reason: str) -> None:
        """Returns when the session is fenced durably and has nothing any more."""
        self.start_eviction(live, reason)
        await live.gone.wait()

    def start_eviction(self, live: LiveSession, reason: str) -> None:
        if live.state.evicting:
            return
        live.state.evicting = True
        self.evictions += 1
        record = live.state.record
        log.warning("session %d of %s is evicted: %s", record.session, record.client, reason)
        self._nursery.start_soon(self._evict, live)

    async def _evict(self, live: LiveSession) -> None:
        await self._end_fenced(live)
        if live.peer is not None:
            with trio.move_on_after(GOODBYE_S):
                try:
                    await live.peer.notify(MapChanged(self._authority.map.epoch))
                except FsError as error:
                    log.debug("evicted session %d is not reached: %s", live.state.session, error)

    async def promise_nothing(self, layer: LayerId) -> None:
        """Tell the volume's sessions that operations can be refused from now on. Who does not hear of it in time keeps what it
        promised until its next renewal."""
        with trio.move_on_after(PROMISES_S):
            async with trio.open_nursery() as nursery:
                for live in self.all():
                    if live.state.layer == layer and live.peer is not None:
                        nursery.start_soon(self._tell_no_promises, live, live.peer)

    async def _tell_no_promises(self, live: LiveSession, peer: Peer) -> None:
        try:
            await peer.call(PromiseNothing())
        except FsError as error:
            log.debug("session %d will hear of the quota with its next renewal: %s", live.state.session, error)

    async def close(self, live: LiveSession) -> None:
        """The client ends its session. It is fenced too: something that it gave up waiting for may still be under way."""
        live.state.evicting = live.closing = True
        self._nursery.start_soon(self._end_fenced, live)  # whether or not the client waits for it
        await live.gone.wait()

    async def _end_fenced(self, live: LiveSession) -> None:
        await self.fence(live)
        if not live.closing:
            await self.silence(live)
        await self.end(live)

    async def silence(self, live: LiveSession) -> None:
        """I14: nobody gets this session's leases while its client may still act under them: until it says that it does not,
        or its time is over."""
        end = live.state.heard + self.table.ttl_s * (1 + DRIFT)
        with trio.move_on_after(max(0.0, end - self._clock.monotonic())):
            try:
                if live.peer is not None:
                    await live.peer.call(Evicted(live.state.session))
                    return
            except FsError as error:
                log.debug("evicted session %d is not reached: %s", live.state.session, error)
            await trio.sleep_forever()

    async def fence(self, live: LiveSession) -> None:
        """I13: nobody gets this session's leases before every chunkserver's next map refuses its writes."""
        await self._authority.fence(live.state.session, closed=live.closing)

    async def end(self, live: LiveSession) -> None:
        """The session gives everything back; returns when that is durable."""
        live.state.evicting = True
        had = self.leases.drop_session(live.state.session)
        for ended in self.ended:
            ended(live.state.session, live.state.layer)
        self.table.remove(live.state.session)
        self._live.pop(live.state.session, None)
        self._forget(live.state)
        self.reap_unused(had)
        live.gone.set()
        live.changed.set()
        self.check_settled()
        await self._store.durable()

    def _forget(self, state: Session) -> None:
        batch = [drop("session", result_key(state.session, number)) for number in state.results]
        self._store.apply([*batch, drop("session", session_key(state.session))])

    def _oldest(self) -> SessionId:
        """Every session below is gone for good."""
        counters = self._store.counters()
        following = SessionId(1) if counters is None else counters.next_session
        return min([following, *self._live], default=following)

    # --- restart, orphans ---------------------------------------------------------------------------------------------

    def check_settled(self) -> None:
        """Begin to answer once nobody can come back with a claim any more."""
        if self.settled.is_set() or not self.table.is_settled():
            return
        self.restarted = False
        self.settled.set()
        self.reap_unused([InodeKey(layer, ino) for layer, ino in self._store.orphans()])

    def reap_unused(self, keys: list[InodeKey]) -> None:
        """Remove those of the inodes that have no name, and that nobody has open any more. After a restart that is known only
        when all sessions are back: until then they are left for `check_settled`."""
        if not self.settled.is_set():
            return
        for key in keys:
            if self.is_reapable(key):
                self.reap(key.layer, key.ino)

    def is_reapable(self, key: InodeKey) -> bool:
        volume = self._store.volume(key.layer)
        return volume is not None and not self.leases.is_in_use(key) and self._store.view(key.layer).is_orphan(key.ino)

    def reap(self, layer: LayerId, ino: Ino) -> None:
        operation = Reap(layer, self._clock.time_ns(), 0, 0, ino)
        applied = apply(self._store.view(layer), operation)
        self._store.commit(layer, applied.changes)
        self.leases.drop_inode(InodeKey(layer, ino))
        self.collect()
