"""Each planted bug in flushes in two phases is found; without one the same plans are clean."""

import pytest

from tests.simulation.mutations import Mutation
from tests.simulation.mutations_of_flushes import CLEAN, MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_the_simulator_finds(mutation: Mutation) -> None:
    found = mutation.hunt()
    assert found is not None, f"{mutation.name}: not found in {mutation.seeds} seeds"


@pytest.mark.parametrize("mutation", CLEAN, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_without_a_planted_bug_there_is_nothing_to_find(mutation: Mutation) -> None:
    found = mutation.hunt()
    assert found is None, f"{mutation.name}: seed {found.seed}: {found.fault}"
