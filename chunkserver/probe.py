"""Measurements for `fsd doctor`: is a sync plausible here, how far are the other nodes?"""

import trio

from chunkserver.report import Membership
from fsd import __version__
from fsd.cluster.map import NodeState
from fsd.core.errors import FsError
from fsd.core.ids import NodeId
from fsd.protocol.chunk import NodeProbe, PeerLatency
from fsd.protocol.cluster import Ping, Pong
from fsd.rpc.client import ChannelPool
from fsd.runtime import Runtime
from fsd.runtime.storage import DataDirectory

SYNCS = 5
PROBE_BYTES = 4096
PING_TIMEOUT_S = 2.0


class Prober:
    def __init__(self, runtime: Runtime, directory: DataDirectory, membership: Membership, peers: ChannelPool) -> None:
        self._clock = runtime.clock
        self._directory = directory
        self._membership = membership
        self._peers = peers

    def pong(self) -> Pong:
        return Pong(self._clock.time_ns(), __version__)

    async def probe(self) -> NodeProbe:
        sync_s = await self._sync_s()
        nodes = self._membership.known_map().nodes
        near = [node for node in nodes if node.node != self._membership.me.node and node.state is NodeState.UP]
        peers = [PeerLatency(node.node, await self._ping_s(node.node, node.address)) for node in near]
        return NodeProbe(sync_s, self._clock.time_ns(), tuple(peers))

    async def _sync_s(self) -> float:
        """The median of a few small files made durable."""
        times: list[float] = []
        for _ in range(SYNCS):
            began = self._clock.monotonic()
            await self._directory.write_file("probe", bytes(PROBE_BYTES))
            times.append(self._clock.monotonic() - began)
        return sorted(times)[SYNCS // 2]

    async def _ping_s(self, node: NodeId, address: str) -> float:
        with trio.move_on_after(PING_TIMEOUT_S):
            try:
                await self._peers.to(address).call(Ping())  # makes the connection, if there is none
                began = self._clock.monotonic()
                await self._peers.to(address).call(Ping())
                return self._clock.monotonic() - began
            except FsError:
                return -1.0
        return -1.0
