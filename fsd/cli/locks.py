"""Who holds fcntl and flock locks of a file, who waits for one, and since when."""

from typing import Any

from fsd.cli.inspecting import OPTIONS, arguments, inspect
from fsd.cli.place import Place
from fsd.cli.status import period
from fsd.namespace.locks import RANGE_END, LockSpace
from fsd.protocol.locks import InspectLocks, LockRow, LocksReply

__all__ = ["OPTIONS", "arguments", "document", "run", "table"]


def run(settings: dict[str, Any]) -> int:
    return inspect(settings, InspectLocks, document, table)


def document(place: Place, reply: LocksReply) -> dict[str, object]:
    """The JSON output; its fields are told in docs/cli.md."""
    return {
        "path": place.path,
        "volume": place.volume,
        "ino": place.ino,
        "decided_by": reply.delegate,
        "locks": [
            {
                "session": row.session,
                "client": row.client,
                "space": row.lock.space.value,
                "kind": row.lock.kind.value,
                "start": row.lock.start,
                "end": None if row.lock.end >= RANGE_END else row.lock.end,
                "pid": row.lock.pid,
                "owner": row.lock.owner,
                "waiting": row.waiting,
                "age_s": None if row.age_s < 0 else round(row.age_s, 3),
            }
            for row in reply.rows
        ],
    }


def table(place: Place, reply: LocksReply) -> str:
    """For people."""
    lines = [f"{place.path}: inode {place.ino} of volume {place.volume}"]
    lines += [_line(row) for row in reply.rows] or ["nobody has a lock of it"]
    if reply.delegate:
        lines.append(f"session {reply.delegate} decides by itself: it is alone with the file")
    return "\n".join(lines)


def _line(row: LockRow) -> str:
    lock = row.lock
    end = "end" if lock.end >= RANGE_END else str(lock.end)
    what = "whole file" if lock.space is LockSpace.FLOCK else f"bytes {lock.start} to {end}"
    name = "flock" if lock.space is LockSpace.FLOCK else "fcntl"
    since = "" if row.age_s < 0 else f" for {period(row.age_s)}"
    does = "waits" if row.waiting else "holds"
    return f"session {row.session} of {row.client}, pid {lock.pid}: {does} {name} {lock.kind.value}, {what}{since}"
