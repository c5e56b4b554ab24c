"""Check the whole file system: the tree's counts and links, and every chunk on all its nodes; --repair mends chunks.

The tree is compared with itself (at the metadata server), and the members of each placement group with each other; what
no file refers to any more is counted. The cluster may be in use: what is in change is looked at again before it is
called a fault. With --repair, copies that differ are made equal by their primaries, and chunks that no file refers to, at
two looks and for no live session, are removed. Faults of the tree are told, never guessed away.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import trio

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.progress import Progress
from fsd.cluster.map import ClusterMap, NodeState, Row, pool_of
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import FsError
from fsd.core.ids import ChunkId, DataId, Ino, PgId, PoolId
from fsd.namespace.records import Volume
from fsd.protocol.chunk import ChunkList, ChunkSummary, GetScrub, InspectGroup, RunScrub, ScrubStatus
from fsd.protocol.cluster import (
    CollectOrphans,
    DataPage,
    FsckReply,
    GetMap,
    GetStatus,
    ListData,
    ListVolumes,
    Orphan,
    OrphansCollected,
    RunFsck,
    StatusReply,
)

OPTIONS: tuple[Option, ...] = (
    *(option for option in CLUSTER_OPTIONS if option.name != "timeout_s"),
    Option("timeout_s", config.seconds, "give up after this many seconds", default=3600.0, metavar="S"),
    Option("tree_only", config.switch, "do not look at chunks", default=False, switch=True),
    Option("repair", config.switch, "make copies equal, remove chunks of no file", default=False, switch=True),
    JSON,
)
SECOND_LOOK_S = 5.0
SCRUB_POLL_S = 0.5
PAGE = 1000
ATTEMPTS = 5  # how often something that differs is looked at again
PAUSE_S = 0.5
MAX_FAULTS = 1000
BEFORE_ALL = ChunkId(DataId(0), 0)  # data ids begin above
CONCURRENT_GROUPS = 16


def arguments(parser: argparse.ArgumentParser) -> None:
    """None but the options."""


def run(settings: dict[str, Any]) -> int:
    async def check(cluster: Cluster) -> dict[str, Any]:
        with Progress("fsck", quiet=settings["json"]) as progress:
            if settings["repair"]:
                return await repair_all(cluster, progress)
            return await check_all(cluster, progress, tree_only=settings["tree_only"])

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
        if settings["repair"]:
            print(f"repaired: {found['mended']} copies mended, data of {found['removed']} files that are gone removed")
    return exits.OK if found["clean"] else exits.FAILED


async def check_all(cluster: Cluster, progress: Progress, *, tree_only: bool) -> dict[str, Any]:
    """The JSON output; its fields are told in docs/cli.md."""
    reply: FsckReply = await cluster.ask(RunFsck())
    chunks = Chunks() if tree_only else await _check_chunks(cluster, progress)
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


async def repair_all(cluster: Cluster, progress: Progress) -> dict[str, Any]:
    """Mend, then check: what is left is a fault. The JSON output has `mended` and `removed` besides."""
    mended = await _make_equal(cluster, progress)
    first = await _orphans(cluster, progress)
    await trio.sleep(SECOND_LOOK_S if first else 0)
    second = await _orphans(cluster, progress) if first else {}
    orphans = [second[data] for data in sorted(second) if data in first]
    removed = 0
    for start in range(0, len(orphans), PAGE):
        reply: OrphansCollected = await cluster.ask(CollectOrphans(tuple(orphans[start : start + PAGE])))
        removed += len(reply.taken)
    return await check_all(cluster, progress, tree_only=False) | {"mended": mended, "removed": removed}


async def _make_equal(cluster: Cluster, progress: Progress) -> int:
    """A light scrub on every node; how many copies were mended."""
    status: StatusReply = await cluster.ask(GetStatus())
    nodes = [entry.node.address for entry in status.nodes if entry.node.state is NodeState.UP]
    before = [await cluster.ask_node(address, RunScrub(False)) for address in nodes]
    mended = 0
    for address, old in zip(nodes, before, strict=True):
        now: ScrubStatus = await cluster.ask_node(address, GetScrub())
        while now.running:
            progress.show(now.groups_done, now.groups, f"comparing copies of node at {address}")
            await trio.sleep(SCRUB_POLL_S)
            now = await cluster.ask_node(address, GetScrub())
        mended += now.repaired - old.repaired
    return mended


async def _orphans(cluster: Cluster, progress: Progress) -> dict[DataId, Orphan]:
    """Data ids with chunks and without a file. The files are looked at after the chunks."""
    cluster_map: ClusterMap = (await cluster.ask(GetMap())).map
    groups = {row.pg: Group() for row in cluster_map.rows}
    await _check_groups(cluster, cluster_map, sorted(groups), groups, progress)
    ends: dict[tuple[DataId, PoolId], int] = {}
    for pg in sorted(groups):
        for chunk in groups[pg].chunks:
            key = (chunk.data, pool_of(pg))
            ends[key] = max(ends.get(key, 0), (chunk.index + 1) * cluster_map.chunk_size)
    live = await live_data(cluster)
    return {data: Orphan(data, pool, end) for (data, pool), end in ends.items() if data not in live}


@dataclass(slots=True)
class Chunks:
    """What was found of chunks. `unreferenced`: data ids of no file: not yet committed, or waiting to be collected."""

    count: int = 0
    copies: int = 0
    unreferenced: int = 0
    faults: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class Group:
    """What was found of one placement group."""

    chunks: set[ChunkId] = field(default_factory=set[ChunkId])
    copies: int = 0
    faults: list[str] = field(default_factory=list[str])


async def _check_chunks(cluster: Cluster, progress: Progress) -> Chunks:
    """All groups; those with faults again, ATTEMPTS times, because rows and chunks may be in change."""
    cluster_map: ClusterMap = (await cluster.ask(GetMap())).map
    groups: dict[PgId, Group] = {row.pg: Group() for row in cluster_map.rows}
    left = sorted(groups)
    for attempt in range(ATTEMPTS):
        if attempt:
            await trio.sleep(PAUSE_S * attempt)
            cluster_map = (await cluster.ask(GetMap())).map
        await _check_groups(cluster, cluster_map, left, groups, progress)
        left = [pg for pg in left if groups[pg].faults]
        if not left:
            break
    chunks = {chunk for group in groups.values() for chunk in group.chunks}
    found = Chunks(len(chunks), sum(group.copies for group in groups.values()))
    found.unreferenced = len({chunk.data for chunk in chunks} - await live_data(cluster))
    found.faults = [fault for pg in sorted(groups) for fault in groups[pg].faults]
    return found


async def _check_groups(
    cluster: Cluster, cluster_map: ClusterMap, pgs: list[PgId], groups: dict[PgId, Group], progress: Progress
) -> None:
    rows = {row.pg: row for row in cluster_map.rows}
    left = iter(enumerate(pgs, 1))

    async def work() -> None:
        for number, pg in left:
            groups[pg] = await _check_group(cluster, cluster_map, rows[pg])
            progress.show(number, len(pgs), f"{number} of {len(pgs)} placement groups")

    async with trio.open_nursery() as nursery:
        for _ in range(CONCURRENT_GROUPS):
            nursery.start_soon(work)


async def _check_group(cluster: Cluster, cluster_map: ClusterMap, row: Row) -> Group:
    """The members of one placement group against each other."""
    try:
        held = await _held_by_members(cluster, cluster_map, row)
    except FsError as error:
        return Group(faults=[f"placement group {row.pg}: a member cannot be asked: {error}"])
    chunks = {chunk for chunks in held.values() for chunk in chunks}
    return Group(chunks, sum(len(chunks) for chunks in held.values()), list(_differences(row, held)))


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
