"""Where log lines go: stderr in the foreground, a rotated file for processes in the background."""

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


def set_up(file: str | None, level: str) -> None:
    """For the rest of the process."""
    if file:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        handler: logging.Handler = logging.handlers.RotatingFileHandler(file, maxBytes=16 * MIB, backupCount=3)
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
