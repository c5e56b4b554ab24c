"""What goes wrong, under the seed: random faults, and faults aimed at whoever matters most just now."""

from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from fsd.protocol.chunk import ChunkWritten, Replicate, WriteChunk
from fsd.protocol.metadata import BatchExecuted, Execute, ExecuteBatch, Executed, Recalled
from fsd.wire.codec import number_of
from fsd.wire.frame import Frame
from tests.simulation.host import Host
from tests.simulation.network import End

if TYPE_CHECKING:
    from tests.simulation.scenario import Cluster

WRITE_CHUNK = number_of(WriteChunk)

Fault = Callable[["Nemesis"], Awaitable[None]]


class Nemesis:
    """Strikes a cluster until it is stopped; `heal` undoes everything."""

    def __init__(self, cluster: "Cluster", random: Random) -> None:
        self.cluster = cluster
        self.random = random
        self.kernel = cluster.kernel
        self.fabric = cluster.fabric
        self.flipped: Host | None = None
        self.last_writer: dict[str, str] = {}  # node -> the client that asked it last for a change
        self.fabric.sent.append(self._note_writer)

    def _note_writer(self, end: End, frame: Frame) -> None:
        if frame.type == WRITE_CHUNK:
            self.last_writer[end.other.host] = end.host

    async def run(self, faults: list["Fault"], times: int, pause_s: float) -> None:
        for _ in range(times):
            await trio.sleep(self.random.uniform(0, 2 * pause_s))
            fault = self.random.choice(faults)
            self.kernel.trace("nemesis", fault.__name__)
            await fault(self)

    def heal(self) -> None:
        self.kernel.trace("heal")
        self.fabric.heal_all()
        self.fabric.corrupt_probability = 0.0
        self.fabric.clog_probability = 0.01
        for host in self.cluster.hosts():
            host.resume()
            host.disk.slowness = 1.0
            host.disk.failing = False
        for host in self.cluster.servers():
            if not host.up:
                host.boot()

    # --- choosing ---

    def server(self) -> Host:
        return self.random.choice(self.cluster.servers())

    def node(self) -> Host:
        return self.random.choice(self.cluster.nodes)

    def client(self) -> Host | None:
        alive = [host for host in self.cluster.clients if host.up]
        return self.random.choice(alive) if alive else None

    async def primary(self) -> Host:
        """The node that leads most, by the newest map that can be had; or any."""
        return await self.cluster.busiest_primary() or self.node()

    def briefly_s(self) -> float:
        return self.random.choice((0.2, 1.0, 3.0, 8.0, 12.0))

    # --- striking ---

    async def kill_node(self) -> None:
        await self.kill_and_boot(self.node())

    async def kill_primary(self) -> None:
        await self.kill_and_boot(await self.primary())

    async def kill_metadata(self) -> None:
        await self.kill_and_boot(self.cluster.metadata)

    async def kill_and_boot(self, host: Host, *, power: bool = False) -> None:
        if host.up:
            if power:
                host.power_off()
            else:
                host.kill()
            await trio.sleep(self.random.choice((0.05, 0.5, 2.0, 10.0)))
        if not host.up:
            host.boot()

    async def kill_twice(self) -> None:
        """A node that dies again while it comes back, or another as soon as the first is back."""
        first = await self.primary()
        await self.kill_and_boot(first)
        await trio.sleep(self.random.uniform(0, 1.5))
        await self.kill_and_boot(self.random.choice((first, self.node())))

    async def power_one(self) -> None:
        await self.kill_and_boot(self.server(), power=True)

    async def power_all(self) -> None:
        for host in self.cluster.servers():
            host.power_off()
        await trio.sleep(self.random.uniform(0.1, 3))
        servers = self.cluster.servers()
        self.random.shuffle(servers)
        for host in servers:
            if not host.up:
                host.boot()
            await trio.sleep(self.random.uniform(0, 2))

    async def kill_client(self) -> None:
        host = self.client()
        if host is not None:
            self.cluster.kill_client(host)
            await trio.sleep(self.random.uniform(0, 3))
            if not host.up:
                host.boot()

    async def kill_daemon(self) -> None:
        """A client's process dies, its host does not."""
        host = self.client()
        if host is not None:
            self.cluster.kill_daemon(host)
            await self.boot_daemon(host)

    async def boot_daemon(self, host: Host) -> None:
        await trio.sleep(self.random.choice((0.01, 0.2, 0.2, 1.0, 3.0, 14.0)))
        if not host.up:
            host.boot()

    async def kill_daemon_in_the_act(self) -> None:
        """It dies when it has just sent something, or just before the answer arrives."""
        await self.kill_daemon_at(
            self.random.choice((Execute, ExecuteBatch, WriteChunk, Executed, BatchExecuted, ChunkWritten, Recalled))
        )

    async def kill_daemon_before_a_batch_is_answered(self) -> None:
        await self.kill_daemon_at(BatchExecuted)

    async def kill_daemon_at(self, message: type[Any]) -> None:
        clients = {host.name for host in self.cluster.clients}
        victims: list[Host] = []

        def strike(end: End) -> None:
            victims.append(self.host(end.host if end.host in clients else end.other.host))
            self.kernel.after(self.random.choice((0.0001, 0.002, 0.01)), self.kill_daemon_now, victims[0])

        if await self.ambush(message, strike):
            await trio.sleep(0.02)
            await self.boot_daemon(victims[0])

    def kill_daemon_now(self, host: Host) -> None:
        if host.up and host in self.cluster.clients:
            self.cluster.kill_daemon(host)

    async def pause_somebody(self) -> None:
        hosts = [host for host in self.cluster.hosts() if host.up]
        await self.pause(self.random.choice(hosts))

    async def pause_primary(self) -> None:
        await self.pause(await self.primary(), self.random.choice((3.0, 9.0, 14.0)))

    async def pause_client(self) -> None:
        host = self.client()
        if host is not None:
            await self.pause(host, self.random.choice((3.0, 12.0, 16.0)))

    async def pause(self, host: Host, time_s: float | None = None) -> None:
        host.pause()
        await trio.sleep(self.briefly_s() if time_s is None else time_s)
        host.resume()

    async def cut_somebody(self) -> None:
        hosts = self.cluster.hosts()
        side = self.random.sample(hosts, self.random.randint(1, len(hosts) - 1))
        others = [host for host in hosts if host not in side]
        await self.cut(side, others, both=self.random.random() < 0.6)

    async def cut_primary_from_authority(self) -> None:
        """The primary, maybe some clients with it, cannot reach the authority, nor maybe the other nodes."""
        primary = await self.primary()
        far = [self.cluster.metadata]
        if self.random.random() < 0.5:
            far += [node for node in self.cluster.nodes if node is not primary]
        clients = self.random.sample(self.cluster.clients, self.random.randint(0, len(self.cluster.clients) - 1))
        await self.cut([primary, *clients], far, both=True, time_s=self.random.choice((5.0, 10.0, 15.0)))

    async def cut_client_from_authority(self) -> None:
        host = self.client()
        if host is not None:
            await self.cut([host], [self.cluster.metadata], both=True, time_s=self.random.choice((3.0, 12.0, 15.0)))

    async def cut(self, side: list[Host], others: list[Host], *, both: bool, time_s: float | None = None) -> None:
        pairs = [(a.name, b.name) for a in side for b in others]
        for a, b in pairs:
            self.fabric.cut(a, b)
            if both:
                self.fabric.cut(b, a)
        self.kernel.trace("cut", [host.name for host in side], [host.name for host in others], both)
        await trio.sleep(self.briefly_s() if time_s is None else time_s)
        for a, b in pairs:
            self.fabric.heal(a, b)
            self.fabric.heal(b, a)

    async def slow_link(self) -> None:
        a, b = self.random.sample([host.name for host in self.cluster.hosts()], 2)
        self.fabric.slow[(a, b)] = self.fabric.slow[(b, a)] = self.random.choice((20, 200))
        await trio.sleep(self.briefly_s())
        self.fabric.slow.clear()

    async def clog(self) -> None:
        self.fabric.clog_probability = 0.2
        await trio.sleep(self.briefly_s())
        self.fabric.clog_probability = 0.01

    async def slow_disk(self) -> None:
        disk = self.server().disk
        disk.slowness = self.random.choice((10.0, 100.0))
        await trio.sleep(self.briefly_s())
        disk.slowness = 1.0

    async def fail_disk(self) -> None:
        """EIO once; the server ends (R12) and comes back on a disk that works again."""
        host = self.node()
        host.disk.failing = True
        await trio.sleep(self.random.uniform(0.1, 2))
        host.disk.failing = False
        if host.up and self.random.random() < 0.5:
            host.kill()
        await trio.sleep(self.random.uniform(0, 2))
        if not host.up:
            host.boot()

    async def corrupt_frames(self) -> None:
        self.fabric.corrupt_probability = 0.05
        await trio.sleep(self.random.uniform(0.5, 4))
        self.fabric.corrupt_probability = 0.0

    # --- ambushes: waiting for the very moment ---

    async def ambush(self, message: type[Any], strike: Callable[[End], None]) -> bool:
        """Call `strike` in the moment in which the next such message is sent, with the sender's end."""
        number, struck = number_of(message), trio.Event()

        def look(end: End, frame: Frame) -> None:
            if frame.type == number and not struck.is_set():
                struck.set()
                self.kernel.trace("ambush", message.__name__, end.host, end.other.host)
                strike(end)

        self.fabric.sent.append(look)
        with trio.move_on_after(5):
            await struck.wait()
        self.fabric.sent.remove(look)
        return struck.is_set()

    def host(self, name: str) -> Host:
        return next(host for host in self.cluster.hosts() if host.name == name)

    async def kill_between_members(self) -> None:
        """The primary dies when one of its members has got a change and the next has not."""
        if await self.ambush(Replicate, lambda end: self.host(end.host).kill()):
            await trio.sleep(self.random.choice((0.01, 0.5, 3.0)))
            await self.boot_all()

    async def strand_primary(self) -> None:
        """A change reaches the primary's disk and nobody else's; then it dies, and who asked for it dies too."""
        victims: list[Host] = []

        def strand(end: End) -> None:
            primary = self.host(end.host)
            victims.append(primary)
            for node in self.cluster.nodes:
                self.fabric.cut(primary.name, node.name)
            self.kernel.after(self.random.choice((0.004, 0.01, 0.05)), self.kill_now, primary)

        if await self.ambush(Replicate, strand):
            await trio.sleep(0.1)
            writer = self.last_writer.get(victims[0].name)
            if writer is not None and self.random.random() < 0.8:
                self.cluster.kill_client(self.host(writer))
            for node in self.cluster.nodes:
                self.fabric.heal(victims[0].name, node.name)
            await trio.sleep(self.random.choice((0.5, 3.0)))
            await self.boot_all()

    def kill_now(self, host: Host) -> None:
        host.kill()

    async def boot_all(self) -> None:
        for host in self.cluster.hosts():
            if not host.up and not (host.name in self.cluster.done and self.cluster.done[host.name].is_set()):
                host.boot()

    async def late_write(self) -> None:
        """The connection breaks under a write, which arrives all the same, late."""
        await self.ambush(WriteChunk, lambda end: self.fabric.lose_connection(end, self.random.uniform(0.1, 2.0)))

    async def late_write_of_the_evicted(self) -> None:
        """A client loses the authority with a write on the way, which arrives when others have its leases."""
        writers: list[Host] = []

        def delay(end: End) -> None:
            writers.append(self.host(end.host))
            end.stall(self.random.uniform(11.5, 13.0))

        if await self.ambush(WriteChunk, delay):
            await self.cut(writers, [self.cluster.metadata], both=True, time_s=14.0)

    async def lose_answer(self) -> None:
        """An operation is carried out; the connection breaks before its answer arrives."""
        await self.ambush(Executed, lambda end: self.lose_at_receiver(end))

    async def lose_batch_answer(self) -> None:
        """A batch of the journal is carried out; the connection breaks before its answer arrives."""
        await self.ambush(BatchExecuted, lambda end: self.lose_at_receiver(end))

    async def lose_write_answer(self) -> None:
        await self.ambush(ChunkWritten, lambda end: self.lose_at_receiver(end))

    def lose_at_receiver(self, end: End) -> None:
        end.other.break_(f"connection to {end.other.peer} timed out")
        self.kernel.after(self.random.uniform(0.1, 5), end.break_, f"connection to {end.peer} timed out")

    async def flip_bits(self) -> None:
        """On one and the same node all along, so that there is a good copy as long as another lives."""
        self.flipped = self.flipped or await self.primary()
        self.cluster.history.corrupt_allowed = True
        for _ in range(self.random.randint(1, 4)):
            self.kernel.trace("flip", self.flipped.name, self.flipped.disk.flip_bit())


CALM: list[Fault] = [Nemesis.slow_link, Nemesis.clog]
CRASHES: list[Fault] = [
    Nemesis.kill_node,
    Nemesis.kill_primary,
    Nemesis.kill_primary,
    Nemesis.kill_twice,
    Nemesis.kill_metadata,
    Nemesis.kill_client,
    Nemesis.power_one,
    Nemesis.slow_disk,
]
CUTS: list[Fault] = [
    Nemesis.cut_somebody,
    Nemesis.cut_primary_from_authority,
    Nemesis.cut_primary_from_authority,
    Nemesis.cut_client_from_authority,
    Nemesis.pause_somebody,
    Nemesis.pause_primary,
    Nemesis.pause_client,
    Nemesis.clog,
    Nemesis.slow_link,
]
MOMENTS: list[Fault] = [
    Nemesis.kill_between_members,
    Nemesis.strand_primary,
    Nemesis.late_write,
    Nemesis.late_write_of_the_evicted,
    Nemesis.lose_answer,
    Nemesis.lose_write_answer,
]
DISKS: list[Fault] = [Nemesis.fail_disk, Nemesis.corrupt_frames, Nemesis.slow_disk, Nemesis.kill_node]
ROT: list[Fault] = [Nemesis.flip_bits, Nemesis.flip_bits, Nemesis.corrupt_frames, Nemesis.clog]
POWER: list[Fault] = [Nemesis.power_all, Nemesis.power_one, Nemesis.kill_client, Nemesis.clog]

DAEMONS: list[Fault] = [Nemesis.kill_daemon, Nemesis.kill_daemon_in_the_act, Nemesis.kill_daemon_in_the_act]

MIXES: tuple[list[Fault], ...] = (
    CALM,
    CRASHES,
    CUTS,
    CUTS,
    MOMENTS,
    MOMENTS,
    CRASHES + MOMENTS,
    CRASHES + CUTS,
    CRASHES + CUTS + MOMENTS,
    DISKS,
    ROT,
    POWER,
    POWER + MOMENTS,
)
