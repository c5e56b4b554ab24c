"""Opening a directory's store: whole, or set aside and empty.

What is damaged or gone is never patched up: every node is filled again by the other members, which is the same code as any
return (R10). The authority is told, because an empty store has no right to lead (R9).
"""

import logging
from contextlib import AsyncExitStack

import trio

from chunkserver.index import FAMILIES, FORMAT_KEY, FORMER_FORMATS, STORE, STORE_FORMAT
from chunkserver.space import BlockSpace
from chunkserver.store import ChunkStore
from fsd.core.errors import CorruptData, FormatError
from fsd.core.units import MIB
from fsd.runtime.storage import DataDirectory, KeyChange, KeyValue, Segments

log = logging.getLogger(__name__)

SEGMENT_SIZE = 256 * MIB
INDEX_NAME, SEGMENTS_NAME = "index", "segments"


async def open_store(
    directory: DataDirectory, *, made: bool = False, segment_size: int = SEGMENT_SIZE, reserve_bytes: int = 0
) -> tuple[ChunkStore, bool]:
    """The store of a directory, and whether it was damaged: then the old one is set aside and this one is empty (R9).

    `made`: there was one before, so an empty one is damage. Raises FormatError."""
    try:
        return await _open(directory, made, segment_size, reserve_bytes), False
    except CorruptData as error:
        log.error("the store in %s is damaged and set aside: %s", directory.name, error)
    aside = [await directory.set_aside(name) for name in (INDEX_NAME, SEGMENTS_NAME)]
    log.warning(
        "%s starts empty, to be filled by the other members; the old store: %s", directory.name, ", ".join(aside)
    )
    return await _open(directory, False, segment_size, reserve_bytes), True


async def _open(directory: DataDirectory, made: bool, segment_size: int, reserve_bytes: int) -> ChunkStore:
    async with AsyncExitStack() as opened:
        keyvalue = await directory.open_keyvalue(INDEX_NAME, FAMILIES)
        opened.push_async_callback(_close, keyvalue)
        await _check_format(keyvalue, made)
        segments = await directory.open_segments(SEGMENTS_NAME, segment_size)
        opened.push_async_callback(_close, segments)
        store = ChunkStore(keyvalue, BlockSpace(segments, reserve_bytes))
        await store.load()
        opened.pop_all()
    return store


async def _check_format(keyvalue: KeyValue, made: bool) -> None:
    form = keyvalue.get(STORE, FORMAT_KEY)
    if form is None and made:
        raise CorruptData("the index is gone")
    if form is None or form in FORMER_FORMATS:
        keyvalue.apply([KeyChange(STORE, FORMAT_KEY, STORE_FORMAT)])
        await keyvalue.durable()
    elif form != STORE_FORMAT:
        raise FormatError(f"the index has format {form!r}, this version knows {STORE_FORMAT!r}")


async def _close(opened: KeyValue | Segments) -> None:
    with trio.CancelScope(shield=True):
        await opened.aclose()
