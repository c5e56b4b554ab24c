"""Requests of chunkservers: registration, heartbeats, wishes about rows; and the map, for everybody."""

import trio

from fsd.core.errors import SessionUnknown
from fsd.core.ids import Incarnation, Member, NodeId
from fsd.protocol.cluster import (
    Activate,
    Beat,
    DropMember,
    GetMap,
    Goodbye,
    Heartbeat,
    MapReply,
    NodeRegistered,
    Promote,
    RegisterNode,
    RowReply,
)
from fsd.rpc.connection import Peer
from fsd.runtime import Clock
from fsd.wire.handshake import Done
from metadata.authority import Audience, Authority
from metadata.membership import Membership, is_full
from metadata.records import FileSystemRecord


class NodeService:
    """What the authority answers to nodes. A connection that a node registered on, or beats on, is watched: when it
    breaks, the node's own kernel is asked whether the process still lives."""

    def __init__(
        self,
        clock: Clock,
        nursery: trio.Nursery,
        authority: Authority,
        audience: Audience,
        file_system: FileSystemRecord,
        lease_s: float,
    ) -> None:
        self._clock = clock
        self._nursery = nursery
        self._authority = authority
        self._audience = audience
        self._file_system = file_system
        self._lease_s = lease_s
        self._peers: dict[Peer, Member] = {}

    async def register(self, peer: Peer, request: RegisterNode) -> NodeRegistered:
        def event(membership: Membership, now: float) -> NodeId:
            return membership.register(
                request.node,
                request.incarnation,
                request.address,
                request.zone,
                request.weight,
                request.damaged,
                now,
            )

        node: NodeId = await self._authority.submit(event)
        self._watch(peer, Member(node, Incarnation(request.incarnation)))
        record = self._file_system
        return NodeRegistered(node, record.file_system, record.chunk_size, self._lease_s, self._authority.map.epoch)

    async def heartbeat(self, peer: Peer, request: Heartbeat) -> Beat:
        member = Member(request.node, Incarnation(request.incarnation))
        if not self._authority.membership.heartbeat(member, self._clock.monotonic()):
            raise SessionUnknown(f"node {member.node}.{member.incarnation} is not registered")
        self._watch(peer, member)
        self._authority.loads[member.node] = request.load
        full = self._fullness(request)
        if full is not None:
            await self._authority.submit(lambda membership, now: membership.set_full(member, full))
        if self._authority.membership.needs_revival(member):
            await self._authority.submit(lambda membership, now: membership.revive(member))
        await trio.lowlevel.checkpoint()
        return Beat(self._authority.map.epoch, self._authority.lease_s(member))

    def _fullness(self, request: Heartbeat) -> bool | None:
        """Whether the node is full, if that is news."""
        known = self._authority.membership.nodes[request.node]
        full = is_full(known.full, request.load.total_bytes, request.load.free_bytes)
        return None if full == known.full else full

    async def goodbye(self, peer: Peer, request: Goodbye) -> Done:
        member = Member(request.node, Incarnation(request.incarnation))
        self._peers.pop(peer, None)
        await self._authority.goodbye(member)
        return Done()

    async def get_map(self, peer: Peer, request: GetMap) -> MapReply:
        await trio.lowlevel.checkpoint()
        self._audience.add(peer)
        cluster = self._authority.map
        return MapReply(None if cluster.epoch == request.known else cluster)

    async def drop(self, peer: Peer, request: DropMember) -> RowReply:
        row = await self._authority.drop(request.pg, request.epoch, request.primary, request.victim)
        return RowReply(row, self._authority.map.epoch)

    async def activate(self, peer: Peer, request: Activate) -> RowReply:
        await self._authority.submit(
            lambda membership, now: membership.activate(request.pg, request.epoch, request.primary)
        )
        return RowReply(self._authority.row(request.pg), self._authority.map.epoch)

    async def promote(self, peer: Peer, request: Promote) -> RowReply:
        await self._authority.submit(
            lambda membership, now: membership.promote(request.pg, request.epoch, request.primary, request.member)
        )
        return RowReply(self._authority.row(request.pg), self._authority.map.epoch)

    def disconnected(self, peer: Peer) -> None:
        member = self._peers.pop(peer, None)
        if member is not None and member not in self._peers.values():
            self._nursery.start_soon(self._authority.probe, member)

    def _watch(self, peer: Peer, member: Member) -> None:
        if not peer.closed.is_set():
            self._peers[peer] = member
            self._audience.add(peer)
