"""An inode as the kernel wants it."""

import stat

import pyfuse3

from fsd.namespace.records import Inode

PREFERRED_IO = 64 * 1024  # st_blksize: what stdio buffers; fewer requests for small sequential writes
SECTOR = 512  # the unit of st_blocks, stat(2)


def entry_attributes(inode: Inode, attribute_ttl_s: float, entry_ttl_s: float) -> pyfuse3.EntryAttributes:
    """`EntryAttributes` of an inode; the two times say how long the kernel may believe it."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(inode.ino)
    entry.generation = 0
    entry.attr_timeout = attribute_ttl_s
    entry.entry_timeout = entry_ttl_s
    entry.st_mode = pyfuse3.ModeT(inode.mode)
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_rdev = inode.rdev
    entry.st_size = inode.size
    entry.st_blksize = PREFERRED_IO
    entry.st_blocks = blocks_of(inode)
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    return entry


def blocks_of(inode: Inode) -> int:
    """st_blocks."""
    return -(-inode.size // SECTOR) if stat.S_ISREG(inode.mode) else 0


def absent_entry(entry_ttl_s: float) -> pyfuse3.EntryAttributes:
    """A name that does not exist, and for how long the kernel may believe that."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = entry_ttl_s
    return entry
