"""After the commit of a flush in two phases: its chunks apply what was prepared, and the record in the inode goes.

    committed ──> the next request for a chunk says so, and the server applies before it carries that out
              └─> what nothing was asked of for APPLY_AFTER_S is applied by a request of its own
    all chunks have applied ──> the file's next commit takes the record out of the inode

Nothing here is needed for the truth: whoever meets what is pending asks the metadata server. It spares that question, and keeps
inodes small. Of records that others left, the next holder of the lease takes care when it commits a flush in two phases itself.
"""

import logging

import trio

from fsd.client.chunks import Chunks
from fsd.client.core import Core
from fsd.client.file import Content, File
from fsd.core.errors import FsError
from fsd.core.ids import ChunkId, SessionId
from fsd.namespace.records import MAX_FLUSHES, FlushRecord
from fsd.protocol.chunk import FlushId

log = logging.getLogger(__name__)

APPLY_AFTER_S = 1.0
KEPT_RECORDS = MAX_FLUSHES // 2  # more than these are applied before another flush in two phases begins


class Applying:
    def __init__(self, core: Core, chunks: Chunks) -> None:
        self._core = core
        self._chunks = chunks

    def committed(self, file: File, content: Content, flush: FlushId, chunks: list[int]) -> None:
        """The commit record is durable."""
        left = file.unapplied[flush.session, flush.number] = set(chunks)
        for index in chunks:
            self._chunks.is_committed(ChunkId(content.data, index), flush, lambda index=index: left.discard(index))
        if not file.is_applying:
            file.is_applying = True
            self._core.nursery.start_soon(self._apply_later, file)

    def applied(self, file: File, content: Content) -> tuple[tuple[int, int], ...]:
        """Flushes whose records can go."""
        keys = [(record.session, record.number) for record in content.flushes]
        return tuple(key for key in keys if key in file.unapplied and not file.unapplied[key])

    async def make_room(self, file: File, content: Content, session: SessionId) -> None:
        """Before another record: an inode holds a few. Raises SessionEvicted."""
        if len(content.flushes) - len(self.applied(file, content)) >= KEPT_RECORDS:
            await self._apply(file, content, session)

    async def _apply_later(self, file: File) -> None:
        try:
            await trio.sleep(APPLY_AFTER_S)
            if file.content is not None:
                await self._apply(file, file.content, self._core.session.id)
        except FsError as error:
            log.debug("flushes of inode %d are left to be applied by others: %s", file.ino, error)
        finally:
            file.is_applying = False

    async def _apply(self, file: File, content: Content, session: SessionId) -> None:
        errors: list[FsError] = []
        async with trio.open_nursery() as nursery:
            for record in content.flushes:
                left = file.unapplied.setdefault((record.session, record.number), set(record.chunks))
                for index in sorted(left):
                    chunk = ChunkId(content.data, index)
                    nursery.start_soon(self._apply_one, file, chunk, record, session, left, errors)
        for key in [key for key in file.unapplied if key not in _keys(content)]:
            del file.unapplied[key]
        if errors:
            raise errors[0]

    async def _apply_one(
        self,
        file: File,
        chunk: ChunkId,
        record: FlushRecord,
        session: SessionId,
        left: set[int],
        errors: list[FsError],
    ) -> None:
        flush = FlushId(self._core.volume.layer, file.ino, record.session, record.number)
        try:
            await self._chunks.apply(session, chunk, flush)
            left.discard(chunk.index)
        except FsError as error:
            errors.append(error)


def _keys(content: Content) -> set[tuple[int, int]]:
    return {(record.session, record.number) for record in content.flushes}
