"""Planted bugs in the rules of who is a member, who leads and what is copied: one for each rule that had none.

Where one defence masks another (2-replication.md), the other is switched off as well; `without` then holds what is switched
off, and alone it must not be found on the same seeds.
"""

import dataclasses
from dataclasses import replace
from typing import Any

import trio

import chunkserver.carrier
import chunkserver.members
import chunkserver.replica
import chunkserver.resync
import chunkserver.space
import chunkserver.sweeper
import metadata.membership
from fsd.cluster.map import Row
from fsd.core.ids import Incarnation, Member
from tests.simulation import aimed
from tests.simulation.growth import GROWTH
from tests.simulation.mutations import Mutation, Patch, crashes, isolate, nothing, nothing_async, power
from tests.simulation.nemesis import DISKS, Nemesis

membership, replica = metadata.membership, chunkserver.replica


# --- the authority ----------------------------------------------------------------------------------------------------


def base_is_forgotten() -> list[Patch]:
    """Not a planted bug by itself where nobody shrinks onto a corpse: it only takes the mask off."""
    after = membership.Membership._next

    def next_row(self: Any, row: Row, in_sync: Any, syncing: Any) -> Row:
        return replace(after(self, row, in_sync, syncing), base=in_sync)

    return [(membership.Membership, "_next", next_row)]


def shrink_onto_a_corpse() -> list[Patch]:
    """R8, with base switched off."""
    return [*base_is_forgotten(), (membership, "may_shrink", lambda remaining, heard, known: bool(remaining))]


def lead_with_an_empty_disk() -> list[Patch]:
    """R9."""
    return [(membership.Membership, "_forget_base", nothing)]


def whoever_comes_back_leads() -> list[Patch]:
    """R8: base is not asked."""

    def leaders(row: Row, nodes: Any) -> tuple[Member, ...]:
        alive = [n for n in nodes.values() if n.state is membership.NodeState.UP]
        return tuple(Member(n.node, Incarnation(n.incarnation)) for n in alive[:1])

    return [(membership, "leaders_from_base", leaders)]


def active_from_the_first_moment() -> list[Patch]:
    """R7: a new row needs no activation."""
    after = membership.Membership._next

    def next_row(self: Any, row: Row, in_sync: Any, syncing: Any) -> Row:
        return replace(after(self, row, in_sync, syncing), base=in_sync, active=True)

    return [(membership.Membership, "_next", next_row)]


def silent_for_a_moment_is_dead() -> list[Patch]:
    """R2: replaced before its lease has ended."""
    return [(membership, "is_silent", lambda heard, now, grace_s: now - heard > 3.0)]


def move_without_copying() -> list[Patch]:
    """A group's new member counts as in sync at once."""

    def start_moves(self: Any, now: float) -> None:
        for move in self.mover.choose(self.facts, self.counted(now), now):
            row, target = self.facts.rows[move.pg], self.nodes[move.target]
            member = Member(target.node, Incarnation(target.incarnation))
            self.facts.rows[move.pg] = self._next(row, (*row.in_sync, member), ())
            self.facts.leaving[move.pg] = move.source

    return [(membership.Membership, "_start_moves", start_moves)]


# --- chunkservers -----------------------------------------------------------------------------------------------------


def drop_on_ones_own() -> list[Patch]:
    """R5: a member that does not answer is left out, without asking the authority."""
    ask = chunkserver.members.Members.ask

    async def impatient(self: Any, group: Any, row: Any, member: Any, message: Any, payload: Any = b"") -> Any:
        if not isinstance(message, chunkserver.members.Replicate):
            return await ask(self, group, row, member, message, payload)
        with trio.move_on_after(0.3):
            return await ask(self, group, row, member, message, payload)
        return chunkserver.members.Reply(chunkserver.members.SpaceLeft(False))

    return [(chunkserver.members.Members, "ask", impatient)]


def promote_without_filling() -> list[Patch]:
    """R10."""
    compare = chunkserver.resync.compare
    return [(chunkserver.resync, "compare", lambda mine, theirs: replace(compare(mine, theirs), push=(), remove=()))]


def leave_extras() -> list[Patch]:
    """R10: what the returned alone has stays."""
    compare = chunkserver.resync.compare
    return [(chunkserver.resync, "compare", lambda mine, theirs: replace(compare(mine, theirs), remove=()))]


def leave_what_was_interrupted() -> list[Patch]:
    """I6: a change that ended early is not pushed again."""
    return [
        (chunkserver.carrier.Carrier, "_mend_if_dirty", nothing),
        (chunkserver.carrier.Carrier, "mend", nothing_async),
    ]


def go_on_after_a_disk_error() -> list[Patch]:
    """R12."""
    return [(chunkserver.space.BlockSpace, "fail", nothing)]


def sweep_what_may_be_needed() -> list[Patch]:
    """What this incarnation is no member of goes at once, base or not."""

    def is_dispensable(row: Row, pool: Any, me: Member) -> bool:
        return me not in row.members()

    return [
        (chunkserver.sweeper, "is_dispensable", is_dispensable),
        (chunkserver.sweeper, "SWEEP_AFTER_S", 0.0),
        (chunkserver.sweeper, "LOOK_S", 0.5),
    ]


def acknowledge_below_min_replicas() -> list[Patch]:
    """R4."""
    return [(replica, "check_copies", nothing)]


def any_primarys_word() -> list[Patch]:
    """A member follows whoever says that it leads, under whatever epoch; leases and the primary's own checks stay."""
    return [(replica, name, nothing) for name in ("check_sender", "check_epoch", "check_promise")]


two = {"nodes": 3, "replicas": 2, "min_replicas": 1}
lose_one = {**two, "faults": (aimed.lose_one_of_two,), "strikes": 1, "pg_count": 8, "nodes": 4}
empty = {**two, "faults": (aimed.come_back_empty,), "strikes": 2}
grouped = {**two, "faults": (aimed.power_group,), "strikes": 3}
growing = {**two, "faults": tuple(GROWTH), "strikes": 8, "strike_pause_s": 1.0}
three = {"nodes": 4, "replicas": 3, "min_replicas": 1}
between = {**three, "faults": (Nemesis.kill_between_members,), "clients": 2, "strikes": 6}
lonely = {**two, "faults": (aimed.lonely_primary,), "strikes": 3, "clients": 3, "think_s": 0.05, "steps": 40}
interrupted = {**two, "faults": (aimed.interrupt_change,), "strikes": 4, "clients": 3, "think_s": 0.05, "pg_count": 8}

overtaken = {
    **three,
    "faults": (aimed.late_replicate,),
    "strikes": 3,
    "clients": 3,
    "think_s": 0.05,
    "steps": 60,
    "pg_count": 1,
}

MUTATIONS = [
    Mutation("any primary's word", any_primarys_word, 40, overtaken),
    Mutation("shrink onto a corpse", shrink_onto_a_corpse, 30, lose_one),
    Mutation("lead with an empty disk", lead_with_an_empty_disk, 30, empty),
    Mutation("whoever comes back leads", whoever_comes_back_leads, 40, grouped),
    Mutation("active from the first moment", active_from_the_first_moment, 60, between),
    Mutation("silent for a moment is dead", silent_for_a_moment_is_dead, 60, {**isolate, "watchers": True}),
    Mutation("move without copying", move_without_copying, 20, growing),
    Mutation("drop on one's own", drop_on_ones_own, 40, lonely),
    Mutation("promote without filling", promote_without_filling, 20, {"faults": crashes}),
    Mutation("leave extras", leave_extras, 60, {"faults": crashes}),
    Mutation("leave what was interrupted", leave_what_was_interrupted, 60, interrupted),
    Mutation("go on after a disk error", go_on_after_a_disk_error, 40, {"faults": tuple(DISKS)}),
    Mutation("sweep what may be needed", sweep_what_may_be_needed, 40, {"faults": power}),
    Mutation(
        "acknowledge below min replicas",
        acknowledge_below_min_replicas,
        30,
        {**two, "min_replicas": 2, "faults": crashes},
    ),
]

MASKS = [Mutation("base is forgotten, nothing else", base_is_forgotten, 4, lose_one)]


def clean(mutation: Mutation) -> Mutation:
    """The same seeds and faults without the bug."""
    return dataclasses.replace(mutation, patches=list)
