"""Who holds fcntl and flock locks of a file, who waits for one, and since when."""

import argparse
import json
from typing import Any

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.place import Place, place_of, volume_of
from fsd.cli.status import period
from fsd.core.config import Option
from fsd.namespace.locks import RANGE_END, LockSpace
from fsd.protocol.locks import InspectLocks, LockRow, LocksReply

OPTIONS: tuple[Option, ...] = (*(option for option in CLUSTER_OPTIONS if option.name == "timeout_s"), JSON)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a path on a mounted volume")


def run(settings: dict[str, Any]) -> int:
    place = place_of(str(settings["path"]))

    async def ask(cluster: Cluster) -> LocksReply:
        volume = await volume_of(cluster, place.volume)
        return await cluster.ask(InspectLocks(volume.layer, place.ino))

    reply = run_with_cluster(settings | {"metadata": place.addresses}, ask)
    print(json.dumps(document(place, reply), indent=1) if settings["json"] else table(place, reply))
    return exits.OK


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
