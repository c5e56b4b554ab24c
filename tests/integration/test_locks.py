"""Locks across two mounts, by processes of their own: who has one keeps the other mount's processes out."""

import errno
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import eventually, run_fsd

OFD_SETLK, OFD_SETLKW = 37, 38
HOLDER = """
import errno, fcntl, os, signal, struct, sys, time
path, how, wait = sys.argv[1], sys.argv[2], sys.argv[3] == "wait"
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, True)
fd = os.open(path, os.O_RDWR)
def lock():
    if how == "flock":
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    else:
        commands = {"fcntl": (fcntl.F_SETLK, fcntl.F_SETLKW), "ofd": (37, 38)}[how]
        fcntl.fcntl(fd, commands[wait], struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
class Interrupted(Exception): pass
def stop(*_): raise Interrupted
signal.signal(signal.SIGUSR2, stop)
try:
    print("asking", flush=True)
    lock()
    print("held", flush=True)
except Interrupted:
    print("interrupted", flush=True)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
sys.stdin.read()
"""


class Holder:
    """A process that takes a lock of a whole file and keeps it until it is told to end."""

    def __init__(self, path: Path, how: str, wait: bool = False) -> None:
        words = [sys.executable, "-c", HOLDER, str(path), how, "wait" if wait else "try"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.said() == "asking"

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def __enter__(self) -> "Holder":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("how", ["fcntl", "flock", "ofd"])
def test_a_lock_on_one_mount_keeps_the_other_mount_out(a: Path, b: Path, how: str) -> None:
    (a / "f").write_bytes(b"")
    with Holder(a / "f", how) as first:
        assert first.said() == "held"
        with Holder(b / "f", how) as second:
            assert second.said() == "EAGAIN"
        with Holder(b / "f", how, wait=True) as waiter:
            first.process.kill()
            assert waiter.said() == "held"
            with Holder(a / "f", how) as third:
                assert third.said() == "EAGAIN"


def test_getlk_tells_the_holder_on_the_other_mount(a: Path, b: Path) -> None:
    (a / "f").write_bytes(b"x" * 100)
    with open(a / "f", "r+b") as held, open(b / "f", "r+b") as asking:
        fcntl.lockf(held, fcntl.LOCK_EX, 10, 20)
        # one process is one owner on each of the two mounts
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(asking, fcntl.F_GETLK, asked))
        assert (kind, start, length, pid) == (fcntl.F_WRLCK, 20, 10, os.getpid())


def test_a_deadlock_over_two_mounts_is_refused(a: Path, b: Path) -> None:
    (a / "x").write_bytes(b"")
    (a / "y").write_bytes(b"")
    with open(b / "y", "r+b") as y, Holder(a / "x", "fcntl") as other:
        fcntl.lockf(y, fcntl.LOCK_EX)
        assert other.said() == "held"
        script = (
            "import fcntl, sys; x = open(sys.argv[1], 'r+b'); y = open(sys.argv[2], 'r+b'); fcntl.lockf(x, fcntl.LOCK_EX);"
            "print('held', flush=True); fcntl.lockf(y, fcntl.LOCK_EX); print('both', flush=True)"
        )
        other.process.kill()
        words = [sys.executable, "-c", script, str(a / "x"), str(a / "y")]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            eventually(lambda: _sleeps(process.pid), 10)
            with open(b / "x", "r+b") as x:
                with pytest.raises(OSError) as refused:
                    fcntl.lockf(x, fcntl.LOCK_EX)
                assert refused.value.errno == errno.EDEADLK
            fcntl.lockf(y, fcntl.LOCK_UN)
            assert process.stdout.readline() == "both\n"


def _sleeps(pid: int) -> bool:
    """Whether the process waits in a system call of the file system for a while already."""
    first = Path(f"/proc/{pid}/stat").read_text().split()[13:15]
    time.sleep(0.3)
    return Path(f"/proc/{pid}/stat").read_text().split()[13:15] == first


@pytest.mark.parametrize("how", ["fcntl", "flock"])
def test_a_signal_ends_waiting_and_nothing_is_held(a: Path, b: Path, how: str) -> None:
    (a / "f").write_bytes(b"")
    with Holder(a / "f", how) as first, Holder(b / "f", how, wait=True) as waiter:
        assert first.said() == "held"
        eventually(lambda: _sleeps(waiter.process.pid), 10)
        waiter.process.send_signal(signal.SIGUSR2)
        assert waiter.said() == "interrupted"
        first.process.kill()
        with Holder(a / "f", how, wait=True) as third:
            assert third.said() == "held"


def test_a_killed_waiter_is_nobody_in_the_queue(a: Path, b: Path) -> None:
    (a / "f").write_bytes(b"")
    with Holder(a / "f", "fcntl") as first, Holder(b / "f", "fcntl", wait=True) as waiter:
        assert first.said() == "held"
        eventually(lambda: _sleeps(waiter.process.pid), 10)
        waiter.process.kill()
        waiter.process.wait(10)
        first.process.kill()
        with Holder(a / "f", "fcntl", wait=True) as third:
            assert third.said() == "held"


def test_locked_counters_lose_nothing(a: Path, b: Path) -> None:
    (a / "n").write_text("0")
    script = (
        "import fcntl, os, sys\n"
        "for _ in range(60):\n"
        "    with open(sys.argv[1], 'r+') as f:\n"
        "        (fcntl.flock if sys.argv[2] == 'flock' else fcntl.lockf)(f, fcntl.LOCK_EX)\n"
        "        n = int(f.read()); f.seek(0); f.write(str(n + 1)); f.flush()\n"
    )
    for how in ("flock", "fcntl"):
        (a / "n").write_text("0")
        words = [[sys.executable, "-c", script, str(place / "n"), how] for place in (a, b, a, b)]
        processes = [subprocess.Popen(each) for each in words]
        assert [process.wait(60) for process in processes] == [0] * 4
        assert (b / "n").read_text() == "240"


def told(cluster, *words: str) -> dict:  # type: ignore[no-untyped-def]
    return json.loads(cluster.fsd(*words, "--json").stdout)


def test_who_holds_what_is_told_and_a_session_can_be_evicted(cluster, a: Path, b: Path) -> None:  # type: ignore[no-untyped-def]
    (a / "f").write_bytes(b"x" * 100)
    with Holder(a / "f", "fcntl") as first, Holder(b / "f", "fcntl", wait=True) as waiter:
        assert first.said() == "held"
        eventually(lambda: len(told(cluster, "locks", str(a / "f"))["locks"]) == 2, 10)
        held, waits = told(cluster, "locks", str(a / "f"))["locks"]
        assert (held["pid"], held["space"], held["start"], held["end"]) == (first.process.pid, "posix", 0, None)
        assert (waits["pid"], waits["waiting"], held["waiting"]) == (waiter.process.pid, True, False)
        assert held["session"] != waits["session"]
        leases = told(cluster, "leases", str(a / "f"))["leases"]
        assert {row["session"] for row in leases} <= {held["session"], waits["session"]}
        assert f"session {held['session']}" in cluster.fsd("locks", str(a / "f")).stdout
        assert "inode" in cluster.fsd("leases", str(a / "f")).stdout
        cluster_words = ("--data", str(cluster.data))
        sessions = {row["session"]: row for row in told(cluster, "sessions", *cluster_words)["sessions"]}
        assert sessions[held["session"]]["locks"] >= 1
        assert sessions[held["session"]]["age_s"] >= held["age_s"]
        refused = run_fsd("evict", str(held["session"]), *cluster_words)
        assert refused.returncode != 0
        assert "is lost" in refused.stderr
        assert "--yes" in refused.stderr
        assert told(cluster, "evict", str(held["session"]), "--yes", *cluster_words)["evicted"]
        assert waiter.said() == "held"
    assert (a / "f").read_bytes() == b"x" * 100  # the mount goes on
    assert "there is no session" in run_fsd("evict", "999999", *cluster_words).stderr


def test_the_locks_of_a_killed_mount_are_free_after_its_eviction(cluster, a: Path, b: Path) -> None:  # type: ignore[no-untyped-def]
    (a / "f").write_bytes(b"")
    with Holder(a / "f", "fcntl") as first:
        assert first.said() == "held"
        with Holder(b / "f", "fcntl") as second:
            assert second.said() == "EAGAIN"
        cluster.harmed = True
        found = [*cluster.processes("supervisor"), *cluster.processes("mount")]  # either alone would be replaced
        for pid in [process["pid"] for process in found if process["mountpoint"] == str(cluster.a)]:
            os.kill(pid, signal.SIGKILL)
        with Holder(b / "f", "fcntl", wait=True) as waiter:
            assert waiter.said() == "held"
    subprocess.run(["umount", "-l", str(cluster.a)], check=False, capture_output=True)
