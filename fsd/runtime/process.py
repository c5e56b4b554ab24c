"""Processes of this machine, by pid *and* start time, so that a reused pid is not mistaken for its former owner."""

import os
import resource
from typing import NamedTuple


class Usage(NamedTuple):
    resident_bytes: int
    cpu_s: float
    open_fds: int
    max_fds: int
    started_s: float  # since 1970


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot (proc(5)); None if there is none (a zombie is none)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def own_start_time() -> int:
    started = start_time(os.getpid())
    assert started is not None
    return started


def own_usage() -> Usage:
    """What this process takes of the machine, now; some 50 us."""
    with open("/proc/self/statm", "rb") as file:
        pages = int(file.read().split()[1])
    times = os.times()
    return Usage(
        pages * resource.getpagesize(),
        times.user + times.system,
        len(os.listdir("/proc/self/fd")),
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        _boot_time_s() + own_start_time() / os.sysconf("SC_CLK_TCK"),
    )


def _boot_time_s() -> float:
    with open("/proc/stat", "rb") as file:
        return next(float(line.split()[1]) for line in file if line.startswith(b"btime"))
