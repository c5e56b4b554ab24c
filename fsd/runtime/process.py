"""Processes of this machine, by pid *and* start time, so that a reused pid is not mistaken for its former owner."""

import os


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
