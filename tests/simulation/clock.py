"""Each machine's own clocks: an offset, a rate that is off by up to one per cent, a wall clock that is wrong by seconds."""

from random import Random

from tests.simulation.kernel import Kernel

MAX_DRIFT = 0.01
MAX_SKEW_S = 5.0
EPOCH_NS = 1_700_000_000 * 10**9


class HostClock:
    def __init__(self, kernel: Kernel, random: Random) -> None:
        self._kernel = kernel
        self._offset_s = random.uniform(10, 10_000)
        self._rate = 1 + random.uniform(-MAX_DRIFT, MAX_DRIFT)
        self._skew_ns = int(random.uniform(-MAX_SKEW_S, MAX_SKEW_S) * 1e9)

    def monotonic(self) -> float:
        return self._offset_s + self._rate * self._kernel.now()

    def time_ns(self) -> int:
        return EPOCH_NS + self._skew_ns + int(self._rate * self._kernel.now() * 1e9)
