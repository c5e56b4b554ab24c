"""A small metadata server for tests of chunkservers: nodes, rows, leases; one pool; nothing durable, nothing clever."""

import contextlib
from dataclasses import replace

import trio

from fsd.cluster.map import ClusterMap, Node, NodeState, Pool, Row
from fsd.core.errors import SessionUnknown, Unreachable
from fsd.core.ids import MapEpoch, Member, NodeId, PgEpoch, PgId, PoolId, SessionId
from fsd.protocol.cluster import (
    Activate,
    AskFlush,
    Beat,
    DropMember,
    Fate,
    FlushFate,
    GetMap,
    Goodbye,
    Heartbeat,
    MapReply,
    NodeRegistered,
    Promote,
    RegisterNode,
    RowReply,
)
from fsd.protocol.metadata import MapChanged
from fsd.rpc.server import serve
from fsd.wire.handshake import Done, Welcome

ADDRESS = "authority:1"
POOL = PoolId(1)


class Authority:
    def __init__(self, runtime, *, pg_count=2, replicas=2, min_replicas=1, lease_s=6.0, chunk_size=1 << 20):
        self.runtime = runtime
        self.replicas = replicas
        self.lease_s = lease_s
        self.nodes: dict[int, Node] = {}
        self.peers: list = []
        self.thawed = trio.Event()  # until then nothing is answered
        self.thawed.set()
        self.refuse_join = False
        pool = Pool(POOL, replicas, min_replicas)
        self.map = ClusterMap(MapEpoch(1), "fs", chunk_size, pg_count, (), (pool,), (), (), SessionId(0))
        self.log: list[str] = []
        self.fates: dict[int, Fate] = {}  # of flushes, by number
        self.asked = 0
        self.epoch = 1

    async def run(self, task_status=trio.TASK_STATUS_IGNORED):
        listener = await self.runtime.network.listen(ADDRESS)
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            task_status.started()
            await serve(listener, self, lambda hello: Welcome("metadata", "1", "fs", incarnation=self.epoch))

    def arrived(self, peer, message):
        pass

    def disconnected(self, peer):
        if peer in self.peers:
            self.peers.remove(peer)

    async def handle(self, peer, message, payload):
        if peer not in self.peers:
            self.peers.append(peer)
        await self.thawed.wait()
        match message:
            case RegisterNode():
                return self.register(message)
            case Heartbeat():
                node = self.nodes.get(message.node)
                if node is None or node.incarnation != message.incarnation:
                    raise SessionUnknown("register")
                return Beat(self.map.epoch, self.lease_s)
            case GetMap():
                return MapReply(self.map if self.map.epoch > message.known else None)
            case DropMember():
                row = self.row(message.pg)
                if row.epoch == message.epoch and row.primary == message.primary:
                    self.drop(message.victim, [row])
            case Activate():
                row = self.row(message.pg)
                if row.epoch == message.epoch and row.primary == message.primary and not row.active:
                    self.change(replace(row, active=True, base=row.in_sync))
                    self.publish()
            case Promote():
                row = self.row(message.pg)
                if row.epoch == message.epoch and row.primary == message.primary and message.member in row.syncing:
                    self.change(
                        replace(
                            row,
                            epoch=PgEpoch(row.epoch + 1),
                            in_sync=(*row.in_sync, message.member),
                            syncing=tuple(m for m in row.syncing if m != message.member),
                            active=False,
                        )
                    )
                    self.publish()
            case AskFlush():
                self.asked += 1
                return FlushFate(self.fates.get(message.number, Fate.OVER))
            case Goodbye():
                node = self.nodes[message.node]
                self.nodes[message.node] = replace(node, state=NodeState.AWAY)
                self.drop(Member(node.node, node.incarnation), list(self.map.rows))
                return Done()
        return RowReply(self.row(message.pg), self.map.epoch)

    def row(self, pg):
        return next(row for row in self.map.rows if row.pg == pg)

    def change(self, *rows):
        by_pg = {row.pg: row for row in self.map.rows} | {row.pg: row for row in rows}
        self.map = replace(self.map, rows=tuple(by_pg[pg] for pg in sorted(by_pg)))

    def publish(self):
        nodes = tuple(self.nodes[node] for node in sorted(self.nodes))
        self.map = replace(self.map, epoch=MapEpoch(self.map.epoch + 1), nodes=nodes)
        for peer in list(self.peers):
            self.nursery.start_soon(self.tell, peer, self.map.epoch)

    async def tell(self, peer, epoch):
        with contextlib.suppress(Unreachable):
            await peer.notify(MapChanged(epoch))

    def register(self, message):
        node = message.node or NodeId(len(self.nodes) + 1)
        old = self.nodes.get(node)
        self.nodes[node] = Node(node, message.incarnation, message.address, message.zone, message.weight, NodeState.UP)
        if old is not None and old.incarnation != message.incarnation:
            self.drop(Member(node, old.incarnation), list(self.map.rows))
        if not self.map.rows:
            if len(self.nodes) == self.replicas:
                self.place()
        elif not self.refuse_join:
            self.join(Member(node, message.incarnation))
        self.publish()
        return NodeRegistered(node, "fs", self.map.chunk_size, self.lease_s, self.map.epoch)

    def died(self, node):
        old = self.nodes[node]
        self.nodes[node] = replace(old, state=NodeState.DOWN)
        self.drop(Member(node, old.incarnation), list(self.map.rows))

    def place(self):
        members = [Member(n.node, n.incarnation) for n in self.nodes.values()]
        for number in range(self.map.pg_count):
            turned = tuple(members[number % len(members) :] + members[: number % len(members)])
            self.change(Row(PgId(POOL << 16 | number), PgEpoch(1), turned[0], turned, (), turned, False))

    def join(self, member):
        for row in self.map.rows:
            if member in row.members() or len(row.members()) >= self.replicas or row.syncing:
                continue
            self.change(replace(row, epoch=PgEpoch(row.epoch + 1), syncing=(member,), active=False))

    def drop(self, victim, rows):
        for row in rows:
            if victim not in row.members():
                continue
            rest = tuple(m for m in row.in_sync if m != victim)
            syncing = tuple(m for m in row.syncing if m != victim)
            if not rest:
                back = [Member(n.node, n.incarnation) for n in self.nodes.values()]
                rest = tuple(m for m in back if m.node in [b.node for b in row.base] and m != victim)[:1]
                syncing = tuple(m for m in syncing if m not in rest)
                if not rest:
                    continue
            primary = row.primary if row.primary in rest else rest[0]
            self.log.append(f"drop {victim} from {row.pg}")
            self.change(
                replace(row, epoch=PgEpoch(row.epoch + 1), primary=primary, in_sync=rest, syncing=syncing, active=False)
            )
        self.publish()
