"""A real cluster of processes with real mounts, made by the command line in a temporary directory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120


def usable() -> bool:
    return os.geteuid() == 0 and os.path.exists("/dev/fuse") and shutil.which("fusermount3") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.real)
            if not usable():
                item.add_marker(pytest.mark.skip(reason="needs root, /dev/fuse and fusermount3"))


def run_fsd(*words: str, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FSD_")}
    environment["PYTHONPATH"] = str(REPOSITORY)
    return subprocess.run(
        [sys.executable, "-m", "fsd.cli", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout_s,
        cwd="/",
    )


class RealCluster:
    """One embedded cluster: `data`, the first mount `a`, a second one `b` of the same volume."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.a = root / "a"
        self.b = root / "b"
        self.harmed = True  # something may not run, or not be in sync

    def fsd(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Must succeed."""
        done = run_fsd(*words)
        assert done.returncode == 0, f"fsd {' '.join(words)}: {done.stderr}{done.stdout}\n{self.complaints()}"
        return done

    def up(self) -> None:
        """Everything that does not run, and both mounts."""
        self.fsd("up", str(self.b), "--data", str(self.data), "--detach")
        self.fsd("up", str(self.a), "--data", str(self.data), "--detach")

    def heal(self) -> None:
        """Everything runs and is in sync, if a test has killed something."""
        if self.harmed:
            self.up()
            self.await_health()
            self.harmed = False

    def down(self) -> None:
        self.harmed = True
        self.fsd("down", "--data", str(self.data))

    def processes(self, role: str) -> list[dict]:
        told = json.loads(self.fsd("ps", "--data", str(self.data), "--json").stdout)
        return [process for process in told["processes"] if process["role"] == role]

    def kill(self, role: str, which: int = 0) -> dict:
        """kill -9; what was killed."""
        self.harmed = True
        process = self.processes(role)[which]
        os.kill(process["pid"], signal.SIGKILL)
        return process

    def kill_wholly(self, mountpoint: Path) -> None:
        """kill -9 of a mount's daemon and of its supervisor, which has no time to start another. No program is started in
        between: it would close its copies of files that are open here, and wait for a daemon."""
        self.harmed = True
        supervisor, daemon = (
            next(each["pid"] for each in self.processes(role) if each["mountpoint"] == str(mountpoint))
            for role in ("supervisor", "mount")
        )
        for pid, number in ((supervisor, signal.SIGSTOP), (daemon, signal.SIGKILL), (supervisor, signal.SIGKILL)):
            os.kill(pid, number)

    def status(self) -> dict:
        return json.loads(self.fsd("status", "--data", str(self.data), "--json").stdout)

    def await_health(self, wanted: str = "ok", timeout_s: float = 90) -> None:
        eventually(lambda: self.status()["health"] == wanted, timeout_s, lambda: self.status()["summary"])

    def fsck(self) -> None:
        """Clean, and with chunks looked at."""
        done = run_fsd("fsck", "--data", str(self.data))
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.complaints()}"

    def complaints(self) -> str:
        """What the logs say of WARNING and above."""
        lines = [
            f"{log.name}: {line}"
            for log in sorted((self.data / "log").glob("*.log"))
            for line in log.read_text(errors="replace").splitlines()
            if " ERROR " in line or " WARNING " in line or line.startswith(("Traceback", "    ", "  File"))
        ]
        return "\n".join(lines[-60:])

    def bugs(self) -> list[str]:
        """Lines of the logs that no fault of the world explains."""
        return [
            f"{log.name}: {line}"
            for log in sorted((self.data / "log").glob("*.log"))
            for line in log.read_text(errors="replace").splitlines()
            if "Traceback" in line or "internal error" in line or ": bug" in line
        ]


def eventually(condition: Callable[[], bool], timeout_s: float, why: Callable[[], object] = lambda: "") -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {why()}"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def real_cluster() -> Iterator[RealCluster]:
    """The one cluster of the session; `cluster` is for tests."""
    root = Path(tempfile.mkdtemp(prefix="fsd-test-"))
    cluster = RealCluster(root)
    try:
        cluster.up()
        yield cluster
        assert cluster.bugs() == []
    finally:
        run_fsd("down", "--data", str(cluster.data))
        for mount in (cluster.a, cluster.b):
            subprocess.run(["umount", "-l", str(mount)], capture_output=True, check=False)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def cluster(real_cluster: RealCluster) -> Iterator[RealCluster]:
    """The cluster, whole before the test, checked after it."""
    real_cluster.heal()
    yield real_cluster
    real_cluster.heal()
    real_cluster.fsck()


@pytest.fixture
def a(cluster: RealCluster, request: pytest.FixtureRequest) -> Path:
    """A new directory on the first mount."""
    directory = cluster.a / f"{request.node.name[:60].replace('/', '_')}-{time.monotonic_ns()}"
    directory.mkdir()
    return directory


@pytest.fixture
def b(cluster: RealCluster, a: Path) -> Path:
    """The same directory on the second mount."""
    return cluster.b / a.name
