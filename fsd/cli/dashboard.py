"""What a metadata server shows by HTTP: health and metrics, and a page for people at `/`.

/                  the page, made here: it needs no script to be read
/api/status        the JSON of `fsd status --json`
/dashboard.css, /dashboard.js      the script only fetches the page anew and puts its contents in place
"""

import trio

from fsd.cli import assets
from fsd.cli.health import CODES, DEGRADED, DOWN, OK, reasons, word
from fsd.cli.page import Look, page
from fsd.cli.status import document
from fsd.cli.traffic import EVERY_S, Traffic
from fsd.http.exposition import GAUGE, Family, gauge
from fsd.http.face import Check, Face, as_json, request_families, sync_family
from fsd.http.server import Request, Response
from fsd.protocol.cluster import StatusReply
from fsd.runtime.local import LocalDirectory
from metadata.server import MetadataServer

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (("content-security-policy", POLICY), ("referrer-policy", "no-referrer"))
HTML = "text/html; charset=utf-8"
LEVEL = {OK: 0, DEGRADED: 1, DOWN: 2}
NOT_YET = Response(503, b"the server is starting\n", headers=(("retry-after", "1"),))


def face(server: MetadataServer, directory: LocalDirectory) -> Face:
    """Everything that this process shows."""
    traffic = Traffic()

    def checks() -> tuple[Check, ...]:
        insight = server.insight
        return tuple(insight.checks()) if insight else (Check("store", False, "is being opened"),)

    def families() -> list[Family]:
        insight = server.insight
        own = [*request_families(server.requests), sync_family(directory.syncs)]
        return own if insight is None else [*health_families(insight.status()), *insight.families(), *own]

    async def root(request: Request) -> Response:
        insight = server.insight
        if insight is None:
            return NOT_YET
        look = Look(insight.status(), insight.groups(), traffic)
        return Response(200, page(look).encode(), HTML, HEADERS)

    async def api_status(request: Request) -> Response:
        return as_json(document(server.insight.status())) if server.insight else NOT_YET

    async def css(request: Request) -> Response:
        return Response(200, assets.CSS.encode(), "text/css; charset=utf-8")

    async def javascript(request: Request) -> Response:
        return Response(200, assets.JAVASCRIPT.encode(), "text/javascript; charset=utf-8")

    async def watch() -> None:
        while True:
            if server.insight is not None:
                traffic.add(trio.current_time(), server.insight.status())
            await trio.sleep(EVERY_S)

    pages = {"/": root, "/api/status": api_status, "/dashboard.css": css, "/dashboard.js": javascript}
    return Face("metadata", checks, families, pages, watch)


def health_families(status: StatusReply) -> list[Family]:
    """The same codes as `fsd status` tells."""
    found = reasons(status)
    told = Family("fsd_health_reason", GAUGE, "Reasons for the health by code (fsd explain CODE); absent ones are 0.")
    counts = dict.fromkeys(CODES, 0)
    for reason in found:
        counts[reason.code] += 1
    for code, count in counts.items():
        told.add(count, {"code": code, "severity": CODES[code].severity})
    return [gauge("fsd_health", "Health of the cluster: 0 ok, 1 degraded, 2 down.", LEVEL[word(found)]), told]
