"""Planted bugs of leases under contention, hunted where everybody works on the same names (tests.simulation.contention)."""

from typing import Any

import fsd.client.core
import fsd.client.file
import fsd.client.local
import fsd.client.returns
import metadata.tree
from tests.simulation.contention import plan_of
from tests.simulation.mutations import Mutation, Patch, never, nothing

File = fsd.client.file.File


def a_write_back_that_waits() -> list[Patch]:
    """A lease goes with the last name though a flush is under way, and the flush's commit then waits for whoever waits for
    its sender: both wait until the holder is evicted."""
    return [
        (metadata.tree.TreeService, "must_be_of_the_holder", staticmethod(nothing)),
        (File, "is_under_way", property(never)),
        (File, "is_needed", property(lambda self: self.handles > 0)),
    ]


def discard_what_others_read() -> list[Patch]:
    return [(fsd.client.local.Local, "is_read_elsewhere", never)]


def give_back_what_is_in_use_again() -> list[Patch]:
    """Between the last close and the lease's return the file was opened, written and closed once more."""
    tell_closed = fsd.client.returns.Returns.tell_closed

    async def told(self: Any, file: Any) -> bool:
        needed = File.is_needed
        File.is_needed = property(lambda file: file.handles > 0)  # type: ignore[method-assign,assignment]
        try:
            return await tell_closed(self, file)
        finally:
            File.is_needed = needed  # type: ignore[method-assign]

    return [(fsd.client.returns.Returns, "tell_closed", told)]


def believe_to_know_what_a_name_names() -> list[Patch]:
    """After a rename that the server carried out, the new name is taken to name what the old one did when it was sent."""
    change = fsd.client.core.Core.change

    async def changed(self: Any, tokens: Any, operation: Any, **more: Any) -> Any:
        told: list[Any] = []
        if hasattr(operation, "new_name"):
            moved = self.tree.entry(operation.parent, operation.name)
            told = [] if not moved else [((operation.new_parent, operation.new_name), moved)]
        executed = await change(self, tokens, operation, **more)
        for (parent, name), ino in told:
            if self.tree.entry(parent, name):
                self.tree.put_entry(parent, name, ino)
        return executed

    return [(fsd.client.core.Core, "change", changed)]


# No file is small enough to be written back by the journal alone.
flushing = {"clients": 2, "workers": 2, "steps": 80, "think_s": 0.01, "write_back_age_s": 0.02, "inline_limit": 0}
calm = {"clients": 2, "workers": 1, "steps": 160, "think_s": 0.01, "write_back_age_s": 1.0, "inline_limit": 0}

MUTATIONS = [
    Mutation("a write-back that waits", a_write_back_that_waits, 120, flushing, base=plan_of),
    Mutation("discard what others read", discard_what_others_read, 60, calm, base=plan_of),
    Mutation("give back what is in use again", give_back_what_is_in_use_again, 100, base=plan_of),
    Mutation("believe to know what a name names", believe_to_know_what_a_name_names, 20, base=plan_of),
]
