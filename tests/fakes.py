"""Fakes of the outside world for unit tests: everything in memory, nothing random, no faults but those asked for.

tests/runtime/test_contract.py runs the same contract against these, the simulator's and the real ones.
"""

import itertools
import math
import random
from collections.abc import Sequence

import trio
from sortedcontainers import SortedDict

from fsd.core.errors import ConfigurationError, ConnectionRefused, DirectoryInUse, NoSpace, Unreachable
from fsd.runtime import Runtime
from fsd.runtime.state import SEGMENT_BYTES
from fsd.runtime.storage import KeyChange, SegmentWrite, Space
from fsd.wire.frame import Frame, decode_header, encode_header


class TrioClock:
    """Both clocks are trio's: with MockClock, virtual."""

    def monotonic(self) -> float:
        return trio.current_time()

    def time_ns(self) -> int:
        return 1_700_000_000_000_000_000 + int(trio.current_time() * 1e9)


class MemoryKeyValue:
    """`crash` (of MemoryDirectory) forgets the batches that `durable` did not cover."""

    def __init__(self, store: "_Store") -> None:
        self._store = store
        self._data: dict[str, SortedDict] = {}
        for family, pairs in store.durable.items():
            self._data[family] = SortedDict(pairs)
        self.applied_sequence = self.durable_sequence = store.sequence
        self._pending: list[Sequence[KeyChange]] = []

    def get(self, family: str, key: bytes) -> bytes | None:
        return self._data[family].get(key)

    def scan(self, family: str, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return _scan(self._data[family], start, end, limit)

    def freeze(self) -> "MemoryFrozen":
        return MemoryFrozen({family: SortedDict(data) for family, data in self._data.items()})

    def apply(self, changes: Sequence[KeyChange]) -> int:
        for family, key, value in changes:
            _change(self._data[family], key, value)
        self._pending.append(tuple(changes))
        self.applied_sequence += 1
        return self.applied_sequence

    async def durable(self, sequence: int | None = None) -> None:
        await trio.lowlevel.checkpoint()
        for changes in self._pending:
            for family, key, value in changes:
                _change(self._store.durable[family], key, value)
        self._pending.clear()
        self._store.sequence = self.durable_sequence = self.applied_sequence

    async def aclose(self) -> None:
        await self.durable()


class MemoryFrozen:
    def __init__(self, data: dict[str, SortedDict]) -> None:
        self._data = data

    def scan(self, family: str, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return _scan(self._data[family], start, end, limit)

    def close(self) -> None:
        self._data = {}


def _scan(data: SortedDict, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
    return [(key, data[key]) for key in itertools.islice(data.irange(start, end, inclusive=(True, False)), limit)]


def _change(data: dict[bytes, bytes], key: bytes, value: bytes | None) -> None:
    if value is None:
        data.pop(key, None)
    else:
        data[key] = bytes(value)


class _Store:
    def __init__(self, families: Sequence[str]) -> None:
        self.durable: dict[str, dict[bytes, bytes]] = {family: {} for family in families}
        self.sequence = 0


class MemorySegments:
    """Writes are durable at once. `limit` is how many segments fit."""

    def __init__(self, files: list[bytearray], segment_size: int, limit: int) -> None:
        self.files = files
        self.segment_size = segment_size
        self.limit = limit

    def count(self) -> int:
        return len(self.files)

    async def grow(self) -> int:
        await trio.lowlevel.checkpoint()
        if len(self.files) >= self.limit:
            raise NoSpace(f"only {self.limit} segments fit")
        self.files.append(bytearray(self.segment_size))
        return len(self.files) - 1

    async def read(self, segment: int, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return bytes(self.files[segment][offset : offset + length])

    async def write(self, writes: Sequence[SegmentWrite]) -> None:
        await trio.lowlevel.checkpoint()
        for segment, offset, data in writes:
            assert offset + len(data) <= self.segment_size
            self.files[segment][offset : offset + len(data)] = data

    def space(self) -> Space:
        return Space(self.limit * self.segment_size, (self.limit - len(self.files)) * self.segment_size)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class MemoryDirectory:
    """Survives `aclose` and `crash`, as a disk does: `open` it again for the next life of its server."""

    def __init__(self, name: str = "memory", *, segment_limit: int = 1000) -> None:
        self.name = name
        self._files: dict[str, bytes] = {}
        self._stores: dict[str, _Store] = {}
        self._segments: dict[str, list[bytearray]] = {}
        self._segment_limit = segment_limit
        self._open = False
        self.room = Space(1 << 40, 1 << 40)

    def space(self) -> Space:
        return self.room

    def open(self) -> "MemoryDirectory":
        """Take the lock."""
        if self._open:
            raise DirectoryInUse(f"{self.name} is in use by another server")
        self._open = True
        return self

    def crash(self) -> None:
        """The server is gone; what was not durable is lost (it lives in the MemoryKeyValue alone)."""
        self._open = False

    def read_file(self, name: str) -> bytes | None:
        return self._files.get(name)

    async def write_file(self, name: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._files[name] = data

    async def set_aside(self, name: str) -> str:
        await trio.lowlevel.checkpoint()
        self._stores.pop(name, None)
        self._segments.pop(name, None)
        return f"{name}.damaged-1"

    async def open_keyvalue(self, name: str, families: Sequence[str]) -> MemoryKeyValue:
        await trio.lowlevel.checkpoint()
        return MemoryKeyValue(self._stores.setdefault(name, _Store(families)))

    async def open_segments(self, name: str, segment_size: int) -> MemorySegments:
        await trio.lowlevel.checkpoint()
        return MemorySegments(self._segments.setdefault(name, []), segment_size, self._segment_limit)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self._open = False


class MemoryNetwork:
    """Connections are pairs of channels with a window; frames go through the real header. `kill` ends all of an address."""

    def __init__(self) -> None:
        self._listeners: dict[str, MemoryListener] = {}
        self._connections: list[tuple[str, MemoryConnection, MemoryConnection]] = []
        self._ports = iter(range(20_000, 60_000))

    async def connect(self, address: str) -> "MemoryConnection":
        await trio.lowlevel.checkpoint()
        listener = self._listeners.get(address)
        if listener is None:
            raise ConnectionRefused(f"nobody listens on {address}")
        near, far = _pair(address, f"memory:{next(self._ports)}")
        self._connections.append((address, near, far))
        await listener.offer(far)
        return near

    async def listen(self, address: str) -> "MemoryListener":
        await trio.lowlevel.checkpoint()
        if address.endswith(":0"):
            address = f"{address[:-2]}:{next(self._ports)}"
        if address in self._listeners:
            raise ConfigurationError(f"cannot listen on {address}: address already in use")
        listener = self._listeners[address] = MemoryListener(self, address)
        return listener

    def forget(self, address: str) -> None:
        self._listeners.pop(address, None)

    def kill(self, address: str) -> None:
        """The process behind `address` dies: nobody listens, its accepted connections break."""
        listener = self._listeners.pop(address, None)
        if listener is not None:
            listener.close()
        for where, near, far in self._connections:
            if where == address:
                near.close()
                far.close()

    def cut(self, address: str) -> None:
        """Break all connections to `address`; new ones can be made."""
        for where, near, far in self._connections:
            if where == address:
                near.close()
                far.close()


class MemoryListener:
    def __init__(self, network: MemoryNetwork, address: str) -> None:
        self.address = address
        self._network = network
        self._send, self._receive = trio.open_memory_channel[MemoryConnection](math.inf)

    async def offer(self, connection: "MemoryConnection") -> None:
        await self._send.send(connection)

    async def accept(self) -> "MemoryConnection":
        return await self._receive.receive()

    def close(self) -> None:
        self._network.forget(self.address)


class MemoryConnection:
    window = 64  # frames that may be on the way before the sender waits

    def __init__(self, peer: str, send: trio.MemorySendChannel, receive: trio.MemoryReceiveChannel) -> None:
        self.peer = peer
        self._send = send
        self._receive = receive
        self.other: MemoryConnection | None = None

    def send_nowait(self, frame: Frame) -> bool:
        try:
            self._send.send_nowait((encode_header(frame), frame.message, bytes(frame.payload)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Unreachable(f"connection to {self.peer} broke") from None
        return self._send.statistics().current_buffer_used < self.window

    async def drain(self) -> None:
        while self._is_full():
            await trio.sleep(0.001)

    def _is_full(self) -> bool:
        statistics = self._send.statistics()
        return statistics.current_buffer_used >= self.window and statistics.open_receive_channels > 0

    async def receive(self) -> Frame:
        try:
            header, message, payload = await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise Unreachable(f"connection to {self.peer} ended") from None
        fields = decode_header(header)
        return Frame(fields.type, fields.flags, fields.request_id, message, payload)

    def close(self) -> None:
        self._send.close()
        self._receive.close()


def _pair(address: str, caller: str) -> tuple[MemoryConnection, MemoryConnection]:
    out_send, out_receive = trio.open_memory_channel(math.inf)
    in_send, in_receive = trio.open_memory_channel(math.inf)
    return MemoryConnection(address, out_send, in_receive), MemoryConnection(caller, in_send, out_receive)


def memory_runtime(network: MemoryNetwork | None = None, seed: int = 0) -> Runtime:
    """A runtime of fakes; give the same network to all that shall meet."""
    return Runtime(network or MemoryNetwork(), TrioClock(), random.Random(seed))


class MemoryState:
    """What a client's process leaves behind. `life` gives the directory to a process, `crash` takes it away from the last one
    at once: what that one still writes is lost."""

    def __init__(self) -> None:
        self.kept: dict[int, bytearray] = {}

    def life(self) -> "MemoryStateLife":
        return MemoryStateLife(self.kept)

    def crash(self) -> None:
        self.kept = {number: bytearray(data) for number, data in self.kept.items()}


class MemoryStateLife:
    """StateDirectory of one process. `room` segments can be made."""

    def __init__(self, kept: dict[int, bytearray], room: int = 10_000) -> None:
        self._kept = kept
        self.room = room

    def segments(self) -> list[int]:
        return sorted(self._kept)

    def open(self, number: int) -> memoryview:
        return memoryview(self._kept[number])

    def make(self, number: int) -> memoryview:
        if self.room <= 0:
            raise NoSpace("the state directory is full")
        self.room -= 1
        self._kept[number] = bytearray(SEGMENT_BYTES)
        return memoryview(self._kept[number])

    def rename(self, number: int, new: int) -> None:
        self._kept[new] = self._kept.pop(number)

    def remove(self, number: int) -> None:
        del self._kept[number]

    def close(self) -> None:
        self._kept = {}
