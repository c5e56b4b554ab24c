"""Sizes and times as people write them, and the sizes that are part of the format."""

import re

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

BLOCK_SIZE = 64 * KIB  # what a checksum covers and what a segment file is cut into
DEFAULT_CHUNK_SIZE = 4 * MIB  # fixed when a file system is created
MAX_CHUNK_SIZE = 4 * MIB  # one chunk must fit into one frame's payload
DEFAULT_PG_COUNT = 256  # a power of two, fixed when a file system is created
DEFAULT_INLINE_LIMIT = 16 * KIB  # a file up to this lives in its inode's record
MAX_FILE_SIZE = 1 << 48  # the number of a chunk has 32 bits, and a chunk may be as small as 64 KiB
NAME_MAX = 255  # bytes
PATH_MAX = 4096  # bytes of a symbolic link's target, its end included
XATTR_VALUE_MAX = 64 * KIB
XATTR_NAME_MAX = 255
XATTR_LIST_MAX = 64 * KIB  # all names of one inode, each with its NUL: more could not be listed
MAX_DEPTH = 100_000  # directories between an inode and its root; more is taken for a loop
LINK_MAX = 65_000

NS = 1_000_000_000

_SUFFIX = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1024 * GIB, "p": 1024 * 1024 * GIB}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)i?b?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of "10G", "512 KiB", "1048576". Raises ValueError with one line that names the text."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write a number and K, M, G, T or P, such as 10G")
    return int(float(match[1]) * _SUFFIX[match[2].lower()])


def format_size(size_bytes: int) -> str:
    """ "10.0 GiB" for people; never parsed back."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{size_bytes} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"
