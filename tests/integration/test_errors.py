"""What cannot be: one clear line each, an exit code, no traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fsd.cli import exits
from tests.integration.conftest import REPOSITORY, RealCluster, run_fsd

pytestmark = pytest.mark.real


def refused(done: subprocess.CompletedProcess[str], code: int, said: str) -> None:
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if " INFO " not in line]  # a server's log
    assert done.returncode == code, done
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("fsd: ")
    assert said in lines[0]


def test_a_second_server_on_one_directory(cluster: RealCluster):
    metadata = cluster.processes("metadata")[0]
    chunkserver = cluster.processes("chunkserver")[0]
    refused(run_fsd("metadata", "--data", metadata["data"], "--listen", "127.0.0.1:0"), exits.BUSY, "is in use")
    words = ("--data", chunkserver["data"], "--listen", "127.0.0.1:0", "--metadata", metadata["address"])
    refused(run_fsd("chunkserver", *words), exits.BUSY, "is in use")


def test_a_busy_mount_point_and_a_missing_volume(cluster: RealCluster, tmp_path: Path):
    address = cluster.processes("metadata")[0]["address"]
    refused(run_fsd("mount", f"{address}:/default", str(cluster.a)), exits.BUSY, "is busy")
    refused(run_fsd("mount", f"{address}:/nothing", str(tmp_path)), exits.FAILED, "nothing")
    refused(run_fsd("volume", "delete", "nothing", "--metadata", address), exits.FAILED, "nothing")
    refused(run_fsd("volume", "create", "default", "--metadata", address), exits.FAILED, "default")


def test_an_unreachable_metadata_server(tmp_path: Path):
    refused(run_fsd("mount", "127.0.0.1:1:/default", str(tmp_path)), exits.UNREACHABLE, "127.0.0.1:1")
    refused(run_fsd("status", "--metadata", "127.0.0.1:1"), exits.UNREACHABLE, "127.0.0.1:1")


def test_a_missing_dev_fuse(cluster: RealCluster, tmp_path: Path):
    """In a mount namespace of its own, where /dev is an empty directory but for what Python needs."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here (in a chroot)")
    address = cluster.processes("metadata")[0]["address"]
    script = (
        f"mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 && "
        f"exec {sys.executable} -m fsd.cli mount {address}:/default {tmp_path} --log {tmp_path}.log"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, env=environment)
    refused(done, exits.MISSING, "/dev/fuse is missing")


def test_a_data_directory_of_another_cluster(cluster: RealCluster, tmp_path: Path):
    other = tmp_path / "other"
    point = tmp_path / "mount"
    try:
        assert run_fsd("up", str(point), "--data", str(other), "--detach").returncode == 0
        assert run_fsd("down", "--data", str(other)).returncode == 0
        words = ("--data", str(other / "chunkserver-1"), "--listen", "127.0.0.1:0")
        address = cluster.processes("metadata")[0]["address"]
        refused(run_fsd("chunkserver", *words, "--metadata", address), exits.FOREIGN, "file system")
        refused(
            run_fsd("metadata", "--data", str(other / "chunkserver-2"), "--listen", "127.0.0.1:0"), exits.FOREIGN, ""
        )
    finally:
        run_fsd("down", "--data", str(other))
        shutil.rmtree(other, ignore_errors=True)


def test_umount_waits_for_the_daemon_and_refuses_when_busy(cluster: RealCluster, tmp_path: Path):
    address = cluster.processes("metadata")[0]["address"]
    cluster.fsd("mount", f"{address}:/default", str(tmp_path), "--log", str(cluster.data / "log" / "third.log"))
    with open(tmp_path / "held-open", "w"):
        refused(run_fsd("umount", str(tmp_path)), exits.BUSY, "is busy")
    (tmp_path / "written").write_bytes(b"x" * 1_000_000)
    cluster.fsd("umount", str(tmp_path))
    assert (cluster.a / "written").read_bytes() == b"x" * 1_000_000
    os.unlink(cluster.a / "written")
    os.unlink(cluster.b / "held-open")
