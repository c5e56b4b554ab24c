"""A mount that outlives its daemon: the process that holds /dev/fuse and starts daemons on it.

    starting --SERVING of the first daemon--> serving --SIGTERM, unmounted--> ending --the daemon is done--> ended
       |                                      |     ^
       +--FAILED or dead: the mount failed    +-----+ the daemon died: another one, which goes on where it was
                                              |
                                              +--SIGUSR2: ended, but mounted; the descriptor is in systemd's store

Invariants:
- While this process lives (or systemd's store does), the kernel's session lives: with no daemon, requests wait.
- Never do two daemons run on one state directory: the next one is told GO when nothing of the last one runs any more. A daemon
  that was killed while a thread of it waits in the kernel (uninterruptibly, for a page that only a daemon can fill) counts as
  dead: no code of it will run again.
- Only an orderly end unmounts. Bytes that a dead daemon had not written back are written back by another, mounted or not.

It imports neither pyfuse3 nor trio: it must be small, and must not have the bugs of what it watches.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from types import FrameType

from fsd.core.errors import ConfigurationError, FsError, MissingOnHost
from fsd.mount import attach, closed, control, mountinfo, serving
from fsd.mount.attach import MountPlan
from fsd.mount.control import Kind, Link, Word
from fsd.mount.mountinfo import AUTOFS, Mount
from fsd.runtime import notify
from fsd.runtime.process import start_time

log = logging.getLogger(__name__)

STORED = "fuse"  # the descriptor's name in systemd's store
LOOK_S = 0.5  # how often a daemon is looked at whose death nobody tells
# Before daemon after daemon that died young. Far below a session's time to live (10 s): the next one must find it alive.
BACK_OFF_S = (0.0, 0.1, 0.2, 0.5, 1.0)
YOUNG_S = 1.0
SUSPEND_S = 10.0  # for handlers under way, before the old daemon of a hand-over is killed
SILENT_S = 2.0  # under a watchdog: a daemon that said nothing for that long, or for the time given if longer, is killed
MAX_DRAINS = 10  # daemons in a row that die while they write back what was left
KILLED = 128


class MountFailed(FsError):
    """No daemon ever served. `exit_code` is the daemon's own."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Plan:
    """`command` starts a daemon; the number of its end of the link is appended."""

    mount: MountPlan
    command: Sequence[str]
    environment: dict[str, str]
    new_session: bool = False  # leave the starter's session once mounted
    watchdog_s: float = 0.0  # 0: none
    fail_closed: bool = True  # closed.py


@dataclass(slots=True)
class Daemon:
    process: subprocess.Popen[bytes]
    link: Link
    started: int
    heard_at: float
    told_go: bool = False
    connected: bool = False
    serving_since: float | None = None
    suspended: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_dead(self) -> bool:
        """Also if threads of it linger in the kernel, which `wait` would wait for."""
        return self.process.poll() is not None or start_time(self.pid) != self.started

    @property
    def exit_code(self) -> int:
        code = self.process.poll()
        return KILLED + signal.SIGKILL if code is None else code if code >= 0 else KILLED - code


class Supervisor:
    """`run` until the mount has ended. `ready` is called once, with what is mounted."""

    def __init__(self, plan: Plan, ready: Callable[[str], None], adopted_fd: int | None = None) -> None:
        self._plan = plan
        self._ready = ready
        self._fuse = adopted_fd
        self._mount: Mount | None = None
        self._state = ""
        self._selector = selectors.DefaultSelector()
        self._daemon: Daemon | None = None
        self._successor: Daemon | None = None  # warm, waits for the end of `_daemon`
        self._asked_by: list[Link] = []  # who waits for the end of an upgrade
        self._lingering: list[subprocess.Popen[bytes]] = []
        self._start_at: float | None = None  # no daemon: when to start one
        self._absent_since = 0.0
        self._young_deaths = 0
        self._drains = 0
        self._suspend_until: float | None = None
        self._was_ready = False
        self._stopping = False
        self._leaving = False  # SIGUSR2
        self._failure: tuple[str, int] | None = None
        self._exit_code: int | None = None

    def run(self) -> int:
        """The exit code. Raises MountFailed, MissingOnHost, ConfigurationError if it never was mounted."""
        if self._fuse is None:
            attach.check_device()
            self._state = serving.make_state_directory()
        else:
            self._adopt(self._fuse)
        with self._signals():
            try:
                self._commands = control.listen(os.path.join(self._state, serving.CONTROL))
                self._selector.register(self._commands, selectors.EVENT_READ, self._accept)
                self._daemon = self._start()
                while self._exit_code is None:
                    self._turn()
            finally:
                self._clean_up()
        if self._failure is not None:
            raise MountFailed(*self._failure)
        return self._exit_code

    def _adopt(self, fd: int) -> None:
        """Go on with a mount whose supervisor has gone."""
        os.set_inheritable(fd, False)
        self._mount = mountinfo.mounted_at(self._plan.mount.mountpoint)
        told = serving.of(self._mount) if self._mount is not None else None
        if told is None or not os.path.isfile(os.path.join(told.state, serving.INIT)):
            raise MissingOnHost(f"the state of the mount on {self._plan.mount.mountpoint} is gone: unmount it first")
        self._state = told.state
        self._was_ready = True
        log.info("took over %s on %s", told.source, told.mountpoint)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._patience_s()):
            key.data()
        notify.feed_watchdog()
        self._lingering = [process for process in self._lingering if process.poll() is None]
        now = time.monotonic()
        if self._suspend_until is not None and now >= self._suspend_until:
            self._suspend_until = None
            self._kill_daemon("did not finish its requests in time")
        watchdog_s = self._plan.watchdog_s
        daemon = self._daemon
        if (
            daemon is not None
            and watchdog_s
            and daemon.serving_since
            and now - daemon.heard_at > max(watchdog_s, SILENT_S)
        ):
            daemon.heard_at = now
            self._kill_daemon("stands still")
        if self._successor is not None and self._successor.is_dead:
            self._drop_successor()
        if self._daemon is not None and self._daemon.is_dead:
            self._daemon_ended(self._daemon)
        if self._start_at is not None and now >= self._start_at:
            self._start_at = None
            self._daemon = self._start()

    def _patience_s(self) -> float:
        if self._start_at is not None:
            return max(0.0, min(LOOK_S, self._start_at - time.monotonic()))
        return LOOK_S

    @contextlib.contextmanager
    def _signals(self) -> Generator[None]:
        reader, writer = socket.socketpair()
        with reader, writer:
            reader.setblocking(False)
            writer.setblocking(False)

            def wake() -> None:
                with contextlib.suppress(BlockingIOError):
                    for number in reader.recv(4096):
                        self._on_signal(number)

            numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
            before = {number: signal.signal(number, _ignore) for number in numbers}
            previous = signal.set_wakeup_fd(writer.fileno())
            self._selector.register(reader, selectors.EVENT_READ, wake)
            try:
                yield
            finally:
                signal.set_wakeup_fd(previous)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _on_signal(self, number: int) -> None:
        match number:
            case signal.SIGTERM | signal.SIGINT:
                self._stop(number)
            case signal.SIGUSR2:
                self._leave()
            case signal.SIGUSR1 | signal.SIGHUP:
                self._signal_daemon(number)
            case _:
                pass  # SIGCHLD: the loop looks at the daemon anyhow

    # --- daemons ------------------------------------------------------------------------------------------------------

    def _start(self) -> Daemon:
        ours, theirs = control.pair()
        try:
            process = subprocess.Popen(
                [*self._plan.command, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=self._plan.environment,
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for us
            )
        except OSError as error:
            raise MissingOnHost(f"cannot start a daemon: {error.strerror}") from None
        finally:
            theirs.close()
        daemon = Daemon(process, ours, start_time(process.pid) or 0, time.monotonic())
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._listen_to(daemon))
        return daemon

    def _listen_to(self, daemon: Daemon) -> None:
        try:
            heard = daemon.link.hear()
        except BlockingIOError:
            return
        if heard is None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(daemon.link)
            return
        daemon.heard_at = time.monotonic()
        self._on_word(daemon, heard[0])

    def _on_word(self, daemon: Daemon, word: Word) -> None:
        match word.kind:
            case Kind.WARM:
                if daemon is self._daemon:
                    self._go(daemon)
                else:
                    self._suspend_daemon()
            case Kind.CONNECTED:
                daemon.connected = True
                self._give_device(daemon)
            case Kind.SERVING:
                self._on_serving(daemon)
            case Kind.SUSPENDED:
                daemon.suspended = True
            case Kind.FAILED:
                if not self._was_ready:
                    self._failure = (word.text, word.code)
                elif word.text:
                    log.error("the daemon cannot serve: %s", word.text)
            case _:
                pass  # ALIVE and the like: that it spoke is enough

    def _go(self, daemon: Daemon) -> None:
        """From here on the state directory is this daemon's."""
        assert not daemon.told_go
        daemon.told_go = True
        daemon.link.say(Word(Kind.GO, self._state, code=int(self._was_ready)))

    def _give_device(self, daemon: Daemon) -> None:
        if self._fuse is None and not self._was_ready and not self._stopping:
            try:
                self._fuse = self._attach()
            except FsError as error:
                self._failure = (str(error), error.exit_code if isinstance(error, MountFailed) else 3)
                daemon.process.kill()
                return
            self._mount = mountinfo.mounted_at(self._plan.mount.mountpoint)
            notify.store(self._fuse, STORED)
            if self._plan.new_session:
                os.setsid()
        if self._fuse is None or not attach.is_alive(self._fuse):
            daemon.link.say(Word(Kind.DRAIN))
        else:
            daemon.link.say(Word(Kind.DEVICE, self._mount.device if self._mount is not None else ""), self._fuse)

    def _attach(self) -> int:
        """Mount, and close the directory below (unless it is systemd's, which mounts on demand)."""
        where = self._plan.mount.mountpoint
        below = mountinfo.mounted_at(where)
        if not self._plan.fail_closed or (below is not None and below.kind == AUTOFS):
            return attach.attach(self._plan.mount)
        try:
            with closed.closing(where) as done:
                fd = attach.attach(self._plan.mount)
        except OSError as error:
            raise ConfigurationError(f"cannot use the mount point {where}: {error.strerror}") from None
        if not done[0]:
            log.info("%s cannot be made to refuse writes while nothing is mounted there", where)
        return fd

    def _on_serving(self, daemon: Daemon) -> None:
        now = daemon.serving_since = time.monotonic()
        self._remember()
        notify.notify("READY=1", f"STATUS=daemon {daemon.pid} serves {self._where}")
        if not self._was_ready:
            self._was_ready = True
            log.info("mounted %s on %s", self._plan.mount.source, self._plan.mount.mountpoint)
            self._ready(self._plan.mount.source)
        elif self._absent_since:
            log.info(
                "daemon %d serves %s after %.2f s", daemon.pid, self._plan.mount.mountpoint, now - self._absent_since
            )
        for link in self._asked_by:
            link.say(Word(Kind.DONE, str(daemon.pid), seconds=now - self._absent_since))
            self._hang_up(link)
        self._asked_by.clear()
        self._absent_since = 0.0
        if self._stopping:
            self._signal_daemon(signal.SIGTERM)

    def _daemon_ended(self, daemon: Daemon) -> None:
        self._let_go(daemon)
        self._daemon = None
        self._suspend_until = None
        mounted = self._fuse is not None and attach.is_alive(self._fuse)
        code = daemon.exit_code
        if self._leaving:
            self._exit_code = 0
        elif not self._was_ready:
            self._failure = self._failure or (f"the mount's daemon ended at once ({_how(code)})", max(1, code))
            self._exit_code = code
        elif self._successor is not None:
            self._absent_since = time.monotonic()
            self._daemon, self._successor = self._successor, None
            self._go(self._daemon)
        elif code == 0 and not daemon.suspended and (self._stopping or not mounted):
            self._exit_code = 0
        else:
            self._restart(daemon, mounted, code)

    def _restart(self, daemon: Daemon, mounted: bool, code: int) -> None:
        now = time.monotonic()
        self._absent_since = self._absent_since or now
        lived_s = now - daemon.serving_since if daemon.serving_since is not None else 0.0
        self._young_deaths = self._young_deaths + 1 if lived_s < YOUNG_S else 0
        if mounted and not os.path.exists(os.path.join(self._state, serving.INIT)):
            log.error(
                "daemon %d of %s ended (%s), and no other can go on: no companion extension",
                daemon.pid,
                self._where,
                _how(code),
            )
            self._unmount()
            self._exit_code = max(1, code)
            return
        if not mounted:
            self._drains += 1
            if self._drains > MAX_DRAINS:
                log.error("%s is unmounted, but not all is written back; it is in %s", self._where, self._state)
                self._exit_code = max(1, code)
                return
        wait_s = BACK_OFF_S[min(self._young_deaths, len(BACK_OFF_S) - 1)]
        what = "requests wait" if mounted else "what is not written back yet waits"
        log.warning("daemon %d of %s ended (%s): %s; another one starts", daemon.pid, self._where, _how(code), what)
        notify.notify(f"STATUS=no daemon ({_how(code)}): {what}")
        self._start_at = now + wait_s
        self._remember()

    def _let_go(self, daemon: Daemon) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(daemon.link)
        daemon.link.close()
        if daemon.process.poll() is None:
            self._lingering.append(daemon.process)

    def _kill_daemon(self, why: str) -> None:
        if self._daemon is not None and not self._daemon.is_dead:
            log.warning("daemon %d of %s %s: killed", self._daemon.pid, self._where, why)
            self._daemon.process.kill()

    def _signal_daemon(self, number: int) -> None:
        if self._daemon is not None and self._daemon.serving_since is not None and not self._daemon.is_dead:
            self._daemon.process.send_signal(number)

    # --- hand-over ----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._commands.accept()
        except OSError:
            return  # it has gone again
        sock.setblocking(False)
        link = Link(sock)
        self._selector.register(link, selectors.EVENT_READ, lambda: self._obey(link))

    def _obey(self, link: Link) -> None:
        try:
            heard = link.hear()
        except BlockingIOError:
            return
        if heard is None:
            if link in self._asked_by:
                self._asked_by.remove(link)
            self._hang_up(link)
        elif heard[0].kind is not Kind.UPGRADE:
            self._refuse(link, f"unknown command {heard[0].kind}")
        else:
            self._upgrade(link)

    def _upgrade(self, link: Link) -> None:
        """The next daemon is started first, so that nothing but the change itself takes time in between."""
        if self._stopping or self._leaving or self._successor is not None:
            self._refuse(link, "the mount is ending, or another upgrade is under way")
            return
        self._asked_by.append(link)
        if self._daemon is not None and self._daemon.serving_since is not None:
            self._successor = self._start()

    def _suspend_daemon(self) -> None:
        if self._daemon is not None:
            log.info("daemon %d of %s hands over", self._daemon.pid, self._where)
            self._daemon.link.say(Word(Kind.SUSPEND))
            self._suspend_until = time.monotonic() + SUSPEND_S

    def _drop_successor(self) -> None:
        assert self._successor is not None
        code = self._successor.exit_code
        self._let_go(self._successor)
        self._successor = None
        for link in self._asked_by:
            self._refuse(link, f"the new daemon does not start ({_how(code)}); the old one goes on")
        self._asked_by.clear()

    def _refuse(self, link: Link, why: str) -> None:
        link.say(Word(Kind.FAILED, why, 1))
        self._hang_up(link)

    def _hang_up(self, link: Link) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(link)
        link.close()

    # --- the end ------------------------------------------------------------------------------------------------------

    def _stop(self, number: int) -> None:
        """Unmount; the daemon goes on for those that are at it, writes everything back and ends."""
        if self._stopping:
            return
        self._stopping = True
        notify.notify("STOPPING=1")
        log.info("%s: unmounting %s", signal.Signals(number).name, self._where)
        if self._successor is not None:
            self._successor.process.kill()
        if self._mount is not None:
            self._unmount()
        if not self._was_ready and self._daemon is not None:
            self._failure = (f"stopped by {signal.Signals(number).name} before it was mounted", KILLED + number)
            self._daemon.process.kill()
        self._signal_daemon(signal.SIGTERM)

    def _unmount(self) -> None:
        now = None if self._mount is None else mountinfo.mounted_at(self._mount.mountpoint)
        if now is None or self._mount is None or now.device != self._mount.device:
            return  # unmounted already, or something is mounted over it
        try:
            mountinfo.detach(self._mount.mountpoint)
        except FsError as error:
            log.warning("%s", error)

    def _leave(self) -> None:
        """End without unmounting: the descriptor is in systemd's store, and a successor of ours takes it."""
        self._leaving = True
        if self._daemon is None:
            self._exit_code = 0
        else:
            self._suspend_daemon()

    def _clean_up(self) -> None:
        self._selector.close()
        for daemon in (self._daemon, self._successor):
            if daemon is not None and not daemon.is_dead:
                daemon.process.kill()
        if self._leaving:
            return
        if self._fuse is not None and not attach.is_alive(self._fuse):
            self._unmount()  # umount -f has cut it off, but somebody has files open there: nobody else shall come in
        if self._exit_code == 0 or not self._was_ready:
            if self._fuse is not None:
                self._unmount_what_failed()
            serving.remove_state_directory(self._state)
        notify.discard(STORED)
        if self._mount is not None:
            serving.forget(self._mount)

    def _unmount_what_failed(self) -> None:
        assert self._fuse is not None
        if self._mount is not None and not self._was_ready:
            self._unmount()
        os.close(self._fuse)

    def _remember(self) -> None:
        if self._mount is None:
            return
        daemon = None
        if self._daemon is not None:
            daemon = serving.Process(self._daemon.pid, self._daemon.started)
        own = serving.process(os.getpid())
        assert own is not None
        told = serving.Serving(self._mount.mountpoint, self._mount.source, own, daemon, self._state)
        serving.remember(self._mount, told)

    @property
    def _where(self) -> str:
        return self._plan.mount.mountpoint


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor tells of it."""


def _how(code: int) -> str:
    """An exit code for people."""
    if code <= KILLED:
        return f"exit code {code}"
    try:
        return signal.Signals(code - KILLED).name
    except ValueError:
        return f"exit code {code}"
