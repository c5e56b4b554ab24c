"""One operation in the making: its changes on top of a view. What the operation changed already, it reads back changed."""

import stat

from fsd.core.errors import CorruptData, NotADirectory, NotFound, StaleHandle
from fsd.core.ids import Ino
from fsd.namespace import rules
from fsd.namespace.records import NO_DATA, DeadData, Dentry, Inode, Volume
from fsd.namespace.view import (
    Applied,
    Change,
    Collect,
    DropDentry,
    DropInode,
    PutDentry,
    PutInode,
    PutOrphan,
    PutVolume,
    View,
)


class Draft:
    """Reads raise what the file system answers: StaleHandle for an inode that is gone, NotFound for a name."""

    __slots__ = ("_changes", "_inodes", "_more_bytes", "_more_inodes", "view", "volume")

    def __init__(self, view: View, volume: Volume) -> None:
        self.view = view
        self.volume = volume
        self._inodes: dict[Ino, Inode] = {}
        self._changes: list[Change] = []
        self._more_bytes = 0
        self._more_inodes = 0

    # --- reading ---

    def inode(self, ino: Ino) -> Inode:
        inode = self._inodes.get(ino) or self.view.inode(ino)
        if inode is None:
            raise StaleHandle(f"inode {ino} is gone")
        return inode

    def directory(self, ino: Ino) -> Inode:
        inode = self.inode(ino)
        if not stat.S_ISDIR(inode.mode):
            raise NotADirectory(f"inode {ino} is no directory")
        return inode

    def dentry(self, parent: Ino, name: bytes) -> Dentry:
        dentry = self.view.dentry(parent, name)
        if dentry is None:
            raise NotFound(f"no {name!r} in directory {parent}")
        return dentry

    def child(self, parent: Ino, name: bytes) -> Inode:
        """The inode behind an existing name."""
        ino = self.dentry(parent, name).ino
        inode = self._inodes.get(ino) or self.view.inode(ino)
        if inode is None:
            raise CorruptData(f"{name!r} in directory {parent} names inode {ino}, which does not exist")
        return inode

    # --- changing ---

    def put(self, inode: Inode) -> None:
        self._inodes[inode.ino] = inode

    def add(self, change: Change) -> None:
        self._changes.append(change)

    def put_name(self, parent: Ino, name: bytes, child: Inode) -> None:
        self._changes.append(PutDentry(parent, name, Dentry(child.ino, stat.S_IFMT(child.mode))))

    def drop_name(self, parent: Ino, name: bytes) -> None:
        self._changes.append(DropDentry(parent, name))

    def orphan(self, ino: Ino) -> None:
        self._changes.append(PutOrphan(ino))

    def drop_inode(self, ino: Ino) -> None:
        self._inodes.pop(ino, None)
        self._changes.append(DropInode(ino))

    def collect(self, inode: Inode) -> None:
        """All chunks that the inode has had."""
        if inode.data != NO_DATA:
            end = max(inode.size, inode.trim_end)
            self._changes.append(Collect(DeadData(inode.data, self.volume.pool, 0, end)))

    def use(self, more_bytes: int, more_inodes: int = 0) -> None:
        """Account for it in the volume (I12). Raises QuotaExceeded."""
        rules.check_quota(self.volume, more_bytes, more_inodes)
        self._more_bytes += more_bytes
        self._more_inodes += more_inodes

    # --- the result ---

    def applied(self, subject: Ino | None) -> Applied:
        changes = self._changes
        changes.extend([PutInode(inode) for inode in self._inodes.values()])
        if self._more_bytes or self._more_inodes:
            changes.append(PutVolume(with_usage(self.volume, self._more_bytes, self._more_inodes)))
        return Applied(None if subject is None else self.inode(subject), tuple(changes))


def with_usage(volume: Volume, more_bytes: int, more_inodes: int) -> Volume:
    """Spelled out because dataclasses.replace costs three times as much, and this is on the way of every create."""
    return Volume(
        volume.name,
        volume.layer,
        volume.pool,
        volume.replicas,
        volume.min_replicas,
        volume.quota_bytes,
        volume.quota_inodes,
        volume.used_bytes + more_bytes,
        volume.used_inodes + more_inodes,
        volume.access,
        volume.inline_limit,
        volume.created_ns,
        volume.labels,
    )


def touched(directory: Inode, time_ns: int, *, entries: int = 0, subdirectories: int = 0) -> Inode:
    """The directory with names more or less, at `time_ns`. Spelled out for the reason of `with_usage`."""
    return Inode(
        directory.ino,
        directory.mode,
        directory.uid,
        directory.gid,
        directory.nlink + subdirectories,
        directory.size + entries,
        directory.atime_ns,
        time_ns,
        time_ns,
        directory.rdev,
        directory.data,
        directory.inline,
        directory.trim_end,
        directory.parent,
        directory.flags,
    )
