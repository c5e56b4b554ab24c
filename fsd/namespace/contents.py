"""A file's size and where its bytes are: truncate, write inline, commit a size, trimmed.

    inline, empty --WriteInline--> inline --CommitSize(data)--> chunks --Truncate(0)--> inline, empty (chunks collected)
                  --Truncate(big, new_data)-------------------> chunks

Chunks are cut lazily: Truncate down only notes in `trim_end` how far garbage may lie; before anything makes the file
longer again it must be trimmed and that be told (TrimDone), or the garbage would come back to life.
"""

from dataclasses import replace

from fsd.core.errors import InvalidArgument, IsADirectory, WrongLayout
from fsd.core.ids import Ino
from fsd.namespace import rules
from fsd.namespace.attributes import without_capability
from fsd.namespace.draft import Draft
from fsd.namespace.operations import Base, CommitSize, TrimDone, Truncate, WriteInline
from fsd.namespace.records import MAX_FLUSHES, NO_DATA, FlushRecord, Inode


def truncate(draft: Draft, op: Truncate) -> Ino:
    """Times change even if the size does not (ftruncate(2)). Raises WrongLayout, IsADirectory, InvalidArgument (no
    regular file, negative), FileTooLarge, QuotaExceeded."""
    inode = regular_file(draft, op.ino)
    rules.check_size(op.size)
    if op.size == 0:
        resized = emptied(draft, inode)
    elif inode.is_inline:
        resized = _inline_resized(draft, inode, op)
    elif op.size > inode.size:
        check_trimmed(inode)
        resized = replace(inode, size=op.size)
    else:
        resized = cut(inode, op.size)
    _written(draft, op, inode, resized, op.time_ns)
    return op.ino


def write_inline(draft: Draft, op: WriteInline) -> Ino:
    """Raises WrongLayout, IsADirectory, InvalidArgument (no regular file), QuotaExceeded."""
    inode = regular_file(draft, op.ino)
    if not inode.is_inline:
        raise WrongLayout(f"inode {op.ino} has its bytes in chunks of {inode.data}")
    if len(op.contents) > draft.volume.inline_limit:
        raise WrongLayout(f"{len(op.contents)} bytes for inode {op.ino}: up to {draft.volume.inline_limit} are inline")
    _written(draft, op, inode, replace(inode, size=len(op.contents), inline=op.contents), op.time_ns)
    return op.ino


def commit_size(draft: Draft, op: CommitSize) -> Ino:
    """Raises WrongLayout, IsADirectory, InvalidArgument (no regular file, negative), FileTooLarge, QuotaExceeded."""
    inode = regular_file(draft, op.ino)
    rules.check_size(op.size)
    check_same_data(inode, op)
    if op.size > inode.size:
        check_trimmed(inode)
    data = inode.data if op.data == NO_DATA else op.data
    flushes = flushes_after(inode, op)
    resized = replace(inode, size=max(op.size, inode.size), data=data, inline=None, flushes=flushes)
    _written(draft, op, inode, resized, op.mtime_ns)
    return op.ino


def flushes_after(inode: Inode, op: CommitSize) -> tuple[FlushRecord, ...]:
    """Raises InvalidArgument if the inode holds too many that are not applied."""
    kept = tuple(flush for flush in inode.flushes if (flush.session, flush.number) not in op.applied)
    if op.flush is None or op.flush in kept:
        return kept
    if len(kept) >= MAX_FLUSHES:
        raise InvalidArgument(f"inode {inode.ino} has {len(kept)} flushes that are not applied yet")
    return (*kept, op.flush)


def trim_done(draft: Draft, op: TrimDone) -> Ino:
    """Changes no times: nobody can see what was trimmed."""
    inode = draft.inode(op.ino)
    if inode.data == op.data != NO_DATA and inode.trim_end == op.trim_end:
        trim_end = op.start if op.start > inode.size else 0
        if trim_end < inode.trim_end:
            draft.put(replace(inode, trim_end=trim_end))
    return op.ino


def regular_file(draft: Draft, ino: Ino) -> Inode:
    inode = draft.inode(ino)
    if inode.is_directory:
        raise IsADirectory(f"inode {ino} is a directory")
    if not inode.is_regular:
        raise InvalidArgument(f"inode {ino} is no regular file")
    return inode


def check_trimmed(inode: Inode) -> None:
    """Of a file that is to grow."""
    if inode.trim_end > inode.size:
        raise WrongLayout(f"inode {inode.ino} of {inode.size} bytes is not trimmed up to {inode.trim_end}")


def check_same_data(inode: Inode, op: CommitSize) -> None:
    """A file moves out of line once; its chunks are not exchanged for others."""
    if inode.is_inline and op.data == NO_DATA:
        raise WrongLayout(f"inode {inode.ino} is inline: a commit must name its data")
    if not inode.is_inline and op.data not in (NO_DATA, inode.data):
        raise WrongLayout(f"inode {inode.ino} has data {inode.data}, not {op.data}")


def emptied(draft: Draft, inode: Inode) -> Inode:
    draft.collect(inode)
    return replace(inode, size=0, data=NO_DATA, inline=b"", trim_end=0, flushes=())


def cut(inode: Inode, size: int) -> Inode:
    """A file in chunks, not longer than before: what is behind `size` is garbage now."""
    garbage_end = max(inode.trim_end, inode.size)
    return replace(inode, size=size, trim_end=garbage_end if garbage_end > size else 0)


def _inline_resized(draft: Draft, inode: Inode, op: Truncate) -> Inode:
    contents = inode.inline or b""
    if op.size <= draft.volume.inline_limit:
        return replace(inode, size=op.size, inline=contents[: op.size].ljust(op.size, b"\0"))
    if contents or op.new_data == NO_DATA:
        raise WrongLayout(f"inode {inode.ino} must leave its record to hold {op.size} bytes")
    return replace(inode, size=op.size, data=op.new_data, inline=None)


def _written(draft: Draft, op: Base, before: Inode, after: Inode, mtime_ns: int) -> None:
    """Every change of bytes: usage, times, privileges lost."""
    draft.use(after.size - before.size)
    after = without_capability(draft, after)
    mode = rules.mode_after_write(before, op.uid, op.gid)
    draft.put(replace(after, mode=mode, mtime_ns=mtime_ns, ctime_ns=op.time_ns))
