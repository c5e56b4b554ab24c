"""Processes in the background: start one and wait until it serves, remember it in a file, know whether it lives, end it.

A process is named by its pid *and* its start time, so that a pid that was used again is not mistaken for it.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import fsd
from fsd.core.config import ENVIRONMENT_PREFIX
from fsd.core.errors import ConfigurationError, DeadlineExceeded, FsError
from fsd.runtime.process import start_time

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a cluster, as its file under `run/` tells it."""

    role: str
    name: str
    pid: int
    started: int  # clock ticks since boot, /proc/PID/stat
    address: str
    data: str | None
    node: int | None = None
    mountpoint: str | None = None

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started


class ProcessFailed(FsError):
    """A started process ended, or reported an error, before it served. `exit_code` is its own."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def child_environment() -> dict[str, str]:
    """Ours without FSD_* (children get every setting by flag), with this fsd on the path."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ENVIRONMENT_PREFIX) or k == "FSD_DEBUG"}
    root = os.path.dirname(os.path.dirname(os.path.abspath(fsd.__file__)))
    parts = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(parts))
    return environment


def start(arguments: Sequence[str], log: str, timeout_s: float, *, new_session: bool = True) -> tuple[int, str]:
    """Start `fsd ARGUMENTS` in a session of its own, or else it makes one itself; (pid, address) once it serves.

    Raises ProcessFailed with its error line, DeadlineExceeded (it is ended then)."""
    os.makedirs(os.path.dirname(log), exist_ok=True)
    reader, writer = os.pipe()
    try:
        with open(log, "ab") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "fsd.cli", *arguments, "--log", log, "--ready-fd", str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=child_environment(),
                start_new_session=new_session,
                pass_fds=(writer,),
            )
    except OSError as error:
        os.close(reader)
        raise ProcessFailed(f"cannot start {arguments[0]}: {error.strerror}") from None
    finally:
        os.close(writer)
    try:
        return child.pid, _await_ready(child, reader, arguments[0], log, timeout_s)
    except BaseException:
        if child.poll() is None:
            child.kill()
        child.wait()
        raise
    finally:
        os.close(reader)


def _await_ready(child: subprocess.Popen[bytes], reader: int, role: str, log: str, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise DeadlineExceeded(f"the {role} did not get ready within {timeout_s:g} s; its log is {log}")
        piece = os.read(reader, 65536)
        if not piece:
            code = child.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ProcessFailed(f"the {role} ended at once ({how}); its log is {log}", max(1, code))
        line += piece
    answer = json.loads(line)
    if "error" in answer:
        raise ProcessFailed(str(answer["error"]), int(answer["code"]))
    return str(answer["ready"])


def stop(process: Process, timeout_s: float) -> bool:
    """SIGTERM, wait, SIGKILL after `timeout_s`. Whether it ended by itself."""
    send(process, signal.SIGTERM)
    return wait(process, timeout_s)


def send(process: Process, number: int) -> None:
    if process.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def wait(process: Process, timeout_s: float) -> bool:
    """Until it has ended; killed after `timeout_s`, and then False."""
    if wait_end(process.pid, process.started, timeout_s):
        return True
    send(process, signal.SIGKILL)
    wait_end(process.pid, process.started, timeout_s)
    return False


def wait_end(pid: int, started: int | None, timeout_s: float) -> bool:
    """Whether the process has ended within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while started is not None and start_time(pid) == started:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # if it is our own child
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


class Registry:
    """The files `run/NAME.json` of one cluster: what was started. A file outlives its process."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def all(self) -> list[Process]:
        """Every remembered process, alive or not, by name."""
        try:
            names = sorted(name for name in os.listdir(self.directory) if name.endswith(".json"))
        except FileNotFoundError:
            return []
        found = [self.read(name.removesuffix(".json")) for name in names]
        return [process for process in found if process is not None]

    def read(self, name: str) -> Process | None:
        try:
            with open(self._path(name), encoding="utf-8") as file:
                return Process(**json.load(file))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise ConfigurationError(f"{self._path(name)} is damaged; remove it if that process is gone") from None

    def write(self, process: Process) -> None:
        os.makedirs(self.directory, exist_ok=True)
        write_json(self._path(process.name), asdict(process))

    def forget(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, f"{name}.json")


def write_json(path: str, document: object) -> None:
    """Replace a small file atomically."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
