"""Carrying a file's bytes to the servers: inline or to the chunks, then the commit; clearing what lies behind the end.

    up to the volume's inline limit: WriteInline
    else chunks: all at once, each in one request; when all are durable, CommitSize (I17); an inline file moves out
    under a new data id, in the same commit
    overwrites with more than one visible part: in two phases (`fsd.client.flushes`, `fsd.client.applying`)

What lies behind the committed size in the chunks may be garbage (a cut, or bytes whose commit never came). Whoever makes
the file longer clears what it does not overwrite: `clear_behind`.
"""

import dataclasses

import trio

from fsd.client.applying import Applying
from fsd.client.chunks import Chunks
from fsd.client.core import Core
from fsd.client.file import Content, File, Times
from fsd.client.flushes import chunks_to_prepare
from fsd.client.session import SessionReplaced
from fsd.client.writeback import DirtyMap
from fsd.core.errors import FsError, WriteLost
from fsd.core.ids import ChunkId, DataId, Ino, SessionId
from fsd.namespace.operations import CommitSize, SetAttributes, TrimDone, Truncate, WriteInline
from fsd.namespace.records import NO_DATA, FlushRecord, Inode
from fsd.protocol.chunk import MAX_EXTENTS, FlushId

MAX_CUT_BLINDLY = 1024  # chunks that are cut without asking first which of them there are
MAX_GAP_CHUNKS = 256  # chunks in a hole that are cleared before a file grows over them


class Storing:
    """One flush's way to the servers. The caller holds the file's flush lock and its exclusive lease."""

    def __init__(self, core: Core, chunks: Chunks) -> None:
        self._core = core
        self._chunks = chunks
        self._applying = Applying(core, chunks)

    async def _store(
        self, file: File, size: int, mtime_ns: int, session: SessionId, *, time_may_wait: bool = False
    ) -> Content:
        content = file.content
        if content is None:
            raise WriteLost(f"the lease on inode {file.ino} is gone with its unwritten bytes")
        size = max(size, content.size)
        if content.is_inline and size <= self._core.volume.inline_limit:
            return await self._store_inline(file, content, size, mtime_ns, session)
        return await self._store_chunks(file, content, size, mtime_ns, session, time_may_wait=time_may_wait)

    async def _store_inline(
        self, file: File, content: Content, size: int, mtime_ns: int, session: SessionId
    ) -> Content:
        write, data = self.inline_write(file, content, size, mtime_ns)
        await self._commit(file, write, session)
        self.fix_cached_inline(file.ino, data)
        return Content(NO_DATA, data, len(data), 0)

    def inline_write(self, file: File, content: Content, size: int, mtime_ns: int) -> tuple[WriteInline, bytes]:
        """What is being flushed, over what was there."""
        contents = bytearray(content.inline.ljust(size, b"\0"))
        file.flushing.overlay(0, contents)
        data = bytes(contents)
        return WriteInline(self._core.volume.layer, mtime_ns, 0, 0, file.ino, data), data

    def fix_cached_inline(self, ino: Ino, data: bytes) -> None:
        """Answers leave inline bytes out; these are what they left out."""
        inode = self._core.tree.inode(ino)
        if inode is not None and inode.is_inline and inode.size == len(data):
            self._core.tree.put_inode(dataclasses.replace(inode, inline=data))

    async def _store_chunks(
        self,
        file: File,
        content: Content,
        size: int,
        mtime_ns: int,
        session: SessionId,
        *,
        time_may_wait: bool = False,
    ) -> Content:
        """`time_may_wait`: bytes that change in place, in one chunk, need no commit now (fdatasync)."""
        if content.is_inline:
            data = DataId(await self._core.session.new_id())
            pieces = DirtyMap(self._core.chunk_size)
            pieces.write(0, content.inline)
            for extent in file.flushing.all_extents():
                pieces.write(extent.file_offset, extent.data)
        else:
            data, pieces = content.data, file.flushing
            content = await self.clear_behind(file, content, size, pieces, session)
        in_place = data == content.data and size == content.size
        prepared = chunks_to_prepare(pieces, content.size, size) if data == content.data else []
        flushes = content.flushes
        if prepared:
            flushes = await self._store_in_two_phases(file, content, size, pieces, prepared, mtime_ns, session)
        elif in_place and time_may_wait:
            await self._write_chunks(data, pieces, session)
            file.owe_time(self._core.runtime.clock.monotonic())
        elif in_place:
            flushes = (await self._write_beside_commit(file, content, pieces, mtime_ns, session)).flushes
        else:
            await self._write_chunks(data, pieces, session)
            flushes = (await self.commit_size(file, content, size, mtime_ns, data, session)).flushes
        return Content(data, b"", size, content.trim_end if content.trim_end > size else 0, flushes)

    async def _store_in_two_phases(
        self,
        file: File,
        content: Content,
        size: int,
        pieces: DirtyMap,
        prepared: list[int],
        mtime_ns: int,
        session: SessionId,
    ) -> tuple[FlushRecord, ...]:
        """The flush has several parts that could be seen one by one: they are prepared first, and the commit shows all."""
        await self._applying.make_room(file, content, session)
        flush = FlushId(self._core.volume.layer, file.ino, session, self._chunks.new_flush_number())
        await self._write_chunks(content.data, pieces, session, flush, frozenset(prepared))
        record = FlushRecord(session, flush.number, tuple(prepared))
        inode = await self.commit_size(file, content, size, mtime_ns, content.data, session, record)
        self._core.counts["flushes in two phases"] += 1
        self._applying.committed(file, content, flush, prepared)
        return inode.flushes

    async def _write_beside_commit(
        self, file: File, content: Content, pieces: DirtyMap, mtime_ns: int, session: SessionId
    ) -> Inode:
        """The size stays, so the commit brings no byte to light (I17) and goes along with the bytes: an overwrite that is
        synced waits for one server less. The bytes' error is the one that counts."""
        errors: list[FsError | SessionReplaced] = []
        inodes: list[Inode] = []

        async def commit() -> None:
            try:
                inodes.append(await self.commit_size(file, content, content.size, mtime_ns, content.data, session))
            except (FsError, SessionReplaced) as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            try:
                await self._write_chunks(content.data, pieces, session)
            except FsError as error:
                errors.insert(0, error)
        if errors:
            raise errors[0]
        return inodes[0]

    async def commit_size(
        self,
        file: File,
        content: Content,
        size: int,
        mtime_ns: int,
        data: DataId,
        session: SessionId,
        flush: FlushRecord | None = None,
    ) -> Inode:
        """I17: only now, when all bytes below `size` are durable. `flush`: and shown from now on."""
        cached = self._core.tree.inode(file.ino)
        time_ns = max(mtime_ns, cached.ctime_ns if cached is not None else 0)
        new_data = data if content.is_inline else NO_DATA
        layer = self._core.volume.layer
        applied = self._applying.applied(file, content)
        operation = CommitSize(layer, time_ns, 0, 0, file.ino, size, mtime_ns, new_data, flush, applied)
        inode = await self._commit(file, operation, session)
        file.time_owed_since = None
        for key in applied:
            file.unapplied.pop(key, None)
        return inode

    async def _commit(
        self, file: File, operation: WriteInline | CommitSize | TrimDone | Truncate | SetAttributes, session: SessionId
    ) -> Inode:
        return await self._core.commit(file.ino, operation, session)

    async def _write_chunks(
        self,
        data: DataId,
        pieces: DirtyMap,
        session: SessionId,
        flush: FlushId | None = None,
        prepared: frozenset[int] = frozenset(),
    ) -> None:
        """All chunks at once, those in `prepared` only prepared. An error of one does not end the others: nothing of a flush
        may still be on its way when the lease is given back."""
        chunks = pieces.chunks()
        if len(chunks) == 1:
            await self._write_chunk(ChunkId(data, chunks[0]), pieces, session, flush if prepared else None)
            return
        errors: list[FsError] = []

        async def write(chunk: int) -> None:
            try:
                await self._write_chunk(ChunkId(data, chunk), pieces, session, flush if chunk in prepared else None)
            except FsError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for chunk in chunks:
                nursery.start_soon(write, chunk)
        if errors:
            raise errors[0]

    async def _write_chunk(self, chunk: ChunkId, pieces: DirtyMap, session: SessionId, flush: FlushId | None) -> None:
        """All of a chunk in one request, which is carried out whole or not at all."""
        base = chunk.index * self._core.chunk_size
        extents = [(extent.file_offset - base, memoryview(extent.data)) for extent in pieces.extents(chunk.index)]
        for first in range(0, len(extents), MAX_EXTENTS):
            await self._chunks.write(session, chunk, extents[first : first + MAX_EXTENTS], flush)

    async def clear_behind(
        self, file: File, content: Content, size: int, pieces: DirtyMap, session: SessionId
    ) -> Content:
        """Before a file in chunks grows to `size`: no garbage may show between its old end and `size`, except where
        `pieces` are about to be written over it."""
        if size <= content.size:
            return content
        chunk_size = self._core.chunk_size
        first = content.size // chunk_size
        trimmed = -(-content.trim_end // chunk_size)
        stop = max(trimmed, min(-(-size // chunk_size), first + MAX_GAP_CHUNKS))
        near: list[int] | range = range(first, stop)
        if stop - first > MAX_CUT_BLINDLY:  # terabytes, of which most was never written
            near = await self._chunks.existing(session, content.data, first, stop)
        gaps = [
            chunk
            for chunk in [*near, *(chunk for chunk in pieces.chunks() if chunk >= stop)]
            if chunk < trimmed
            or not pieces.covers(max(content.size, chunk * chunk_size), min(size, (chunk + 1) * chunk_size))
        ]
        await self._clear_chunks(content, gaps, session)
        if content.trim_end > content.size:
            done = TrimDone(
                self._core.volume.layer,
                self._core.session.now_ns(),
                0,
                0,
                file.ino,
                content.data,
                content.trim_end,
                content.size,
            )
            await self._commit(file, done, session)
            content = dataclasses.replace(content, trim_end=0)
            file.content = content
        return content

    async def _clear_chunks(self, content: Content, gaps: list[int], session: SessionId) -> None:
        errors: list[FsError] = []

        async def clear(chunk: int) -> None:
            length = max(0, content.size - chunk * self._core.chunk_size)
            try:
                await self._chunks.truncate(session, ChunkId(content.data, chunk), length)
            except FsError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for chunk in gaps:
                nursery.start_soon(clear, chunk)
        if errors:
            raise errors[0]

    async def _store_times(self, file: File, times: Times, session: SessionId) -> None:
        """Behind the bytes, whose time they replace."""
        await self._commit(file, self.times_of(file, times), session)

    def times_of(self, file: File, times: Times) -> SetAttributes:
        """The change that sets them."""
        layer = self._core.volume.layer
        return SetAttributes(layer, times.ctime_ns, 0, 0, file.ino, atime_ns=times.atime_ns, mtime_ns=times.mtime_ns)
