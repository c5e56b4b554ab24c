"""The outside world behind small interfaces: network, storage, time, chance.

The real ones are beside this file; the simulated ones are in tests/simulation. Whoever takes a `Runtime` runs in both.
"""

import random
from dataclasses import dataclass
from typing import Protocol

from fsd.runtime.network import Network


class Clock(Protocol):
    """This machine's clocks. `monotonic` may drift against other machines' but never jumps; waiting is trio's."""

    def monotonic(self) -> float:
        """Seconds since some moment."""
        ...

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""
        ...


@dataclass(frozen=True, slots=True)
class Runtime:
    network: Network
    clock: Clock
    random: random.Random
