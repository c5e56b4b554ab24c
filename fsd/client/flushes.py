"""Which flushes need two phases. Pure; every way is checked over all interleavings in `tests/simulation/flush_model.py`.

A reader sees the bytes below the committed size, and the size. So a flush consists of *visible* parts:

    bytes written below the committed size    one part for each chunk (a chunk's write is one order: all of it or nothing)
    the new size                              one part, at the metadata server; it brings all bytes behind the old size along

One visible part is atomic by itself. Two or more are not: then every chunk with a visible part is prepared (stored on all
members, shown to nobody), the commit of size and times names the chunks and is the only commit record, and what was
prepared is applied when the chunk is next met. Chunks without a visible part are written as ever: nothing shows them before
the commit. Most flushes (appends, new files, a page of a database in place) so take no further step.
"""

from fsd.client.writeback import DirtyMap
from fsd.protocol.chunk import MAX_EXTENTS

MAX_PREPARED = 256  # chunks in one flush: its record lies in the inode until all of them have applied it


def overwritten(pieces: DirtyMap, committed_size: int) -> list[int]:
    """The chunks whose bytes below the committed size change, ascending."""
    return [chunk for chunk in pieces.chunks() if pieces.extents(chunk)[0].file_offset < committed_size]


def to_prepare(visible: list[int], *, resizes: bool, in_pieces: bool = False) -> list[int]:
    """Which of the overwritten chunks must be prepared for the flush to be all or nothing. `in_pieces`: one of them takes
    more than one request."""
    return visible if len(visible) + resizes + in_pieces > 1 else []


def chunks_to_prepare(pieces: DirtyMap, committed_size: int, size: int) -> list[int]:
    """Of a flush that brings the file from one size to another."""
    visible = overwritten(pieces, committed_size)
    in_pieces = any(len(pieces.extents(chunk)) > MAX_EXTENTS for chunk in visible)
    return to_prepare(visible, resizes=size != committed_size, in_pieces=in_pieces)
