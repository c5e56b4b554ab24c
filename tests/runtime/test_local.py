"""The real data directory: the lock, small files, segment files."""

import os
import subprocess
import sys

import pytest

from fsd.core.errors import ConfigurationError, CorruptData, DirectoryInUse, DiskFailed
from fsd.runtime.local import LocalDirectory, LocalSegments
from fsd.runtime.storage import SegmentWrite


async def test_a_second_server_on_one_directory_is_refused_by_name(tmp_path):
    first = LocalDirectory(str(tmp_path / "d"))
    with pytest.raises(DirectoryInUse, match=f"process {os.getpid()}"):
        LocalDirectory(str(tmp_path / "d"))
    await first.aclose()
    await LocalDirectory(str(tmp_path / "d")).aclose()


async def test_the_lock_dies_with_its_process(tmp_path):
    code = "import sys, os; from fsd.runtime.local import LocalDirectory; LocalDirectory(sys.argv[1]); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "d")], check=False)
    await LocalDirectory(str(tmp_path / "d")).aclose()


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "d").write_text("")
    with pytest.raises(ConfigurationError, match="cannot use"):
        LocalDirectory(str(tmp_path / "d"))


async def test_small_files_are_replaced_whole(tmp_path):
    directory = LocalDirectory(str(tmp_path / "d"))
    assert directory.read_file("id") is None
    await directory.write_file("id", b"one")
    await directory.write_file("id", b"two")
    assert directory.read_file("id") == b"two"
    assert sorted(os.listdir(directory.name)) == ["id", "lock"]
    await directory.aclose()


async def test_a_damaged_store_is_set_aside_under_a_new_name(tmp_path):
    directory = LocalDirectory(str(tmp_path / "d"))
    os.mkdir(tmp_path / "d/index")
    assert await directory.set_aside("index") == "index.damaged-1"
    os.mkdir(tmp_path / "d/index")
    assert await directory.set_aside("index") == "index.damaged-2"
    await directory.aclose()


async def test_half_a_segment_from_a_crash_is_forgotten_and_a_short_one_before_others_is_not(tmp_path):
    segments = LocalSegments(str(tmp_path / "s"), 65536)
    await segments.grow()
    await segments.grow()
    await segments.aclose()
    os.truncate(tmp_path / "s/00000001", 100)
    assert LocalSegments(str(tmp_path / "s"), 65536).count() == 1
    segments = LocalSegments(str(tmp_path / "s"), 65536)
    await segments.grow()
    await segments.aclose()
    os.truncate(tmp_path / "s/00000000", 100)
    with pytest.raises(CorruptData, match="00000000 has 100 bytes"):
        LocalSegments(str(tmp_path / "s"), 65536)


async def test_a_short_read_ends_the_disk(tmp_path):
    segments = LocalSegments(str(tmp_path / "s"), 65536)
    await segments.grow()
    await segments.write([SegmentWrite(0, 10, b"abc")])
    assert await segments.read(0, 9, 5) == b"\0abc\0"
    os.truncate(tmp_path / "s/00000000", 5)
    with pytest.raises(DiskFailed):
        await segments.read(0, 9, 5)
    with pytest.raises(DiskFailed):
        await segments.write([SegmentWrite(0, 0, b"x")])
    await segments.aclose()
