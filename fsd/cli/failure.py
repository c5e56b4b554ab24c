"""How a command ends that cannot go on: one line on stderr for each fault, an exit code, no traceback."""

import logging
import os
import sys
import traceback
from typing import cast

from fsd.cli import exits, logs, readiness
from fsd.core.errors import FsError

log = logging.getLogger(__name__)


def report(error: BaseException, ready_fd: int | None = None) -> int:
    """Tell the user (and whoever waits for readiness) and return the exit code."""
    text, code = explain(error)
    journal = logs.stderr_is_the_journal()
    for line in text.splitlines() or [""]:
        sys.stderr.write(logs.with_priority(f"fsd: {line}") + "\n" if journal else f"fsd: {line}\n")
    if code == exits.INTERNAL:
        _tell_bug(error)
    if ready_fd is not None:
        readiness.report_error(ready_fd, text, code)
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """(lines for people, exit code)."""
    error = innermost(error)
    if isinstance(error, FsError):
        return str(error) or type(error).__name__, exits.code_of(error)
    if isinstance(error, PermissionError):
        return f"{error.filename or 'operation'}: permission denied", exits.MISSING
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{os.strerror(error.errno).lower()}", exits.FAILED
    return f"internal error: {type(error).__name__}: {error}", exits.INTERNAL


def innermost(error: BaseException) -> BaseException:
    """The one error that matters of a group: a bug if there is any, else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    members = cast("tuple[BaseException, ...]", error.exceptions)  # pyright: ignore[reportUnknownMemberType]
    inner = [innermost(member) for member in members]
    bugs = [member for member in inner if not isinstance(member, FsError)]
    return bugs[0] if bugs else inner[0]


def _tell_bug(error: BaseException) -> None:
    if logging.getLogger().handlers:
        log.error("internal error", exc_info=error)
    elif os.environ.get("FSD_DEBUG"):
        traceback.print_exception(error)
    else:
        sys.stderr.write("fsd: this is a bug; FSD_DEBUG=1 shows where\n")
