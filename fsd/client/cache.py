"""The block cache: 64 KiB blocks of files, bounded in bytes, dropped per inode. Pure.

Which block goes first is a policy: `lru`, the one not used for longest; `lfu`, the one used least often (of equals, the
one not used for longest), which keeps a hot set while something large is read once.
"""

from collections import OrderedDict
from typing import Protocol

from fsd.core.errors import ConfigurationError
from fsd.core.ids import Ino

BlockKey = tuple[Ino, int]


class Policy(Protocol):
    """Knows the keys in the cache and says which is to go."""

    def add(self, key: BlockKey) -> None: ...

    def used(self, key: BlockKey) -> None: ...

    def remove(self, key: BlockKey) -> None: ...

    def victim(self) -> BlockKey:
        """The key to drop; there is one."""
        ...


class Lru:
    """Least recently used."""

    def __init__(self) -> None:
        self._keys: OrderedDict[BlockKey, None] = OrderedDict()

    def add(self, key: BlockKey) -> None:
        """A new key, the most recent."""
        self._keys[key] = None

    def used(self, key: BlockKey) -> None:
        """Now the most recent."""
        self._keys.move_to_end(key)

    def remove(self, key: BlockKey) -> None:
        """Gone."""
        del self._keys[key]

    def victim(self) -> BlockKey:
        """The least recently used."""
        return next(iter(self._keys))


class Lfu:
    """Least frequently used, in constant time: keys by how often they were used, each group in order of use."""

    def __init__(self) -> None:
        self._count: dict[BlockKey, int] = {}
        self._groups: dict[int, OrderedDict[BlockKey, None]] = {}

    def add(self, key: BlockKey) -> None:
        """A new key, used once."""
        self._put(key, 1)

    def used(self, key: BlockKey) -> None:
        """Used once more."""
        count = self._count[key]
        self.remove(key)
        self._put(key, count + 1)

    def remove(self, key: BlockKey) -> None:
        """Gone."""
        count = self._count.pop(key)
        group = self._groups[count]
        del group[key]
        if not group:
            del self._groups[count]

    def victim(self) -> BlockKey:
        """Of the least often used, the one not used for longest."""
        return next(iter(self._groups[min(self._groups)]))

    def _put(self, key: BlockKey, count: int) -> None:
        self._count[key] = count
        self._groups.setdefault(count, OrderedDict())[key] = None


def make_policy(name: str) -> Policy:
    """ "lru" or "lfu". Raises ConfigurationError."""
    if name == "lru":
        return Lru()
    if name == "lfu":
        return Lfu()
    raise ConfigurationError(f"cache policy {name!r} is not known; write lru or lfu")


class BlockCache:
    """Clean blocks by (inode, block index). A block shorter than 64 KiB is followed by zeros up to the file's end."""

    def __init__(self, limit_bytes: int, policy: str) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._policy = make_policy(policy)
        self._blocks: dict[Ino, dict[int, bytes]] = {}

    def get(self, ino: Ino, block: int) -> bytes | None:
        """The block, counted as a use; None if it is not cached."""
        blocks = self._blocks.get(ino)
        data = blocks.get(block) if blocks is not None else None
        if data is not None:
            self._policy.used((ino, block))
        return data

    def has(self, ino: Ino, block: int) -> bool:
        """Whether the block is cached; not a use."""
        return block in self._blocks.get(ino, ())

    def put(self, ino: Ino, block: int, data: bytes) -> None:
        """Cache a block, or replace it; others go to stay within the limit."""
        self.drop_block(ino, block)
        if _cost(data) > self.limit_bytes:
            return
        while self.size_bytes + _cost(data) > self.limit_bytes:
            self.drop_block(*self._policy.victim())
        self._blocks.setdefault(ino, {})[block] = data
        self._policy.add((ino, block))
        self.size_bytes += _cost(data)

    def drop_block(self, ino: Ino, block: int) -> None:
        """Forget one block if it is there."""
        blocks = self._blocks.get(ino)
        if blocks is None or block not in blocks:
            return
        self.size_bytes -= _cost(blocks.pop(block))
        self._policy.remove((ino, block))
        if not blocks:
            del self._blocks[ino]

    def drop(self, ino: Ino, first: int = 0) -> None:
        """Forget an inode's blocks from `first` on."""
        for block in [block for block in self._blocks.get(ino, ()) if block >= first]:
            self.drop_block(ino, block)

    def clear(self) -> None:
        """Forget everything."""
        for ino in list(self._blocks):
            self.drop(ino)


def _cost(data: bytes) -> int:
    return len(data) + 256  # what the tables around a block weigh, so that empty blocks are not free
