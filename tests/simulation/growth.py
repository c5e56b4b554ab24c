"""Faults that are none: nodes come, are drained, weighed, and go, while everything else goes wrong as well."""

from fsd.cluster.map import Node
from fsd.core.errors import FsError
from fsd.core.ids import NodeId
from fsd.protocol.cluster import PauseMoves, RemoveNode, SetNode
from tests.simulation.host import Host
from tests.simulation.nemesis import CRASHES, CUTS, MOMENTS, POWER, Fault, Nemesis

MOST_NODES = 6


async def add_node(nemesis: Nemesis) -> None:
    cluster = nemesis.cluster
    if len(cluster.nodes) >= MOST_NODES:
        return
    number = 1 + max(int(name[1:]) for name in cluster.fabric.hosts if name.startswith("s"))
    host = Host(cluster.kernel, cluster.fabric, cluster.nursery, f"s{number}", cluster.run_node)
    cluster.nodes.append(host)
    host.boot()


async def drain_one(nemesis: Nemesis) -> None:
    """At least two other nodes stay undrained, so that everything has somewhere to go."""
    undrained = [node for node in await known(nemesis) if not node.draining]
    if len(undrained) > max(2, nemesis.cluster.plan.replicas):
        await set_node(nemesis, nemesis.random.choice(undrained).node, draining=True)


async def undrain_all(nemesis: Nemesis) -> None:
    for node in await known(nemesis):
        if node.draining:
            await set_node(nemesis, node.node, draining=False)


async def remove_drained(nemesis: Nemesis) -> None:
    """Refused unless nothing depends on it; its host is switched off for good if it worked."""
    cluster = nemesis.cluster
    for node in await known(nemesis):
        if not node.draining:
            continue
        try:
            await cluster.ask_once(RemoveNode(node.node))
        except FsError as error:
            cluster.kernel.trace("not removed", node.node, str(error))
            continue
        gone = next(host for host in cluster.nodes if host.name == node.address.rpartition(":")[0])
        cluster.kernel.trace("removed", gone.name)
        gone.power_off()
        cluster.retire(gone)
        return


async def weigh_one(nemesis: Nemesis) -> None:
    nodes = await known(nemesis)
    if nodes:
        await set_node(nemesis, nemesis.random.choice(nodes).node, weight=nemesis.random.choice((0, 1 << 29, 1 << 32)))


async def pause_moves(nemesis: Nemesis) -> None:
    await try_once(nemesis, PauseMoves(nemesis.random.random() < 0.3))


async def set_node(nemesis: Nemesis, node: NodeId, *, draining: bool | None = None, weight: int | None = None) -> None:
    await try_once(nemesis, SetNode(node, draining, weight))


async def try_once(nemesis: Nemesis, message: object) -> None:
    try:
        await nemesis.cluster.ask_once(message)
    except FsError as error:
        nemesis.kernel.trace("administrator", type(message).__name__, str(error))


async def known(nemesis: Nemesis) -> list[Node]:
    await nemesis.primary()
    return list(nemesis.cluster.map.nodes) if nemesis.cluster.map is not None else []


GROWTH: list[Fault] = [add_node, drain_one, drain_one, undrain_all, remove_drained, weigh_one, pause_moves]

MIXES: tuple[list[Fault], ...] = (
    GROWTH,
    GROWTH + CRASHES,
    GROWTH + CUTS,
    GROWTH + MOMENTS,
    GROWTH + POWER,
    GROWTH + CRASHES + CUTS,
)
