"""kill -9 of each role in the middle of work: nobody who writes sees an error, and everything reads back equal."""

import errno
import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.integration.conftest import RealCluster, run_fsd

pytestmark = pytest.mark.real


class Writer(threading.Thread):
    """Writes files and remembers what must be readable: each is fsynced, and so is its name, before it is remembered."""

    def __init__(self, directory: Path, size: int) -> None:
        super().__init__(daemon=True)
        self.directory = directory
        self.size = size
        self.written: dict[str, str] = {}
        self.failure: BaseException | None = None
        self.longest_pause_s = 0.0
        self._stop_now = threading.Event()

    def run(self) -> None:
        number = 0
        try:
            while not self._stop_now.is_set():
                start = time.monotonic()
                self._write_one(f"file{number}")
                self.longest_pause_s = max(self.longest_pause_s, time.monotonic() - start)
                number += 1
        except BaseException as error:
            self.failure = error

    def _write_one(self, name: str) -> None:
        data = os.urandom(self.size)
        fd = os.open(self.directory / f"{name}.new", os.O_WRONLY | os.O_CREAT)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
        os.rename(self.directory / f"{name}.new", self.directory / name)
        fd = os.open(self.directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        self.written[name] = hashlib.sha256(data).hexdigest()

    def finish(self) -> None:
        self._stop_now.set()
        self.join(90)
        assert not self.is_alive(), "the writer hangs"

    def wait_for(self, more: int, timeout_s: float = 60) -> None:
        wanted = len(self.written) + more
        deadline = time.monotonic() + timeout_s
        while len(self.written) < wanted and self.failure is None:
            assert time.monotonic() < deadline, f"{len(self.written)} files after {timeout_s} s, {wanted} wanted"
            time.sleep(0.02)
        assert self.failure is None, self.failure


def check(directory: Path, written: dict[str, str]) -> None:
    for name, wanted in written.items():
        assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == wanted, name


@pytest.fixture
def writer(a: Path):
    thread = Writer(a, 300_000)
    thread.start()
    thread.wait_for(3)
    yield thread
    thread._stop_now.set()


@pytest.mark.parametrize("which", [0, 2])
def test_a_killed_chunkserver_is_a_pause_and_no_error(cluster: RealCluster, b: Path, writer: Writer, which: int):
    cluster.kill("chunkserver", which)
    writer.wait_for(20)
    cluster.up()
    writer.wait_for(10)
    writer.finish()
    assert writer.failure is None
    assert writer.longest_pause_s < 30
    check(b, writer.written)
    check(writer.directory, writer.written)


def test_a_killed_metadata_server_is_a_pause_and_no_error(cluster: RealCluster, b: Path, writer: Writer):
    cluster.kill("metadata")
    time.sleep(1)
    cluster.up()
    writer.wait_for(10)
    writer.finish()
    assert writer.failure is None
    check(b, writer.written)
    check(writer.directory, writer.written)


def test_a_stopped_and_continued_chunkserver_harms_nobody(cluster: RealCluster, b: Path, writer: Writer):
    cluster.harmed = True
    paused = cluster.processes("chunkserver")[1]["pid"]
    os.kill(paused, signal.SIGSTOP)
    try:
        writer.wait_for(5, 90)
    finally:
        os.kill(paused, signal.SIGCONT)
    writer.wait_for(5)
    writer.finish()
    assert writer.failure is None
    check(b, writer.written)


def test_a_mount_killed_with_its_supervisor_loses_nothing_that_was_fsynced(
    cluster: RealCluster, b: Path, writer: Writer
):
    cluster.kill_wholly(cluster.a)
    writer.join(60)
    assert isinstance(writer.failure, OSError)
    assert writer.failure.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
    check(b, writer.written)
    cluster.up()
    check(writer.directory, writer.written)
    (writer.directory / "after").write_text("x")
    assert (b / "after").read_text() == "x"


def test_everything_stopped_and_started_again_is_as_it_was(cluster: RealCluster, a: Path, b: Path):
    (a / "small").write_text("small")
    data = os.urandom(6_000_000)
    (a / "large").write_bytes(data)
    cluster.down()
    assert run_fsd("ps", "--data", str(cluster.data), "--json").stdout.split() == ["{", '"processes":', "[]", "}"]
    assert not os.path.ismount(cluster.a)
    cluster.up()
    assert (b / "small").read_text() == "small"
    assert (a / "large").read_bytes() == data
