"""Requests whose caller is being killed: they are answered, so that it can die though no server answers us.

The kernel lets a process wait uninterruptibly for a request that we have read, even one that was sent SIGKILL. It tells us of
the first signal only (FUSE_INTERRUPT), fatal or not. So the caller is looked at as long as its request waits; once SIGKILL is
pending (any fatal signal becomes that for each thread), the request is answered with EINTR. A signal that is not fatal changes
nothing, as on a local disk. The handler goes on: what it is at happens or not, as with any call of a killed process.
"""

import logging

import trio

from fsd.mount.companion import Companion

log = logging.getLogger(__name__)

FIRST_LOOK_S = 0.1  # most requests are answered by then
LOOK_S = 0.5
MAX_WATCHED = 1000  # callers at once; those beyond wait for their answers
_SIGKILL = 1 << 8


class GivenUp:
    def __init__(self, companion: Companion, nursery: trio.Nursery) -> None:
        self._companion = companion
        self._nursery = nursery
        self._watched = 0

    def install(self) -> None:
        self._companion.on_interrupted(self._interrupted)

    def _interrupted(self, call: int, pid: int) -> None:
        if pid and self._watched < MAX_WATCHED:  # 0: in a pid namespace that we do not see
            self._watched += 1
            self._nursery.start_soon(self._watch, call, pid)

    async def _watch(self, call: int, pid: int) -> None:
        pause_s = FIRST_LOOK_S
        try:
            while True:
                await trio.sleep(pause_s)
                pause_s = LOOK_S
                if not self._companion.is_waiting(call):
                    return
                if is_dying(pid):
                    log.info("process %d was killed while it waited for request %d: given up", pid, call)
                    self._companion.give_up(call)
                    return
        finally:
            self._watched -= 1


def is_dying(pid: int) -> bool:
    """Whether SIGKILL is pending for this thread or its process; False if there is none."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return False
    pending = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask & _SIGKILL for mask in pending)
