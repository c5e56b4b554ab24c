"""A serving process's memory: buffers that are used again, a collector that looks seldom."""

import subprocess
import sys

PROGRAM = """
import gc, resource
from fsd.runtime import memory
{settle}
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(4 << 20)
before = faults()
for _ in range(50):
    bytearray(4 << 20)
print(faults() - before, gc.get_freeze_count() > 1000, gc.get_threshold()[0])
"""


def run(settle: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(settle=settle)], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


def test_large_buffers_come_from_memory_that_was_used_before():
    faults, frozen, threshold = run("memory.settle()")
    assert int(faults) < 1000  # 4 MiB have 1,024 pages: not even one of the fifty buffers is new
    assert (frozen, threshold) == ("True", "20000")
