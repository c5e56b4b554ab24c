"""Each planted bug of leases under contention is found."""

import pytest

from tests.simulation.mutations import Mutation
from tests.simulation.mutations_of_leases import MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_the_simulator_finds(mutation: Mutation) -> None:
    found = mutation.hunt()
    assert found is not None, f"{mutation.name}: not found in {mutation.seeds} seeds"
