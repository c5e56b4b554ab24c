"""The memory of a process that serves: how its allocator and its garbage collector are set, once, before the loop runs.

Buffers of a MiB come from the heap and go back there: by default glibc maps and unmaps each, and the kernel zeroes 256 pages
for every MiB that goes through. Cycles are rare here (an exception's traceback now and then), so the collector looks less
often, and never at what was there when the process began to serve: code, classes and settings.
"""

import ctypes
import gc

from fsd.core.units import MIB

MMAP_THRESHOLD = 32 * MIB  # the most that every glibc accepts
TRIM_THRESHOLD = 128 * MIB
COLLECT_AFTER = (20_000, 20, 20)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def settle() -> None:
    """For a process that is about to serve for long. Harmless where the C library has no mallopt(3)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
