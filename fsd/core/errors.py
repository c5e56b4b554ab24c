"""The one tree of errors. A class knows its number on the wire, its errno and whether trying again can help.

The world's errors become these at one edge (`runtime`, `rpc`); these become errno at one edge (`fsd.mount.operations`).
Numbers are never used again; new classes are appended.
"""

import errno
from enum import Enum
from typing import ClassVar


class Retry(Enum):
    """What the asker may do about an error."""

    NEVER = "never"
    AFTER_REFRESH = "after refresh"  # fetch the cluster map, then ask again with the same request number
    LATER = "later"  # wait a little, then ask again with the same request number


_by_number: dict[int, "type[FsError]"] = {}


class FsError(Exception):
    """Base of all errors that fsd raises on purpose. `str(error)` is one line that states the facts."""

    number: ClassVar[int] = 0
    errno: ClassVar[int] = errno.EIO
    retry: ClassVar[Retry] = Retry.NEVER

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "number" in cls.__dict__:
            assert cls.number not in _by_number, f"error number {cls.number} is used twice"
            _by_number[cls.number] = cls


def error_from_wire(number: int, text: str) -> FsError:
    """The error that a peer reported; one that this version does not know becomes `InternalError`."""
    return _by_number.get(number, InternalError)(text)


# --- what POSIX knows -------------------------------------------------------------------------------------------------


class PosixError(FsError):
    """A definite answer about the tree: the operation was refused and changed nothing."""


class NotFound(PosixError):
    number, errno = 1, errno.ENOENT


class AlreadyExists(PosixError):
    number, errno = 2, errno.EEXIST


class NotADirectory(PosixError):
    number, errno = 3, errno.ENOTDIR


class IsADirectory(PosixError):
    number, errno = 4, errno.EISDIR


class NotEmpty(PosixError):
    number, errno = 5, errno.ENOTEMPTY


class NameTooLong(PosixError):
    number, errno = 6, errno.ENAMETOOLONG


class InvalidArgument(PosixError):
    number, errno = 7, errno.EINVAL


class NotPermitted(PosixError):
    number, errno = 8, errno.EPERM


class AccessDenied(PosixError):
    number, errno = 9, errno.EACCES


class TooManyLinks(PosixError):
    number, errno = 10, errno.EMLINK


class CrossVolume(PosixError):
    number, errno = 11, errno.EXDEV


class NoSpace(PosixError):
    number, errno = 12, errno.ENOSPC


class QuotaExceeded(PosixError):
    number, errno = 13, errno.EDQUOT


class NoAttribute(PosixError):
    number, errno = 14, errno.ENODATA


class StaleHandle(PosixError):
    """The inode is gone for good (its last name and its last handle)."""

    number, errno = 15, errno.ESTALE


class FileTooLarge(PosixError):
    number, errno = 16, errno.EFBIG


class Busy(PosixError):
    number, errno = 17, errno.EBUSY


class NotSupported(PosixError):
    number, errno = 18, errno.ENOTSUP


class ResultTooSmall(PosixError):
    number, errno = 19, errno.ERANGE


class TooBig(PosixError):
    number, errno = 20, errno.E2BIG


class ReadOnly(PosixError):
    number, errno = 21, errno.EROFS


class Interrupted(PosixError):
    number, errno = 22, errno.EINTR


class WrongLayout(PosixError):
    """The file's bytes are not where the operation needs them: trim the chunks first, or move the bytes out of line, or
    (they were moved meanwhile) use its chunks. The asker reads the inode again and takes the other way."""

    number, errno = 23, errno.EIO


class LockConflict(PosixError):
    """Somebody else has a lock that is in the way, and the asker does not wait."""

    number, errno = 24, errno.EAGAIN


class Deadlock(PosixError):
    """Waiting for this lock would never end."""

    number, errno = 25, errno.EDEADLK


class NoLocks(PosixError):
    """One more lock would be too many."""

    number, errno = 26, errno.ENOLCK


# --- talking ----------------------------------------------------------------------------------------------------------


class ProtocolError(FsError):
    """Bytes that are no message of this protocol. The connection is closed; nothing was carried out."""

    number, errno = 40, errno.EPROTO


class VersionMismatch(FsError):
    number, errno = 41, errno.EPROTO


class ForeignFileSystem(FsError):
    """The peer, or the data directory, belongs to another file system."""

    number, errno = 42, errno.EPROTO


class Unreachable(FsError):
    """No connection, or it broke: whether the request was carried out is unknown."""

    number, errno, retry = 43, errno.EHOSTUNREACH, Retry.LATER


class ConnectionRefused(Unreachable):
    """The peer's own kernel says that nobody listens there: that process is dead (R2)."""

    number, errno, retry = 44, errno.ECONNREFUSED, Retry.LATER


class DeadlineExceeded(FsError):
    """Whether the request was carried out is unknown."""

    number, errno, retry = 45, errno.ETIMEDOUT, Retry.LATER


class Overloaded(FsError):
    number, errno, retry = 46, errno.EAGAIN, Retry.LATER


class InternalError(FsError):
    """The peer met a bug of its own; its log has the details."""

    number, errno = 47, errno.EIO


# --- the cluster ------------------------------------------------------------------------------------------------------


class StaleMap(FsError):
    """The asker's map is behind, or the asked node does not lead the placement group in its newest map."""

    number, errno, retry = 60, errno.EAGAIN, Retry.AFTER_REFRESH


class NotServing(FsError):
    """The right node, but not yet or no longer: not activated, lease run out, map being fetched."""

    number, errno, retry = 61, errno.EAGAIN, Retry.LATER


class SessionEvicted(FsError):
    """The session is fenced: nothing that it has not written yet will ever be accepted (I13)."""

    number, errno = 62, errno.EIO


class SessionUnknown(FsError):
    number, errno = 63, errno.EIO


class NotALeader(FsError):
    """A replica refuses: lower epoch, or the sender or the receiver is not (in this incarnation) in the row."""

    number, errno, retry = 64, errno.EAGAIN, Retry.AFTER_REFRESH


class BaseMismatch(FsError):
    """A partial write arrived for a chunk whose state is not the one that it builds on."""

    number, errno = 65, errno.EIO


class CorruptData(FsError):
    """Stored bytes fail their checksum and no good copy answered (I8)."""

    number, errno = 66, errno.EIO


class BadChecksum(FsError):
    """Bytes were damaged on the way; nothing was stored."""

    number, errno, retry = 67, errno.EIO, Retry.LATER


class DiskFailed(FsError):
    """EIO, a short write or a failed sync: the disk's service ends (R12)."""

    number, errno = 68, errno.EIO


class WriteLost(FsError):
    """Bytes that a client had taken could not be written and never will be."""

    number, errno = 69, errno.EIO


class LockLost(FsError):
    """The session that held a lock was evicted: what this handle does now might not be alone any more."""

    number, errno = 70, errno.EIO


# --- set-up -----------------------------------------------------------------------------------------------------------


class ConfigurationError(FsError):
    """What the user asked for cannot be: `str(error)` says what is wrong and what to do, one line each fault."""

    number, errno = 80, errno.EINVAL


class DirectoryInUse(FsError):
    """Another server runs on the same data directory."""

    number, errno = 81, errno.EBUSY


class FormatError(FsError):
    """A data directory that this version cannot use: no such format, from the future, or damaged."""

    number, errno = 82, errno.EINVAL


class MissingOnHost(FsError):
    """This machine lacks what is needed (/dev/fuse, a permission, a program); the text says what to do."""

    number, errno = 83, errno.ENODEV
