"""Frames between processes behind an interface, and the real one over TCP."""

from typing import Protocol

from fsd.wire.frame import Frame


class Connection(Protocol):
    """Frames in order, both ways, none twice, none lost but a tail. Errors: Unreachable, ProtocolError, VersionMismatch."""

    peer: str

    def send_nowait(self, frame: Frame) -> bool:
        """Take the frame. False if not all of it has left: `await drain()` before the next one. Raises Unreachable."""
        ...

    async def drain(self) -> None:
        """Wait until all that was taken has left: while the peer is slow, so is the sender. Raises Unreachable."""
        ...

    async def receive(self) -> Frame:
        """The next frame. Raises Unreachable at the end of the connection."""
        ...

    def close(self) -> None:
        """At once; pending `drain` and `receive` raise Unreachable."""
        ...


class Listener(Protocol):
    address: str  # with the port that was really bound

    async def accept(self) -> Connection: ...

    def close(self) -> None: ...


class Network(Protocol):
    """Addresses are "host:port"."""

    async def connect(self, address: str) -> Connection:
        """Raises ConnectionRefused if the peer's kernel says so, Unreachable otherwise."""
        ...

    async def listen(self, address: str) -> Listener:
        """Raises ConfigurationError if the address cannot be bound."""
        ...
