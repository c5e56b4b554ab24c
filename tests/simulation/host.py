"""Machines and the processes on them: boot, kill -9, loss of power, pause, restart.

A process is a cancel scope and a flag. When it is killed the flag falls first: from then on its network and its disk refuse
it, so that its cleanup, which still runs, can have no effect any more; its tasks are then cancelled.
"""

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import trio

from fsd.core.errors import FsError
from fsd.rpc.connection import only_error
from fsd.runtime import Runtime
from tests.simulation.clock import HostClock
from tests.simulation.kernel import Kernel, current_process
from tests.simulation.network import Fabric, SimListener
from tests.simulation.storage import Disk, SimDirectory

Program = Callable[["Process"], Awaitable[None]]


class Process:
    """One life of a program on a host. `app` is whatever the program wants to show to observers."""

    def __init__(self, host: "Host", number: int) -> None:
        self.host = host
        self.number = number
        self.alive = True
        self.paused = False
        self.frozen: list[Any] = []
        self.listeners: dict[str, SimListener] = {}
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.app: Any = None
        self.runtime = Runtime(
            host.fabric.network_of(self), host.clock, Random(f"{host.kernel.random.random()} {host.name}")
        )

    def open_directory(self) -> SimDirectory:
        return SimDirectory(self.host.disk, self)


class Host:
    """A machine with a name, clocks and a disk. At most one process runs on it."""

    def __init__(self, kernel: Kernel, fabric: Fabric, nursery: trio.Nursery, name: str, program: Program) -> None:
        self.kernel = kernel
        self.fabric = fabric
        self.name = name
        self.clock = HostClock(kernel, Random(f"clock {kernel.random.random()}"))
        self.disk = Disk(kernel, Random(f"disk {kernel.random.random()}"), f"disk-{name}")
        self.powered = True
        self.process: Process | None = None
        self.lives = 0
        self.errors: list[str] = []  # processes that ended by something that is not the world's fault
        self._nursery = nursery
        self.program = program
        fabric.hosts[name] = self

    @property
    def up(self) -> bool:
        return self.powered and self.process is not None and self.process.alive

    def boot(self) -> Process:
        """Start the program (and the machine, if need be)."""
        assert not self.up
        if not self.powered:
            self.powered = True
        self.lives += 1
        self.process = Process(self, self.lives)
        self.kernel.trace("boot", self.name, self.lives)
        self.fabric.machine_booted(self.name)
        self._nursery.start_soon(self._run, self.process)
        return self.process

    def kill(self) -> None:
        """kill -9."""
        if self.up:
            self.kernel.trace("kill", self.name)
            self._end(power=False)

    def power_off(self) -> None:
        if self.powered:
            self.kernel.trace("power off", self.name)
            if self.up:
                self._end(power=True)
            self.powered = False

    def pause(self) -> None:
        if self.up:
            self.kernel.trace("pause", self.name)
            self.kernel.pause(self.process)

    def resume(self) -> None:
        if self.up:
            assert self.process is not None
            self.kernel.trace("resume", self.name)
            self.kernel.resume(self.process)

    def _end(self, *, power: bool) -> None:
        process = self.process
        assert process is not None
        process.alive = False
        self.kernel.resume(process)
        process.listeners.clear()
        self.fabric.process_died(process, silent=power)
        self.disk.crash(power=power)
        process.scope.cancel()

    async def _run(self, process: Process) -> None:
        current_process.set(process)
        try:
            with process.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.program, process)
        except Exception as error:
            self._ended_by(process, error)
        finally:
            if process.alive:  # it ended by itself
                self._end(power=False)
            process.ended.set()

    def _ended_by(self, process: Process, error: Exception) -> None:
        fault: FsError | None = only_error(error)
        self.kernel.trace("ended", self.name, type(fault or error).__name__, fault or "")
        if fault is None and process.alive:
            import traceback

            self.errors.append(f"{self.name}: " + "".join(traceback.format_exception(error)))
