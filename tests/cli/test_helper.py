"""The helper of mount(8) without a mount: its options, its words, its exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_commands import REPOSITORY

GOOD = "127.0.0.1:7400:/default"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """`fsd` as pip makes it, and links to it."""
    directory = tmp_path_factory.mktemp("bin")
    program = directory / "fsd"
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom fsd.cli.main import main\nsys.exit(main())\n")
    program.chmod(0o755)
    for name in ("mount.fsd", "umount.fuse.fsd"):
        (directory / name).symlink_to(program)
    return program


def called(program: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    path = str(program.parent / name)
    return subprocess.run([path, *words], capture_output=True, text=True, env=environment, timeout=60)


def test_what_fstab_says_for_others_is_ignored(program):
    listed = "rw,_netdev,nofail,noauto,user,x-systemd.automount,x-systemd.idle-timeout=60,comment=mine,noatime"
    done = called(program, "mount.fsd", GOOD, "/mnt", "-f", "-s", "-n", "-v", "-t", "fsd", "-o", listed)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-f", GOOD, "/mnt", "-o", "rw,cahce=1G"], "cahce"),
        (["-f", "nonsense", "/mnt"], "nonsense"),
        (["-f", GOOD, "/mnt", "-o", "cache=much"], "much"),
        ([GOOD, "/mnt", "-o", "remount,ro"], "remount"),
        ([GOOD, "/mnt", "-N", "1"], "namespace"),
        ([GOOD], "usage"),
        ([GOOD, "/mnt", "-q"], "-q"),
    ],
)
def test_bad_usage_is_named_and_ends_with_1(program, words, said):
    done = called(program, "mount.fsd", *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mount_that_fails_ends_with_32(program, tmp_path):
    done = called(program, "mount.fsd", "127.0.0.1:1:/default", str(tmp_path), "-o", "nofail")
    assert done.returncode in (2, 32)  # 2: this machine has no /dev/fuse
    assert done.stderr.startswith("fsd: ")
    assert len(done.stderr.splitlines()) == 1


def test_umount_of_what_is_not_ours_is_usage(program, tmp_path):
    done = called(program, "umount.fuse.fsd", str(tmp_path))
    assert done.returncode == 1
    assert "no fsd volume is mounted" in done.stderr
