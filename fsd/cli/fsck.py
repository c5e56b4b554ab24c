"""Check the whole file system: the tree's counts and links, and every chunk on all its nodes.

The tree is compared with itself (at the metadata server), and the members of each placement group with each other; what
no file refers to any more is counted. The cluster may be in use: what is in change is looked at again before it is
called a fault.
"""

import argparse
import json
from collections.abc import Iterable
from typing import Any

import trio

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cluster.map import ClusterMap, Row
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import FsError
from fsd.core.ids import ChunkId, DataId, Ino
from fsd.namespace.records import Volume
from fsd.protocol.chunk import ChunkList, ChunkSummary, InspectGroup
from fsd.protocol.cluster import DataPage, FsckReply, GetMap, ListData, ListVolumes, RunFsck

OPTIONS: tuple[Option, ...] = (
    *(option for option in CLUSTER_OPTIONS if option.name != "timeout_s"),
    Option("timeout_s", config.seconds, "give up after this many seconds", default=3600.0, metavar="S"),
    Option("tree_only", config.switch, "do not look at chunks", default=False, switch=True),
    JSON,
)
PAGE = 1000
ATTEMPTS = 5  # how often something that differs is looked at again
PAUSE_S = 0.5
MAX_FAULTS = 1000
BEFORE_ALL = ChunkId(DataId(0), -1)


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    async def check(cluster: Cluster) -> dict[str, Any]:
        return await check_all(cluster, tree_only=settings["tree_only"])

    found = run_with_cluster(settings, check)
    if settings["json"]:
        print(json.dumps(found, indent=1))
    else:
        for fault in found["faults"]:
            print(fault)
        print(
            f"{'clean' if found['clean'] else 'NOT CLEAN'}: {found['volumes']} volumes, {found['inodes']} inodes, "
            f"{found['dentries']} names, {found['chunks']} chunks in {found['copies']} copies; "
            f"{found['unreferenced']} files' data to be collected; {len(found['faults'])} faults"
        )
    return exits.OK if found["clean"] else exits.FAILED


async def check_all(cluster: Cluster, *, tree_only: bool) -> dict[str, Any]:
    """The JSON output; its fields are told in docs/cli.md."""
    reply: FsckReply = await cluster.ask(RunFsck())
    chunks = Chunks() if tree_only else await _check_chunks(cluster)
    faults = [*reply.faults, *chunks.faults][:MAX_FAULTS]
    return {
        "clean": not faults,
        "volumes": reply.volumes,
        "inodes": reply.inodes,
        "dentries": reply.dentries,
        "bytes": reply.bytes,
        "chunks": chunks.count,
        "copies": chunks.copies,
        "unreferenced": chunks.unreferenced,
        "faults": faults,
    }


class Chunks:
    """What was found of chunks."""

    def __init__(self) -> None:
        self.count = 0
        self.copies = 0
        self.data: set[DataId] = set()
        self.unreferenced = 0  # data ids of no file: written and not yet committed, or waiting to be collected
        self.faults: list[str] = []


async def _check_chunks(cluster: Cluster) -> Chunks:
    found = Chunks()
    cluster_map: ClusterMap = (await cluster.ask(GetMap())).map
    for row in cluster_map.rows:
        await _check_group(cluster, row.pg, found)
        if len(found.faults) > MAX_FAULTS:
            break
    found.unreferenced = len(found.data - await live_data(cluster))
    return found


async def _check_group(cluster: Cluster, pg: int, found: Chunks) -> None:
    """One placement group, again while its row or its chunks are in change."""
    faults: list[str] = []
    copies = 0
    seen: set[ChunkId] = set()
    for attempt in range(ATTEMPTS):
        if attempt:
            await trio.sleep(PAUSE_S)
        cluster_map: ClusterMap = (await cluster.ask(GetMap())).map
        row = next((row for row in cluster_map.rows if row.pg == pg), None)
        if row is None or not row.in_sync:
            return
        try:
            held = await _held_by_members(cluster, cluster_map, row)
        except FsError as error:
            faults = [f"placement group {pg}: a member cannot be asked: {error}"]
            continue
        faults = list(_differences(row, held))
        seen = {chunk for chunks in held.values() for chunk in chunks}
        copies = sum(len(chunks) for chunks in held.values())
        if not faults:
            break
    found.count += len(seen)
    found.data.update(chunk.data for chunk in seen)
    found.copies += copies
    found.faults += faults


Held = dict[int, dict[ChunkId, ChunkSummary]]  # node -> what it holds of the group


async def _held_by_members(cluster: Cluster, cluster_map: ClusterMap, row: Row) -> Held:
    address = {node.node: node.address for node in cluster_map.nodes}
    return {m.node: await _list(cluster, address[m.node], row) for m in row.in_sync}


async def _list(cluster: Cluster, address: str, row: Row) -> dict[ChunkId, ChunkSummary]:
    held: dict[ChunkId, ChunkSummary] = {}
    after = BEFORE_ALL
    while True:
        page: ChunkList = await cluster.ask_node(address, InspectGroup(row.pg, after, PAGE))
        held.update((summary.chunk, summary) for summary in page.chunks)
        if page.end or not page.chunks:
            return held
        after = page.chunks[-1].chunk


def _differences(row: Row, held: Held) -> Iterable[str]:
    """Chunks that are not the same on all in-sync members (I4)."""
    for chunk in sorted({chunk for chunks in held.values() for chunk in chunks}):
        copies = {node: chunks.get(chunk) for node, chunks in held.items()}
        states = {None if c is None else (c.order, c.length, c.checksum) for c in copies.values()}
        if len(states) > 1:
            told = ", ".join(f"node {n}: {_state(c)}" for n, c in sorted(copies.items()))
            yield f"chunk {chunk.data}.{chunk.index} of placement group {row.pg} differs: {told}"


def _state(copy: ChunkSummary | None) -> str:
    if copy is None:
        return "absent"
    return f"order {copy.order.epoch}.{copy.order.version} {copy.length} bytes {copy.checksum:08x}"


async def live_data(cluster: Cluster) -> set[DataId]:
    """Every data id that a file of any volume refers to."""
    volumes: tuple[Volume, ...] = (await cluster.ask(ListVolumes())).volumes
    live: set[DataId] = set()
    for volume in volumes:
        after = Ino(0)
        while True:
            page: DataPage = await cluster.ask(ListData(volume.layer, after, PAGE))
            live.update(entry.data for entry in page.data)
            if page.end or not page.data:
                break
            after = page.data[-1].ino
    return live
