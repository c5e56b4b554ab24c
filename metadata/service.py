"""What the metadata server answers: the one table from messages to methods, and who may ask what when."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from fsd.core.errors import CorruptData, DiskFailed, FsError, ProtocolError
from fsd.protocol import cluster, metadata
from fsd.protocol import locks as lock_messages
from fsd.rpc.connection import Peer
from fsd.wire.frame import Buffer
from metadata.administration import AdministrationService
from metadata.authority import Audience
from metadata.batches import BatchService
from metadata.clients import ClientService
from metadata.flushes import FlushService
from metadata.live import LiveSession, Sessions
from metadata.locks import LockService
from metadata.nodes import NodeService
from metadata.recalls import Recaller
from metadata.status import StatusService
from metadata.store import Store
from metadata.tree import TreeService
from metadata.volumes import VolumeService

log = logging.getLogger(__name__)

OfSession = Callable[[LiveSession, Any], Awaitable[Any]]
OfPeer = Callable[[Peer, Any], Awaitable[Any]]
OfAnybody = Callable[[Any], Awaitable[Any]]


class MetadataService:
    """fsd.rpc's Service. A failed store ends the server (R12): see `failed`."""

    def __init__(
        self,
        *,
        store: Store,
        sessions: Sessions,
        recaller: Recaller,
        audience: Audience,
        tree: TreeService,
        batches: BatchService,
        clients: ClientService,
        nodes: NodeService,
        volumes: VolumeService,
        flushes: FlushService,
        status: StatusService,
        administration: AdministrationService,
        locks: LockService,
        failed: Callable[[FsError], None],
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._recaller = recaller
        self._audience = audience
        self._nodes = nodes
        self._clients = clients
        self._failed = failed
        self._early: dict[type[Any], OfSession] = {  # answered even while others may still resume
            metadata.KeepAlive: clients.keep_alive,
            metadata.CloseSession: clients.close,
        }
        self._settled: dict[type[Any], OfSession] = {
            metadata.Lookup: tree.lookup,
            metadata.GetInode: tree.get_inode,
            metadata.ReadDirectory: tree.read_directory,
            metadata.GetXattr: tree.get_xattr,
            metadata.ListXattrs: tree.list_xattrs,
            metadata.Execute: tree.execute,
            metadata.ExecuteBatch: batches.execute,
            metadata.AllocateIds: clients.allocate_ids,
            metadata.ReleaseLeases: clients.release,
            metadata.StatVolume: status.stat_volume,
            lock_messages.SetLock: locks.set,
            lock_messages.Unlock: locks.unlock,
            lock_messages.CancelLock: locks.cancel,
            lock_messages.TestLock: locks.test,
            lock_messages.HandOverLocks: locks.hand_over,
        }
        self._of_peer: dict[type[Any], OfPeer] = {
            metadata.ResumeSession: clients.resume,
            cluster.RegisterNode: nodes.register,
            cluster.Heartbeat: nodes.heartbeat,
            cluster.Goodbye: nodes.goodbye,
            cluster.GetMap: nodes.get_map,
            cluster.DropMember: nodes.drop,
            cluster.Activate: nodes.activate,
            cluster.Promote: nodes.promote,
        }
        self._of_anybody: dict[type[Any], OfAnybody] = {
            metadata.InspectInode: status.inspect,
            cluster.AskFlush: flushes.fate,
            lock_messages.InspectLocks: locks.inspect,
            lock_messages.InspectLeases: status.inspect_leases,
            lock_messages.EvictSession: status.evict,
            cluster.CreateVolume: volumes.create,
            cluster.SetVolume: volumes.set,
            cluster.DeleteVolume: volumes.delete,
            cluster.ListVolumes: volumes.list,
            cluster.GetStatus: status.status,
            cluster.RunFsck: status.fsck,
            cluster.ListData: status.list_data,
            cluster.SetNode: administration.set_node,
            cluster.RemoveNode: administration.remove_node,
            cluster.PauseMoves: administration.pause,
            cluster.GetPlan: administration.plan,
            cluster.GetDrain: administration.drain,
            cluster.Ping: administration.ping,
            cluster.CollectOrphans: administration.collect_orphans,
        }

    async def handle(self, peer: Peer, message: Any, payload: Buffer) -> Any:
        """Answer one request."""
        kind = cast(type[Any], type(message))
        try:
            if kind in self._settled or kind in self._early:
                return await self._for_session(peer, message)
            if kind in self._of_peer:
                return await self._of_peer[kind](peer, message)
            if kind in self._of_anybody:
                return await self._of_anybody[kind](message)
            if kind is metadata.OpenSession:
                await self._sessions.settled.wait()
                return await self._clients.open(peer, message)
        except DiskFailed as error:
            self._failed(error)
            raise
        except CorruptData as error:
            log.error("%s from %s: %s", kind.__name__, peer.address, error)
            raise
        raise ProtocolError(f"the metadata server does not answer {kind.__name__}")

    async def _for_session(self, peer: Peer, message: Any) -> Any:
        live = self._sessions.of(peer, message.session)
        early = self._early.get(cast(type[Any], type(message)))
        if early is not None:
            return await early(live, message)
        if not self._sessions.settled.is_set():
            await self._sessions.settled.wait()
            live = self._sessions.of(peer, message.session)
        try:
            answer = await self._settled[type(message)](live, message)
        except FsError:
            await self._before_the_answer(peer)
            raise
        await self._before_the_answer(peer)
        return answer

    async def _before_the_answer(self, peer: Peer) -> None:
        """An answer, an error too, leaves when all that it could have seen is durable (I0), behind the newest map (I13)."""
        await before_telling(self._store, self._audience, peer)

    def arrived(self, peer: Peer, message: Any) -> None:
        """Releases count in the order of arrival."""
        live = peer.state
        if not isinstance(live, LiveSession) or live.peer is not peer or live.state.evicting:
            return
        try:
            if isinstance(message, metadata.Recalled):
                self._recaller.recalled(live, message)
            elif isinstance(message, metadata.ReleaseLeases) and message.session == live.state.session:
                self._recaller.release(live, message.releases)
        except DiskFailed as error:
            self._failed(error)
            raise

    def disconnected(self, peer: Peer) -> None:
        self._audience.remove(peer)
        self._sessions.disconnected(peer)
        self._nodes.disconnected(peer)


async def before_telling(store: Store, audience: Audience, peer: Peer) -> None:
    """See MetadataService._before_the_answer."""
    await store.durable()
    if not peer.closed.is_set():
        await audience.tell_first(peer)
