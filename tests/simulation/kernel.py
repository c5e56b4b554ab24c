"""The deterministic kernel: virtual time, one order of events for one seed, a digest of everything that happened.

Stock trio with three seams. Its scheduler is made deterministic (batches ordered by age, then shuffled by a seeded
generator). Its clock is ours: when all tasks wait, time jumps to the next deadline or to the next *kernel event* (a frame
that arrives, a disk that has finished), whose callback runs inside the jump and costs no task. Its run queue holds back the
tasks of a paused process, as SIGSTOP does: frames go on arriving, deadlines go on passing, nothing runs.
"""

import contextvars
import gc
import hashlib
import heapq
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

import trio
from trio._core import _run
from trio.testing import MockClock

MAX_PASSES_WITHOUT_PROGRESS = 200_000  # scheduler passes at one virtual moment: a loop that never waits

current_process: contextvars.ContextVar[Any] = contextvars.ContextVar("current_process", default=None)


class Stuck(Exception):
    """The simulated program spins without waiting, or everything waits for ever."""


class Fault(Exception):
    """What a checker or an observer found: the seed fails."""


class _Clock:
    """What replaces the methods of a MockClock (which cannot be derived from)."""

    def __init__(self, kernel: "Kernel") -> None:
        self._kernel = kernel
        self.now = 0.0
        self._passes = 0
        self.mock = MockClock(autojump_threshold=0)
        self.mock.current_time = self.current_time  # type: ignore[method-assign]
        self.mock.deadline_to_sleep_time = self.deadline_to_sleep_time  # type: ignore[method-assign]
        self.mock._autojump = self.jump  # type: ignore[method-assign]

    def current_time(self) -> float:
        self._passes += 1
        if self._passes > MAX_PASSES_WITHOUT_PROGRESS:
            self._passes = 0
            self._kernel.give_up(f"a task spins at {self.now:.6f}")
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0 if deadline <= self.now else 999999999

    def jump(self) -> None:
        events = self._kernel.events
        deadline = _run.GLOBAL_RUN_CONTEXT.runner.deadlines.next_deadline()
        next_time = min(deadline, events[0][0] if events else inf)
        if next_time == inf:
            self._kernel.give_up("everything waits for ever")
            return
        if next_time > self.now:
            self.now = next_time
            self._passes = 0
        while events and events[0][0] <= self.now:
            _, _, callback, arguments = heapq.heappop(events)
            callback(*arguments)


class _RunQueue(deque[Any]):
    """trio's run queue; what belongs to a paused process waits in that process."""

    pauses = 0

    def append(self, task: Any) -> None:
        if self.pauses:
            process = task.context.get(current_process)
            if process is not None and process.paused:
                process.frozen.append(task)
                return
        super().append(task)


class Kernel:
    """One run. `random` decides everything that chance decides; `digest()` names the whole history."""

    def __init__(self, seed: int | str, trace: Callable[[str], None] | None = None) -> None:
        self.random = random.Random(f"kernel {seed}")
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.traced = 0
        self._seed = seed
        self._count = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._trace = trace
        self._clock = _Clock(self)
        self._queue: _RunQueue = _RunQueue()
        self._scope = trio.CancelScope()
        self._stuck: str | None = None

    def now(self) -> float:
        return self._clock.now

    def at(self, time: float, callback: Callable[..., None], *arguments: Any) -> None:
        """Call `callback(*arguments)` at a virtual time, between two tasks. It must not wait and not raise."""
        self._count += 1
        heapq.heappush(self.events, (time, self._count, callback, arguments))

    def after(self, delay_s: float, callback: Callable[..., None], *arguments: Any) -> None:
        self.at(self._clock.now + delay_s, callback, *arguments)

    def trace(self, *facts: object) -> None:
        """Something happened: into the digest, and to whoever watches. `facts` must print the same in every process."""
        line = f"{self._clock.now:.6f} " + " ".join(map(str, facts))
        self.traced += 1
        self._hash.update(line.encode())
        if self._trace is not None:
            self._trace(line)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def pause(self, process: Any) -> None:
        if not process.paused:
            process.paused = True
            self._queue.pauses += 1

    def resume(self, process: Any) -> None:
        if process.paused:
            process.paused = False
            self._queue.pauses -= 1
            frozen, process.frozen = process.frozen, []
            for task in frozen:
                self._queue.append(task)

    def give_up(self, reason: str) -> None:
        """End the run; the second time by force (what ignores being cancelled cannot be ended otherwise)."""
        if self._stuck is not None:
            raise Stuck(reason)
        self._stuck = reason
        self._scope.cancel()

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        """Run `main` to its end in virtual time. Raises Stuck."""

        async def start() -> None:
            _run.GLOBAL_RUN_CONTEXT.runner.runq = self._queue
            with self._scope:
                await main()

        was_deterministic = _run._ALLOW_DETERMINISTIC_SCHEDULING
        state = _run._r.getstate()
        collecting = gc.isenabled()
        gc.disable()  # finalizers run when the collector likes: not part of the history
        _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
        _run._r.seed(f"trio {self._seed}")
        try:
            trio.run(start, clock=self._clock.mock)
        finally:
            _run._ALLOW_DETERMINISTIC_SCHEDULING = was_deterministic  # type: ignore[misc]
            _run._r.setstate(state)
            self.events.clear()
            if collecting:
                gc.enable()
        if self._stuck is not None:
            raise Stuck(self._stuck)


class Bell:
    """Waiters that a kernel callback or a task wakes: all that wait now."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: list[Any] = []

    async def wait(self) -> None:
        task = trio.lowlevel.current_task()
        self._tasks.append(task)

        def abort(_: object) -> Any:
            self._tasks.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def ring(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            trio.lowlevel.reschedule(task)


class LogWatch(logging.Handler):
    """Collects what the code under test logs as an error: a bug that a server caught is still a bug."""

    def __init__(self, kernel: Kernel, level: int = logging.WARNING) -> None:
        super().__init__(level)
        self._kernel = kernel
        self.bugs: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        process = current_process.get()
        where = process.host.name if process is not None else "-"
        text = record.getMessage()
        self._kernel.trace("log", where, record.levelname, record.name, text)
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
            self.bugs.append(f"{where}: {record.name}: {text}")
        elif "was answered here and is refused" in text:
            self.bugs.append(f"{where}: {record.name}: {text}")
