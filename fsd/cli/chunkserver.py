"""Run a chunkserver: the bytes of one disk."""

import argparse
from typing import Any

from fsd.cli.serve import SERVE_OPTIONS, Serving, serve
from fsd.core import config
from fsd.core.config import Option
from fsd.core.units import GIB, MIB, format_size

DEFAULT_RESERVE = GIB
DEFAULT_RESYNC_RATE = 128 * MIB
DEFAULT_SCRUB_RATE = 32 * MIB

OPTIONS: tuple[Option, ...] = (
    Option("data", config.path, "the server's data directory, on the disk that it owns", required=True, metavar="DIR"),
    Option(
        "listen",
        config.address,
        "where to listen; port 0 takes a free one",
        default="127.0.0.1:7401",
        metavar="HOST:PORT",
    ),
    Option("metadata", config.addresses, "the metadata server", required=True, metavar="HOST:PORT[,HOST:PORT]"),
    Option(
        "zone",
        config.zone,
        "failure domain; copies of a chunk lie in different zones",
        default="default",
        metavar="NAME",
    ),
    Option("advertise", config.address, "how others reach this server, if not by --listen", metavar="HOST:PORT"),
    Option("weight", config.size, "share of the data, in bytes (default: the disk's size)", metavar="SIZE"),
    Option("reserve", config.size, f"disk space never used (default {format_size(DEFAULT_RESERVE)})", metavar="SIZE"),
    Option(
        "resync_rate",
        config.size,
        f"bytes a second for copying to other nodes, 0: no bound (default {format_size(DEFAULT_RESYNC_RATE)})",
        metavar="SIZE",
    ),
    Option(
        "scrub_rate",
        config.size,
        f"bytes a second that a deep scrub reads, 0: no bound (default {format_size(DEFAULT_SCRUB_RATE)})",
        metavar="SIZE",
    ),
    *SERVE_OPTIONS,
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    from chunkserver.server import ChunkServer, ChunkServerOptions
    from fsd.http.exposition import Family
    from fsd.http.face import Face, request_families, sync_family
    from fsd.runtime import Runtime
    from fsd.runtime.local import LocalDirectory

    options = ChunkServerOptions(
        listen=settings["listen"],
        metadata=settings["metadata"],
        zone=settings["zone"],
        advertise=settings["advertise"],
        weight=settings["weight"],
        reserve_bytes=_or(settings["reserve"], DEFAULT_RESERVE),
        resync_bytes_per_s=_or(settings["resync_rate"], DEFAULT_RESYNC_RATE),
        scrub_bytes_per_s=_or(settings["scrub_rate"], DEFAULT_SCRUB_RATE),
    )

    def make(runtime: Runtime, directory: LocalDirectory) -> Serving:
        server = ChunkServer(runtime, directory, options)

        def reconfigure(settings: dict[str, Any]) -> None:
            server.set_rates(
                resync_bytes_per_s=_or(settings["resync_rate"], DEFAULT_RESYNC_RATE),
                scrub_bytes_per_s=_or(settings["scrub_rate"], DEFAULT_SCRUB_RATE),
            )

        def families() -> list[Family]:
            return [*server.families(), *request_families(server.requests), sync_family(directory.syncs)]

        face = Face("chunkserver", server.checks, families)
        return Serving(server, face, server.goodbye, ("resync_rate", "scrub_rate"), reconfigure)

    return serve(settings, make)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
