"""One mount from beginning to end: checks, session, FUSE main loop, signals, write-back, unmount."""

import contextlib
import errno
import json
import logging
import math
import os
import signal
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass

import pyfuse3
import trio

from fsd import __version__
from fsd.client.filesystem import open_filesystem
from fsd.core.errors import ConnectionRefused, DeadlineExceeded, FsError, MissingOnHost
from fsd.mount import mountinfo
from fsd.mount.companion import Companion, InitFlag, SessionInfo, SessionSettings
from fsd.mount.companion import load as load_companion
from fsd.mount.extras import Extras
from fsd.mount.instant import Instant
from fsd.mount.notify import Notifier
from fsd.mount.operations import Operations
from fsd.mount.options import MountOptions, SessionOptions
from fsd.rpc.client import ChannelPool
from fsd.runtime import Runtime
from fsd.wire.handshake import Hello

log = logging.getLogger(__name__)

MAX_HANDLERS = 1000  # requests at once; more wait in the kernel
IDLE_HANDLERS = 8
DRAIN_TIMEOUT_S = 5.0  # after SIGTERM, for processes that still have files open
WRITE_BACK_TIMEOUT_S = 60.0  # after the unmount


@dataclass(frozen=True, slots=True)
class MountRequest:
    metadata: tuple[str, ...]
    volume: str
    mountpoint: str
    options: MountOptions
    connect_timeout_s: float

    @property
    def source(self) -> str:
        """As in /proc/mounts and df."""
        return f"{','.join(self.metadata)}:/{self.volume}"


async def run_mount(runtime: Runtime, request: MountRequest, ready: Callable[[str], None]) -> None:
    """Mount, serve until unmounted or told to stop, write everything back. Raises FsError if it cannot mount."""
    check_fuse_device()
    mountinfo.check_free(request.mountpoint)
    await check_metadata_server(runtime, request.metadata)
    client = request.options.client
    operations = Operations(None if client.hard else client.timeout_s)
    notifier = Notifier(operations.is_busy)
    with trio.CancelScope(deadline=trio.current_time() + request.connect_timeout_s) as scope:
        async with open_filesystem(runtime, request.metadata, request.volume, client, notifier) as fs:
            scope.deadline = math.inf
            operations.attach(fs)
            await _serve(request, operations, notifier, ready)
            scope.deadline = trio.current_time() + WRITE_BACK_TIMEOUT_S
            log.info("unmounted %s; writing back", request.mountpoint)
    if scope.cancelled_caught:
        _explain_timeout(request, operations)
    log.info("everything is written back")


async def check_metadata_server(runtime: Runtime, addresses: tuple[str, ...]) -> None:
    """Raises ConnectionRefused if nobody listens at any address: then waiting for an answer makes no sense."""

    def hello() -> Hello:
        return Hello(role="cli", name=os.uname().nodename, version=__version__)

    async with trio.open_nursery() as nursery:
        pool = ChannelPool(runtime, nursery, hello)
        refused = 0
        for address in addresses:
            try:
                await pool.to(address).peer()
                break
            except ConnectionRefused:
                refused += 1
            except FsError:  # the session's own connection will meet it again, and tells it better
                break
        pool.close()
        nursery.cancel_scope.cancel()
    if refused == len(addresses):
        where = ", ".join(addresses)
        raise ConnectionRefused(f"cannot reach the metadata server at {where}: nobody listens there")


def _explain_timeout(request: MountRequest, operations: Operations) -> None:
    where = ", ".join(request.metadata)
    if not operations.attached:
        raise DeadlineExceeded(
            f"cannot mount {request.source}: no answer from {where} in {request.connect_timeout_s:g} s"
        )
    raise DeadlineExceeded(
        f"unmounted {request.mountpoint}, but not all was written back in {WRITE_BACK_TIMEOUT_S:g} s: lost"
    )


async def _serve(
    request: MountRequest, operations: Operations, notifier: Notifier, ready: Callable[[str], None]
) -> None:
    companion = load_companion() if request.options.session.companion else None
    if companion is not None:
        operations.extras = Extras(companion, operations)
        settings = session_settings(request.options.session)
        companion.install(operations.extras, settings, _log_session, Instant(operations))
    with _explained_by_stderr(request.mountpoint):
        pyfuse3.init(operations, request.mountpoint, fuse_options(request))
    mount: mountinfo.Mount | None = None
    try:
        notifier.mounted()
        operations.names_may_be_cached = notifier.names_may_be_cached
        mount = mountinfo.mounted_at(request.mountpoint)
        if mount is not None:
            mountinfo.remember_daemon(mount)
        async with trio.open_nursery() as nursery:
            await nursery.start(_stop_on_signal, request.mountpoint)
            await nursery.start(_tell_on_signal, operations, companion)
            log.info("mounted %s on %s, pid %d", request.source, request.mountpoint, os.getpid())
            nursery.start_soon(_announce, request, mount, ready)
            await (pyfuse3.main if companion is None else companion.main)(IDLE_HANDLERS, MAX_HANDLERS)
            nursery.cancel_scope.cancel()
    finally:
        notifier.unmounted()
        pyfuse3.close(unmount=True)
        if mount is not None:
            mountinfo.forget_daemon(mount)


def session_settings(options: SessionOptions) -> SessionSettings:
    flags, cleared = SessionSettings().set_flags, SessionSettings().clear_flags
    if not options.parallel_dirops:
        flags &= ~InitFlag.PARALLEL_DIROPS
    if not options.explicit_invalidation:
        flags, cleared = flags & ~InitFlag.EXPLICIT_INVAL_DATA, cleared & ~InitFlag.AUTO_INVAL_DATA
    return SessionSettings(
        set_flags=flags,
        clear_flags=cleared,
        kill_privileges=options.kill_privileges,
        max_background=options.max_background,
    )


async def _tell_on_signal(
    operations: Operations, companion: Companion | None, *, task_status: trio.TaskStatus[None]
) -> None:
    """SIGUSR1: one line in the log with what was asked of us and of the servers so far."""
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        task_status.started()
        async for _ in signals:
            asked = companion.request_counts() if companion is not None else {}
            figures = {"kernel": asked, "client": dict(operations.fs.statistics())}
            log.info("statistics %s", json.dumps(figures, sort_keys=True))


def _log_session(info: SessionInfo) -> None:
    log.debug(
        "FUSE session: libfuse %s, flags %#x of %#x, max_write %d, max_background %d",
        info.libfuse, info.agreed, info.offered, info.max_write, info.max_background,
    )  # fmt: skip


async def _announce(request: MountRequest, mount: mountinfo.Mount | None, ready: Callable[[str], None]) -> None:
    """Ready means that a request was answered, not only that the mount is in the table."""
    await trio.to_thread.run_sync(os.stat, request.mountpoint, abandon_on_cancel=True)
    if mount is not None:
        _set_read_ahead(mount, request.options.kernel_read_ahead_kib)  # not before INIT, which would lower it again
    ready(request.source)


async def _stop_on_signal(mountpoint: str, *, task_status: trio.TaskStatus[None]) -> None:
    """SIGTERM, SIGINT: detach, so that nothing new begins; go on serving those that are at it for a while, then end."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number != signal.SIGHUP:
                log.info("%s: unmounting %s", signal.Signals(number).name, mountpoint)
                break
        with trio.move_on_after(DRAIN_TIMEOUT_S):
            await trio.to_thread.run_sync(_detach, mountpoint, abandon_on_cancel=True)
            await trio.sleep_forever()  # the main loop ends when the last file is closed, and cancels this task
        log.warning("%s is still in use: ending all the same", mountpoint)
        pyfuse3.terminate()
        await trio.sleep_forever()


def _detach(mountpoint: str) -> None:
    try:
        mountinfo.detach(mountpoint)
    except Exception as error:
        log.warning("cannot unmount %s: %s", mountpoint, error)


def fuse_options(request: MountRequest) -> set[str]:
    """For libfuse. `default_permissions`: the kernel checks modes and owners, from attributes that leases keep true."""
    allow_other = request.options.allow_other
    if allow_other is None:
        allow_other = os.geteuid() == 0
    source = request.source.replace("\\", "\\\\").replace(",", "\\,")
    options = {"default_permissions", f"fsname={source}", "subtype=fsd", *request.options.kernel}
    if allow_other:
        options.add("allow_other")
    return options


def check_fuse_device() -> None:
    """Raises MissingOnHost with what to do if /dev/fuse cannot be used."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ENOENT:
            hint = "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
            raise MissingOnHost(f"/dev/fuse is missing on this machine ({hint})") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = "run as root or chmod 666 /dev/fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
            raise MissingOnHost(f"/dev/fuse may not be opened by this user ({hint})") from None
        raise MissingOnHost(f"/dev/fuse cannot be used: {error.strerror} (modprobe fuse)") from None


def _set_read_ahead(mount: mountinfo.Mount, kib: int) -> None:
    """Larger reads than 128 KiB need the mount's own setting; only root may."""
    try:
        with open(f"/sys/class/bdi/{mount.device}/read_ahead_kb", "w", encoding="ascii") as file:
            file.write(str(kib))
    except OSError as error:
        log.debug("read_ahead_kb stays as it is: %s", error.strerror)


@contextlib.contextmanager
def _explained_by_stderr(mountpoint: str) -> Generator[None]:
    """libfuse and fusermount3 say on stderr why they cannot mount; make that the error's text."""
    with tempfile.TemporaryFile() as said:
        saved = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except RuntimeError as error:
            said.seek(0)
            text = " ".join(said.read().decode(errors="replace").split()) or str(error)
            raise MissingOnHost(f"cannot mount on {mountpoint}: {text}") from None
        finally:
            os.dup2(saved, 2)
            os.close(saved)
