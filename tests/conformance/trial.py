"""What a case works with: checks that count, users to act as, objects to act on.

Every case runs in a fresh directory, which is the current one, so that paths are relative and parents' modes do not matter.
"""

import contextlib
import errno
import faulthandler
import os
import signal
import socket
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

KINDS = ("file", "dir", "fifo", "block", "char", "socket", "symlink")
FILES = ("file", "fifo", "block", "char", "socket")  # neither directory nor link
TICK_S = 0.012  # longer than the coarsest clock of a time stamp
CHILD_S = 20

Case = Callable[["Trial"], None]
CASES: dict[str, dict[str, Case]] = {}


def case(category: str, *variants: str):
    """Register a case; with variants it is called once for each: case(t, variant)."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        table = CASES.setdefault(category, {})
        if not variants:
            table[function.__name__] = function
        for variant in variants:
            table[f"{function.__name__}[{variant}]"] = lambda t, variant=variant: function(t, variant)
        return function

    return register


@dataclass
class Trial:
    """One case's record."""

    name: str
    passed: int = 0
    failures: list[str] = field(default_factory=list)

    def _note(self, good: bool, text: str) -> bool:
        if good:
            self.passed += 1
        else:
            frame = next(f for f in reversed(traceback.extract_stack()) if not f.filename.endswith("trial.py"))
            self.failures.append(f"{self.name}: line {frame.lineno}: {text}")
        return good

    def true(self, good: object, text: str = "") -> bool:
        return self._note(bool(good), text or "not so")

    def same(self, got: object, wanted: object, text: str = "") -> bool:
        shown = f"{_short(got)} instead of {_short(wanted)}"
        return self._note(got == wanted, f"{text}: {shown}" if text else shown)

    def refuses(self, number: int | tuple[int, ...], call: Callable, *args, **kwargs) -> bool:
        """The call ends with this errno (one of them)."""
        numbers = (number,) if isinstance(number, int) else number
        wanted = "/".join(errno.errorcode[n] for n in numbers)
        shown = f"{getattr(call, '__name__', call)}({', '.join(map(_short, args))})"
        try:
            got = call(*args, **kwargs)
        except OSError as error:
            number_got = error.errno or 0
            name = errno.errorcode.get(number_got, str(error))
            return self._note(number_got in numbers, f"{shown}: {name} instead of {wanted}")
        if isinstance(got, int) and call in (os.open,):
            os.close(got)
        return self._note(False, f"{shown}: was allowed, should be {wanted}")

    def allows(self, call: Callable, *args, **kwargs):
        """The call works; what it returns."""
        shown = f"{getattr(call, '__name__', call)}({', '.join(map(_short, args))})"
        try:
            got = call(*args, **kwargs)
        except OSError as error:
            self._note(False, f"{shown}: {errno.errorcode.get(error.errno or 0, str(error))}")
            return None
        self._note(True, shown)
        return got

    # --- who ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def user(self, uid: int, gid: int, *groups: int) -> Iterator[None]:
        """As another user, without capabilities."""
        saved = os.getgroups()
        os.setgroups(list(groups))
        os.setegid(gid)
        os.seteuid(uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(saved)

    def child(self, work: Callable[[], object]) -> int:
        """What `work` returns in another process (a number below 250), 0 for None; errno plus nothing else on OSError."""
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            status = 255
            faulthandler.disable()  # a child may be meant to die
            try:
                signal.alarm(CHILD_S)
                try:
                    status = int(work() or 0)  # type: ignore[call-overload]
                except OSError as error:
                    status = error.errno or 254
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    # --- what ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """So that a later time stamp is a later one."""
        time.sleep(TICK_S)


def make(kind: str, name: str, mode: int = 0o644) -> None:
    match kind:
        case "file":
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        case "dir":
            os.mkdir(name, mode)
        case "fifo":
            os.mkfifo(name, mode)
        case "block":
            os.mknod(name, stat.S_IFBLK | mode, os.makedev(1, 2))
        case "char":
            os.mknod(name, stat.S_IFCHR | mode, os.makedev(1, 3))
        case "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(name)
            os.chmod(name, mode)
        case "symlink":
            os.symlink("target-of-" + os.path.basename(name), name)
        case _:
            raise AssertionError(kind)


def remove(kind: str, name: str) -> None:
    (os.rmdir if kind == "dir" else os.unlink)(name)


def write(name: str, data: bytes = b"", mode: int = 0o644) -> None:
    fd = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def read(name: str) -> bytes:
    with open(name, "rb", buffering=0) as file:
        return file.read()


@contextlib.contextmanager
def opened(name: str, flags: int = os.O_RDWR | os.O_CREAT, mode: int = 0o644) -> Iterator[int]:
    fd = os.open(name, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def mode_of(name: str) -> int:
    return stat.S_IMODE(os.lstat(name).st_mode)


def times(name: str) -> tuple[int, int, int]:
    found = os.lstat(name)
    return found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}...({len(text)})"
