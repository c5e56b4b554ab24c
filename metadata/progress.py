"""How long something will take that gets less: the speed of the last while, carried on. Pure."""

from collections import deque

WINDOW_S = 30.0
MAX_SAMPLES = 256
SAMPLE_S = 0.5


class Progress:
    """What is left to do, noted now and then."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=MAX_SAMPLES)

    def note(self, now: float, left: int) -> None:
        """More than before begins a new job; nothing left ends it."""
        if not left or (self._samples and left > self._samples[-1][1]):
            self._samples.clear()
        if left and (not self._samples or now - self._samples[-1][0] >= SAMPLE_S):
            self._samples.append((now, left))

    def left_s(self, now: float) -> float:
        """0 if there is nothing to do; negative while nothing can be said."""
        if not self._samples:
            return 0.0
        last = self._samples[-1]
        first = next(sample for sample in self._samples if now - sample[0] <= WINDOW_S or sample is last)
        done = first[1] - last[1]
        if done <= 0:
            return -1.0
        return max(0.0, last[1] * (last[0] - first[0]) / done - (now - last[0]))
