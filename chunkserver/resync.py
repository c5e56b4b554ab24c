"""What a syncing member lacks: the difference of two sorted lists. Pure (R10).

Pages of both sides need not begin or end at the same chunk: the difference is known up to the smaller end.
"""

from dataclasses import dataclass

from fsd.core.ids import ChunkId, DataId
from fsd.protocol.chunk import ChunkList, ChunkSummary

BEFORE_ALL = ChunkId(DataId(0), 0)  # data ids begin at 2


@dataclass(frozen=True, slots=True)
class Difference:
    """`push`: chunks to send whole; `remove`: chunks that only the other side has; `upto`: go on after this one, None at
    the end."""

    push: tuple[ChunkId, ...]
    remove: tuple[ChunkId, ...]
    upto: ChunkId | None


def compare(mine: ChunkList, theirs: ChunkList) -> Difference:
    """Both lists begin after the same chunk."""
    upto = _horizon(mine, theirs)
    ours = _upto(mine, upto)
    others = _upto(theirs, upto)
    push = [chunk for chunk in sorted(ours) if ours[chunk] != others.get(chunk)]
    remove = [chunk for chunk in sorted(others) if chunk not in ours]
    return Difference(tuple(push), tuple(remove), upto)


def _horizon(mine: ChunkList, theirs: ChunkList) -> ChunkId | None:
    ends = [page.chunks[-1].chunk for page in (mine, theirs) if not page.end and page.chunks]
    return min(ends) if ends else None


def _upto(page: ChunkList, upto: ChunkId | None) -> dict[ChunkId, ChunkSummary]:
    return {summary.chunk: summary for summary in page.chunks if upto is None or summary.chunk <= upto}
