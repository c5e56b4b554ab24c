"""kill -9 of what serves a mount, while it is used: nobody who works there notices more than a pause."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fsd.runtime.process import start_time
from tests.integration.conftest import REPOSITORY, RealCluster, eventually, run_fsd
from tests.integration.test_faults import Writer, check

pytestmark = pytest.mark.real


def processes_of(cluster: RealCluster, mountpoint: Path, role: str) -> list[int]:
    return [p["pid"] for p in cluster.processes(role) if p["mountpoint"] == str(mountpoint)]


def kill_daemon(cluster: RealCluster) -> None:
    """kill -9, and wait for the next one to serve."""
    (before,) = processes_of(cluster, cluster.a, "mount")
    os.kill(before, signal.SIGKILL)
    await_another(cluster, before)


def await_another(cluster: RealCluster, before: int) -> None:
    eventually(lambda: any(pid != before for pid in processes_of(cluster, cluster.a, "mount")), 60, cluster.complaints)


@pytest.fixture
def writer(a: Path):
    thread = Writer(a, 300_000)
    thread.start()
    thread.wait_for(3)
    yield thread
    thread.finish()


def test_a_killed_daemon_is_replaced_and_its_writer_sees_no_error(cluster: RealCluster, b: Path, writer: Writer):
    for _ in range(3):
        kill_daemon(cluster)
        writer.wait_for(3)
    writer.finish()
    assert writer.failure is None
    check(writer.directory, writer.written)
    check(b, writer.written)
    print(f"longest pause {writer.longest_pause_s:.2f} s")


def test_what_was_written_and_not_synced_is_there_after_a_kill(cluster: RealCluster, a: Path, b: Path):
    data = os.urandom(3_000_000)
    with open(a / "unsynced", "wb") as file:
        file.write(data)
        file.flush()
        kill_daemon(cluster)
        file.write(b"and more")
    assert (a / "unsynced").read_bytes() == data + b"and more"
    assert (b / "unsynced").read_bytes() == data + b"and more"


def test_an_open_file_without_a_name_lives_on(cluster: RealCluster, a: Path):
    fd = os.open(a / "nameless", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"still here")
    os.unlink(a / "nameless")
    for _ in range(2):
        kill_daemon(cluster)
        assert os.pread(fd, 100, 0) == b"still here"
    os.pwrite(fd, b"STILL", 0)
    assert os.pread(fd, 100, 0) == b"STILL here"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_a_directory_that_is_read_and_a_working_directory_live_on(cluster: RealCluster, a: Path):
    for number in range(500):
        (a / f"name{number:03}").touch()
    with os.scandir(a) as entries:
        names = [next(entries).name for _ in range(10)]
        kill_daemon(cluster)
        names += [entry.name for entry in entries]
    assert sorted(names) == [f"name{number:03}" for number in range(500)]


def test_all_kinds_of_work_go_on_under_kills_and_upgrades(cluster: RealCluster):
    """Names, appends, random blocks, an open file without a name, locks, SQLite, git, fio: see kill_loop."""
    words = ["-m", "tests.integration.kill_loop", str(cluster.a), "15", "--upgrade"]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{cluster.complaints()}"


def test_a_lock_is_still_held_after_a_kill(cluster: RealCluster, a: Path):
    try_it = "import fcntl, sys\nwith open(sys.argv[1], 'r+') as file: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with open(a / "locked", "w+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        kill_daemon(cluster)
        assert subprocess.run([sys.executable, "-c", try_it, a / "locked"], capture_output=True).returncode != 0
    assert subprocess.run([sys.executable, "-c", try_it, a / "locked"], capture_output=True).returncode == 0


def test_an_upgrade_is_seen_by_nobody(cluster: RealCluster, writer: Writer):
    (before,) = processes_of(cluster, cluster.a, "mount")
    told = cluster.fsd("upgrade", str(cluster.a))
    assert "serves" in told.stdout
    await_another(cluster, before)
    writer.wait_for(3)
    writer.finish()
    assert writer.failure is None
    check(writer.directory, writer.written)


def test_a_killed_supervisor_is_replaced_too(cluster: RealCluster, writer: Writer):
    (before,) = processes_of(cluster, cluster.a, "supervisor")
    os.kill(before, signal.SIGKILL)
    eventually(lambda: any(pid != before for pid in processes_of(cluster, cluster.a, "supervisor")), 60)
    writer.wait_for(3)
    writer.finish()
    assert writer.failure is None
    check(writer.directory, writer.written)


def test_what_a_daemon_left_unwritten_when_it_died_after_the_unmount_is_written(
    cluster: RealCluster, tmp_path: Path, b: Path
):
    """The supervisor is stopped, so that the daemon is dead before anything else happens."""
    source = processes_source(cluster)
    point = tmp_path / "third"
    point.mkdir()
    cluster.fsd(
        "mount", source, str(point), "-o", "write_back_age=60", "--log", str(cluster.data / "log" / "third.log")
    )
    data = os.urandom(2_000_000)
    (point / b.name).mkdir(exist_ok=True)
    (point / b.name / "left").write_bytes(data)
    serving = next(p for p in map(read_json, Path("/run/fsd").glob("*.json")) if p.get("mountpoint") == str(point))
    os.kill(serving["supervisor"]["pid"], signal.SIGSTOP)
    os.kill(serving["daemon"]["pid"], signal.SIGKILL)
    subprocess.run(["umount", "-l", str(point)], check=True)
    os.kill(serving["supervisor"]["pid"], signal.SIGCONT)
    eventually(lambda: start_time(serving["supervisor"]["pid"]) is None, 60)
    assert (b / "left").read_bytes() == data


def test_an_unmount_ends_everything_though_another_namespace_has_the_mount(cluster: RealCluster, tmp_path: Path):
    point = tmp_path / "third"
    point.mkdir()
    cluster.fsd("mount", processes_source(cluster), str(point), "--log", str(cluster.data / "log" / "third.log"))
    serving = next(p for p in map(read_json, Path("/run/fsd").glob("*.json")) if p.get("mountpoint") == str(point))
    other = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "100"])
    try:
        eventually(lambda: os.readlink(f"/proc/{other.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"), 10)
        cluster.fsd("umount", str(point))
    finally:
        other.kill()
        other.wait()
    for role in ("supervisor", "daemon"):
        assert start_time(serving[role]["pid"]) is None
    (point / "open again").touch()


def test_a_container_with_a_dead_mount_is_healed(cluster: RealCluster, tmp_path: Path):
    """A mount namespace with copies as `docker run -v` makes them: of the root, and of a directory, read-only."""
    point, whole, part = (tmp_path / name for name in ("third", "whole", "part"))
    for directory in (point, whole, part):
        directory.mkdir()
    log = str(cluster.data / "log" / "third.log")
    cluster.fsd("mount", processes_source(cluster), str(point), "--log", log)
    (point / "sub").mkdir(exist_ok=True)
    (point / "sub" / "file").write_text("alive")
    subprocess.run(["sync", point / "sub" / "file", point / "sub", point], check=True)
    binds = f"mount --bind {point} {whole} && mount --bind -o ro {point}/sub {part} && umount {point} && exec sleep 100"
    container = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c", binds])
    inside = ["nsenter", "-m", "-t", str(container.pid)]
    try:
        eventually(lambda: Path(f"/proc/{container.pid}/comm").read_text() == "sleep\n", 10)
        serving = next(p for p in map(read_json, Path("/run/fsd").glob("*.json")) if p.get("mountpoint") == str(point))
        for role, number in (
            ("supervisor", signal.SIGSTOP),
            ("daemon", signal.SIGKILL),
            ("supervisor", signal.SIGKILL),
        ):
            os.kill(serving[role]["pid"], number)
        cluster.fsd("mount", processes_source(cluster), str(point), "--log", log)
        assert subprocess.run([*inside, "cat", whole / "sub" / "file"], capture_output=True).returncode != 0
        assert cluster.fsd("heal", str(point)).stdout.count("again") == 2
        for path in (whole / "sub" / "file", part / "file"):
            assert subprocess.run([*inside, "cat", path], capture_output=True).stdout == b"alive"
        assert subprocess.run([*inside, "touch", part / "new"], capture_output=True).returncode != 0
        assert subprocess.run([*inside, "touch", whole / "new"], capture_output=True).returncode == 0
        assert "nobody" in cluster.fsd("heal", str(point)).stdout
    finally:
        container.kill()
        container.wait()
        run_fsd("umount", str(point))


def test_a_process_that_waits_for_a_silent_server_can_be_killed(cluster: RealCluster, b: Path):
    (silent,) = [p["pid"] for p in cluster.processes("metadata")]
    cluster.harmed = True
    waiting: list[subprocess.Popen[bytes]] = []
    os.kill(silent, signal.SIGSTOP)
    try:
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            waiting.append(subprocess.Popen(["ls", b / f"unknown {number}"], stderr=subprocess.DEVNULL))
        time.sleep(1)
        assert [process.poll() for process in waiting] == [None] * 3
        for process, number in zip(waiting, (signal.SIGKILL, signal.SIGTERM, signal.SIGINT), strict=True):
            process.send_signal(number)
        eventually(lambda: all(process.poll() is not None for process in waiting), 20)
    finally:
        os.kill(silent, signal.SIGCONT)
    assert [process.wait() for process in waiting] == [-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT]


def processes_source(cluster: RealCluster) -> str:
    return next(p["address"] for p in cluster.processes("mount"))


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def test_upgrade_tells_what_is_not_a_mount(tmp_path: Path):
    done = run_fsd("upgrade", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"fsd: no fsd volume is mounted on {tmp_path}\n"
