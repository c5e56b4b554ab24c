"""What a chunkserver answers: from each message of fsd.protocol.chunk to the part that carries it out."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from chunkserver.carrier import Request
from chunkserver.follower import Follower
from chunkserver.probe import Prober
from chunkserver.report import Membership
from chunkserver.scrub import Scrubber
from chunkserver.serving import Serving
from fsd.cluster.map import pg_of, pool_of
from fsd.core.errors import DiskFailed, InvalidArgument, NotServing, Overloaded, ProtocolError
from fsd.core.ids import ChunkId, PgId, RequestNumber
from fsd.core.units import MIB
from fsd.protocol.chunk import (
    MAX_EXTENTS,
    ApplyFlush,
    AskSpace,
    Change,
    GetScrub,
    InspectChunks,
    InspectGroup,
    ListChunks,
    ListData,
    ListInFlight,
    MendChunk,
    ProbeNode,
    PullChunk,
    ReadChunk,
    ReadCopy,
    Replicate,
    Resolve,
    RunScrub,
    TruncateChunk,
    WriteChunk,
)
from fsd.protocol.cluster import Ping
from fsd.protocol.metadata import MapChanged
from fsd.rpc.connection import Peer
from fsd.wire.frame import Buffer

MAX_BYTES_IN_WORK = 256 * MIB  # of clients' reads and writes


class ChunkService:
    def __init__(
        self, membership: Membership, serving: Serving, follower: Follower, scrubber: Scrubber, prober: Prober
    ) -> None:
        self._scrubber = scrubber
        self._prober = prober
        self._membership = membership
        self._serving = serving
        self._follower = follower
        self._bytes_in_work = 0

    async def handle(self, peer: Peer, message: Any, payload: Buffer) -> Any:
        """A failing disk is this server's end, not its clients': they are told to come back (R11, R12)."""
        try:
            return await self._dispatch(message, payload)
        except DiskFailed as error:
            raise NotServing(f"this node's disk failed: {error}") from None

    async def _dispatch(self, message: Any, payload: Buffer) -> Any:
        match message:
            case ReadChunk():
                self._check_range(message.where.pg, message.chunk, message.offset, message.length)
                with self._in_work(message.length):
                    return await self._serving.read(message)
            case WriteChunk():
                with self._in_work(len(payload)):
                    return await self._write(message, payload)
            case Replicate():
                return await self._follower.replicate(message, payload)
            case TruncateChunk():
                return await self._truncate(message)
            case ApplyFlush():
                return await self._serving.change(
                    Request(
                        where=message.where,
                        session=message.session,
                        number=RequestNumber(0),
                        chunk=message.chunk,
                        change=Change.RESOLVE,
                        flush=message.flush,
                        resolve=Resolve.APPLY,
                    )
                )
            case ListData():
                return await self._serving.list_data(message)
            case ListInFlight():
                return await self._follower.list_in_flight(message)
            case ListChunks():
                return await self._follower.list_chunks(message)
            case PullChunk():
                return await self._follower.pull(message)
            case AskSpace():
                return self._follower.space_left()
            case InspectChunks():
                return self._follower.inspect_chunks(message)
            case InspectGroup():
                return self._follower.inspect_group(message)
            case ReadCopy():
                return await self._follower.read_copy(message)
            case MendChunk():
                return await self._scrubber.mend(message)
            case RunScrub():
                return self._scrubber.request(deep=message.deep)
            case GetScrub():
                return self._scrubber.status()
            case ProbeNode():
                return await self._prober.probe()
            case Ping():
                return self._prober.pong()
            case MapChanged():
                self._membership.hear_of(message.map_epoch)
                return None
            case _:
                raise ProtocolError(f"a chunkserver answers no {type(message).__name__}")

    @contextmanager
    def _in_work(self, size: int) -> Generator[None]:
        """Count the bytes of clients' requests in memory. Raises Overloaded, which makes the client come again later."""
        if self._bytes_in_work + size > MAX_BYTES_IN_WORK:
            raise Overloaded(f"{self._bytes_in_work} bytes of requests are in work")
        self._bytes_in_work += size
        try:
            yield
        finally:
            self._bytes_in_work -= size

    async def _write(self, message: WriteChunk, payload: Buffer) -> Any:
        if not len(payload):
            raise InvalidArgument("a write without bytes")
        if len(message.extents) > MAX_EXTENTS:
            raise InvalidArgument(f"a write of {len(message.extents)} extents, at most {MAX_EXTENTS} are allowed")
        for offset, length in message.extents or ((message.offset, len(payload)),):
            self._check_range(message.where.pg, message.chunk, offset, length)
        return await self._serving.change(
            Request(
                where=message.where,
                session=message.session,
                number=message.number,
                chunk=message.chunk,
                change=Change.WRITE if message.flush is None else Change.PREPARE,
                offset=message.offset,
                data=payload,
                checksums=message.checksums,
                extents=message.extents,
                flush=message.flush,
                committed=message.committed,
            )
        )

    async def _truncate(self, message: TruncateChunk) -> Any:
        self._check_range(message.where.pg, message.chunk, 0, message.length)
        return await self._serving.change(
            Request(
                where=message.where,
                session=message.session,
                number=message.number,
                chunk=message.chunk,
                change=Change.TRUNCATE,
                length=message.length,
            )
        )

    def _check_range(self, pg: PgId, chunk: ChunkId, offset: int, length: int) -> None:
        cluster_map = self._membership.known_map()
        if offset < 0 or length < 0 or offset + length > cluster_map.chunk_size:
            raise InvalidArgument(f"{length} bytes at {offset} do not fit into a chunk of {cluster_map.chunk_size}")
        if pg_of(pool_of(pg), chunk, cluster_map.pg_count) != pg:
            raise InvalidArgument(f"chunk {chunk} is not in placement group {pg}")

    def arrived(self, peer: Peer, message: Any) -> None:
        pass

    def disconnected(self, peer: Peer) -> None:
        pass
