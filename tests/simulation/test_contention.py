"""Seeds of the contended names. More: python -m tests.simulation.test_contention 1000"""

import sys

import pytest

from tests.simulation.contention import plan_of
from tests.simulation.scenario import Outcome, run_seed

BLOCKS = 6
SEEDS_IN_BLOCK = 10


def contend(seed: int) -> Outcome:
    return run_seed(seed, plan_of(seed))


@pytest.mark.parametrize("block", range(BLOCKS))
def test_nobody_waits_long_or_loses_anything(block: int) -> None:
    for seed in range(block * SEEDS_IN_BLOCK, (block + 1) * SEEDS_IN_BLOCK):
        outcome = contend(seed)
        assert outcome.fault is None, f"{outcome.fault}\nreproduce: python -m tests.simulation.test_contention 1 {seed}"


def main(count: int, start: int, trace: bool) -> int:
    failed = 0
    for seed in range(start, start + count):
        outcome = run_seed(seed, plan_of(seed), print if trace else None)
        if outcome.fault:
            failed += 1
            print(f"seed {seed}: {outcome.fault[:1500]}", flush=True)
    print(f"{count} seeds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, "--trace" in sys.argv))
