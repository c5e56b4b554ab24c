"""Requests about sessions: open, resume, keep alive, close, ids, leases given back."""

import trio

from fsd.core.errors import Busy, NotFound
from fsd.core.ids import SessionId
from fsd.namespace.records import AccessMode, Volume
from fsd.protocol.metadata import (
    Alive,
    AllocateIds,
    CloseSession,
    HeldLock,
    IdRange,
    KeepAlive,
    OpenSession,
    ReleaseLeases,
    ResumeSession,
    SessionOpened,
    SessionResumed,
)
from fsd.rpc.connection import Peer
from fsd.runtime import Runtime
from fsd.wire.handshake import Done
from metadata.authority import Audience, Authority
from metadata.leases import InodeKey
from metadata.live import LiveSession, Sessions
from metadata.locks import LockService
from metadata.records import Counters, SessionRecord
from metadata.sessions import DRIFT, ID_RANGE, Session, with_range
from metadata.space import Space
from metadata.store import COUNTERS_KEY, Store, put, session_key

SECRET_BITS = 128
MAX_SESSIONS = 4096


class ClientService:
    """Every session's beginning, life and end, as its client asks for them."""

    def __init__(
        self,
        runtime: Runtime,
        store: Store,
        authority: Authority,
        audience: Audience,
        sessions: Sessions,
        space: Space,
        locks: LockService,
    ) -> None:
        self._locks = locks
        self._space = space
        self._clock = runtime.clock
        self._random = runtime.random
        self._store = store
        self._authority = authority
        self._audience = audience
        self._sessions = sessions
        self._started = runtime.clock.monotonic()

    async def open(self, peer: Peer, request: OpenSession) -> SessionOpened:
        volume = self._store.volume_named(request.volume)
        if volume is None:
            raise NotFound(f"there is no volume {request.volume}")
        self._check_access(volume)
        await self._authority.use_pool(volume.pool)
        self._check_access(volume)
        record, first = self._new_session(request, volume)
        now = self._clock.monotonic()
        live = self._sessions.add(Session(record, now, address=peer.address, since=now))
        self._sessions.connect(live, peer)
        self._audience.add(peer)
        await self._store.durable()
        return SessionOpened(
            record.session,
            record.secret,
            self._sessions.table.ttl_s,
            self._clock.time_ns(),
            first.first_id,
            first.id_count,
            self._store.volume(volume.layer) or volume,
            self._authority.map.epoch,
            self._space.may_promise(self._store.volume(volume.layer)),
        )

    def _check_access(self, volume: Volume) -> None:
        if self._store.volume(volume.layer) is None:
            raise NotFound(f"volume {volume.name} is being deleted")
        others = self._sessions.table.of_layer(volume.layer)
        if volume.access is AccessMode.SINGLE and others:
            raise Busy(f"volume {volume.name} is in use by {others[0].record.client} at {others[0].address}")
        if len(self._sessions.table) >= MAX_SESSIONS:
            raise Busy(f"{MAX_SESSIONS} sessions are open")

    def _new_session(self, request: OpenSession, volume: Volume) -> tuple[SessionRecord, IdRange]:
        counters = self._counters()
        ids = IdRange(counters.next_id, ID_RANGE)
        secret = self._random.getrandbits(SECRET_BITS).to_bytes(SECRET_BITS // 8, "big")
        record = SessionRecord(counters.next_session, secret, request.client[:255], volume.layer, (ids,))
        following = Counters(counters.next_id + ID_RANGE, SessionId(counters.next_session + 1), counters.next_layer)
        self._store.apply(
            [put("cluster", COUNTERS_KEY, following), put("session", session_key(record.session), record)]
        )
        return record, ids

    def _counters(self) -> Counters:
        counters = self._store.counters()
        assert counters is not None, "the file system has been made"
        return counters

    async def resume(self, peer: Peer, request: ResumeSession) -> SessionResumed:
        live = self._sessions.resuming(request.session, request.secret)
        state = live.state
        restarted = not state.resumed
        if request.adopt and restarted:
            await self._promises_run_out(live)
        claims = [
            (InodeKey(state.layer, held.ino), held.mode, held.open)
            for held in request.held
            if self._is_claimable(InodeKey(state.layer, held.ino), held.open)
        ]
        self._sessions.connect(live, peer)
        self._audience.add(peer)
        leases, now = self._sessions.leases, self._clock.monotonic()
        if request.adopt and not restarted:
            grants, let_go = leases.adopt(state.session, claims, now, self._is_claimable)
        else:
            grants, let_go = leases.resume(state.session, claims, now, restarted=restarted)
        locks = self._resume_locks(live, request)
        state.resumed = True
        if self._sessions.settled.is_set():
            self._sessions.reap_unused(let_go)
        self._sessions.check_settled()
        await self._store.durable()
        return SessionResumed(
            self._sessions.table.ttl_s,
            self._clock.time_ns(),
            tuple(grants),
            self._authority.map.epoch,
            self._may_promise(live),
            locks,
        )

    def _resume_locks(self, live: LiveSession, request: ResumeSession) -> tuple[HeldLock, ...]:
        """The client's word counts; a new process of it has it from the log of the one before."""
        self._locks.restate(live, request.locks)
        return self._locks.claims(live) if request.adopt else ()

    def _may_promise(self, live: LiveSession) -> bool:
        return self._space.may_promise(self._store.volume(live.state.layer))

    def _is_claimable(self, key: InodeKey, is_open: bool) -> bool:
        """An inode without a name belongs to those alone who have it open: else it would never be reaped."""
        inode = self._store.inode(key.layer, key.ino)
        return inode is not None and (inode.nlink > 0 or is_open)

    async def _promises_run_out(self, live: LiveSession) -> None:
        """This server has forgotten the session's leases, and the client's new process never knew them: what the old one told
        the kernel below it may still be cached there, for a ttl at most. Until then nobody else may change anything."""
        end = self._started + self._sessions.table.ttl_s * (1 + DRIFT)
        while (left := end - self._clock.monotonic()) > 0:
            live.state.heard = self._clock.monotonic()
            await trio.sleep(min(left, 1.0))
            live.check()

    async def keep_alive(self, live: LiveSession, request: KeepAlive) -> Alive:
        await trio.lowlevel.checkpoint()
        live.writing_back = request.writing_back
        return Alive(self._clock.time_ns(), self._authority.map.epoch, self._may_promise(live))

    async def close(self, live: LiveSession, request: CloseSession) -> Done:
        """The client has flushed before, and gives everything back."""
        await self._sessions.close(live)
        await self._store.durable()
        return Done()

    async def allocate_ids(self, live: LiveSession, request: AllocateIds) -> IdRange:
        counters = self._counters()
        ids = IdRange(counters.next_id, ID_RANGE)
        following = Counters(counters.next_id + ID_RANGE, counters.next_session, counters.next_layer)
        live.state.record = record = with_range(live.state.record, ids)
        self._store.apply(
            [put("cluster", COUNTERS_KEY, following), put("session", session_key(record.session), record)]
        )
        await self._store.durable()
        return ids

    async def release(self, live: LiveSession, request: ReleaseLeases) -> Done:
        """The leases were taken back when the message arrived; only what that reaped is waited for."""
        await self._store.durable()
        return Done()
