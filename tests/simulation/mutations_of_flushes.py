"""Planted bugs in flushes in two phases: one for each thing that makes them all or nothing."""

from typing import Any

import chunkserver.carrier
import chunkserver.follower
import chunkserver.replica
import fsd.client.contents
import fsd.client.storing
import metadata.flushes
from fsd.protocol.chunk import Resolve
from fsd.protocol.cluster import Fate
from tests.simulation import aimed
from tests.simulation.mutations import Mutation, Patch, always, none
from tests.simulation.nemesis import Nemesis

replica = chunkserver.replica


def never_two_phases() -> list[Patch]:
    return [(fsd.client.storing, "chunks_to_prepare", none)]


def apply_without_a_commit_record() -> list[Patch]:
    return [(metadata.flushes, "is_committed", always)]


def drop_what_is_committed() -> list[Patch]:
    def resolution(fate: Fate, flush: Any, asker: Any) -> Resolve:
        return Resolve.DROP

    return [(replica, "resolution", resolution)]


def commit_before_all_is_prepared() -> list[Patch]:
    contents = fsd.client.contents.Contents
    write = contents._write_chunks

    async def later(self: Any, data: Any, pieces: Any, session: Any, flush: Any = None, *rest: Any) -> None:
        if flush is None:
            await write(self, data, pieces, session, flush, *rest)
        else:
            self._core.nursery.start_soon(write, self, data, pieces, session, flush, *rest)

    return [(contents, "_write_chunks", later)]


def copy_without_what_is_pending() -> list[Patch]:
    """A new member, and whoever is settled or repaired, gets what is shown alone."""
    whole = chunkserver.carrier.Carrier._read_whole

    async def shown_alone(self: Any, *arguments: Any, **named: Any) -> Any:
        snapshot, content, pending = await whole(self, *arguments, **named)
        return snapshot._replace(pending=None), content, pending._replace(data=b"", checksums=())

    return [(chunkserver.carrier.Carrier, "_read_whole", shown_alone)]


def read_around_what_is_pending() -> list[Patch]:
    async def meet(self: Any, *arguments: Any) -> None:
        return None

    return [(chunkserver.flushes.Flushes, "meet", meet)]


flushing = {
    "flushers": True,
    "faults": (aimed.kill_flusher,),
    "strikes": 8,
    "strike_pause_s": 0.3,
    "clients": 2,
    "workers": 1,
    "steps": 40,
    "think_s": 0.1,
    "nodes": 3,
}
failing_over = {
    **flushing,
    "faults": (aimed.kill_primary_of_a_flush, aimed.kill_flusher, Nemesis.kill_node),
    "strikes": 10,
}

MUTATIONS = [
    Mutation("never two phases", never_two_phases, 40, flushing),
    Mutation("apply without a commit record", apply_without_a_commit_record, 40, flushing),
    Mutation("drop what is committed", drop_what_is_committed, 20, flushing),
    Mutation("commit before all is prepared", commit_before_all_is_prepared, 40, flushing),
    Mutation("copy without what is pending", copy_without_what_is_pending, 60, failing_over),
    Mutation("read around what is pending", read_around_what_is_pending, 20, flushing),
]

CLEAN = [
    Mutation("nothing, flushing", list, 10, flushing),
    Mutation("nothing, failing over", list, 10, failing_over),
]
