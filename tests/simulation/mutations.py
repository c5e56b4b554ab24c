"""Planted bugs: each takes one rule away from the code that users run, and the simulator must notice.

`python -m tests.simulation --mutation NAME` shows how many seeds it takes. A bug that random faults find too rarely has a
scenario that is aimed at it. Measured in the first version: each is found within five seeds, but for "no epoch check" (up to
25) and "trust the lease for ever" (up to 60).
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch

import chunkserver.reader
import chunkserver.replica
import chunkserver.store
import fsd.client.chunks
import fsd.client.contents
import fsd.client.core
import fsd.client.file
import fsd.client.journal
import fsd.client.leases
import fsd.client.local
import fsd.client.locks
import fsd.client.overlap
import fsd.client.session
import fsd.client.tree
import fsd.client.writeback
import fsd.namespace.locks
import metadata.leases
import metadata.live
import metadata.locks
import metadata.membership
import metadata.sessions
import metadata.store
from fsd.cluster.map import Row
from fsd.core.ids import Incarnation, Member
from tests.simulation.nemesis import CRASHES, CUTS, MOMENTS, POWER, ROT, Nemesis
from tests.simulation.scenario import Outcome, Plan, run_seed

Patch = tuple[Any, str, Any]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """`seeds`: within how many it must be found. `change` aims the seed's plan."""

    name: str
    patches: Callable[[], list[Patch]]
    seeds: int
    change: dict[str, Any] = dataclasses.field(default_factory=dict)
    base: Callable[[int], Plan] = Plan.of

    def plan(self, seed: int) -> Plan:
        return dataclasses.replace(self.base(seed), **self.change)

    @contextmanager
    def planted(self) -> Iterator[None]:
        patches = [patch.object(target, name, new) for target, name, new in self.patches()]
        for each in patches:
            each.start()
        try:
            yield
        finally:
            for each in reversed(patches):
                each.stop()

    def hunt(self, start: int = 0) -> Outcome | None:
        """The first seed that finds it."""
        with self.planted():
            for seed in range(start, start + self.seeds):
                outcome = run_seed(seed, self.plan(seed))
                if outcome.fault:
                    return outcome
        return None


def nothing(*_: Any, **__: Any) -> None:
    return None


def never(*_: Any, **__: Any) -> bool:
    return False


def always(*_: Any, **__: Any) -> bool:
    return True


def none(*_: Any, **__: Any) -> list[Any]:
    return []


async def nothing_async(*_: Any, **__: Any) -> None:
    return None


# --- chunkservers -----------------------------------------------------------------------------------------------------

replica = chunkserver.replica


def no_epoch_check() -> list[Patch]:
    """Without the lease check as well: the two mask each other."""
    names = ("check_asker", "check_promise", "check_epoch", "check_lease", "check_primary", "check_sender")
    return [(replica, name, nothing) for name in names]


def acknowledge_before_the_secondary() -> list[Patch]:
    return [(replica, "must_answer", none)]


def forget_chunk_request_numbers() -> list[Patch]:
    return [(replica, "already_applied", never)]


def serve_after_the_lease() -> list[Patch]:
    return [(replica, "check_lease", nothing)]


def no_settling() -> list[Patch]:
    return [(replica, "settle_list", none)]


def no_checksums() -> list[Patch]:
    return [
        (chunkserver.reader, "verify_stored", nothing),
        (chunkserver.reader, "check_sums", nothing),
        (fsd.client.chunks.Chunks, "verify", always),
    ]


def no_fence() -> list[Patch]:
    return [(replica, "check_fence", nothing)]


def garbage_of_the_returned_wins() -> list[Patch]:
    def accepts(*, present: Any, order: Any, resync: bool, syncing: bool, epoch: Any) -> bool:
        return present < order

    return [(replica, "accepts", accepts)]


# --- the authority ----------------------------------------------------------------------------------------------------


def keep_a_restarted_member_in_sync() -> list[Patch]:
    register = metadata.membership.Membership.register

    def registered(self: Any, node: Any, incarnation: int, *rest: Any, **named: Any) -> Any:
        result = register(self, node, incarnation, *rest, **named)
        new = Member(result, Incarnation(incarnation))

        def renamed(members: tuple[Member, ...]) -> tuple[Member, ...]:
            return tuple(new if member.node == result else member for member in members)

        for pg, row in self.facts.rows.items():
            self.facts.rows[pg] = dataclasses.replace(
                row,
                primary=new if row.primary is not None and row.primary.node == result else row.primary,
                in_sync=renamed(row.in_sync),
                syncing=renamed(row.syncing),
                base=renamed(row.base),
            )
        return result

    return [(metadata.membership.Membership, "register", registered)]


def name_a_node_without_its_incarnation() -> list[Patch]:
    def is_alive(nodes: Any, member: Member) -> bool:
        node = nodes.get(member.node)
        return node is not None and node.state is metadata.membership.NodeState.UP

    def check_primary(row: Row, me: Member) -> None:
        if row.primary is None or row.primary.node != me.node:
            raise replica.StaleMap("another node leads")

    def check_receiver(row: Row, me: Member) -> None:
        if me.node not in [member.node for member in row.members()]:
            raise replica.NotALeader("no member")

    return [
        (metadata.membership, "is_alive", is_alive),
        (replica, "check_primary", check_primary),
        (replica, "check_receiver", check_receiver),
        (replica, "check_sender", nothing),
    ]


def evict_without_a_fence() -> list[Patch]:
    return [(metadata.live.Sessions, "fence", nothing_async)]


# --- metadata ---------------------------------------------------------------------------------------------------------


def forget_metadata_request_numbers() -> list[Patch]:
    return [
        (metadata.sessions.Session, "remembered", nothing),
        (metadata.sessions.Session, "check_number", nothing),
    ]


def grant_what_others_hold() -> list[Patch]:
    return [(metadata.leases.LeaseTable, "conflicts", none)]


def answer_before_it_is_durable() -> list[Patch]:
    return [(metadata.store.Store, "durable", nothing_async)]


# --- clients ----------------------------------------------------------------------------------------------------------


def act_on_after_a_recall() -> list[Patch]:
    """Stop neither at the recall nor afterwards: the caches stay."""
    return [
        (fsd.client.leases.LeaseTable, "lower_usable", nothing),
        (fsd.client.core.Core, "drop_caches", nothing),
    ]


def release_without_write_back() -> list[Patch]:
    return [(fsd.client.core.Core, "write_back_before_release", nothing_async)]


def trust_the_lease_for_ever() -> list[Patch]:
    return [(fsd.client.session.Session, "is_valid", always)]


def lose_the_end_of_a_flush() -> list[Patch]:
    take = fsd.client.writeback.DirtyMap.take

    def taken(self: Any, *limits: int) -> Any:
        result = take(self, *limits)
        extents = list(result.all_extents())
        if len(extents) > 1:
            last = extents[-1]
            return_value = fsd.client.writeback.DirtyMap(result.chunk_size)
            for extent in extents[:-1]:
                return_value.write(extent.file_offset, extent.data)
            del last
            return return_value
        return result

    return [(fsd.client.writeback.DirtyMap, "take", taken)]


def commit_the_size_before_the_bytes() -> list[Patch]:
    contents = fsd.client.contents.Contents
    write = contents._write_chunks

    async def later(self: Any, *arguments: Any) -> None:
        self._core.nursery.start_soon(quietly, self, *arguments)

    async def quietly(self: Any, *arguments: Any) -> None:
        with suppress(fsd.client.contents.FsError):
            await write(self, *arguments)

    return [(contents, "_write_chunks", later)]


def show_what_was_cut() -> list[Patch]:
    async def clear_behind(self: Any, file: Any, content: Any, *_: Any) -> Any:
        return content

    return [(fsd.client.contents.Contents, "clear_behind", clear_behind)]


# --- the journal ------------------------------------------------------------------------------------------------------


def release_before_shipping() -> list[Patch]:
    return [(fsd.client.core.Core, "ship_before_release", nothing_async)]


def lose_from_a_batch(which: slice) -> list[Patch]:
    ship = fsd.client.session.Session.execute_batch

    async def shipped(self: Any, items: tuple[Any, ...]) -> Any:
        lost = items[which] if len(items) > 2 else ()
        return await ship(self, tuple(item for item in items if item not in lost))

    return [(fsd.client.session.Session, "execute_batch", shipped)]


def lose_the_end_of_a_batch() -> list[Patch]:
    return lose_from_a_batch(slice(-1, None))


def lose_the_middle_of_a_batch() -> list[Patch]:
    return lose_from_a_batch(slice(1, 2))


def carry_out_a_batch_twice() -> list[Patch]:
    remembered = metadata.sessions.Session.remembered

    def forgotten(self: Any, number: Any) -> Any:
        record = remembered(self, number)
        return None if record is not None and record.item_count else record

    return [(metadata.sessions.Session, "remembered", forgotten)]


def complete_for_ever() -> list[Patch]:
    is_complete = fsd.client.tree.Tree.is_complete
    seen: dict[tuple[int, Any], bool] = {}

    def once_complete(self: Any, parent: Any) -> bool:
        key = (id(self), parent)
        seen[key] = seen.get(key, False) or is_complete(self, parent)
        return seen[key]

    return [(fsd.client.tree.Tree, "is_complete", once_complete)]


def exclusive_beside_shared() -> list[Patch]:
    def compatible(held: Any, wanted: Any) -> bool:
        return (held, wanted).count(metadata.leases.LeaseMode.EXCLUSIVE) < 2

    return [(metadata.leases, "compatible", compatible)]


def keep_the_journal_of_an_evicted_session() -> list[Patch]:
    """What was done under the leases of a dead session is told in the name of the next."""
    lose = fsd.client.journal.Journal.lose

    def kept(self: Any, error: Any) -> int:
        entries = list(self._entries)
        lost = lose(self, error)
        for entry in entries:
            entry.error = None
            entry.ticket = fsd.client.overlap.Overlaps().begin((), change=True, here=True)
            self.append(entry)
        return lost

    return [(fsd.client.journal.Journal, "lose", kept)]


def promise_without_the_lease() -> list[Patch]:
    return [(fsd.client.local.Local, "is_held", always)]


# --- locks ------------------------------------------------------------------------------------------------------------


def grant_a_conflicting_lock() -> list[Patch]:
    return [(fsd.namespace.locks, "_conflict", never)]


def keep_the_locks_of_the_evicted() -> list[Patch]:
    return [(metadata.locks.LockService, "drop_session", nothing)]


def go_on_after_a_lock_was_lost() -> list[Patch]:
    return [(fsd.client.file.FileHandle, "check_locks", nothing)]


def forget_locks_at_a_restart() -> list[Patch]:
    return [(fsd.client.locks.Locks, "claims", lambda *_: ())]


def no_grace_after_a_restart() -> list[Patch]:
    return [(metadata.sessions.SessionTable, "is_settled", always)]


def keep_what_was_delegated() -> list[Patch]:
    return [(fsd.client.core.Core, "hand_locks_over", nothing_async)]


def no_deadlock_check() -> list[Patch]:
    return [(fsd.namespace.locks.LockTable, "is_deadlock", never)]


crashes, cuts, rot, power, moments = tuple(CRASHES), tuple(CUTS), tuple(ROT), tuple(POWER), tuple(MOMENTS)
isolate = {
    "faults": (Nemesis.cut_primary_from_authority, Nemesis.pause_primary),
    "strikes": 4,
    "nodes": 3,
    "clients": 3,
    "steps": 60,
}
evict = {
    "faults": (Nemesis.cut_client_from_authority,),
    "strikes": 3,
    "clients": 2,
    "workers": 1,
    "steps": 40,
    "think_s": 0.3,
}
late = {
    "faults": (Nemesis.late_write_of_the_evicted,),
    "strikes": 2,
    "strike_pause_s": 0.3,
    "clients": 3,
    "steps": 40,
    "think_s": 0.3,
}
stranded = {
    "faults": (Nemesis.strand_primary,),
    "strikes": 5,
    "nodes": 2,
    "pg_count": 1,
    "clients": 3,
    "steps": 40,
    "think_s": 0.05,
}
counting = {"clients": 3, "workers": 1, "steps": 20, "lockers": 2, "think_s": 0.05}
names = {"clients": 3, "workers": 2, "steps": 40, "think_s": 0.05}
alone = {**names, "clients": 1}  # nearly all changes of names are journalled
three = {"nodes": 4, "replicas": 3, "min_replicas": 1}

MUTATIONS = [
    Mutation("no epoch check", no_epoch_check, 60, isolate),
    Mutation("acknowledge before the secondary", acknowledge_before_the_secondary, 20),
    Mutation(
        "forget chunk request numbers",
        forget_chunk_request_numbers,
        60,
        {"faults": (Nemesis.late_write,), "strikes": 12, "strike_pause_s": 0.1, "think_s": 0.05, "steps": 60},
    ),
    Mutation("serve after the lease", serve_after_the_lease, 60, {**isolate, "readers": True, "cache_bytes": 65_536}),
    Mutation("no settling", no_settling, 60, {**three, "faults": (Nemesis.kill_between_members,), "clients": 2}),
    Mutation("no checksums", no_checksums, 40, {"faults": rot}),
    Mutation("no fence", no_fence, 60, late),
    Mutation("garbage of the returned wins", garbage_of_the_returned_wins, 60, stranded),
    Mutation("keep a restarted member in sync", keep_a_restarted_member_in_sync, 40, {"faults": crashes}),
    Mutation("name a node without its incarnation", name_a_node_without_its_incarnation, 40, {"faults": crashes}),
    Mutation("evict without a fence", evict_without_a_fence, 60, late),
    Mutation(
        "forget metadata request numbers", forget_metadata_request_numbers, 60, {"faults": (Nemesis.lose_answer,)}
    ),
    Mutation("grant what others hold", grant_what_others_hold, 10),
    Mutation("answer before it is durable", answer_before_it_is_durable, 40, {"faults": power}),
    Mutation("act on after a recall", act_on_after_a_recall, 10),
    Mutation("release without write-back", release_without_write_back, 10),
    Mutation("trust the lease for ever", trust_the_lease_for_ever, 120, {**evict, "watchers": True}),
    Mutation("lose the end of a flush", lose_the_end_of_a_flush, 10),
    Mutation("commit the size before the bytes", commit_the_size_before_the_bytes, 40, {"faults": crashes}),
    Mutation("show what was cut", show_what_was_cut, 40),
    Mutation("release before shipping", release_before_shipping, 20, names),
    Mutation("lose the end of a batch", lose_the_end_of_a_batch, 20, names),
    Mutation("lose the middle of a batch", lose_the_middle_of_a_batch, 20, names),
    Mutation("carry out a batch twice", carry_out_a_batch_twice, 40, {**alone, "faults": (Nemesis.lose_batch_answer,)}),
    Mutation("complete for ever", complete_for_ever, 20, names),
    Mutation("exclusive beside shared", exclusive_beside_shared, 20, names),
    Mutation("promise without the lease", promise_without_the_lease, 20, names),
    Mutation("keep the journal of an evicted session", keep_the_journal_of_an_evicted_session, 60, {**evict, **names}),
    Mutation("grant a conflicting lock", grant_a_conflicting_lock, 10, counting),
    Mutation("keep the locks of the evicted", keep_the_locks_of_the_evicted, 20, {**evict, **counting}),
    Mutation("go on after a lock was lost", go_on_after_a_lock_was_lost, 60, {**evict, **counting}),
    Mutation(
        "forget locks at a restart", forget_locks_at_a_restart, 40, {**counting, "faults": (Nemesis.kill_metadata,)}
    ),
    Mutation(
        "no grace after a restart", no_grace_after_a_restart, 40, {**counting, "faults": (Nemesis.kill_metadata,)}
    ),
    Mutation("keep what was delegated", keep_what_was_delegated, 20, counting),
    Mutation("no deadlock check", no_deadlock_check, 20, counting),
]
