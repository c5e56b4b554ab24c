"""Requests counted and timed by kind, around any Service. A kind is the message's class: bounded by the protocol."""

from collections import Counter
from typing import Any

from fsd.core.errors import FsError
from fsd.core.histogram import Histogram
from fsd.rpc.connection import Peer, Service
from fsd.runtime import Clock
from fsd.wire.frame import Buffer


class RequestFigures:
    """Since the process began. `errors` by (kind, class of the error); one that was cancelled is `Cancelled`."""

    def __init__(self) -> None:
        self.durations: dict[str, Histogram] = {}
        self.errors: Counter[tuple[str, str]] = Counter()
        self.under_way = 0


class Measured:
    """The same service; an answer's time is from the request's arrival to its answer, without the wire."""

    def __init__(self, service: Service, figures: RequestFigures, clock: Clock) -> None:
        self._service = service
        self._figures = figures
        self._clock = clock
        self.arrived = service.arrived
        self.disconnected = service.disconnected

    async def handle(self, peer: Peer, message: Any, payload: Buffer) -> Any:
        kind, figures = type(message).__name__, self._figures
        began = self._clock.monotonic()
        figures.under_way += 1
        try:
            return await self._service.handle(peer, message, payload)
        except BaseException as error:
            figures.errors[kind, type(error).__name__ if isinstance(error, FsError) else _name(error)] += 1
            raise
        finally:
            figures.under_way -= 1
            histogram = figures.durations.get(kind)
            if histogram is None:
                histogram = figures.durations[kind] = Histogram()
            histogram.add(self._clock.monotonic() - began)


def _name(error: BaseException) -> str:
    return "Bug" if isinstance(error, Exception) else "Cancelled"
