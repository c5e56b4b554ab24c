"""Frames between processes behind an interface, and the real one over TCP."""

from typing import Protocol

from fsd.wire.frame import Frame


class Connection(Protocol):
    """Frames in order, both ways, none twice, none lost but a tail. Errors: Unreachable, ProtocolError, VersionMismatch."""

    peer: str

    async def send(self, frame: Frame) -> None:
        """Waits while the peer is slow. Cancelled or failed in the middle, the connection is closed."""
        ...

    async def receive(self) -> Frame:
        """The next frame. Raises Unreachable at the end of the connection."""
        ...

    def close(self) -> None:
        """At once; pending `send` and `receive` raise Unreachable."""
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
