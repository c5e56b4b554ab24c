"""Leases that go back of this client's own accord: of what the kernel above has forgotten, of what is closed and has no name
any more, and the least recently used when there are more than the caches may hold.
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import trio

from fsd.client.file import File
from fsd.core.errors import FsError
from fsd.core.ids import Ino
from fsd.protocol.metadata import LeaseMode, Release, ReleaseLeases

if TYPE_CHECKING:
    from fsd.client.core import Core

log = logging.getLogger(__name__)

RELEASE_BATCH = 512
MAX_INLINE_CACHE = 64 << 20


class Returns:
    """See the module."""

    def __init__(self, core: "Core") -> None:
        self._core = core
        self._forgotten: dict[Ino, None] = {}

    def forget(self, ino: Ino) -> None:
        """Nobody above caches the inode any more."""
        self._forgotten[ino] = None

    async def run(self) -> None:
        """Once a second: leases that nobody needs go back, in batches; the caches stay within their bound."""
        await self._core.names_known.wait()
        while True:
            await trio.sleep(1.0)
            self._purge_refusals()
            self._core.state.trim()
            self._core.locks.purge()
            wanted = self._take_forgotten()
            wanted += self._surplus()
            try:
                await self.release_leases(wanted)
            except FsError as error:
                log.warning("leases were not given back: %s", error)
            except Exception:
                log.exception("giving leases back met a bug")

    def _take_forgotten(self) -> list[Ino]:
        """Those to be released now; what is not written back yet has to wait."""
        wanted = list(self._forgotten)[:RELEASE_BATCH]
        for ino in wanted:
            del self._forgotten[ino]
            file = self._core.files.get(ino)
            if (file is not None and file.unwritten and file.handles == 0) or self._core.journal.pending(ino):
                self._forgotten[ino] = None
        return wanted

    def _purge_refusals(self) -> None:
        oldest = self._core.session.oldest_call()
        empty = [
            lease.ino
            for lease in self._core.leases.oldest()
            if lease.mode is LeaseMode.NONE
            and lease.refused_at < oldest
            and lease.ino not in self._core.files
            and not self._core.journal.pending(lease.ino)
        ]
        for ino in empty:
            self._core.leases.forget(ino)

    def _surplus(self) -> list[Ino]:
        """The leases used least recently, while there are more entries than the options allow."""
        limit = self._core.options.metadata_cache_entries
        over = len(self._core.leases) + self._core.tree.entry_count - limit
        over_inline = self._core.tree.inline_bytes - MAX_INLINE_CACHE
        result: list[Ino] = []
        if over <= 0 and over_inline <= 0:
            return result
        for lease in self._core.leases.oldest():
            if len(result) >= RELEASE_BATCH * 8 or (over <= 0 and over_inline <= 0):
                break
            if (
                lease.mode is not LeaseMode.NONE
                and lease.ino not in self._core.files
                and not self._core.journal.pending(lease.ino)
            ):
                result.append(lease.ino)
                over -= 1 + len(self._core.tree.names(lease.ino))
                inode = self._core.tree.inode(lease.ino)
                over_inline -= len(inode.inline or b"") if inode is not None else 0
        return result

    async def release_leases(self, inos: Iterable[Ino]) -> None:
        """Give leases back whose inodes nobody has open or dirty here."""
        leaving: list[tuple[Ino, int]] = []
        for ino in inos:
            lease = self._core.leases.find(ino)
            if lease is None or lease.mode is LeaseMode.NONE or lease.users or self._is_busy(ino):
                continue
            leaving.append((ino, lease.serial))
            self._core.leases.lower_usable(lease, LeaseMode.NONE)
        releases: list[Release] = []
        for ino, serial in leaving:
            await self._core.hand_locks_over(ino, LeaseMode.NONE)
            await self._core.invalidate_kernel(ino)
            if not self._is_busy(ino) and self._core.leases.lower(ino, serial, LeaseMode.NONE):
                self._core.drop_caches(ino)
                releases.append(Release(ino, serial, LeaseMode.NONE, False))
        await self._send_releases(releases)

    async def tell_closed(self, file: File) -> bool:
        """The last handle is gone of a file that the server keeps open for this session. False: it is in use again."""
        ino = file.ino
        await self._core.journal.settle([ino])
        if file.is_needed:
            return False
        lease = self._core.leases.get(ino)
        self._core.leases.lower_usable(lease, LeaseMode.NONE)
        serial = lease.serial
        await self._core.hand_locks_over(ino, LeaseMode.NONE)
        await self._core.invalidate_kernel(ino)
        if file.is_needed or not self._core.leases.lower(ino, serial, LeaseMode.NONE):
            return False
        file.told_open = False
        self._core.drop_caches(ino)
        await self._send_releases([Release(ino, serial, LeaseMode.NONE, False)])
        return True

    def _is_busy(self, ino: Ino) -> bool:
        file = self._core.files.get(ino)
        busy = file is not None and (file.handles > 0 or file.unwritten or file.told_open)
        return busy or self._core.journal.pending(ino)

    async def _send_releases(self, releases: list[Release]) -> None:
        for start in range(0, len(releases), RELEASE_BATCH):
            batch = tuple(releases[start : start + RELEASE_BATCH])
            session = self._core.session.id
            await self._core.session.ask_urgently(
                lambda now, b=batch, s=session: ReleaseLeases(now, b if now == s else ())
            )
