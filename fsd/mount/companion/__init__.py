"""The companion of pyfuse3: a small C extension that adds what pyfuse3 3.5 leaves out, and its Python side.

- operations: getlk, setlk, flock, fallocate, lseek, copy_file_range, ioctl, as methods of the operations object (dispatch.py);
- INIT: flags, max_background and the like (`SessionSettings`), what was agreed on (`Companion.info`), and handing a session to
  another process (`Companion.state`, `resume`, `resend`);
- facts of the request being started: `unique`, lock owner, flags (`Companion.current`);
- a session that never blocks the event loop, and fewer rounds through its scheduler.

    companion = load()                     # None: plain pyfuse3, one warning in the log
    companion.install(operations)
    pyfuse3.init(operations, mountpoint, options)
    await companion.main()                 # instead of pyfuse3.main()

The extension is optional. Everything it does goes through libfuse's public API; see companion.c.
"""

import contextlib
import functools
import logging
import select
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from fsd.mount.companion import loading
from fsd.mount.companion.protocol import (
    OFFSET_END,
    CallerContext,
    CurrentRequest,
    FileLock,
    InitFlag,
    Notification,
    Opcode,
    SessionInfo,
    SessionSettings,
)

if TYPE_CHECKING:
    from fsd.mount.companion.dispatch import Dispatcher

__all__ = [
    "OFFSET_END",
    "CallerContext",
    "Companion",
    "CurrentRequest",
    "FileLock",
    "InitFlag",
    "Notification",
    "Opcode",
    "SessionInfo",
    "SessionSettings",
    "load",
]

log = logging.getLogger(__name__)

POLLS_BEFORE_WAIT = 32  # requests in a row that are taken without giving other tasks a turn
_STATE = struct.Struct("<4sHH")  # magic, bytes of INIT's request, bytes of its answer
_STATE_MAGIC = b"fsd\x01"
_INVAL_INODE = struct.Struct("<Qqq")  # struct fuse_notify_inval_inode_out: ino, off, len
_PRUNE_HEADER = struct.Struct("<IIQ")  # struct fuse_notify_prune_out: count, padding, spare


@functools.cache
def load() -> "Companion | None":
    """The companion, or None with one warning that says why. pyfuse3 must not have been imported before `fsd.mount`."""
    loading.preload()
    extension = loading.extension()
    if isinstance(extension, str):
        log.warning(
            "companion extension not available (%s): locks are local to this host, no fallocate, no SEEK_HOLE, slower",
            extension,
        )
        return None
    return Companion(extension)


class InstantAnswers(Protocol):
    """Answers requests that need no waiting, before the event loop sees them."""

    @property
    def opcodes(self) -> Sequence[Opcode]:
        """What it may be asked about."""
        ...

    def answer(
        self, opcode: int, unique: int, inode: int, uid: int, gid: int, pid: int, body: bytes
    ) -> bytes | int | None:
        """The answer's body, an errno (0: success without a body), or None: it goes the ordinary way, and nothing was done.
        `current` tells more of the request. An exception is answered EIO."""
        ...


class Companion:
    """The one FUSE session of this process, beside pyfuse3's view of it."""

    def __init__(self, extension: Any) -> None:
        self._extension = extension
        self._dispatcher: Dispatcher | None = None
        self._abandoned = False
        self._replay = False  # INIT is to be read again
        self.call_number: Callable[[], int] = extension.current_call  # as `current`, but only the number, and cheap

    def install(
        self,
        operations: object,
        settings: SessionSettings | None = None,
        on_init: Callable[[SessionInfo], None] | None = None,
        instant: InstantAnswers | None = None,
    ) -> None:
        """Before `pyfuse3.init`: what its session gets. `operations` may have methods of `dispatch.ExtraOperations`.

        `on_init` is called once kernel and file system have agreed, from within the main loop; it must not wait. `instant` is
        asked about requests before anybody else.
        """
        from fsd.mount.companion.dispatch import Dispatcher  # imports pyfuse3, which must come after the extension

        settings = settings or SessionSettings()
        set_flags = settings.set_flags
        if settings.kill_privileges:
            set_flags |= InitFlag.HANDLE_KILLPRIV_V2
        self._dispatcher = Dispatcher(operations)
        self._extension.configure(
            self._dispatcher.dispatch,
            self._dispatcher.mask(),
            int(set_flags),
            int(settings.clear_flags),
            max_write=settings.max_write,
            max_readahead=settings.max_readahead,
            max_background=settings.max_background,
            on_init=None if on_init is None else lambda: on_init(self.info()),
            instant=None if instant is None else instant.answer,
            instant_opcodes=0 if instant is None else sum(1 << opcode for opcode in instant.opcodes),
        )

    async def main(self, min_tasks: int = 1, max_tasks: int = 99) -> None:
        """`pyfuse3.main`, with the extra operations. Those still waiting at the end are answered EINTR."""
        import pyfuse3
        import trio

        assert self._dispatcher is not None, "install comes first"
        if not self.info().mounted:
            raise RuntimeError("pyfuse3 does not go through its companion")
        restore = self._poll_before_wait(pyfuse3)
        try:
            async with trio.open_nursery() as nursery:
                self._dispatcher.nursery = nursery
                await pyfuse3.main(min_tasks, max_tasks)
                if self._abandoned:
                    self._extension.abandon()
                nursery.cancel_scope.cancel()
        finally:
            self._dispatcher.nursery = None
            restore()

    def _poll_before_wait(self, pyfuse3: Any) -> Callable[[], None]:
        """Let pyfuse3's workers look before they wait: a request that is there already costs no round of the scheduler.

        5-6 us instead of 17-25 us per queued request. It needs the non-blocking device: two workers may see the same request.
        """
        wait = cast("Callable[[], Awaitable[bool]] | None", getattr(pyfuse3, "_wait_fuse_readable", None))
        info = self.info()
        if wait is None or not info.hooked:
            return lambda: None
        device = select.poll()
        device.register(info.fd, select.POLLIN)
        polled = 0

        async def look_then_wait() -> bool:
            nonlocal polled
            if self._replay:  # it comes from us: the device knows nothing of it
                self._replay = False
                return True
            polled += 1
            if polled % POLLS_BEFORE_WAIT and device.poll(0):
                return True
            return await wait()

        pyfuse3._wait_fuse_readable = look_then_wait

        def restore() -> None:
            pyfuse3._wait_fuse_readable = wait

        return restore

    # --- facts --------------------------------------------------------------------------------------------------------

    def current(self) -> CurrentRequest:
        """The request whose handler is being started: valid until the handler's first await."""
        return CurrentRequest(*self._extension.current_request())

    def info(self) -> SessionInfo:
        mounted, hooked, fd, libfuse, offered, agreed, *rest = self._extension.info()
        return SessionInfo(mounted, hooked, fd, libfuse, InitFlag(offered), InitFlag(agreed), *rest)

    def request_counts(self) -> dict[str, int]:
        """Requests since the process began, by the kernel's name of the operation."""
        names = {int(opcode): opcode.name for opcode in Opcode}
        counts: dict[int, int] = self._extension.request_counts()
        return {names.get(opcode, f"OP_{opcode}"): count for opcode, count in counts.items()}

    # --- requests whose callers want them no more -----------------------------------------------------------------------

    def on_interrupted(self, callback: Callable[[int, int], None]) -> None:
        """Have `callback(call, pid)` called when a signal hits the caller of a request under way; it must not wait."""
        self._extension.on_interrupted(callback)

    def is_waiting(self, call: int) -> bool:
        """Whether the request was not answered yet."""
        return self._extension.is_waiting(call)

    def give_up(self, call: int) -> None:
        """Answer EINTR, unless it was answered; its handler goes on, and what it answers goes nowhere."""
        self._extension.give_up(call)

    @property
    def waiting(self) -> int:
        """Extra operations under way, waiters for locks included."""
        return 0 if self._dispatcher is None else self._dispatcher.running

    # --- a session that changes hands ---------------------------------------------------------------------------------

    def state(self) -> bytes:
        """What a successor needs besides the descriptor of /dev/fuse. Raises RuntimeError before INIT."""
        request, reply = self._extension.init_exchange()
        if not reply:
            raise RuntimeError("INIT was not answered yet")
        return _STATE.pack(_STATE_MAGIC, len(request), len(reply)) + request + reply

    def resume(self, state: bytes) -> None:
        """Before `pyfuse3.init` on "/dev/fd/N": take over a session. The kernel sees nothing of it; what the predecessor agreed
        on stays. Raises ValueError if that is not a predecessor's `state`."""
        if len(state) < _STATE.size:
            raise ValueError("not the state of a FUSE session")
        magic, request, reply = _STATE.unpack_from(state)
        if magic != _STATE_MAGIC or len(state) != _STATE.size + request + reply:
            raise ValueError("not the state of a FUSE session")
        body = state[_STATE.size :]
        self._extension.replay_init(body[:request], body[request:])
        self._replay = True

    def abandon(self) -> None:
        """After the main loop's end answer none of the extra operations under way: the process ends, and the kernel sends them
        to its successor again (`resend`)."""
        self._abandoned = True

    # --- notifications: these may block in the kernel; call them from a thread ----------------------------------------

    def resend(self) -> None:
        """Have the kernel send again what the predecessor had read but not answered. Raises OSError (Linux before 6.9)."""
        self.notify(Notification.RESEND)

    def raise_epoch(self) -> None:
        """Have every cached name looked up again; takes no lock. Raises OSError (Linux before 6.16)."""
        self.notify(Notification.INC_EPOCH)

    def invalidate_pages(self, inode: int, offset: int, length: int = 0) -> None:
        """Have the kernel drop pages [offset, offset + length), length 0 for all from there on, and the attributes.

        Waits for pages that are being read. An inode that the kernel does not know is no error.
        """
        with contextlib.suppress(FileNotFoundError):
            self.notify(Notification.INVAL_INODE, _INVAL_INODE.pack(inode, offset, length))

    def prune(self, inodes: Sequence[int]) -> None:
        """Have the kernel forget inodes that nobody uses. Raises OSError (Linux before 6.18)."""
        payload = _PRUNE_HEADER.pack(len(inodes), 0, 0) + struct.pack(f"<{len(inodes)}Q", *inodes)
        self.notify(Notification.PRUNE, payload)

    def notify(self, notification: Notification, payload: bytes = b"") -> None:
        """Any notification. Raises OSError, RuntimeError without a session."""
        self._extension.notify(int(notification), payload)
