"""What a mount shows by HTTP (`--http`, off unless asked for): figures of its caches, of what it asks and is asked, and
whether its session lives. A mount never fails because of it: an address that cannot be had is tried again, told once."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence

import trio

from fsd.core.errors import ConfigurationError
from fsd.http.exposition import COUNTER, GAUGE, Family
from fsd.http.face import Check, Face
from fsd.http.server import Limits, serve_http
from fsd.mount.operations import Operations
from fsd.runtime.listening import tcp_listeners

log = logging.getLogger(__name__)

AGAIN_S = 1.0
LIMITS = Limits(body_bytes=0, connections=16)
GAUGES = {
    "dirty bytes": ("fsd_dirty_bytes", "Bytes written and not yet at the servers."),
    "cached block bytes": ("fsd_cached_block_bytes", "Bytes of files in the client's cache."),
    "cached entries": ("fsd_cached_entries", "Directory entries in the client's cache."),
    "journal": ("fsd_journal_operations", "Changes of names answered and not yet at the server."),
    "leases": ("fsd_client_leases", "Leases that this client holds."),
    "locks": ("fsd_client_locks", "File locks that this client knows."),
    "open files": ("fsd_open_files", "Files open on the mount."),
}
_CACHE = re.compile(r"(lookup|attribute|block) (hits|misses)")


async def show(operations: Operations, asked: Callable[[], Mapping[str, int]], where: str) -> None:
    """Serve until cancelled. `asked`: the kernel's requests so far, by operation."""
    told = False
    while True:
        try:
            listeners, address = await tcp_listeners(where)
            break
        except ConfigurationError as error:
            if not told:
                log.warning("no health and metrics for now: %s", error)
            told = True
            await trio.sleep(AGAIN_S)
    log.info("health and metrics at http://%s/", address)
    face = Face("mount", lambda: checks(operations), lambda: families(operations.fs.statistics(), asked()))
    await serve_http(listeners, face.handle, LIMITS)


def checks(operations: Operations) -> Sequence[Check]:
    """Whether system calls are answered."""
    live = operations.fs.session_is_live
    return (Check("session", live, "live" if live else "the metadata server does not answer"),)


def families(statistics: Mapping[str, int], asked: Mapping[str, int]) -> list[Family]:
    """All figures of the client under names of Prometheus' kind: each is a gauge, a cache's, a request's or an event's."""
    hits = Family("fsd_cache_hits_total", COUNTER, "Answers from the client's caches, by cache.")
    misses = Family("fsd_cache_misses_total", COUNTER, "Questions that a cache could not answer, by cache.")
    requests = Family("fsd_client_requests_total", COUNTER, "Requests to servers, by kind.")
    events = Family("fsd_client_events_total", COUNTER, "What else happened to the client, by event.")
    kernel = Family("fsd_fuse_requests_total", COUNTER, "Requests of the kernel, by operation.")
    gauges = [Family(name, GAUGE, text).add(statistics.get(key, 0)) for key, (name, text) in GAUGES.items()]
    for key, value in sorted(statistics.items()):
        if key in GAUGES:
            continue
        if match := _CACHE.fullmatch(key):
            (hits if match[2] == "hits" else misses).add(value, {"cache": match[1]})
        elif key[0].isupper():
            requests.add(value, {"kind": key})
        else:
            events.add(value, {"event": key.replace(" ", "_")})
    for operation, count in sorted(asked.items()):
        kernel.add(count, {"operation": operation.lower()})
    return [*gauges, hits, misses, requests, events, kernel]
