"""Where log lines go: stderr in the foreground, a rotated file for processes in the background.

Under systemd stderr is the journal: it keeps the time itself and takes a priority from the front of each line,
"<3>" for an error (sd-daemon(3)).
"""

import logging
import logging.handlers
import os

from fsd.core.config import Option, choice, path
from fsd.core.units import MIB

LOG_OPTIONS = (
    Option("log", path, "write the log to FILE (rotated at 16 MiB, 3 old ones kept)", metavar="FILE"),
    Option(
        "log_level", choice("debug", "info", "warning", "error"), "how much to log", default="info", metavar="LEVEL"
    ),
)
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_JOURNAL_FORMAT = "%(name)s: %(message)s"


def set_up(file: str | None, level: str, *, rotates: bool = True) -> None:
    """For the rest of the process. Of several processes with one file only one `rotates` it."""
    handler: logging.Handler
    if file:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        if rotates:
            handler = logging.handlers.RotatingFileHandler(file, maxBytes=16 * MIB, backupCount=3)
        else:
            handler = logging.handlers.WatchedFileHandler(file)
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(JournalFormatter() if not file and stderr_is_the_journal() else logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())


class JournalFormatter(logging.Formatter):
    """Every line, those of a traceback too, with its priority in front."""

    def __init__(self) -> None:
        super().__init__(_JOURNAL_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        return with_priority(super().format(record), record.levelno)


def with_priority(text: str, level: int = logging.ERROR) -> str:
    """`text` with a syslog priority in front of each line."""
    priority = next((number for least, number in _PRIORITIES if level >= least), 7)
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def stderr_is_the_journal() -> bool:
    """As systemd.exec(5) says under $JOURNAL_STREAM: the variable alone may be inherited by one whose stderr is another."""
    try:
        device, inode = (int(part) for part in os.environ.get("JOURNAL_STREAM", "").split(":"))
        stderr = os.fstat(2)
    except (OSError, ValueError):
        return False
    return (stderr.st_dev, stderr.st_ino) == (device, inode)
