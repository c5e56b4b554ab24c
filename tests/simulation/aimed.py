"""Faults aimed at one rule each: whole groups that die together, disks that come back empty, changes that are interrupted."""

import trio

from fsd.cluster.map import Row
from fsd.protocol.chunk import ChunkWritten, Replicate, WriteChunk
from tests.simulation.host import Host
from tests.simulation.nemesis import Nemesis
from tests.simulation.network import End


async def pair(nemesis: Nemesis) -> tuple[Host, Host] | None:
    """The primary and another member of some group with two living members in sync."""
    await nemesis.primary()
    cluster_map = nemesis.cluster.map
    if cluster_map is None:
        return None
    hosts = {host.name: host for host in nemesis.cluster.nodes}
    names = {node.node: node.address.rpartition(":")[0] for node in cluster_map.nodes}

    def living(row: Row) -> list[Host]:
        found = [hosts.get(names.get(member.node, "")) for member in row.in_sync]
        return [host for host in found if host is not None and host.up]

    rows = [row for row in cluster_map.rows if row.active and not row.syncing and len(living(row)) >= 2]
    if not rows:
        return None
    first, second = nemesis.random.sample(living(nemesis.random.choice(rows)), 2)
    return first, second


async def lose_one_of_two(nemesis: Nemesis) -> None:
    """R8: one member loses power for ever; before anybody knows, the other is killed (which is known at once) and comes
    back. It has all that was acknowledged: its group must live."""
    if len(nemesis.cluster.nodes) < 3 or (chosen := await pair(nemesis)) is None:
        return
    corpse, other = chosen
    corpse.power_off()
    await trio.sleep(nemesis.random.uniform(0, 1))
    other.kill()
    nemesis.cluster.retire(corpse)
    await trio.sleep(nemesis.random.uniform(0.5, 12))
    other.boot()
    await trio.sleep(25)  # others take the corpse's place


async def come_back_empty(nemesis: Nemesis) -> None:
    """R9: two members lose power; the first to come back has lost its index, and has no right to lead."""
    if (chosen := await pair(nemesis)) is None:
        return
    empty, whole = chosen
    for host in (empty, whole):
        host.power_off()
        await trio.sleep(nemesis.random.uniform(0, 0.3))
    nemesis.kernel.trace("damage", empty.name, empty.disk.damage_store())
    empty.boot()
    await trio.sleep(nemesis.random.uniform(9, 14))  # longer than the grace
    whole.boot()
    await trio.sleep(3)


async def interrupt_change(nemesis: Nemesis) -> None:
    """A change is on the primary's disk and not on its member's when its client dies; the member gets it late or never."""
    cluster = nemesis.cluster
    cuts: list[tuple[str, str]] = []

    def strike(end: End) -> None:
        cuts.append((end.host, end.other.host))
        cluster.fabric.cut(*cuts[0])
        for host in cluster.clients:
            if host.up:
                nemesis.kernel.after(0.05, kill_now, nemesis, host)

    if await nemesis.ambush(Replicate, strike):
        await trio.sleep(0.3)
        cluster.fabric.heal(*cuts[0])
        await trio.sleep(1)
        await nemesis.boot_all()


def kill_now(nemesis: Nemesis, host: Host) -> None:
    if host.up:
        nemesis.cluster.kill_client(host)


async def power_group(nemesis: Nemesis) -> None:
    """All members of a group lose power together and come back one by one, slowly."""
    if (chosen := await pair(nemesis)) is None:
        return
    for host in chosen:
        host.power_off()
    for host in chosen:
        await trio.sleep(nemesis.random.uniform(0.5, 11))
        host.boot()


async def lonely_primary(nemesis: Nemesis) -> None:
    """R5: a change does not reach the primary's member; a second later the primary dies, and its member takes over."""
    cut: list[tuple[str, str]] = []

    def strike(end: End) -> None:
        cut.append((end.host, end.other.host))
        nemesis.fabric.cut(*cut[0])

    if await nemesis.ambush(Replicate, strike):
        await trio.sleep(1.2)
        primary = nemesis.host(cut[0][0])
        primary.power_off()
        nemesis.fabric.heal(*cut[0])
        await trio.sleep(12)
        if not primary.up:
            primary.boot()


async def kill_flusher(nemesis: Nemesis) -> None:
    """A client dies at some moment of a flush: with its bytes on the way, prepared, committed, applied."""
    kind = nemesis.random.choice((WriteChunk, WriteChunk, ChunkWritten))
    after_s = nemesis.random.choice((0.0, 0.001, 0.002, 0.004, 0.008, 0.02, 0.1))

    def strike(end: End) -> None:
        name = end.host if kind is WriteChunk else end.other.host
        for host in nemesis.cluster.clients:
            if host.name == name:
                nemesis.kernel.after(after_s, kill_now, nemesis, host)

    if await nemesis.ambush(kind, strike):
        await trio.sleep(nemesis.random.choice((0.05, 0.5, 3.0)))
        await nemesis.boot_all()


async def kill_primary_of_a_flush(nemesis: Nemesis) -> None:
    """What was prepared must be known to whoever leads next."""
    after_s = nemesis.random.choice((0.001, 0.005, 0.02, 0.3))
    struck: list[Host] = []

    def strike(end: End) -> None:
        struck.append(nemesis.host(end.other.host))
        nemesis.kernel.after(after_s, struck[0].kill)

    if await nemesis.ambush(WriteChunk, strike):
        await trio.sleep(nemesis.random.choice((0.05, 1.0)))
        if nemesis.random.random() < 0.5:
            kill_now(nemesis, nemesis.random.choice(nemesis.cluster.clients))
        await trio.sleep(nemesis.random.choice((0.5, 3.0)))
        await nemesis.boot_all()


async def late_replicate(nemesis: Nemesis) -> None:
    """A primary's change arrives at a member when another leads."""
    primaries: list[Host] = []

    def strike(end: End) -> None:
        primaries.append(nemesis.host(end.host))
        end.stall(nemesis.random.uniform(11.5, 13.0))

    if await nemesis.ambush(Replicate, strike):
        others = [host for host in nemesis.cluster.clients if host.up]
        await nemesis.cut(primaries, [nemesis.cluster.metadata, *others], both=True, time_s=14.0)
