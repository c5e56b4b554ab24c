"""What a user of the client says and hears: who calls, how to behave, whose caches to invalidate."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fsd.core.errors import ConfigurationError
from fsd.core.ids import Ino
from fsd.core.units import MIB


class Caller(NamedTuple):
    """The process whose system call this is; ids are the file-system ids."""

    uid: int
    gid: int
    pid: int = 0


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """`hard`: wait through outages. Otherwise every call ends after `timeout_s` with DeadlineExceeded."""

    name: str = ""
    write_back_bytes: int = 128 * MIB
    write_back_age_s: float = 1.0
    cache_bytes: int = 256 * MIB
    cache_policy: str = "lru"
    read_ahead_bytes: int = 8 * MIB
    hard: bool = True
    timeout_s: float = 30.0
    metadata_cache_entries: int = 200_000

    def check(self) -> None:
        """Raises ConfigurationError that names every fault."""
        faults = [
            text
            for wrong, text in (
                (self.write_back_bytes < 1, "write_back_bytes must be positive"),
                (self.write_back_age_s <= 0, "write_back_age_s must be positive"),
                (self.cache_bytes < 0, "cache_bytes must not be negative"),
                (self.cache_policy not in ("lru", "lfu"), f"cache_policy {self.cache_policy!r} is not lru or lfu"),
                (self.read_ahead_bytes < 0, "read_ahead_bytes must not be negative"),
                (self.timeout_s <= 0, "timeout_s must be positive"),
                (self.metadata_cache_entries < 16, "metadata_cache_entries must be at least 16"),
            )
            if wrong
        ]
        if faults:
            raise ConfigurationError("; ".join(faults))


class Invalidate(Protocol):
    """The caches above this client (the kernel's). Awaited on a recall before the lease is given back."""

    async def inode(self, ino: Ino, *, attributes_only: bool) -> None: ...

    async def entry(self, parent: Ino, name: bytes) -> None: ...


class NothingCached:
    """Nobody caches above this client."""

    async def inode(self, ino: Ino, *, attributes_only: bool) -> None:
        """Nothing to do."""

    async def entry(self, parent: Ino, name: bytes) -> None:
        """Nothing to do."""
