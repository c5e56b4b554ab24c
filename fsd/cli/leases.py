"""Who may cache a file (shared) or change it and tell later (exclusive), since when, and who has it open."""

from typing import Any

from fsd.cli.inspecting import OPTIONS, arguments, inspect
from fsd.cli.place import Place
from fsd.cli.status import period
from fsd.protocol.locks import InspectLeases, LeaseRow, LeasesReply
from fsd.protocol.metadata import LeaseMode

__all__ = ["OPTIONS", "arguments", "document", "run", "table"]


def run(settings: dict[str, Any]) -> int:
    return inspect(settings, InspectLeases, document, table)


def document(place: Place, reply: LeasesReply) -> dict[str, object]:
    """The JSON output; its fields are told in docs/cli.md."""
    return {
        "path": place.path,
        "volume": place.volume,
        "ino": place.ino,
        "leases": [
            {
                "session": row.session,
                "client": row.client,
                "address": row.address,
                "mode": row.mode.name.lower(),
                "age_s": None if row.mode is LeaseMode.NONE else round(row.age_s, 3),
                "open": row.open,
            }
            for row in reply.rows
        ],
    }


def table(place: Place, reply: LeasesReply) -> str:
    """For people."""
    lines = [f"{place.path}: inode {place.ino} of volume {place.volume}"]
    lines += [_line(row) for row in reply.rows] or ["nobody has a lease on it"]
    return "\n".join(lines)


def _line(row: LeaseRow) -> str:
    held = "no lease" if row.mode is LeaseMode.NONE else f"{row.mode.name.lower()} for {period(row.age_s)}"
    told = ", has it open" if row.open else ""
    return f"session {row.session} of {row.client} at {row.address}: {held}{told}"
