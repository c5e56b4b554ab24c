"""What became of a flush in two phases: asked by whoever meets what it prepared.

    its record is in the inode                                     COMMITTED
    else its session lives and holds the file's exclusive lease    OPEN: its commit may be on the way
    else                                                           OVER: no commit of it will be accepted (I13), and a client
                                                                   gives no lease back in the middle of a flush

After a restart a session that has not resumed yet may still hold the lease: OPEN.
"""

from fsd.core.ids import Ino, LayerId, SessionId
from fsd.namespace.records import Inode
from fsd.protocol.cluster import AskFlush, Fate, FlushFate
from fsd.protocol.metadata import LeaseMode
from metadata.leases import InodeKey
from metadata.live import Sessions
from metadata.store import Store


class FlushService:
    def __init__(self, store: Store, sessions: Sessions) -> None:
        self._store = store
        self._sessions = sessions

    async def fate(self, request: AskFlush) -> FlushFate:
        """The answer is as durable as what it tells of (I0)."""
        inode = self._inode(request.layer, request.ino)
        found = is_committed(inode, request.session, request.number)
        may_come = self._may_commit(InodeKey(request.layer, request.ino), request.session)
        await self._store.durable()
        return FlushFate(Fate.COMMITTED if found else Fate.OPEN if may_come else Fate.OVER)

    def _inode(self, layer: LayerId, ino: Ino) -> Inode | None:
        return None if self._store.volume(layer) is None else self._store.inode(layer, ino)

    def _may_commit(self, key: InodeKey, session: SessionId) -> bool:
        live = self._sessions.live(session)
        if live is None or live.state.evicting:
            return False
        if not live.state.resumed:
            return True
        leases = self._sessions.leases
        if leases.mode(key, session) is LeaseMode.EXCLUSIVE:
            return True
        orphan = self._store.volume(key.layer) is not None and self._store.view(key.layer).is_orphan(key.ino)
        return orphan and session in leases.openers(key)  # the lease went with the last name, the handles stay


def is_committed(inode: Inode | None, session: SessionId, number: int) -> bool:
    """The one question that decides."""
    return inode is not None and any(flush.session == session and flush.number == number for flush in inode.flushes)
