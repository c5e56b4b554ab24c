"""What supervisor, daemon and commands say to each other: one JSON object per datagram, a descriptor beside it.

    daemon                     supervisor                     fsd upgrade
      WARM      ------------->                                (control socket in the state directory)
                <-------------  GO (state directory)
      CONNECTED ------------->                                a session with the cluster is open
                <-------------  DEVICE + /dev/fuse            or DRAIN: there is no mount any more, only bytes to write back
      SERVING   ------------->                                INIT is agreed on: requests are answered
      ALIVE     ------------->  (each second)
                <-------------  SUSPEND                       <--- UPGRADE
      SUSPENDED ------------->                                ---> DONE (seconds without a daemon)
      UNMOUNTED ------------->                                the kernel will ask nothing more
      DONE      ------------->                                everything is written back
      FAILED    ------------->                                a line for people, an exit code

A daemon that dies says nothing: that is what the supervisor is for. Standard library only.
"""

import array
import json
import os
import socket
from dataclasses import asdict, dataclass
from enum import StrEnum

MAX_BYTES = 65536


class Kind(StrEnum):
    WARM = "warm"
    GO = "go"
    CONNECTED = "connected"
    DEVICE = "device"
    DRAIN = "drain"
    SERVING = "serving"
    ALIVE = "alive"
    SUSPEND = "suspend"
    SUSPENDED = "suspended"
    UNMOUNTED = "unmounted"
    DONE = "done"
    FAILED = "failed"
    UPGRADE = "upgrade"


@dataclass(frozen=True, slots=True)
class Word:
    kind: Kind
    text: str = ""
    code: int = 0
    seconds: float = 0.0


class Link:
    """One end of a connection. Nothing here waits if the socket does not block."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def fileno(self) -> int:
        return self.socket.fileno()

    def say(self, word: Word, fd: int | None = None) -> bool:
        """Whether the other end could be told; one that has gone is noticed elsewhere."""
        ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            self.socket.sendmsg([json.dumps(asdict(word)).encode()], ancillary)
        except OSError:
            return False
        return True

    def hear(self) -> tuple[Word, int | None] | None:
        """The next word and the descriptor that came with it; None if the other end has gone. Raises BlockingIOError."""
        try:
            data, ancillary, _, _ = self.socket.recvmsg(MAX_BYTES, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return None
        fds = array.array("i")
        for level, kind, body in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
        if not data:
            return None
        told = json.loads(data)
        word = Word(Kind(told["kind"]), str(told["text"]), int(told["code"]), float(told["seconds"]))
        return word, (fds[0] if fds else None)

    def close(self) -> None:
        self.socket.close()


def pair() -> tuple[Link, Link]:
    """Two connected ends: ours does not block, the other is for a child."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return Link(ours), Link(theirs)


def listen(path: str) -> socket.socket:
    """A socket for commands, for this user alone (by its directory)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.path.exists(path):
        os.unlink(path)  # a predecessor's
    sock.bind(path)
    sock.listen(4)
    sock.setblocking(False)
    return sock


def ask(path: str, word: Word, timeout_s: float) -> Word:
    """Send one command and wait for its answer. Raises OSError (TimeoutError included)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(timeout_s)
        sock.connect(path)
        link = Link(sock)
        link.say(word)
        heard = link.hear()
    if heard is None:
        raise ConnectionResetError("the supervisor has gone")
    return heard[0]
