"""Where the bytes of a file on a mount are: its inode, its chunks, and each copy of them."""

import argparse
import contextlib
import json
import os
import stat
import time
from typing import Any

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.place import place_of
from fsd.cluster.map import ClusterMap, Row, pg_of
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import FsError, NotFound
from fsd.core.ids import ChunkId, Ino, Member, PgId
from fsd.core.units import format_size
from fsd.namespace.records import Inode, Volume
from fsd.protocol.chunk import ChunkSummary, InspectChunks
from fsd.protocol.cluster import GetMap, ListVolumes
from fsd.protocol.metadata import InspectInode

OPTIONS: tuple[Option, ...] = (
    *(option for option in CLUSTER_OPTIONS if option.name == "timeout_s"),
    Option("chunks", config.integer(1, 1_000_000), "show at most so many chunks", default=1000, metavar="N"),
    JSON,
)
_TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symbolic link"}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a path on a mounted volume")


def run(settings: dict[str, Any]) -> int:
    place = place_of(str(settings["path"]))
    path, volume, ino = place.path, place.volume, place.ino
    if stat.S_ISREG(place.mode):
        _write_back(path)
    settings["metadata"] = place.addresses

    async def look(cluster: Cluster) -> dict[str, Any]:
        return await inspect(cluster, path, volume, ino, settings["chunks"])

    found = run_with_cluster(settings, look)
    print(json.dumps(found, indent=1) if settings["json"] else describe(found))
    return exits.OK


def _write_back(path: str) -> None:
    """What this mount has not written yet would not be found on any server."""
    with contextlib.suppress(OSError):  # who may not open it sees what is stored
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


async def inspect(cluster: Cluster, path: str, volume_name: str, ino: Ino, limit: int) -> dict[str, Any]:
    """The JSON output; its fields are told in docs/cli.md."""
    volumes: tuple[Volume, ...] = (await cluster.ask(ListVolumes())).volumes
    volume = next((v for v in volumes if v.name == volume_name), None)
    if volume is None:
        raise NotFound(f"there is no volume {volume_name}")
    inode: Inode | None = (await cluster.ask(InspectInode(volume.layer, ino))).inode
    if inode is None:
        raise NotFound(f"the metadata server does not know inode {ino} of {volume_name}")
    cluster_map: ClusterMap = (await cluster.ask(GetMap())).map
    chunks = -(-inode.size // cluster_map.chunk_size) if inode.is_regular and not inode.is_inline else 0
    return {
        "path": path,
        "volume": volume_name,
        "inode": inode_row(inode),
        "stored": _stored(inode),
        "chunk_size": cluster_map.chunk_size,
        "chunk_count": chunks,
        "chunks": [
            await _chunk(cluster, cluster_map, volume, ChunkId(inode.data, index))
            for index in range(min(chunks, limit))
        ],
    }


def inode_row(inode: Inode) -> dict[str, object]:
    return {
        "ino": inode.ino,
        "type": _TYPES.get(stat.S_IFMT(inode.mode), "special"),
        "mode": f"{stat.S_IMODE(inode.mode):04o}",
        "uid": inode.uid,
        "gid": inode.gid,
        "nlink": inode.nlink,
        "size": inode.size,
        "data_id": inode.data,
        "mtime_ns": inode.mtime_ns,
        "ctime_ns": inode.ctime_ns,
    }


def _stored(inode: Inode) -> str:
    if not inode.is_regular:
        return "metadata"
    return "inline" if inode.is_inline else "chunks"


async def _chunk(cluster: Cluster, cluster_map: ClusterMap, volume: Volume, chunk: ChunkId) -> dict[str, object]:
    pg = pg_of(volume.pool, chunk, cluster_map.pg_count)
    row = next((row for row in cluster_map.rows if row.pg == pg), None)
    copies = [] if row is None else [await _copy(cluster, cluster_map, row, m, chunk) for m in row.members()]
    return {"index": chunk.index, "placement_group": pg, "epoch": row.epoch if row else 0, "copies": copies}


async def _copy(
    cluster: Cluster, cluster_map: ClusterMap, row: Row, member: Member, chunk: ChunkId
) -> dict[str, object]:
    node = next(node for node in cluster_map.nodes if node.node == member.node)
    role = "syncing" if member in row.syncing else "primary" if member == row.primary else "secondary"
    copy: dict[str, object] = {"node": member.node, "address": node.address, "zone": node.zone, "role": role}
    try:
        summary = await summary_of(cluster, node.address, row.pg, chunk)
    except FsError as error:
        return copy | {"state": "unreachable", "error": str(error)}
    if summary is None:
        return copy | {"state": "absent"}
    order = f"{summary.order.epoch}.{summary.order.version}"
    return copy | {"state": "stored", "order": order, "length": summary.length, "checksum": f"{summary.checksum:08x}"}


async def summary_of(cluster: Cluster, address: str, pg: PgId, chunk: ChunkId) -> ChunkSummary | None:
    answer = await cluster.ask_node(address, InspectChunks(pg, (chunk,)))
    return answer.chunks[0] if answer.chunks else None


def describe(found: dict[str, Any]) -> str:
    """For people."""
    inode = found["inode"]
    changed = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(inode["mtime_ns"] // 1_000_000_000))
    lines = [
        f"{found['path']}: {inode['type']}, inode {inode['ino']} of volume {found['volume']}",
        f"mode {inode['mode']}, owner {inode['uid']}:{inode['gid']}, {inode['nlink']} links, "
        f"{format_size(inode['size'])}, changed {changed}",
    ]
    if found["stored"] == "inline":
        lines.append("its bytes are inline, in the metadata server's record")
    for chunk in found["chunks"]:
        lines.append(f"chunk {chunk['index']} in placement group {chunk['placement_group']} (epoch {chunk['epoch']})")
        lines += [f"    {_copy_line(copy)}" for copy in chunk["copies"]]
    if found["chunk_count"] > len(found["chunks"]):
        lines.append(f"... and {found['chunk_count'] - len(found['chunks'])} more chunks")
    return "\n".join(lines)


def _copy_line(copy: dict[str, Any]) -> str:
    where = f"node {copy['node']} at {copy['address']}, zone {copy['zone']}, {copy['role']}"
    if copy["state"] != "stored":
        return f"{where}: {copy['state']}"
    return f"{where}: {format_size(copy['length'])}, order {copy['order']}, checksum {copy['checksum']}"
