"""Paths are handed out only when the kernel agrees; who holds a mount is read from mount namespaces."""

import os
from pathlib import Path

import pytest

from fsd.core.errors import Busy, MissingOnHost
from fsd.mount import mountinfo
from fsd.mount.mountinfo import Mount
from fsd.plugin.mounts import Mounts, explanation, is_held

OURS = Mount("0:47", "/volumes/v", "fuse.fsd", "here:7400:/v")


def process(proc: Path, pid: str, namespace: str, *mounts: tuple[str, str]) -> None:
    (proc / pid / "ns").mkdir(parents=True)
    os.symlink(namespace, proc / pid / "ns" / "mnt")
    lines = [f"9 1 {device} / {where} rw - fuse.fsd here:7400:/v rw\n" for device, where in mounts]
    (proc / pid / "mountinfo").write_text("9 1 254:0 / / rw - ext4 /dev/vda rw\n" + "".join(lines))


@pytest.mark.parametrize(
    ("namespace", "mounts", "held"),
    [
        ("mnt:[2]", [("0:47", "/data")], True),
        ("mnt:[2]", [("0:48", "/data")], False),
        ("mnt:[2]", [("0:47", "/volumes/v")], False),  # a copy of the host's namespace, as services have
        ("mnt:[1]", [("0:47", "/elsewhere")], False),  # our own
        ("mnt:[2]", [("0:47", "/volumes/v"), ("0:47", "/data")], True),
    ],
)
def test_a_container_holds_a_mount_that_its_namespace_has_elsewhere(tmp_path, namespace, mounts, held):
    process(tmp_path, "self", "mnt:[1]", ("0:47", "/volumes/v"))
    process(tmp_path, "1", "mnt:[1]", ("0:47", "/volumes/v"))
    process(tmp_path, "77", namespace, *mounts)
    (tmp_path / "78").mkdir()  # ended while we look
    assert is_held(OURS, str(tmp_path)) is held


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    return Mounts(("false",), {}, ("here:7400",), str(tmp_path))


async def test_a_path_where_nothing_is_mounted_is_not_handed_out(mounts, tmp_path, monkeypatch):
    lying = Mounts(("true",), dict(os.environ), ("here:7400",), str(tmp_path))
    with pytest.raises(MissingOnHost, match="not mounted although"):
        await lying.mount("v")


async def test_a_path_that_is_not_the_mounts_root_is_not_handed_out(mounts, tmp_path, monkeypatch):
    (tmp_path / "v").mkdir()
    there = Mount("0:9999", str(tmp_path / "v"), "fuse.fsd", "here:7400:/v")
    monkeypatch.setattr(mountinfo, "mounted_at", lambda path: there)
    with pytest.raises(MissingOnHost, match="not the root"):
        await mounts.check("v")


@pytest.mark.parametrize("there", [("ext4", "/dev/sda1"), ("fuse.fsd", "here:7400:/other")])
async def test_another_mount_in_its_place_is_refused(mounts, monkeypatch, there):
    monkeypatch.setattr(mountinfo, "mounted_at", lambda path: Mount("0:5", path, *there))
    with pytest.raises(Busy, match="is mounted on"):
        await mounts.mount("v")


async def test_a_failing_fsd_mount_is_told_in_its_own_words(tmp_path):
    failing = ("sh", "-c", "echo 'fsd: cannot mount: no cluster' >&2; exit 3")
    with pytest.raises(MissingOnHost, match=r"^cannot mount: no cluster$"):
        await Mounts(failing, dict(os.environ), ("here:7400",), str(tmp_path)).mount("v")
    assert explanation(["mount"], 9, b"") == "fsd mount ended with exit code 9"


async def test_unmounting_what_is_not_mounted_removes_the_empty_directory_only(mounts, tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "file").write_text("kept")
    for name in ("v", "w", "absent"):
        await mounts.unmount(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w"]
    assert (tmp_path / "w" / "file").read_text() == "kept"


async def test_what_the_mount_answers_with_an_error_is_told(mounts, tmp_path):
    with pytest.raises(MissingOnHost, match="cannot be used: No such file"):
        await mounts.set_root("absent", 1, None, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingOnHost, match="cannot make the mount point"):
        await Mounts(("true",), {}, ("here:7400",), str(tmp_path / "file")).mount("v")
