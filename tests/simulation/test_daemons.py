"""A client's process dies alone, again and again; nothing that it answered is lost: seeds of their own, planted bugs."""

import dataclasses

import pytest

from tests.simulation.mutations import Mutation
from tests.simulation.mutations_of_daemons import MUTATIONS_OF_DAEMONS
from tests.simulation.nemesis import CRASHES, CUTS, DAEMONS, MOMENTS
from tests.simulation.scenario import Plan, run_seed

SEEDS = 20
BESIDE = ((), CRASHES, CUTS, MOMENTS, CRASHES + MOMENTS)  # what else goes wrong


def plan(seed: int) -> Plan:
    base = Plan.of(seed)
    faults = (*DAEMONS * 3, *BESIDE[seed % len(BESIDE)])
    return dataclasses.replace(base, faults=faults, keeps_state=True, strikes=max(base.strikes, 6))


@pytest.mark.parametrize("block", range(4))
def test_seeds_in_which_daemons_die(block: int) -> None:
    for seed in range(block * SEEDS // 4, (block + 1) * SEEDS // 4):
        outcome = run_seed(seed, plan(seed))
        assert outcome.fault is None, f"seed {seed} of tests/simulation/test_daemons.py: {outcome.fault}"


@pytest.mark.parametrize("mutation", MUTATIONS_OF_DAEMONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_the_simulator_finds(mutation: Mutation) -> None:
    found = mutation.hunt()
    assert found is not None, f"{mutation.name}: not found in {mutation.seeds} seeds"
