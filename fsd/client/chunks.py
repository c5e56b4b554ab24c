"""Chunk requests of a client: to the primary, with a fresh map, the same number, until a definite answer (R11).

A request number belongs to one change of one chunk; it stays the same however often the request is sent, so a change that
was applied before its answer was lost is not applied again. Checksums are made here before the bytes leave and verified
here when they arrive (I8).
"""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from fsd.client.maps import MapCache
from fsd.client.session import Session
from fsd.core.checksum import block_checksums
from fsd.core.errors import BadChecksum, CorruptData, FsError, Retry, SessionEvicted, SessionUnknown
from fsd.core.ids import ChunkId, DataId, PgId, PoolId, RequestNumber, SessionId
from fsd.protocol.chunk import (
    ApplyFlush,
    ChunkData,
    DataChunks,
    FlushId,
    ListData,
    ReadChunk,
    TruncateChunk,
    Where,
    WriteChunk,
)
from fsd.rpc.client import ChannelPool
from fsd.rpc.connection import Reply
from fsd.rpc.retry import pause_s
from fsd.runtime import Runtime
from fsd.wire.frame import Buffer

log = logging.getLogger(__name__)

ATTEMPT_S = 5.0  # then the same request is sent again: its answer may be lost with a silent host
CORRUPT_ATTEMPTS = 4
REFRESH_S = 1.0
MAX_REQUESTS = 64
MAX_COMMITTED = 65_536  # chunks of which is remembered that a flush prepared in them is committed
LIST_PAGE = 1024
NUMBERS_OF_A_PROCESS = 1 << 40

MakeRequest = Callable[[Where], object]


def first_number(incarnation: int) -> int:
    """Of the chunk requests of a session's nth process.

    A write that was under way when the process before died is not sent again under its own number: nobody knows which it had,
    and its bytes may have been written over since. Its bytes are dirty in the log, and go out as a new write with a *higher*
    number. That is safe: (1) the exclusive lease is still this session's, so nobody has read or written in between; (2) if the
    old request arrives late, at a primary that has applied the new one, its number is below the last one of this session in the
    chunk's record and it is taken for applied (R11); (3) if it arrives before, the new one overwrites it; (4) the lease does
    not leave before the new one is answered."""
    return incarnation * NUMBERS_OF_A_PROCESS + 1


class _Committed(NamedTuple):
    """A flush that was prepared in a chunk and is committed; `applied` is called when the chunk has surely applied it."""

    flush: FlushId
    applied: Callable[[], object]


class Chunks:
    """All chunk traffic of one client."""

    def __init__(
        self,
        runtime: Runtime,
        session: Session,
        maps: MapCache,
        channels: ChannelPool,
        counts: Counter[str],
        incarnation: int = 0,
    ) -> None:
        self._runtime = runtime
        self._session = session
        self._maps = maps
        self._channels = channels
        self._counts = counts
        self._numbers = itertools.count(first_number(incarnation))
        self._room = trio.CapacityLimiter(MAX_REQUESTS)
        self._committed: dict[ChunkId, _Committed] = {}
        self._changing = 0

    async def read(self, data: DataId, index: int, offset: int, length: int) -> memoryview:
        """[offset, offset + length) of a chunk, shorter where the chunk ends; `offset` is a multiple of BLOCK_SIZE.

        Raises CorruptData, SessionEvicted."""
        chunk = ChunkId(data, index)
        self._counts["ReadChunk"] += 1
        for attempt in itertools.count(1):
            known = self._committed.get(chunk)
            number = known.flush.number if known is not None else 0
            reply = await self._until_answered(
                chunk,
                lambda where, number=number: ReadChunk(where, self._session.id, chunk, offset, length, number),
                b"",
            )
            self._is_applied(chunk, known)
            answer: ChunkData = reply.message
            if self.verify(answer, reply.payload):
                return memoryview(reply.payload)[:length]
            log.warning("chunk %d/%d arrived damaged, asking again", data, index)
            if attempt >= CORRUPT_ATTEMPTS:
                break
        raise CorruptData(f"chunk {data}/{index} fails its checksums")

    def verify(self, answer: ChunkData, payload: Buffer) -> bool:
        """Whether the bytes are those that the server stored."""
        return answer.checksums == block_checksums(payload)

    # --- flushes in two phases ----------------------------------------------------------------------------------------

    def new_flush_number(self) -> int:
        """Of this client's own, like those of requests."""
        return next(self._numbers)

    def is_committed(self, chunk: ChunkId, flush: FlushId, applied: Callable[[], object]) -> None:
        """What `flush` prepared in the chunk counts: to be said with the next request for it."""
        self._committed.pop(chunk, None)
        self._committed[chunk] = _Committed(flush, applied)
        if len(self._committed) > MAX_COMMITTED:
            del self._committed[next(iter(self._committed))]  # the server asks then

    def _is_applied(self, chunk: ChunkId, known: "_Committed | None") -> None:
        if known is not None:
            known.applied()
            if self._committed.get(chunk) is known:
                del self._committed[chunk]

    async def apply(self, session: SessionId, chunk: ChunkId, flush: FlushId) -> None:
        """The flush is committed; the chunk has applied it durably on return. Raises SessionEvicted."""
        known = self._committed.get(chunk)
        self._counts["ApplyFlush"] += 1
        await self._change(session, chunk, lambda where: ApplyFlush(where, session, chunk, flush), b"")
        self._is_applied(chunk, known if known is not None and known.flush == flush else None)

    # --- changes ------------------------------------------------------------------------------------------------------

    async def write(
        self, session: SessionId, chunk: ChunkId, extents: Sequence[tuple[int, Buffer]], flush: FlushId | None = None
    ) -> None:
        """All (chunk offset, bytes), ascending and apart, or none; durable on return. `flush`: prepared for that one, not
        shown. Raises NoSpace, SessionEvicted."""
        known = self._committed.get(chunk)
        committed = known.flush.number if known is not None and known.flush.session == session else 0
        number = RequestNumber(next(self._numbers))
        checksums = tuple(itertools.chain.from_iterable(block_checksums(data, offset) for offset, data in extents))
        self._counts["WriteChunk"] += 1
        offset, data = extents[0]
        ranges: tuple[tuple[int, int], ...] = ()
        if len(extents) > 1:
            ranges = tuple([(start, len(part)) for start, part in extents])
            data = b"".join([part for _, part in extents])
        await self._change(
            session,
            chunk,
            lambda where: WriteChunk(where, session, number, chunk, offset, checksums, ranges, flush, committed),
            data,
        )
        self._is_applied(chunk, known)

    async def truncate(self, session: SessionId, chunk: ChunkId, length: int) -> None:
        """Durable on return. Raises SessionEvicted."""
        number = RequestNumber(next(self._numbers))
        self._counts["TruncateChunk"] += 1
        await self._change(session, chunk, lambda where: TruncateChunk(where, session, number, chunk, length), b"")

    async def existing(self, session: SessionId, data: DataId, first: int, stop: int) -> list[int]:
        """Which chunks of these data in [first, stop) there are, ascending: for files of which little is there, since every
        placement group is asked. Raises SessionEvicted."""
        if self._maps.epoch == 0:
            await self._maps.refresh()
        found: list[int] = []
        errors: list[FsError] = []

        async def ask(pg: PgId) -> None:
            try:
                found.extend(await self._existing_in(session, pg, data, first, stop))
            except FsError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for pg in self._maps.placed(self._pool):
                nursery.start_soon(ask, pg)
        if errors:
            raise errors[0]
        return sorted(found)

    async def _existing_in(self, session: SessionId, pg: PgId, data: DataId, first: int, stop: int) -> list[int]:
        found: list[int] = []
        while True:
            self._counts["ListData"] += 1
            start = found[-1] + 1 if found else first
            reply = await self._until_answered(
                ChunkId(data, start),
                lambda where, start=start: ListData(where, session, data, start, LIST_PAGE),
                b"",
                session,
                pg,
            )
            answer: DataChunks = reply.message
            found += [index for index in answer.indices if index < stop]
            if answer.end or not answer.indices or answer.indices[-1] >= stop:
                return found

    @property
    def _pool(self) -> PoolId:
        volume = self._session.volume
        assert volume is not None
        return volume.pool

    async def _change(self, session: SessionId, chunk: ChunkId, make: MakeRequest, data: Buffer) -> None:
        self._changing += 1
        try:
            await self._until_answered(chunk, make, data, session)
        finally:
            self._changing -= 1

    def is_waiting(self) -> bool:
        """Whether a change is on its way."""
        return self._changing > 0

    async def _until_answered(
        self,
        chunk: ChunkId,
        make: MakeRequest,
        data: Buffer,
        session: SessionId | None = None,
        pg: PgId | None = None,
    ) -> Reply:
        corrupt = 0
        for attempt in itertools.count():
            if session is not None and session != self._session.id:
                raise SessionEvicted(
                    f"session {session} was evicted before chunk {chunk.data}/{chunk.index} was written"
                )
            try:
                reply = await self._attempt(chunk, make, data, pg)
                if reply is not None:
                    return reply
            except (SessionEvicted, SessionUnknown):
                self._session.suspect()
            except FsError as error:
                corrupt += isinstance(error, CorruptData | BadChecksum)
                if corrupt >= CORRUPT_ATTEMPTS:
                    raise
                if error.retry is Retry.NEVER and not isinstance(error, CorruptData):
                    raise
                log.debug("chunk %d/%d: %s", chunk.data, chunk.index, error)
            self._counts["chunk retries"] += 1
            if attempt in (10, 100, 1000):
                log.warning("still waiting for a server of chunk %d/%d", chunk.data, chunk.index)
            await self._maps.refresh_for(REFRESH_S)
            await trio.sleep(pause_s(attempt, self._runtime.random, 0.02, 0.5))
        raise AssertionError("unreachable")

    async def _attempt(self, chunk: ChunkId, make: MakeRequest, data: Buffer, pg: PgId | None) -> Reply | None:
        """One request to the primary of the newest map; None if nobody leads, or it was broken off."""
        if self._maps.epoch == 0:
            await self._maps.refresh()
        if pg is None:
            pg = self._maps.pg(self._pool, chunk)
        leader = self._maps.leader(pg)
        if leader is None:
            return None
        row, address = leader
        async with self._room:
            with self._maps.attempt(row, ATTEMPT_S):
                where = Where(pg, row.epoch, self._maps.fence())
                return await self._channels.to(address).call(make(where), data)
        return None
