"""The one edge between fsd and the kernel: deadlines, and errors to errno.

pyfuse3 ends its main loop, and with it everybody's mount, on any exception but FUSEError. So every handler goes through
`edge`: FsError becomes its errno, a deadline ETIMEDOUT, a bug EIO with a log entry; Cancelled and FUSEError pass.
"""

import errno
import functools
import logging
from collections.abc import Callable
from types import CoroutineType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import pyfuse3
import trio

from fsd.client.calls import CALL
from fsd.core.errors import FsError

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class HasDeadline(Protocol):
    @property
    def deadline_s(self) -> float | None: ...

    @property
    def call_number(self) -> Callable[[], int] | None:
        """The number of the request whose handler is being started; None: the handler's task knows it (`CALL`), or nobody."""
        ...


S = TypeVar("S", bound=HasDeadline)


def edge(
    handler: "Callable[Concatenate[S, P], CoroutineType[Any, Any, R]]",
) -> "Callable[Concatenate[S, P], CoroutineType[Any, Any, R]]":
    """A handler that raises nothing but FUSEError and Cancelled. `deadline_s` None waits for ever (hard)."""

    @functools.wraps(handler)
    async def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.call_number is not None:
            CALL.set(self.call_number())
        try:
            if self.deadline_s is None:
                return await handler(self, *args, **kwargs)
            with trio.fail_after(self.deadline_s):
                return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            raise pyfuse3.FUSEError(errno_of(error, handler.__name__, args)) from None

    return guarded


def errno_of(error: BaseException, name: str, args: tuple[Any, ...]) -> int:
    """The errno for what a handler raised; a bug is logged here."""
    error = _only_one(error)
    if isinstance(error, FsError):
        if error.errno == errno.EIO:
            log.error("%s: %s: %s", _call(name, args), type(error).__name__, error)
        return error.errno
    if isinstance(error, trio.TooSlowError):
        log.warning("%s: no answer in time", _call(name, args))
        return errno.ETIMEDOUT
    log.error("%s: bug", _call(name, args), exc_info=error)
    return errno.EIO


def _only_one(error: BaseException) -> BaseException:
    """What a nursery wrapped around a single error is taken off."""
    while isinstance(error, BaseExceptionGroup):
        members = cast("tuple[BaseException, ...]", error.exceptions)
        if len(members) != 1:
            break
        error = members[0]
    return cast("BaseException", error)


def _call(name: str, args: tuple[Any, ...]) -> str:
    """The call as a line of a log shows it, bytes shortened."""
    shown = [f"<{len(a)} bytes>" if isinstance(a, bytes) and len(a) > 64 else repr(a) for a in args]
    return f"{name}({', '.join(s for s in shown if not s.startswith('<pyfuse3.'))})"
