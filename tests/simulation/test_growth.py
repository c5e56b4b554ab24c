"""Seeds in which the cluster grows, shrinks and moves while it is attacked.

More: python -m tests.simulation.test_growth 1000
"""

import dataclasses
import sys
from random import Random

import pytest

from tests.simulation.growth import MIXES
from tests.simulation.scenario import Outcome, Plan, run_seed

BLOCKS = 6
SEEDS_IN_BLOCK = 10


def plan_of(seed: int) -> Plan:
    random = Random(f"growth {seed}")
    return dataclasses.replace(
        Plan.of(seed),
        nodes=3,
        faults=tuple(random.choice(MIXES)),
        strikes=random.randint(4, 14),
        replicas=2,
        pg_count=random.choice((4, 8, 16)),
        steps=random.choice((20, 40)),
    )


def grow(seed: int) -> Outcome:
    return run_seed(seed, plan_of(seed))


@pytest.mark.parametrize("block", range(BLOCKS))
def test_growing_and_shrinking(block: int) -> None:
    for seed in range(block * SEEDS_IN_BLOCK, (block + 1) * SEEDS_IN_BLOCK):
        outcome = grow(seed)
        assert outcome.fault is None, f"{outcome.fault}\nreproduce: python -m tests.simulation.test_growth 1 {seed}"


def main(count: int, start: int) -> int:
    failed = 0
    for seed in range(start, start + count):
        outcome = grow(seed)
        if outcome.fault:
            failed += 1
            print(f"seed {seed}: {outcome.fault[:1500]}", flush=True)
    print(f"{count} seeds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
