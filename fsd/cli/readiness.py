"""How a process that was started in the background tells its starter that it serves, or why it cannot: one JSON line.

The starter gives the write end of a pipe by `--ready-fd N`. A process that ends without a word is told from its exit code.
A process that systemd started tells it, too.
"""

import contextlib
import json
import os

from fsd.core.config import Option, integer
from fsd.runtime.notify import notify

READY_FD = Option("ready_fd", integer(0, 1 << 20), "", hidden=True)


def report_ready(fd: int | None, address: str, http: str | None = None) -> None:
    notify("READY=1", f"STATUS=serving on {address}")
    _send(fd, {"ready": address, "http": http})


def report_error(fd: int, text: str, code: int) -> None:
    _send(fd, {"error": text, "code": code})


def _send(fd: int | None, message: dict[str, object]) -> None:
    if fd is None:
        return
    with contextlib.suppress(OSError):  # the starter has gone or was told already; nobody is left to hear it
        os.write(fd, json.dumps(message).encode() + b"\n")
        os.close(fd)
