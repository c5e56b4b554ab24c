"""What a process and systemd tell each other: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3). Standard library only.

    we to systemd     READY=1, STATUS=, RELOADING=1, STOPPING=1, WATCHDOG=1 as a datagram to $NOTIFY_SOCKET;
                      FDSTORE=1 with a descriptor, which outlives us and is passed to our next start
    systemd to us     $LISTEN_FDS descriptors from 3 on, named by $LISTEN_FDNAMES; $WATCHDOG_USEC

Everything is a no-op without systemd. Nothing here raises for what systemd does or does not: a service must not die of
a lost word, it is logged.
"""

import array
import logging
import os
import socket
import time
from collections.abc import Sequence

log = logging.getLogger(__name__)

FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START
MAX_PASSED_FDS = 64
SEND_TIMEOUT_S = 0.5
_LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def notify(*lines: str, fds: Sequence[int] = ()) -> bool:
    """Send assignments such as "READY=1"; whether systemd (or who else gave $NOTIFY_SOCKET) got them."""
    name = os.environ.get("NOTIFY_SOCKET")
    if not name:
        return False
    address = "\0" + name[1:] if name.startswith("@") else name
    text = "\n".join(line.replace("\n", " ") for line in lines).encode(errors="replace")
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(SEND_TIMEOUT_S)
            sender.connect(address)
            sender.sendmsg([text], passed)
    except OSError as error:
        log.warning("cannot tell systemd %s: %s", lines[0], error.strerror or error)
        return False
    return True


def reloading() -> bool:
    """Say that settings are read again; READY=1 ends it. The time lets newer versions match it with their signal."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def store(fd: int, name: str) -> bool:
    """Give systemd a copy of `fd` to keep; our next start finds it in `passed()` under `name`."""
    return notify("FDSTORE=1", f"FDNAME={name}", fds=[fd])


def discard(name: str) -> bool:
    """Take what was stored under `name` out of the store."""
    return notify("FDSTOREREMOVE=1", f"FDNAME={name}")


def passed() -> dict[str, list[int]]:
    """Descriptors that systemd passed to us, by name: sockets and what was stored. They are told once, and our children do
    not inherit them."""
    values = {name: os.environ.pop(name, "") for name in _LISTEN}
    if values["LISTEN_PID"] != str(os.getpid()) or not values["LISTEN_FDS"].isdecimal():
        return {}
    count = min(int(values["LISTEN_FDS"]), MAX_PASSED_FDS)
    names = values["LISTEN_FDNAMES"].split(":") if values["LISTEN_FDNAMES"] else []
    names += ["unknown"] * (count - len(names))
    found: dict[str, list[int]] = {}
    for fd, name in enumerate(names[:count], FIRST_PASSED_FD):
        os.set_inheritable(fd, False)
        found.setdefault(name, []).append(fd)
    return found


def watchdog_s() -> float | None:
    """How often to send WATCHDOG=1: a third of the time after which systemd kills us. None: it does not watch."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 3e6 if microseconds.isdecimal() and int(microseconds) else None


def feed_watchdog() -> bool:
    """To be called by the loop that does the work, every `watchdog_s()`: a loop that hangs is killed for it."""
    return notify("WATCHDOG=1")
