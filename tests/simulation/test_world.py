"""The simulator's own parts: what it may lose, delay and tear, and what it may not."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from fsd.core.errors import ConnectionRefused, DiskFailed, FsError, Unreachable
from fsd.runtime.storage import KeyChange, SegmentWrite
from fsd.wire.frame import Flag, Frame
from tests.simulation.host import Host, Process
from tests.simulation.kernel import Kernel, Stuck
from tests.simulation.network import Fabric


def frame(number: int, payload: bytes = b"") -> Frame:
    return Frame(1, Flag.REQUEST, number, b"message", payload)


async def echo(process: Process) -> None:
    listener = await process.runtime.network.listen(f"{process.host.name}:1")
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(answer, await listener.accept())


async def answer(connection: Any) -> None:
    try:
        while True:
            await send(connection, await connection.receive())
    except Unreachable:
        pass


async def idle(process: Process) -> None:
    await trio.sleep_forever()


class World:
    def __init__(self, seed: int = 1) -> None:
        self.kernel = Kernel(seed)
        self.fabric = Fabric(self.kernel)

    def run(self, main: Callable[["World"], Awaitable[None]], program: Any = echo) -> None:
        async def start() -> None:
            async with trio.open_nursery() as nursery:
                self.server = Host(self.kernel, self.fabric, nursery, "server", program)
                self.client = Host(self.kernel, self.fabric, nursery, "client", idle)
                self.server.boot()
                self.client.boot()
                await trio.sleep(0.1)
                await main(self)
                self.server.kill()
                self.client.kill()

        self.kernel.run(start)
        assert not self.server.errors

    async def connect(self) -> Any:
        assert self.client.process is not None
        return await self.client.process.runtime.network.connect("server:1")


def test_frames_arrive_in_order_and_time_is_virtual() -> None:
    async def main(world: World) -> None:
        connection = await world.connect()
        for number in range(100):
            await send(connection, frame(number))
        assert [(await connection.receive()).request_id for _ in range(100)] == list(range(100))
        await trio.sleep(80_000)

    World().run(main)


def test_a_sender_waits_for_a_slow_reader() -> None:
    async def main(world: World) -> None:
        world.server.pause()
        connection = await world.connect()
        with trio.move_on_after(10) as scope:
            while True:
                await send(connection, frame(1, bytes(1 << 20)))
        assert scope.cancelled_caught

    World().run(main)


def test_a_dead_process_refuses_and_a_dead_machine_is_silent() -> None:
    async def main(world: World) -> None:
        connection = await world.connect()
        world.server.kill()
        with pytest.raises(Unreachable), trio.fail_after(1):
            await connection.receive()
        with pytest.raises(ConnectionRefused):
            await world.connect()
        world.server.power_off()
        with pytest.raises(Unreachable) as caught:
            await world.connect()
        assert not isinstance(caught.value, ConnectionRefused)
        world.server.boot()
        await trio.sleep(0.1)
        await world.connect()

    World().run(main)


def test_loss_of_power_is_noticed_late() -> None:
    async def main(world: World) -> None:
        connection = await world.connect()
        world.server.power_off()
        with trio.move_on_after(1.5) as scope:
            await connection.receive()
        assert scope.cancelled_caught
        with pytest.raises(Unreachable), trio.fail_after(60):
            await connection.receive()

    World().run(main)


def test_what_is_sent_during_a_short_cut_arrives_after_it() -> None:
    async def main(world: World) -> None:
        connection = await world.connect()
        world.fabric.cut("client", "server")
        await send(connection, frame(5))
        with trio.move_on_after(0.5) as scope:
            await connection.receive()
        assert scope.cancelled_caught
        world.fabric.heal("client", "server")
        with trio.fail_after(1):
            assert (await connection.receive()).request_id == 5

    World().run(main)


def test_the_order_survives_a_cut() -> None:
    async def main(world: World) -> None:
        connection = await world.connect()
        for number in range(60):
            connection.send_nowait(frame(number))
            if number % 20 == 5:
                world.fabric.cut("client", "server")
            if number % 20 == 15:
                world.fabric.heal("client", "server")
            await trio.sleep(0.0003)
        world.fabric.heal_all()
        with trio.fail_after(30):
            assert [(await connection.receive()).request_id for _ in range(60)] == list(range(60))

    for seed in range(10):
        World(seed).run(main)


def test_a_paused_process_does_nothing_until_it_is_resumed() -> None:
    ticks: list[float] = []

    async def ticking(process: Process) -> None:
        while True:
            ticks.append(trio.current_time())
            await trio.sleep(1)

    async def main(world: World) -> None:
        await trio.sleep(5)
        world.server.pause()
        count = len(ticks)
        await trio.sleep(50)
        assert len(ticks) == count
        world.server.resume()
        await trio.sleep(5)
        assert len(ticks) > count

    World().run(main, ticking)


def test_a_dead_process_has_no_effect_any_more() -> None:
    effects: list[str] = []

    async def stubborn(process: Process) -> None:
        directory = process.open_directory()
        store = await directory.open_keyvalue("index", ("a",))
        try:
            await trio.sleep_forever()
        finally:
            with pytest.raises(FsError):
                store.apply([KeyChange("a", b"k", b"late")])
            with trio.CancelScope(shield=True), pytest.raises(FsError):
                await directory.write_file("late", b"late")
            effects.append("tried")

    async def main(world: World) -> None:
        world.server.kill()
        await trio.sleep(1)
        assert effects == ["tried"]
        assert world.server.disk.stores["index"].tables["a"] == {}
        assert world.server.disk.files == {}

    World().run(main, stubborn)


@pytest.mark.parametrize("seed", range(20))
def test_a_crash_keeps_all_that_was_synced_and_a_prefix_of_the_rest(seed: int) -> None:
    async def writer(process: Process) -> None:
        store = await process.open_directory().open_keyvalue("index", ("a",))
        for number in range(10):
            store.apply([KeyChange("a", b"%d" % number, b"x"), KeyChange("a", b"last", b"%d" % number)])
        await store.durable()
        for number in range(10, 20):
            store.apply([KeyChange("a", b"%02d" % number, b"x"), KeyChange("a", b"last", b"%d" % number)])
        await trio.sleep_forever()

    async def main(world: World) -> None:
        await trio.sleep(1)
        world.server.power_off()
        table = world.server.disk.stores["index"].tables["a"]
        kept = [number for number in range(10, 20) if b"%02d" % number in table]
        assert all(b"%d" % number in table for number in range(10))
        assert kept == list(range(10, 10 + len(kept)))
        assert table[b"last"] == b"%d" % (9 + len(kept))

    World(seed).run(main, writer)


def test_a_torn_write_is_old_or_new_sector_by_sector() -> None:
    torn = 0

    async def writer(process: Process) -> None:
        segments = await process.open_directory().open_segments("segments", 1 << 20)
        await segments.grow()
        await segments.write([SegmentWrite(0, 0, b"a" * 65536)])
        process.host.disk.slowness = 1000
        await segments.write([SegmentWrite(0, 0, b"b" * 65536)])

    async def main(world: World) -> None:
        nonlocal torn
        await trio.sleep(0.05)
        world.server.power_off()
        data = bytes(world.server.disk.segments["segments"].data[0][:65536])
        sectors = [data[start : start + 4096] for start in range(0, 65536, 4096)]
        assert all(sector in (b"a" * 4096, b"b" * 4096) for sector in sectors)
        torn += len(set(sectors)) == 2

    for seed in range(10):
        World(seed).run(main, writer)
    assert torn >= 8


def test_a_failing_disk_stays_failed() -> None:
    async def writer(process: Process) -> None:
        store = await process.open_directory().open_keyvalue("index", ("a",))
        process.host.disk.failing = True
        for _ in range(2):
            with pytest.raises(DiskFailed):
                await store.durable(store.apply([KeyChange("a", b"k", b"v")]))
            process.host.disk.failing = False
            with pytest.raises(DiskFailed):
                store.apply([KeyChange("a", b"k", b"v")])
            break
        await trio.sleep_forever()

    async def main(world: World) -> None:
        await trio.sleep(1)
        assert world.server.up

    World().run(main, writer)


def test_a_spinning_task_is_found() -> None:
    async def main() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    with pytest.raises(Stuck, match="spins"):
        Kernel(1).run(main)


def test_waiting_for_ever_is_found() -> None:
    with pytest.raises(Stuck, match="for ever"):
        Kernel(1).run(trio.sleep_forever)


async def send(connection, whole):
    if not connection.send_nowait(whole):
        await connection.drain()
