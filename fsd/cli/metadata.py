"""Run a metadata server: names, sessions, leases and the cluster map."""

import argparse
from typing import Any

from fsd.cli.serve import SERVE_OPTIONS, Serving, serve
from fsd.core import config
from fsd.core.config import Option
from fsd.core.units import DEFAULT_CHUNK_SIZE, DEFAULT_INLINE_LIMIT, DEFAULT_PG_COUNT, format_size

OPTIONS: tuple[Option, ...] = (
    Option("data", config.path, "the server's data directory", required=True, metavar="DIR"),
    Option("listen", config.address, "where to listen", default="127.0.0.1:7400", metavar="HOST:PORT"),
    Option("replicas", config.integer(1, 7), "copies of every chunk in the first volume", default=2, metavar="N"),
    Option("min_replicas", config.integer(1, 7), "durable copies without which a write waits", default=1, metavar="N"),
    Option("volume", config.volume_name, "name of the first volume", default="default", metavar="NAME"),
    Option(
        "chunk_size",
        config.chunk_size,
        f"fixed at creation (default {format_size(DEFAULT_CHUNK_SIZE)})",
        metavar="SIZE",
    ),
    Option("pg_count", config.power_of_two(1, 32768), f"fixed at creation (default {DEFAULT_PG_COUNT})", metavar="N"),
    Option(
        "inline_limit",
        config.size,
        f"files up to this live in the tree (default {format_size(DEFAULT_INLINE_LIMIT)})",
        metavar="SIZE",
    ),
    Option("lease_s", config.seconds, "a node's lease", default=6.0, metavar="S"),
    Option("grace_s", config.seconds, "silence after which a node is dead; above the lease", default=8.0, metavar="S"),
    Option("session_ttl_s", config.seconds, "silence after which a client is fenced", default=10.0, metavar="S"),
    Option(
        "rebuild_after_s",
        config.seconds,
        "absence after which a node's copies are made anew",
        default=600.0,
        metavar="S",
    ),
    Option(
        "rebalance_after_s",
        config.seconds,
        "quiet time, with no node coming or going, before groups are evened out",
        default=60.0,
        metavar="S",
    ),
    *SERVE_OPTIONS,
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    from fsd.cli.dashboard import face
    from fsd.core.errors import ConfigurationError
    from fsd.runtime import Runtime
    from fsd.runtime.local import LocalDirectory
    from metadata.server import MetadataOptions, MetadataServer

    if settings["grace_s"] <= settings["lease_s"] * 1.05:
        raise ConfigurationError("--grace-s must be more than 1.05 times --lease-s, or a read could be stale")
    if settings["min_replicas"] > settings["replicas"]:
        raise ConfigurationError("--min-replicas is above --replicas: no write could ever be acknowledged")
    options = MetadataOptions(
        listen=settings["listen"],
        lease_s=settings["lease_s"],
        grace_s=settings["grace_s"],
        session_ttl_s=settings["session_ttl_s"],
        chunk_size=settings["chunk_size"] or DEFAULT_CHUNK_SIZE,
        pg_count=settings["pg_count"] or DEFAULT_PG_COUNT,
        replicas=settings["replicas"],
        min_replicas=settings["min_replicas"],
        inline_limit=DEFAULT_INLINE_LIMIT if settings["inline_limit"] is None else settings["inline_limit"],
        first_volume=settings["volume"],
        rebuild_after_s=settings["rebuild_after_s"],
        rebalance_after_s=settings["rebalance_after_s"],
    )

    def make(runtime: Runtime, directory: LocalDirectory) -> Serving:
        server = MetadataServer(runtime, directory, options)
        return Serving(server, face(server, directory))

    return serve(settings, make)
