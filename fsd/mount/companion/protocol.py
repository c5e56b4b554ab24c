"""What the kernel says about a session and its requests, by name: linux/fuse.h. Pure."""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

OFFSET_END = 1 << 63  # one past the last offset of a file; the end of a lock that reaches to the end of the file


class InitFlag(IntFlag):
    """What kernel and file system agree on in FUSE_INIT: those that the mount sets or asks for."""

    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    HAS_RESEND = 1 << 39


class Opcode(IntEnum):
    """The requests that reach handlers."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class Notification(IntEnum):
    """What a file system may tell the kernel unasked."""

    INVAL_INODE = 2
    RESEND = 7  # Linux 6.9
    INC_EPOCH = 8  # Linux 6.16
    PRUNE = 9  # Linux 6.18


_WRITE_CACHE, _WRITE_KILL_SUIDGID = 1 << 0, 1 << 2
_OPEN_KILL_SUIDGID = 1 << 0
_RELEASE_FLOCK_UNLOCK = 1 << 1
_FATTR_KILL_SUIDGID = 1 << 11


class CurrentRequest(NamedTuple):
    """What pyfuse3 does not pass on of the request that was read last."""

    unique: int  # the kernel's number, the same when it is sent again to a successor
    opcode: int
    flags: int  # WRITE write_flags, OPEN and CREATE open_flags, RELEASE release_flags, SETATTR valid, else 0
    lock_owner: int  # WRITE, FLUSH and RELEASE, else 0
    uid: int  # the caller's
    gid: int
    resent: bool  # a predecessor had read it: it may have been carried out

    @property
    def flock_release(self) -> bool:
        """RELEASE: the handle had been locked by flock, with `lock_owner` as owner."""
        return self.opcode == Opcode.RELEASE and bool(self.flags & _RELEASE_FLOCK_UNLOCK)

    @property
    def from_page_cache(self) -> bool:
        """WRITE: written back from mapped pages; the caller is not the one who wrote."""
        return self.opcode == Opcode.WRITE and bool(self.flags & _WRITE_CACHE)

    @property
    def kills_privileges(self) -> bool:
        """Set-id bits have to go (the caller may not keep them). Only said under HANDLE_KILLPRIV_V2."""
        match self.opcode:
            case Opcode.WRITE:
                return bool(self.flags & _WRITE_KILL_SUIDGID)
            case Opcode.OPEN | Opcode.CREATE:
                return bool(self.flags & _OPEN_KILL_SUIDGID)
            case Opcode.SETATTR:
                return bool(self.flags & _FATTR_KILL_SUIDGID)
            case _:
                return False


class CallerContext(NamedTuple):
    """Who asks, for extra operations (pyfuse3's RequestContext cannot be made by others)."""

    uid: int
    gid: int
    pid: int
    umask: int


class FileLock(NamedTuple):
    """A range lock as fcntl(2) has it: bytes [start, end), OFFSET_END for the end of the file."""

    kind: int  # fcntl.F_RDLCK, F_WRLCK, F_UNLCK
    start: int
    end: int
    pid: int

    @classmethod
    def from_length(cls, kind: int, start: int, length: int, pid: int) -> "FileLock":
        """Length 0 is: to the end of the file."""
        return cls(kind, start, start + length if length else OFFSET_END, pid)

    @property
    def length(self) -> int:
        return 0 if self.end >= OFFSET_END else self.end - self.start


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """The session with the kernel; flags are 0 before INIT."""

    mounted: bool
    hooked: bool  # the device is read by us, without blocking
    fd: int
    libfuse: str
    offered: InitFlag
    agreed: InitFlag
    max_write: int
    max_readahead: int
    max_background: int
    lost_races: int  # reads that would have frozen the event loop
    instant_answers: int  # requests that never came as far as the event loop


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What is asked of the kernel; a flag that it does not offer is left out. 0 leaves libfuse's value.

    `set_flags`: PARALLEL_DIROPS since handlers run concurrently anyhow; EXPLICIT_INVAL_DATA since pages are invalidated by
    recalls, never by a changed mtime (own writes change it too); DIRECT_IO_ALLOW_MMAP since O_APPEND handles are direct.
    HANDLE_KILLPRIV_V2 only if the handlers take set-id bits away on write, truncate and chown: a security hole otherwise.
    """

    set_flags: InitFlag = (
        InitFlag.PARALLEL_DIROPS | InitFlag.EXPLICIT_INVAL_DATA | InitFlag.DIRECT_IO_ALLOW_MMAP | InitFlag.HAS_RESEND
    )
    clear_flags: InitFlag = InitFlag.AUTO_INVAL_DATA
    kill_privileges: bool = False
    max_write: int = 0
    max_readahead: int = 0
    max_background: int = 64
