"""Figures of the machine for the heartbeats (psutil). The simulator gives its own."""

from typing import NamedTuple


class MachineFigures(NamedTuple):
    cpu_percent: float
    memory_percent: float


def machine_figures() -> MachineFigures:
    """CPU since the last call and memory in use now; no waiting."""
    import psutil  # here, because nothing but real servers needs it

    return MachineFigures(psutil.cpu_percent(interval=None), psutil.virtual_memory().percent)
