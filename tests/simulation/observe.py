"""Observers: what no client may be able to notice, seen on the wire as it happens.

R6, I2    a read is answered under a lower epoch after another node has answered one under a higher
R7        a member follows a primary of a lower epoch that asked after the member had promised a higher one
order     a group's primary gives the same order twice
R4        a change is acknowledged by a primary whose row has fewer members than min_replicas
"""

from collections.abc import Callable
from typing import Any

from fsd.core.ids import Order, PgEpoch, PgId
from fsd.protocol.chunk import (
    ChunkData,
    ChunkList,
    ChunkWritten,
    ListInFlight,
    ReadChunk,
    Replicate,
    TruncateChunk,
    WriteChunk,
)
from fsd.wire.codec import decode_number, number_of
from fsd.wire.frame import Flag, Frame
from tests.simulation.network import End, Fabric

ASKED = {number_of(kind) for kind in (ReadChunk, WriteChunk, TruncateChunk, Replicate, ListInFlight)}


class Observer:
    """Give it the fabric; `fail` hears of what is wrong."""

    def __init__(self, fabric: Fabric, fail: Callable[[str], None]) -> None:
        self._fail = fail
        self._asked: dict[tuple[int, int], Any] = {}  # (sender's end, request id) -> message
        self._late: set[tuple[int, int]] = set()
        self._served: dict[PgId, tuple[PgEpoch, str]] = {}
        self._promised: dict[tuple[str, int, PgId], PgEpoch] = {}
        self._given: dict[tuple[PgId, Order], Any] = {}
        fabric.arrived.append(self.arrived)
        fabric.sent.append(self.sent)

    def arrived(self, end: End, frame: Frame) -> None:
        if frame.type in ASKED and not frame.flags:
            key = (end.number, frame.request_id)
            message = self._asked[key] = decode_number(frame.type, frame.message)
            if isinstance(message, Replicate) and message.epoch < self._promised.get(
                self._life(end.other, message.pg), 0
            ):
                self._late.add(key)

    def sent(self, end: End, frame: Frame) -> None:
        if not frame.flags & Flag.REPLY:
            return
        key = (end.other.number, frame.request_id)
        request = self._asked.pop(key, None)
        late = key in self._late
        self._late.discard(key)
        if request is None or frame.flags & Flag.ERROR:
            return
        if late:
            self._fail(f"{end.host} follows epoch {request.epoch} of group {request.pg} against its promise")
        elif isinstance(request, ListInFlight) and frame.type == number_of(ChunkList):
            life = self._life(end, request.pg)
            self._promised[life] = PgEpoch(max(request.epoch, self._promised.get(life, 0)))
        elif isinstance(request, ReadChunk) and frame.type == number_of(ChunkData):
            self._read(end.host, request.where.pg, request.where.pg_epoch)
        elif frame.type == number_of(ChunkWritten):
            self._written(request, decode_number(frame.type, frame.message))
            self._copies(end, request.where.pg)

    def _copies(self, end: End, pg: PgId) -> None:
        membership: Any = getattr(end.process.app, "_membership", None)
        row, pool = (None, None) if membership is None else (membership.row(pg), membership.pool(pg))
        if row is not None and pool is not None and len(row.members()) < pool.min_replicas:
            self._fail(f"{end.host} acknowledges a change in group {pg} with {len(row.members())} copies")

    def _life(self, end: End, pg: PgId) -> tuple[str, int, PgId]:
        return end.host, end.process.number, pg

    def _read(self, host: str, pg: PgId, epoch: PgEpoch) -> None:
        highest, by = self._served.get(pg, (PgEpoch(0), host))
        if epoch < highest and by != host:
            self._fail(f"{host} answers a read of group {pg} under epoch {epoch}, {by} under {highest} before")
        elif epoch >= highest:
            self._served[pg] = (epoch, host)

    def _written(self, request: Any, answer: ChunkWritten) -> None:
        """An order belongs to one change; the answer to a repeated or empty request may name an older one."""
        key = (request.where.pg, answer.order)
        if answer.order.version and self._given.setdefault(key, request.chunk) != request.chunk:
            self._fail(f"order {answer.order} of group {request.where.pg} was given twice")
