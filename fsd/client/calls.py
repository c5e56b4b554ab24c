"""Which call of the kernel is being carried out: so that one which is sent again after the daemon's death is not carried out
twice. Set by the mount for each request; 0 for a library's user."""

from contextvars import ContextVar

RESENT = 1 << 63  # the request may have been carried out by a daemon that is dead
CALL: ContextVar[int] = ContextVar("CALL", default=0)


def unique() -> int:
    """The number of the call, whether or not it is sent again."""
    return CALL.get() & ~RESENT
