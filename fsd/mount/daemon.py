"""One daemon of a mount: session with the cluster, FUSE main loop, signals, write-back.

It is started by a supervisor (supervisor.py), which holds /dev/fuse and gives it to one daemon after another. The first
answers the kernel's INIT and leaves what was agreed in the state directory; each later one has it replayed, resumes the
client's session and asks the kernel to send again what its predecessor had read and not answered.
"""

import json
import logging
import math
import os
import signal
from dataclasses import dataclass

import pyfuse3
import trio

from fsd import __version__
from fsd.client.filesystem import FileSystem, open_filesystem
from fsd.core.errors import ConnectionRefused, DeadlineExceeded, FsError, NotSupported, WriteLost
from fsd.mount import metrics, mountinfo, serving
from fsd.mount.companion import Companion, InitFlag, SessionInfo, SessionSettings
from fsd.mount.companion import load as load_companion
from fsd.mount.control import Kind
from fsd.mount.extras import Extras
from fsd.mount.givenup import GivenUp
from fsd.mount.instant import Instant
from fsd.mount.notify import Notifier
from fsd.mount.operations import Operations
from fsd.mount.options import MountOptions, SessionOptions
from fsd.mount.supervised import Device, Supervisor
from fsd.rpc.client import ChannelPool
from fsd.runtime import Runtime
from fsd.runtime.localstate import LocalState
from fsd.wire.handshake import Hello

log = logging.getLogger(__name__)

MAX_HANDLERS = 1000  # requests at once; more wait in the kernel
IDLE_HANDLERS = 8
DRAIN_TIMEOUT_S = 5.0  # after SIGTERM, for processes that still have files open
ALIVE_S = 1.0  # how often the supervisor hears of us
WRITE_BACK_TIMEOUT_S = 60.0  # after the unmount


@dataclass(frozen=True, slots=True)
class MountRequest:
    metadata: tuple[str, ...]
    volume: str
    mountpoint: str
    options: MountOptions
    connect_timeout_s: float
    wait: bool = False  # also while nobody listens there
    http: str = "off"  # or where health and metrics are shown

    @property
    def source(self) -> str:
        """As in /proc/mounts and df."""
        return f"{','.join(self.metadata)}:/{self.volume}"


async def run_daemon(runtime: Runtime, request: MountRequest, supervisor: Supervisor) -> None:
    """Serve until unmounted or told to stop, and write everything back; or until another daemon is to go on.

    Raises FsError if it cannot serve."""
    await supervisor.say(Kind.WARM)
    go = await supervisor.told(Kind.GO)
    later = bool(go.code)
    if not later and not request.wait:
        await check_metadata_server(runtime, request.metadata)
    client = request.options.client
    operations = Operations(None if client.hard else client.timeout_s)
    notifier = Notifier(operations.is_busy)
    patience_s = math.inf if later else request.connect_timeout_s
    suspended = False
    served: FileSystem | None = None
    with trio.CancelScope(deadline=trio.current_time() + patience_s) as scope:
        left = LocalState(os.path.join(go.text, serving.CLIENT))
        async with open_filesystem(runtime, request.metadata, request.volume, client, notifier, left) as fs:
            scope.deadline = math.inf
            served = fs
            operations.attach(fs)
            await supervisor.say(Kind.CONNECTED)
            device = await supervisor.device()
            if device is not None:
                suspended = await _serve(request, operations, notifier, supervisor, device, go.text, later)
            if suspended:
                await fs.suspend()
            else:
                await supervisor.say(Kind.UNMOUNTED)
                scope.deadline = trio.current_time() + WRITE_BACK_TIMEOUT_S
                log.info("unmounted %s; writing back", request.mountpoint)
    if scope.cancelled_caught:
        _explain_timeout(request, operations)
    if suspended:
        log.info("suspended: another daemon goes on")
        await supervisor.say(Kind.SUSPENDED)
        logging.shutdown()
        os._exit(0)  # requests that wait for locks are not answered: the kernel sends them to the next daemon
    if served is not None and not served.all_written:
        raise WriteLost(f"unmounted {request.mountpoint}, but not everything could be written back: see above")
    log.info("everything is written back")
    await supervisor.say(Kind.DONE)


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
    request: MountRequest,
    operations: Operations,
    notifier: Notifier,
    supervisor: Supervisor,
    device: Device,
    state: str,
    later: bool,
) -> bool:
    """Whether it ended because another daemon is to go on."""
    companion = load_companion() if request.options.session.companion else None
    started = trio.Event()
    if companion is not None:
        operations.extras = Extras(companion, operations)
        operations.call_number = companion.call_number
        companion.install(
            operations.extras,
            session_settings(request.options.session),
            lambda info: _agreed(companion, info, state, started),
            Instant(operations),
        )
        if later:
            companion.resume(_read_init(state))
    elif later:
        raise NotSupported("without the companion extension a mount does not outlive its daemon")
    pyfuse3.init(operations, f"/dev/fd/{device.fd}", {f"fsname={request.source}"})
    suspend = Suspension()
    try:
        notifier.mounted()
        operations.names_may_be_cached = notifier.names_may_be_cached
        async with trio.open_nursery() as nursery:
            await nursery.start(_stop_on_signal, request.mountpoint)
            await nursery.start(_tell_on_signal, operations, companion)
            nursery.start_soon(_obey, supervisor, suspend, companion)
            if request.http != "off":
                asked = companion.request_counts if companion is not None else dict[str, int]
                nursery.start_soon(metrics.show, operations, asked, request.http)
            if companion is not None:
                GivenUp(companion, nursery).install()
            nursery.start_soon(_announce, request, device, supervisor, started)
            if companion is None:
                started.set()
                await pyfuse3.main(IDLE_HANDLERS, MAX_HANDLERS)
            else:
                if later:
                    operations.inherit(notifier.forget_names)
                    nursery.start_soon(_forget_pages, operations, notifier, started)
                    _take_over(companion)
                await companion.main(IDLE_HANDLERS, MAX_HANDLERS)
            nursery.cancel_scope.cancel()
    finally:
        notifier.unmounted()
        if not suspend.begun:
            pyfuse3.close(unmount=False)
    return suspend.begun


@dataclass(slots=True)
class Suspension:
    begun: bool = False


async def _obey(supervisor: Supervisor, suspend: Suspension, companion: Companion | None) -> None:
    """The supervisor says only one thing to a daemon that serves."""
    await supervisor.told(Kind.SUSPEND)
    suspend.begun = True
    if companion is not None:
        companion.abandon()
    pyfuse3.terminate()


async def _forget_pages(operations: Operations, notifier: Notifier, started: trio.Event) -> None:
    await started.wait()  # before INIT is replayed libfuse invalidates nothing
    await operations.forget_pages(notifier.forget_pages)


def _take_over(companion: Companion) -> None:
    """Have the kernel send again what the last daemon had read and left unanswered. Before the first request is read: one that
    this daemon has under way itself would come twice."""
    try:
        companion.resend()
    except OSError as error:
        log.error(
            "this kernel cannot send requests again (%s): those that the last daemon had read hang", error.strerror
        )


def _agreed(companion: Companion, info: SessionInfo, state: str, started: trio.Event) -> None:
    """INIT is answered (or was replayed): leave to the next daemon what it needs of it."""
    _log_session(info)
    path = os.path.join(state, serving.INIT)
    if not os.path.exists(path):
        with open(f"{path}.new", "wb") as file:
            file.write(companion.state())
        os.rename(f"{path}.new", path)
        if InitFlag.HAS_RESEND not in info.offered:
            log.warning(
                "this kernel (before 6.9) cannot send requests again: fsd upgrade works, but requests under way hang "
                "if the daemon is killed"
            )
    started.set()


def _read_init(state: str) -> bytes:
    with open(os.path.join(state, serving.INIT), "rb") as file:
        return file.read()


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


async def _announce(request: MountRequest, device: Device, supervisor: Supervisor, started: trio.Event) -> None:
    """Ready means that INIT was answered, not only that the mount is in the table. Then a sign of life each second.

    The mount point itself is not looked at: under systemd's automount that would wait for mount(8), which waits for us."""
    await started.wait()
    if device.number:
        _set_read_ahead(
            device.number, request.options.kernel_read_ahead_kib
        )  # not before INIT, which would lower it again
    await supervisor.say(Kind.SERVING)
    while True:
        await trio.sleep(ALIVE_S)
        await supervisor.say(Kind.ALIVE)


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
    mount = mountinfo.mounted_at(mountpoint)
    if mount is None or not mount.is_fsd:
        return  # the supervisor has done it
    try:
        mountinfo.detach(mountpoint)
    except Exception as error:
        log.warning("cannot unmount %s: %s", mountpoint, error)


def _set_read_ahead(device: str, kib: int) -> None:
    """Larger reads than 128 KiB need the mount's own setting; only root may."""
    try:
        with open(f"/sys/class/bdi/{device}/read_ahead_kb", "w", encoding="ascii") as file:
            file.write(str(kib))
    except OSError as error:
        log.debug("read_ahead_kb stays as it is: %s", error.strerror)
