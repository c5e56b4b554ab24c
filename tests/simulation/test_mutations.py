"""The measure of the simulator: it finds each planted bug, and the code without them is clean on the same seeds."""

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_the_simulator_finds(mutation: Mutation) -> None:
    found = mutation.hunt()
    assert found is not None, f"{mutation.name}: not found in {mutation.seeds} seeds"
