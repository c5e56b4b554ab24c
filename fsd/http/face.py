"""What every daemon shows by HTTP to whoever runs it. Nothing here changes anything.

/livez             200 while the loop that does the work runs; knows nothing of peers: a restart does not cure those
/readyz            200 when all checks pass, else 503; ?verbose tells each with its reason
/metrics           for Prometheus
/version           JSON
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from fsd import __version__
from fsd.core.histogram import Histogram
from fsd.http import exposition
from fsd.http.exposition import COUNTER, HISTOGRAM, Family, counter, gauge
from fsd.http.server import Request, Response
from fsd.rpc.measured import RequestFigures
from fsd.runtime.process import own_usage

JSON = "application/json"
ALWAYS = (("x-content-type-options", "nosniff"), ("cache-control", "no-store"))


class Check(NamedTuple):
    name: str
    ok: bool
    reason: str


Page = Callable[[Request], Awaitable[Response]]


def no_checks() -> Sequence[Check]:
    return ()


def no_families() -> Iterable[Family]:
    return ()


async def no_work() -> None:
    """For faces that show only what is there already."""


@dataclass(frozen=True, slots=True)
class Face:
    """`pages`: what one kind of daemon shows besides, by path. `work`: runs as long as the daemon."""

    role: str
    checks: Callable[[], Sequence[Check]] = no_checks
    families: Callable[[], Iterable[Family]] = no_families
    pages: Mapping[str, Page] = field(default_factory=dict[str, Page])
    work: Callable[[], Awaitable[None]] = no_work

    async def handle(self, request: Request) -> Response:
        """The answer to any request."""
        answer = await self._answer(request)
        return Response(answer.status, answer.body, answer.content_type, (*ALWAYS, *answer.headers))

    async def _answer(self, request: Request) -> Response:
        await trio.lowlevel.checkpoint()
        page = self._page(request.path)
        if page is None:
            known = " ".join(["/livez", "/readyz", "/metrics", "/version", *sorted(self.pages)])
            return Response(404, f"nothing here; there are {known}\n".encode())
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"GET or HEAD\n", headers=(("allow", "GET, HEAD"),))
        return await page(request)

    def _page(self, path: str) -> Page | None:
        own: dict[str, Page] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/version": self._version,
        }
        return own.get(path) or self.pages.get(path)

    async def _livez(self, request: Request) -> Response:
        return Response(200, b"ok\n")

    async def _readyz(self, request: Request) -> Response:
        checks = self.checks()
        ready = all(check.ok for check in checks)
        if "verbose" in request.query.split("&") or not ready:
            lines = [f"[{'+' if check.ok else '-'}] {check.name}: {check.reason}\n" for check in checks]
            return Response(200 if ready else 503, "".join([*lines, "ready\n" if ready else "not ready\n"]).encode())
        return Response(200, b"ready\n")

    async def _metrics(self, request: Request) -> Response:
        families = [*process_families(self.role), *self.families()]
        return Response(200, exposition.render(families), exposition.CONTENT_TYPE)

    async def _version(self, request: Request) -> Response:
        return as_json({"role": self.role, "version": __version__})


def as_json(document: object) -> Response:
    return Response(200, json.dumps(document).encode() + b"\n", JSON)


def process_families(role: str) -> list[Family]:
    """Of this process, under the names that Prometheus' own libraries give."""
    usage = own_usage()
    return [
        Family("fsd_build_info", exposition.GAUGE, "Version of this fsd.").add(
            1, {"version": __version__, "role": role}
        ),
        gauge("process_resident_memory_bytes", "Resident memory size in bytes.", usage.resident_bytes),
        counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", usage.cpu_s),
        gauge("process_open_fds", "Number of open file descriptors.", usage.open_fds),
        gauge("process_max_fds", "Maximum number of open file descriptors.", usage.max_fds),
        gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", usage.started_s),
    ]


def request_families(figures: RequestFigures) -> list[Family]:
    """Of the requests that this server answered."""
    durations = Family(
        "fsd_request_duration_seconds", HISTOGRAM, "Time from a request's arrival to its answer, by kind."
    )
    for kind, histogram in sorted(figures.durations.items()):
        durations.observe(histogram, {"kind": kind})
    errors = Family("fsd_request_errors_total", COUNTER, "Requests answered by an error, by kind and error.")
    for (kind, error), count in sorted(figures.errors.items()):
        errors.add(count, {"kind": kind, "error": error})
    return [
        durations,
        errors,
        gauge("fsd_requests_under_way", "Requests that wait for their answer.", figures.under_way),
    ]


def sync_family(syncs: Mapping[str, Histogram]) -> Family:
    """Of the disks: what an fsync waits for."""
    family = Family("fsd_disk_sync_duration_seconds", HISTOGRAM, "Writes to the disk with their sync, by store.")
    for store, histogram in sorted(syncs.items()):
        family.observe(histogram, {"store": store})
    return family
