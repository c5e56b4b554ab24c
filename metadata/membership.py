"""Who is a member of which placement group: the authority's rules as a pure machine (2-replication.md).

Events change nodes and note evidence; `settle` then brings every row to what the rules say. The shell (metadata.authority)
makes all changes of one round durable as one map epoch before anybody hears of them. One function for each rule.

    a row:  placed ──Activate──> active ──a member dies, joins, is promoted──> epoch + 1, not active ──Activate──> active
                                    │
                                    └── nobody in sync is alive: waits (I5) ── one of base is back ──> it leads (R8, R9)

A member is *alive* if its incarnation is its node's newest one and the node is UP. A death is *known* from the moment at
which the node went DOWN or AWAY or its incarnation was superseded, or (for one row) its primary asked to drop it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fsd.cluster.map import POOL_SHIFT, ClusterMap, Node, NodeState, Pool, Row, pool_of
from fsd.cluster.placement import place, score, spread
from fsd.core.errors import Busy, ForeignFileSystem, InvalidArgument, NotFound
from fsd.core.ids import Incarnation, MapEpoch, Member, NodeId, PgEpoch, PgId, PoolId, SessionId
from metadata.balance import Balance, Move, may_receive
from metadata.moving import Facts, Mover, plan_all
from metadata.records import MapHead, RowRecord

PLACE_AFTER_S = 3.0  # how long a first placement waits for as many nodes as there are to be replicas
MAX_CLOSED = 1024  # closed sessions whose fence is remembered while an older session lives
MAX_POOLS = 16  # with MAX_PG_COUNT: so that the whole map fits into one message
REJOIN_AFTER_S = 10.0  # a member that its primary dropped, though its node is up, may come back no earlier
FULL_AT, ROOM_AT = 0.90, 0.80  # used share of a disk above which a node is full, and below which it is so no more


@dataclass(slots=True)
class Life:
    """What this life of the authority knows of a node. Times are its own monotonic clock's."""

    heard: float  # of the newest incarnation; the authority's start if not heard yet (R2: it waits the whole grace)
    ever_heard: bool = False
    lost_since: float = 0.0  # when it was last found not to be up


# --- the rules --------------------------------------------------------------------------------------------------------


def is_alive(nodes: dict[NodeId, Node], member: Member) -> bool:
    """R1: rights belong to the newest incarnation of a node, while it is up."""
    node = nodes.get(member.node)
    return node is not None and node.incarnation == member.incarnation and node.state is NodeState.UP


def is_silent(heard: float, now: float, grace_s: float) -> bool:
    """R2: dead by silence only after the grace, which is longer than any lease that was given."""
    return now - heard > grace_s


def may_shrink(remaining: Sequence[Member], heard: dict[NodeId, float], death_known: float) -> bool:
    """R8, I5: never shrink onto nobody, and never onto a corpse: all that remain were heard after the death was known."""
    return bool(remaining) and all(heard[member.node] > death_known for member in remaining)


def leaders_from_base(row: Row, nodes: dict[NodeId, Node]) -> tuple[Member, ...]:
    """R8, R9: when nobody in sync is alive, any member of base that is back may lead, in its new incarnation: nothing was
    acknowledged since base, so each of them holds everything."""
    back: list[Member] = []
    for member in row.base:
        node = nodes.get(member.node)
        if node is not None and node.state is NodeState.UP:
            back.append(Member(node.node, Incarnation(node.incarnation)))
    return tuple(dict.fromkeys(back))


def is_leader(row: Row, epoch: PgEpoch, primary: Member) -> bool:
    """Whether a request comes from the row's primary as it is now."""
    return row.epoch == epoch and row.primary == primary


def may_activate(row: Row, epoch: PgEpoch, primary: Member, nodes: dict[NodeId, Node]) -> bool:
    """R7: only the primary of this very row, alive."""
    return not row.active and is_leader(row, epoch, primary) and is_alive(nodes, primary)


def may_promote(row: Row, epoch: PgEpoch, primary: Member, member: Member, nodes: dict[NodeId, Node]) -> bool:
    """R10: a syncing member that holds everything, by the word of the primary that serves the row."""
    return row.active and is_leader(row, epoch, primary) and member in row.syncing and is_alive(nodes, member)


def may_drop(row: Row, epoch: PgEpoch, primary: Member, victim: Member) -> bool:
    """R5: the primary may ask for any other member of its row to be dropped."""
    return is_leader(row, epoch, primary) and victim in row.members() and victim != primary


def may_place(up: int, replicas: int, waited_s: float) -> bool:
    """A group is placed on as many nodes as it wants, or after a while on what there is."""
    return up >= replicas or (up > 0 and waited_s >= PLACE_AFTER_S)


def may_leave(row: Row, replicas: int, nodes: dict[NodeId, Node]) -> bool:
    """A surplus member goes only when as many others as there are to be hold everything, alive."""
    return len(row.in_sync) > replicas and all(is_alive(nodes, member) for member in row.in_sync)


def is_full(was_full: bool, total_bytes: int, free_bytes: int) -> bool:
    """Whether a disk is so full that it gets no more groups; not for ever to and fro."""
    if total_bytes <= 0:
        return False
    used = 1.0 - free_bytes / total_bytes
    return used >= (ROOM_AT if was_full else FULL_AT)


def lease_s_for(nodes: dict[NodeId, Node], published: ClusterMap, member: Member, lease_s: float) -> float:
    """R2: a lease only for a node that is up in its newest incarnation, in what was decided and in what was published."""
    shown = {node.node: node for node in published.nodes}
    return lease_s if is_alive(nodes, member) and is_alive(shown, member) else 0.0


# --- the machine ------------------------------------------------------------------------------------------------------


class Membership:
    """The working state: ahead of the published map by the changes of the current round."""

    def __init__(
        self,
        head: MapHead,
        rows: Iterable[RowRecord],
        *,
        now: float,
        grace_s: float,
        rebuild_after_s: float,
        quiet_s: float = 60.0,
    ):
        self.grace_s = grace_s
        self.mover = Mover(quiet_s)
        self.rebuild_after_s = rebuild_after_s
        self.facts = Facts(
            nodes={node.node: node for node in head.nodes},
            pools={pool.pool: pool for pool in head.pools},
            evicted=head.evicted,
            oldest_session=head.oldest_session,
            next_node=head.next_node,
            paused=head.paused,
        )
        for record in rows:
            if record.leaving:
                self.facts.leaving[record.row.pg] = record.leaving
            self.facts.rows[record.row.pg] = record.row
            self.facts.former[record.row.pg] = record.former
        self._lives = {node: Life(now, lost_since=now) for node in self.facts.nodes}
        self._unconfirmed: dict[NodeId, None] = {}  # got their number in this life and were not heard with it yet
        self._doomed: dict[tuple[PgId, Member], float] = {}
        self._dropped: dict[tuple[PgId, NodeId], float] = {}
        self._closed: dict[SessionId, None] = {}
        self._wanted_pools: dict[PoolId, float] = {}
        self._has_strangers = True  # a row names a member that is not alive

    @property
    def nodes(self) -> dict[NodeId, Node]:
        return self.facts.nodes

    # --- events -------------------------------------------------------------------------------------------------------

    def register(
        self, node: NodeId, incarnation: int, address: str, zone: str, weight: int, damaged: bool, now: float
    ) -> NodeId:
        """A node's new incarnation, which is the death of its older one (R1). Raises Busy for an older incarnation."""
        known = self._known(node, incarnation, address)
        if known is None:
            node = self.facts.next_node
            self.facts.next_node = NodeId(node + 1)
            self._unconfirmed[node] = None
        else:
            node = known.node
            self._check_incarnation(known, incarnation)
        newer = known is None or incarnation > known.incarnation
        draining, full, fixed = False, False, False
        if known is not None:
            draining, full, fixed = known.draining, known.full, known.fixed_weight
            weight = known.weight if fixed else weight
        self.nodes[node] = Node(node, incarnation, address, zone, weight, NodeState.UP, draining, full, fixed)
        life = self._lives.setdefault(node, Life(now, lost_since=now))
        life.heard, life.ever_heard = now, not newer and life.ever_heard
        if newer or (known is not None and known.state is not NodeState.UP):
            life.lost_since = now
        if damaged and newer:
            self._forget_base(node)
        return node

    def heartbeat(self, member: Member, now: float) -> bool:
        """Note a sign of life. False if the authority does not know this incarnation as one that serves."""
        node = self.nodes.get(member.node)
        if node is None or node.incarnation != member.incarnation or node.state is NodeState.AWAY:
            return False
        life = self._lives[member.node]
        life.heard, life.ever_heard = now, True
        self._unconfirmed.pop(member.node, None)
        return True

    def revive(self, member: Member) -> None:
        """A node that was silent and is heard again, in the same incarnation."""
        node = self.nodes.get(member.node)
        if node is not None and node.incarnation == member.incarnation and node.state is NodeState.DOWN:
            self.nodes[member.node] = replace(node, state=NodeState.UP)

    def needs_revival(self, member: Member) -> bool:
        node = self.nodes.get(member.node)
        return node is not None and node.incarnation == member.incarnation and node.state is NodeState.DOWN

    def refused(self, member: Member, now: float) -> None:
        """The node's own kernel says that this incarnation's process is gone."""
        self._lose(member, NodeState.DOWN, now)

    def goodbye(self, member: Member, now: float) -> None:
        """The node stops on purpose and serves nothing any more."""
        self._lose(member, NodeState.AWAY, now)

    def tick(self, now: float) -> None:
        """Find who has been silent for too long (R2)."""
        for node in list(self.nodes.values()):
            if node.state is NodeState.UP and is_silent(self._lives[node.node].heard, now, self.grace_s):
                self._lose(Member(node.node, Incarnation(node.incarnation)), NodeState.DOWN, now)

    def forgive(self, gap_s: float) -> None:
        """The authority itself slept for `gap_s`: nobody could be heard meanwhile. Waiting longer is always safe."""
        for life in self._lives.values():
            life.heard += gap_s if life.ever_heard else 0.0

    def drop(self, pg: PgId, epoch: PgEpoch, primary: Member, victim: Member, now: float) -> None:
        """R5: note the primary's wish; `settle` carries it out when R8 allows."""
        row = self._row(pg)
        if may_drop(row, epoch, primary, victim) and self.heartbeat(primary, now):
            self._doomed.setdefault((pg, victim), now - 1e-9)  # the asking primary was heard just after

    def activate(self, pg: PgId, epoch: PgEpoch, primary: Member) -> None:
        row = self._row(pg)
        if may_activate(row, epoch, primary, self.nodes):
            self.facts.rows[pg] = replace(row, active=True, base=row.in_sync)

    def promote(self, pg: PgId, epoch: PgEpoch, primary: Member, member: Member) -> None:
        row = self._row(pg)
        if may_promote(row, epoch, primary, member, self.nodes):
            syncing = tuple(other for other in row.syncing if other != member)
            self.facts.rows[pg] = self._next(row, (*row.in_sync, member), syncing)

    def want_pool(self, pool: PoolId, now: float) -> None:
        """A volume of this pool is used: its rows are to be placed as soon as nodes are up."""
        self._wanted_pools.setdefault(pool, now)

    def is_placed(self, pool: PoolId) -> bool:
        return PgId(pool << POOL_SHIFT) in self.facts.rows

    def pool_for(self, replicas: int, min_replicas: int) -> PoolId:
        """The pool that keeps so many replicas, made if there is none."""
        for pool in self.facts.pools.values():
            if (pool.replicas, pool.min_replicas) == (replicas, min_replicas):
                return pool.pool
        if len(self.facts.pools) >= MAX_POOLS:
            raise InvalidArgument(
                f"{MAX_POOLS} combinations of replicas and min replicas exist already; use one of these"
            )
        number = PoolId(max(self.facts.pools, default=0) + 1)
        self.facts.pools[number] = Pool(number, replicas, min_replicas)
        return number

    def fence(self, session: SessionId, *, closed: bool = False) -> None:
        """Refuse everything from a session from now on. One that its client `closed` sends nothing on purpose any more:
        only so many of those are remembered (what may still be under way is not older than that)."""
        if session not in self.facts.evicted:
            self.facts.evicted = (*self.facts.evicted, session)
        if closed:
            self._closed[session] = None
        if len(self._closed) > MAX_CLOSED:
            oldest = next(iter(self._closed))
            del self._closed[oldest]
            self.facts.evicted = tuple(other for other in self.facts.evicted if other != oldest)

    def forget_fences(self, oldest: SessionId) -> None:
        """Every session older than `oldest` is gone: one number fences them all."""
        if oldest > self.facts.oldest_session:
            self.facts.oldest_session = oldest
            self.facts.evicted = tuple(session for session in self.facts.evicted if session >= oldest)
            self._closed = {session: None for session in self._closed if session >= oldest}

    def is_restless(self) -> bool:
        """Whether rows may have to change with nothing but time passing, or a sign of life."""
        away = any(node.state is not NodeState.UP for node in self.nodes.values())
        return (
            away
            or bool(self._doomed or self._dropped or self._wanted_pools or self.facts.leaving)
            or self._has_strangers
            or not (self.mover.is_idle() or self.facts.paused)
        )

    # --- bringing rows to what the rules say --------------------------------------------------------------------------

    def settle(self, pg_count: int, now: float) -> None:
        """Apply the rules to every row."""
        self._place_wanted(pg_count, now)
        self._has_strangers = False
        for pg in list(self.facts.rows):
            row = self.facts.rows[pg]
            row = self._without_dead(row, now)
            row = self._led_again(row)
            row = self._with_joiner(row, now)
            row = self._without_surplus(row)
            self.facts.rows[pg] = row
            self._has_strangers |= not all(is_alive(self.nodes, member) for member in row.members())
        self._start_moves(now)
        self._forget_evidence(now)

    def _without_dead(self, row: Row, now: float) -> Row:
        """A dead member is taken out, if the others may go on without it (I5, R8)."""
        dead = [member for member in row.members() if self._death_known(row.pg, member) is not None]
        if not dead:
            return row
        in_sync = tuple(member for member in row.in_sync if member not in dead)
        syncing = tuple(member for member in row.syncing if member not in dead)
        lost_in_sync = len(in_sync) < len(row.in_sync)
        if lost_in_sync and not may_shrink(in_sync, self._heard(), self._latest_death(row.pg, dead)):
            if not in_sync or len(syncing) == len(row.syncing):
                return row
            in_sync = row.in_sync  # the dead joiner may go at once
            dead = [member for member in dead if member in row.syncing]
        self._note_former(row.pg, dead, now)
        return self._next(row, in_sync, syncing)

    def _led_again(self, row: Row) -> Row:
        """Nobody in sync is alive: members of base that are back take over."""
        if any(is_alive(self.nodes, member) for member in row.in_sync):
            return row
        back = leaders_from_base(row, self.nodes)
        if not back:
            return row
        kept = {member.node for member in back}
        lost = [member.node for member in (*row.members(), *row.base) if member.node not in kept]
        former = (*self.facts.former.get(row.pg, ()), *lost)
        self.facts.former[row.pg] = tuple(n for n in dict.fromkeys(former) if n not in kept)
        return self._next(row, back, ())

    def _with_joiner(self, row: Row, now: float) -> Row:
        """One node that belongs here joins as syncing (R10)."""
        members = row.members()
        wanted = self.facts.pools[pool_of(row.pg)].replicas - len(members)
        if wanted <= 0 or row.syncing or not all(is_alive(self.nodes, member) for member in members):
            return row
        joiner = self._joiner(row, wanted, now)
        if joiner is None:
            return row
        former = tuple(node for node in self.facts.former.get(row.pg, ()) if node != joiner.node)
        self.facts.former[row.pg] = () if wanted == 1 else former
        return self._next(row, row.in_sync, (Member(joiner.node, Incarnation(joiner.incarnation)),))

    def _without_surplus(self, row: Row) -> Row:
        """The member whose place was taken goes; everything of the old row counts on until the new one is active (base)."""
        replicas = self.facts.pools[pool_of(row.pg)].replicas
        if len(row.members()) <= replicas:
            self.facts.leaving.pop(row.pg, None)
        if row.syncing or not may_leave(row, replicas, self.nodes):
            return row
        gone = self._surplus(row)
        self.facts.leaving.pop(row.pg, None)
        left = tuple(member for member in row.in_sync if member != gone)
        return replace(self._next(row, left, ()), primary=self._best_primary(row.pg, left))

    def _surplus(self, row: Row) -> Member:
        leaving = [member for member in row.in_sync if member.node == self.facts.leaving.get(row.pg)]
        ranked = sorted(row.in_sync, key=lambda m: (not self.nodes[m.node].draining, self._score(row.pg, m)))
        return [*leaving, *ranked][0]

    def _start_moves(self, now: float) -> None:
        """Rows move towards an even share of the nodes (metadata.moving)."""
        for move in self.mover.choose(self.facts, self.counted(now), now):
            row, target = self.facts.rows[move.pg], self.nodes[move.target]
            member = Member(target.node, Incarnation(target.incarnation))
            self.facts.rows[move.pg] = self._next(row, row.in_sync, (member,))
            self.facts.leaving[move.pg] = move.source

    def counted(self, now: float) -> list[NodeId]:
        """Nodes that have a share of the groups: those that are up, or were until lately."""
        return [
            node
            for node in sorted(self.nodes)
            if self.nodes[node].state is NodeState.UP or now - self._lives[node].lost_since < self.rebuild_after_s
        ]

    def _joiner(self, row: Row, wanted: int, now: float) -> Node | None:
        """A former member that is back; else a substitute, if more places are free than missing members may want."""
        present = {member.node for member in row.members()}
        former = [n for n in self.facts.former.get(row.pg, ()) if n in self.nodes and n not in present]
        back = [self.nodes[n] for n in former if self._may_join(row.pg, self.nodes[n], now)]
        if back:
            return max(back, key=lambda node: (score(row.pg, node), -node.node))
        missing = [n for n in former if not self._is_given_up(row.pg, n, now)]
        if wanted <= len(missing):
            return None
        members = [self.nodes[member.node] for member in row.members()]
        able = [n for n in self.nodes.values() if n.node not in present and self._may_join(row.pg, n, now)]
        able = [n for n in able if may_receive(n)]
        ranked = sorted(able, key=lambda node: (-score(row.pg, node), node.node))
        chosen = spread(members, ranked, len(members) + 1)
        return chosen[-1] if len(chosen) > len(members) else None

    def _may_join(self, pg: PgId, node: Node, now: float) -> bool:
        dropped = self._dropped.get((pg, node.node))
        return node.state is NodeState.UP and (dropped is None or now - dropped >= REJOIN_AFTER_S)

    def _is_given_up(self, pg: PgId, node: NodeId, now: float) -> bool:
        """A missing member keeps its place for `rebuild_after_s`."""
        if self.nodes[node].state is NodeState.UP:
            return (pg, node) not in self._dropped
        return now - self._lives[node].lost_since >= self.rebuild_after_s

    def _place_wanted(self, pg_count: int, now: float) -> None:
        up = [n for n in self.nodes.values() if n.state is NodeState.UP and n.weight > 0 and not n.draining]
        up = [node for node in up if not node.full] or up
        for pool, since in list(self._wanted_pools.items()):
            if self.is_placed(pool):
                del self._wanted_pools[pool]
            elif may_place(len(up), self.facts.pools[pool].replicas, now - since):
                groups = [PgId(pool << POOL_SHIFT | index) for index in range(pg_count)]
                self.facts.rows.update(first_rows(groups, up, self.facts.pools[pool].replicas))

    def _next(self, row: Row, in_sync: tuple[Member, ...], syncing: tuple[Member, ...]) -> Row:
        """The row's next epoch; not active until its primary has settled it (R7). Base stays."""
        primary = row.primary
        if primary is None or primary not in in_sync or not is_alive(self.nodes, primary):
            primary = self._best_primary(row.pg, in_sync)
        return Row(row.pg, PgEpoch(row.epoch + 1), primary, in_sync, syncing, row.base, False)

    def _best_primary(self, pg: PgId, in_sync: tuple[Member, ...]) -> Member:
        alive = [member for member in in_sync if is_alive(self.nodes, member)] or list(in_sync)
        return max(alive, key=lambda member: (self._score(pg, member), -member.node))

    def _score(self, pg: PgId, member: Member) -> float:
        return score(pg, self.nodes[member.node])

    # --- evidence -----------------------------------------------------------------------------------------------------

    def _death_known(self, pg: PgId, member: Member) -> float | None:
        """Since when the member is known to be dead (for this row); None while it counts as alive."""
        if not is_alive(self.nodes, member):
            life = self._lives.get(member.node)
            return 0.0 if life is None else life.lost_since
        return self._doomed.get((pg, member))

    def _latest_death(self, pg: PgId, dead: Sequence[Member]) -> float:
        return max(self._death_known(pg, member) or 0.0 for member in dead)

    def _heard(self) -> dict[NodeId, float]:
        never = float("-inf")
        return {node: life.heard if life.ever_heard else never for node, life in self._lives.items()}

    def _note_former(self, pg: PgId, dead: Sequence[Member], now: float) -> None:
        former = self.facts.former.get(pg, ())
        self.facts.former[pg] = tuple(dict.fromkeys((*former, *(member.node for member in dead))))
        for member in dead:
            if self._doomed.pop((pg, member), None) is not None:
                self._dropped[pg, member.node] = now

    def _lose(self, member: Member, state: NodeState, now: float) -> None:
        node = self.nodes.get(member.node)
        if node is None or node.incarnation != member.incarnation or node.state is not NodeState.UP:
            return
        self.nodes[member.node] = replace(node, state=state)
        self._lives[member.node].lost_since = now

    def _forget_base(self, node: NodeId) -> None:
        """The node's store was lost: it holds nothing of what it had promised, so it is no base member anywhere."""
        for pg, row in self.facts.rows.items():
            if any(member.node == node for member in row.base):
                self.facts.rows[pg] = replace(row, base=tuple(m for m in row.base if m.node != node))

    def _forget_evidence(self, now: float) -> None:
        for pg, member in list(self._doomed):
            if member not in self.facts.rows[pg].members():
                del self._doomed[pg, member]
        for key, since in list(self._dropped.items()):
            if now - since >= REJOIN_AFTER_S:
                del self._dropped[key]

    # --- administration -----------------------------------------------------------------------------------------------

    def set_node(self, node: NodeId, *, draining: bool | None, weight: int | None) -> Node:
        """Drain a node or take that back; set its weight, 0 for its own word again. Raises NotFound."""
        known = self.node(node)
        if draining is not None:
            known = replace(known, draining=draining)
        if weight is not None:
            known = replace(known, weight=weight or known.weight, fixed_weight=weight > 0)
        self.nodes[node] = known
        return known

    def set_full(self, member: Member, full: bool) -> None:
        node = self.nodes.get(member.node)
        if node is not None and node.incarnation == member.incarnation:
            self.nodes[member.node] = replace(node, full=full)

    def pause(self, paused: bool) -> None:
        """Stop starting moves, repairs excepted; or go on."""
        self.facts.paused = paused

    def obstacle(self, node: NodeId, *, force: bool) -> str | None:
        """Why a node may not be forgotten now; None if it may. `force`: its disk is lost, other copies will do."""
        known = self.node(node)
        if force and known.state is NodeState.UP:
            return f"node {node} is up; stop it first, or drain it"
        for row in self.facts.rows.values():
            named = [member.node for member in row.members()]
            base = [member.node for member in row.base]
            if force and node in (m.node for m in row.in_sync):
                return f"placement group {row.pg} has its last copy on node {node}"
            if force and base and set(base) == {node}:
                return f"placement group {row.pg} can be led again by node {node} only"
            if not force and (node in named or node in base):
                count = sum(node in {m.node for m in (*r.members(), *r.base)} for r in self.facts.rows.values())
                return f"{count} placement groups still name node {node}; drain it (fsd node drain {node} --wait)"
        return None

    def remove_node(self, node: NodeId, *, force: bool) -> None:
        """Forget a node for ever; its number is not used again. Raises Busy with the reason, NotFound."""
        reason = self.obstacle(node, force=force)
        if reason is not None:
            raise Busy(reason)
        for pg, row in self.facts.rows.items():
            if any(member.node == node for member in (*row.base, *row.syncing)):
                kept = replace(row, base=tuple(m for m in row.base if m.node != node))
                syncing = tuple(member for member in row.syncing if member.node != node)
                self.facts.rows[pg] = self._next(kept, row.in_sync, syncing) if syncing != row.syncing else kept
        for pg, former in self.facts.former.items():
            self.facts.former[pg] = tuple(other for other in former if other != node)
        for pg in [pg for pg, leaving in self.facts.leaving.items() if leaving == node]:
            del self.facts.leaving[pg]
        del self.nodes[node]
        del self._lives[node]

    def plan(self, now: float) -> list[Move]:
        """Every move that is wanted now."""
        return plan_all(self.facts, self.counted(now), limit=len(self.facts.rows) * 4)

    def moves_left(self) -> int:
        return len(self.facts.leaving) + self.mover.planned()

    def missing_copies(self) -> int:
        """Groups with fewer copies in sync than their pool wants and the nodes could hold."""
        able = len(self.nodes)
        wanted = {pool: min(self.facts.pools[pool].replicas, able) for pool in self.facts.pools}
        return sum(
            sum(is_alive(self.nodes, member) for member in row.in_sync) < wanted[pool_of(pg)]
            for pg, row in self.facts.rows.items()
        )

    def node(self, node: NodeId) -> Node:
        known = self.nodes.get(node)
        if known is None:
            raise NotFound(f"there is no node {node}")
        return known

    # --- small things -------------------------------------------------------------------------------------------------

    def last_heard(self, node: NodeId) -> float | None:
        """When the node was last heard in this life of the authority."""
        life = self._lives[node]
        return life.heard if life.ever_heard else None

    def _row(self, pg: PgId) -> Row:
        row = self.facts.rows.get(pg)
        if row is None:
            raise NotFound(f"there is no placement group {pg}")
        return row

    def _known(self, node: NodeId, incarnation: int, address: str) -> Node | None:
        if node:
            known = self.nodes.get(node)
            if known is None:
                raise ForeignFileSystem(f"node {node} is not known here")
            return known
        for other in self.nodes.values():  # the answer to its first registration was lost
            if other.address == address and other.incarnation <= incarnation and other.node in self._unconfirmed:
                return other
        return None

    @staticmethod
    def _check_incarnation(known: Node, incarnation: int) -> None:
        if incarnation < known.incarnation:
            raise Busy(f"node {known.node} lives in incarnation {known.incarnation}, {incarnation} is dead")


def first_rows(groups: Sequence[PgId], up: Sequence[Node], replicas: int) -> dict[PgId, Row]:
    """The groups' first rows: the hash's choice, evened out while it costs nothing."""
    rows = {pg: first_row(pg, up, replicas) for pg in groups}
    nodes = {node.node: node for node in up}
    members = {pg: [member.node for member in row.in_sync] for pg, row in rows.items()}
    balance = Balance(dict(sorted(nodes.items())), set(nodes), replicas, members)
    balance.plan(limit=len(groups) * replicas)
    for pg in groups:
        chosen = tuple(Member(n, Incarnation(nodes[n].incarnation)) for n in balance.members[pg])
        rows[pg] = replace(rows[pg], primary=chosen[0], in_sync=chosen, base=chosen)
    return rows


def first_row(pg: PgId, up: Sequence[Node], replicas: int) -> Row:
    """A group's first row: the ideal placement over the nodes that are up."""
    chosen = place(pg, up, replicas)
    members = tuple(Member(node.node, Incarnation(node.incarnation)) for node in chosen)
    return Row(pg, PgEpoch(1), members[0], members, (), members, False)


def map_of(facts: Facts, *, epoch: MapEpoch, file_system: str, chunk_size: int, pg_count: int) -> ClusterMap:
    """The facts as the map that everybody gets."""
    return ClusterMap(
        epoch,
        file_system,
        chunk_size,
        pg_count,
        tuple(facts.nodes[node] for node in sorted(facts.nodes)),
        tuple(facts.pools[pool] for pool in sorted(facts.pools)),
        tuple(facts.rows[pg] for pg in sorted(facts.rows)),
        facts.evicted,
        facts.oldest_session,
    )
