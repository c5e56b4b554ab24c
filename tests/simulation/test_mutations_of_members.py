"""Each planted bug in the rules of membership and copying is found; what only takes a mask off is not."""

import pytest

from tests.simulation.mutations import Mutation
from tests.simulation.mutations_of_members import MASKS, MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_the_simulator_finds(mutation: Mutation) -> None:
    found = mutation.hunt()
    assert found is not None, f"{mutation.name}: not found in {mutation.seeds} seeds"


@pytest.mark.parametrize("mutation", MASKS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_a_defence_that_is_switched_off_is_no_fault_by_itself(mutation: Mutation) -> None:
    found = mutation.hunt()
    assert found is None, f"{mutation.name}: seed {found.seed}: {found.fault}"
