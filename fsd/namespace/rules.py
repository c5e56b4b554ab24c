"""The rules of POSIX and Linux that several operations share, one small function each. Pure; what they refuse, they raise.

Whether a caller may read, write or search is the kernel's decision (`default_permissions`): it alone knows capabilities
and supplementary groups. Only what must hold even between two hosts' caches is checked again here.
"""

import stat

from fsd.core.errors import (
    AlreadyExists,
    FileTooLarge,
    InvalidArgument,
    NameTooLong,
    NotFound,
    NotPermitted,
    NotSupported,
    PosixError,
    QuotaExceeded,
    ResultTooSmall,
    TooBig,
    TooManyLinks,
)
from fsd.core.units import LINK_MAX, MAX_FILE_SIZE, NAME_MAX, PATH_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX
from fsd.namespace.records import Inode, Volume

PERMISSIONS = 0o7777
NO_ID = 0xFFFF_FFFF  # (uid_t) -1
CAPABILITY = b"security.capability"
XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")


def check_name(name: bytes, dots: type[PosixError] = AlreadyExists) -> None:
    """`dots` is what Linux says about "." and ".." here. Raises NameTooLong, InvalidArgument, `dots`."""
    if len(name) > NAME_MAX:
        raise NameTooLong(f"name of {len(name)} bytes, at most {NAME_MAX} are allowed")
    if name in (b".", b".."):
        raise dots(f"{name!r} is no name of its own")
    if not name or b"/" in name or b"\0" in name:
        raise InvalidArgument(f"{name!r} is no name")


def check_target(target: bytes) -> None:
    """Of a symbolic link."""
    if not target:
        raise NotFound("a symbolic link needs a target")
    if len(target) >= PATH_MAX:
        raise NameTooLong(f"target of {len(target)} bytes, at most {PATH_MAX - 1} are allowed")
    if b"\0" in target:
        raise InvalidArgument("a NUL in a symbolic link's target")


def check_alive(directory: Inode) -> None:
    """Nothing can be made in a directory that was removed while somebody had it open."""
    if directory.nlink == 0:
        raise NotFound(f"directory {directory.ino} was removed")


def check_sticky(uid: int, directory: Inode, child: Inode) -> None:
    """From a sticky directory only the child's owner, the directory's owner and root remove or move. Raises NotPermitted."""
    if directory.mode & stat.S_ISVTX and uid not in (0, child.uid, directory.uid):
        raise NotPermitted(f"directory {directory.ino} is sticky and inode {child.ino} belongs to {child.uid}")


def check_links(inode: Inode) -> None:
    """Of a file that is to get one more name."""
    if inode.is_directory:
        raise NotPermitted(f"inode {inode.ino} is a directory: no hard links")
    if inode.nlink == 0:
        raise NotFound(f"inode {inode.ino} was unlinked")
    if inode.nlink >= LINK_MAX:
        raise TooManyLinks(f"inode {inode.ino} has {inode.nlink} names")


def check_size(size: int) -> None:
    if size < 0:
        raise InvalidArgument(f"size {size}")
    if size > MAX_FILE_SIZE:
        raise FileTooLarge(f"size {size}, at most {MAX_FILE_SIZE} is allowed")


def check_quota(volume: Volume, more_bytes: int, more_inodes: int) -> None:
    """Whoever is over a quota may still give back. Raises QuotaExceeded."""
    if more_bytes > 0 and volume.quota_bytes and volume.used_bytes + more_bytes > volume.quota_bytes:
        raise QuotaExceeded(f"{more_bytes} more bytes on {volume.used_bytes}, the quota is {volume.quota_bytes}")
    if more_inodes > 0 and volume.quota_inodes and volume.used_inodes + more_inodes > volume.quota_inodes:
        raise QuotaExceeded(f"{volume.used_inodes} inodes, the quota is {volume.quota_inodes}")


def check_owner_id(number: int | None) -> None:
    if number is not None and not 0 <= number < NO_ID:
        raise InvalidArgument(f"{number} is no user or group id")


def check_xattr_name(name: bytes, inode: Inode) -> None:
    """Linux's order: length, name space, then what the type of the inode allows."""
    if not 0 < len(name) <= XATTR_NAME_MAX:
        raise ResultTooSmall(f"attribute name of {len(name)} bytes, 1 to {XATTR_NAME_MAX} are allowed")
    if not name.startswith(XATTR_PREFIXES):
        raise NotSupported(f"attribute {name!r}: only user, trusted and security are kept")
    if name in XATTR_PREFIXES or b"\0" in name:
        raise InvalidArgument(f"{name!r} is no attribute name")
    if name.startswith(b"user.") and not (inode.is_regular or inode.is_directory):
        raise NotPermitted(f"inode {inode.ino} is no file or directory: no user attributes")


def check_xattr_value(value: bytes) -> None:
    if len(value) > XATTR_VALUE_MAX:
        raise TooBig(f"attribute of {len(value)} bytes, at most {XATTR_VALUE_MAX} are allowed")


def inherited_gid(directory: Inode, gid: int) -> int:
    """What is made in a set-gid directory belongs to the directory's group."""
    return directory.gid if directory.mode & stat.S_ISGID else gid


def directory_mode(directory: Inode, mode: int) -> int:
    """Of a new one in `directory`: mkdir(2) takes no set-id bits, set-gid is inherited."""
    return stat.S_IFDIR | mode & 0o1777 | directory.mode & stat.S_ISGID


def mode_after_write(inode: Inode, uid: int, gid: int) -> int:
    """Who is not root and changes a file's bytes takes its set-id bits away."""
    return inode.mode if uid == 0 else mode_without_privileges(inode, uid, gid)


def mode_without_privileges(inode: Inode, uid: int, gid: int) -> int:
    """Linux's rule for write and chown: set-uid goes; set-gid goes if the group may execute (else it marks mandatory
    locking) or the caller is not of that group."""
    mode = inode.mode
    if stat.S_ISDIR(mode):
        return mode
    if mode & stat.S_ISGID and (mode & stat.S_IXGRP or (uid != 0 and gid != inode.gid)):
        mode &= ~stat.S_ISGID
    return mode & ~stat.S_ISUID
