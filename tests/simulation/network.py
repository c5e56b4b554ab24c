"""The simulated network: ordered streams of frames between machines, that delay, clog, are cut one way or both, and break.

Every frame travels as bytes copied at `send`, so nobody shares memory with a peer. A direction of a connection is first in,
first out, and bounded: a sender waits while WINDOW_BYTES are unread. While a direction is cut, what is sent is held back
(TCP goes on repeating it) and arrives after the cut; a cut that lasts breaks the connection at both ends, each at its own
time. A process that dies ends its connections as its kernel would: in order, behind what is on the way. A machine without
power says nothing: its peers find out much later.
"""

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

import trio

from fsd.core.errors import ConfigurationError, ConnectionRefused, Unreachable
from fsd.wire.frame import HEADER_SIZE, Frame, decode_header, encode_header
from tests.simulation.kernel import Bell, Kernel

WINDOW_BYTES = 2 << 20
BYTES_PER_SECOND = 200e6
CONNECT_GIVES_UP_S = (0.5, 2.5)
CUT_BREAKS_AFTER_S = (1.0, 12.0)
SILENCE_BREAKS_AFTER_S = (2.0, 15.0)


class Fabric:
    """All links. `cut(a, b)` stops what goes from a to b; `slow[(a, b)]` multiplies its latency."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.random = Random(f"fabric {kernel.random.random()}")
        self.latency_s = (0.0001, 0.002)
        self.clog_probability = 0.01
        self.clog_s = 0.2
        self.corrupt_probability = 0.0
        self.slow: dict[tuple[str, str], float] = {}
        self.hosts: dict[str, Any] = {}
        self.sent: list[Callable[[End, Frame], None]] = []  # who looks at every frame when it is sent
        self.arrived: list[Callable[[End, Frame], None]] = []  # and when it arrives; the end is the sender's
        self._cuts: dict[tuple[str, str], int] = {}
        self._cut_count = 0
        self._ends: dict[int, End] = {}
        self._end_count = 0

    def network_of(self, process: Any) -> "SimNetwork":
        return SimNetwork(self, process)

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cuts

    def cut(self, source: str, target: str) -> None:
        if source == target or self.is_cut(source, target):
            return
        self._cut_count += 1
        number = self._cuts[(source, target)] = self._cut_count
        for end in list(self._ends.values()):
            if (end.host, end.other.host) == (source, target) and self.random.random() < 0.7:
                for broken in (end, end.other):
                    self.kernel.after(self.random.uniform(*CUT_BREAKS_AFTER_S), self._break_if_cut, broken, number)

    def _break_if_cut(self, end: "End", number: int) -> None:
        pair = (end.host, end.other.host)
        if number in (self._cuts.get(pair), self._cuts.get(pair[::-1])):
            end.break_(f"connection to {end.peer} timed out")

    def heal(self, source: str, target: str) -> None:
        if self._cuts.pop((source, target), None) is not None:
            for end in list(self._ends.values()):
                if (end.host, end.other.host) == (source, target):
                    end.flush_held()

    def heal_all(self) -> None:
        self.slow.clear()
        for source, target in list(self._cuts):
            self.heal(source, target)

    def latency(self, source: str, target: str) -> float:
        latency = self.random.uniform(*self.latency_s) * self.slow.get((source, target), 1.0)
        if self.random.random() < self.clog_probability:
            latency += self.random.uniform(0, self.clog_s)
        return latency

    def process_died(self, process: Any, *, silent: bool) -> None:
        """End the process's connections: as its kernel does, or not at all if the machine has no power."""
        for end in list(self._ends.values()):
            if end.process is process:
                if silent:
                    end.broken = end.broken or "dead"
                    self.kernel.after(self.random.uniform(*SILENCE_BREAKS_AFTER_S), end.other.break_, "peer is silent")
                else:
                    end.close()

    def machine_booted(self, name: str) -> None:
        """What still talks to the machine's earlier life is told so."""
        for end in list(self._ends.values()):
            if end.other.host == name and not end.broken and end.other.broken:
                self.kernel.after(
                    self.latency(name, end.host) + 0.05, end.break_, f"connection to {end.peer} was reset"
                )

    def lose_connection(self, end: "End", late_s: float) -> None:
        """`end` finds its connection broken now; what it has sent arrives `late_s` later, at a peer that knows nothing."""
        end.stall(late_s)
        end.break_(f"connection to {end.peer} timed out")
        self.kernel.after(
            late_s + self.random.uniform(1, 5), end.other.break_, f"connection to {end.other.peer} timed out"
        )

    def add(self, end: "End") -> int:
        self._end_count += 1
        self._ends[self._end_count] = end
        return self._end_count

    def remove(self, end: "End") -> None:
        self._ends.pop(end.number, None)


class End:
    """One end of a connection; implements fsd.runtime.network.Connection."""

    other: "End"

    def __init__(self, fabric: Fabric, process: Any, peer: str) -> None:
        self.fabric = fabric
        self.process = process
        self.host: str = process.host.name
        self.peer = peer
        self.broken: str | None = None
        self.number = fabric.add(self)
        self._inbox: deque[Frame] = deque()
        self._unread = 0  # bytes sent to the other end that it has not read
        self._last_arrival = 0.0
        self._held: deque[Frame | None] = deque()
        self._stalled = False
        self._readable = Bell()
        self._writable = Bell()

    def send_nowait(self, frame: Frame) -> bool:
        decode_header(encode_header(frame))
        self._check()
        copy = Frame(frame.type, frame.flags, frame.request_id, bytes(frame.message), bytes(frame.payload))
        size = HEADER_SIZE + len(copy.message) + len(copy.payload)
        self._unread += size
        self._transmit(copy, size)
        for look in self.fabric.sent:
            look(self, copy)
        return self._unread <= WINDOW_BYTES

    async def drain(self) -> None:
        self._check()
        while self._unread > WINDOW_BYTES:
            await self._writable.wait()
            self._check()

    def _check(self) -> None:
        if not self.process.alive:
            raise Unreachable("this process is dead")
        if self.broken:
            raise Unreachable(self.broken)

    def _transmit(self, frame: Frame | None, size: int) -> None:
        fabric, target = self.fabric, self.other.host
        arrival = fabric.kernel.now() + fabric.latency(self.host, target) + size / BYTES_PER_SECOND
        self._last_arrival = max(arrival, self._last_arrival)
        fabric.kernel.at(self._last_arrival, self._arrive, frame)

    def _arrive(self, frame: Frame | None) -> None:
        """At the other end, unless the way there is cut. None is the end of the stream."""
        if self._held or self._stalled or self.fabric.is_cut(self.host, self.other.host):
            self._held.append(frame)
        else:
            self._deliver(frame)

    def _deliver(self, frame: Frame | None) -> None:
        if frame is None:
            self.other.break_(f"connection closed by {self.other.peer}")
        else:
            self.other.accept(frame)

    def stall(self, time_s: float) -> None:
        """What is on the way from here waits so long."""
        self._stalled = True
        self.fabric.kernel.after(time_s, self._unstall)

    def _unstall(self) -> None:
        self._stalled = False
        self._release()

    def flush_held(self) -> None:
        """The cut is over. What arrives before the release queues behind what is held: the order stays."""
        if self._held:
            self.fabric.kernel.after(self.fabric.latency(self.host, self.other.host), self._release)

    def _release(self) -> None:
        if not self._stalled and not self.fabric.is_cut(self.host, self.other.host):
            held, self._held = self._held, deque()
            for frame in held:
                self._deliver(frame)

    def accept(self, frame: Frame) -> None:
        if self.broken or not self.process.alive:
            if self.process.host.powered:  # its kernel answers with a reset
                self.fabric.kernel.after(0.001, self.other.break_, f"connection to {self.other.peer} was reset")
            return
        fabric = self.fabric
        if frame.payload and fabric.corrupt_probability and fabric.random.random() < fabric.corrupt_probability:
            damaged = bytearray(frame.payload)
            damaged[fabric.random.randrange(len(damaged))] ^= 1 << fabric.random.randrange(8)
            frame = frame._replace(payload=bytes(damaged))
            fabric.kernel.trace("corrupt", self.other.host, self.host, frame.type)
        fabric.kernel.trace(
            "frame", self.other.host, self.host, frame.type, int(frame.flags), frame.request_id, len(frame.payload)
        )
        for look in fabric.arrived:
            look(self.other, frame)
        self._inbox.append(frame)
        self._readable.ring()

    async def receive(self) -> Frame:
        while not self._inbox:
            self._check()
            await self._readable.wait()
        if not self.process.alive:
            raise Unreachable("this process is dead")
        frame = self._inbox.popleft()
        self.other.was_read(HEADER_SIZE + len(frame.message) + len(frame.payload))
        return frame

    def was_read(self, size: int) -> None:
        self._unread -= size
        self._writable.ring()

    def close(self) -> None:
        """From this side: what was sent still arrives."""
        if not self.broken:
            self.break_("connection is closed")
            self._inbox.clear()
            self._transmit(None, 0)

    def break_(self, reason: str) -> None:
        """This end learns that the connection is gone; what has arrived can still be read."""
        if not self.broken:
            self.broken = reason
            self._readable.ring()
            self._writable.ring()
            if self.other.broken:
                self.fabric.remove(self)
                self.fabric.remove(self.other)


class SimListener:
    def __init__(self, fabric: Fabric, process: Any, address: str) -> None:
        self.address = address
        self._process = process
        self._waiting: deque[End] = deque()
        self._bell = Bell()
        self._closed = False

    async def accept(self) -> End:
        while not self._waiting:
            if self._closed or not self._process.alive:
                raise Unreachable(f"{self.address} is closed")
            await self._bell.wait()
        return self._waiting.popleft()

    def offer(self, end: End) -> None:
        self._waiting.append(end)
        self._bell.ring()

    def close(self) -> None:
        self._closed = True
        self._process.listeners.pop(self.address, None)
        for end in self._waiting:
            end.close()
        self._bell.ring()


class SimNetwork:
    """A process's sockets; implements fsd.runtime.network.Network. Addresses are "host name:port"."""

    def __init__(self, fabric: Fabric, process: Any) -> None:
        self._fabric = fabric
        self._process = process

    async def listen(self, address: str) -> SimListener:
        await trio.lowlevel.checkpoint()
        if not self._process.alive:
            raise Unreachable("this process is dead")
        host, _, port = address.rpartition(":")
        if host not in (self._process.host.name, "0.0.0.0") or address in self._process.listeners:
            raise ConfigurationError(f"cannot listen on {address}")
        bound = f"{self._process.host.name}:{port}"
        listener = self._process.listeners[bound] = SimListener(self._fabric, self._process, bound)
        return listener

    async def connect(self, address: str) -> End:
        fabric, source = self._fabric, self._process.host.name
        name = address.rpartition(":")[0]
        if not self._process.alive:
            raise Unreachable("this process is dead")
        target = fabric.hosts.get(name)
        await trio.sleep(fabric.latency(source, name))
        if target is None or not target.powered or fabric.is_cut(source, name) or fabric.is_cut(name, source):
            await trio.sleep(fabric.random.uniform(*CONNECT_GIVES_UP_S))
            raise Unreachable(f"no answer from {address}")
        process = target.process
        listener = process.listeners.get(address) if process is not None and process.alive else None
        await trio.sleep(fabric.latency(name, source))
        if listener is None:
            raise ConnectionRefused(f"{address} refused the connection")
        if not self._process.alive or not process.alive or process.listeners.get(address) is not listener:
            raise Unreachable(f"connection to {address} was reset")
        near, far = End(fabric, self._process, address), End(fabric, process, f"{source}:{40000 + fabric._end_count}")
        near.other, far.other = far, near
        listener.offer(far)
        return near
