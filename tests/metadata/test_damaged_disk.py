"""A metadata server whose log or tables are damaged or gone says so in one line and does not start."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from fsd.runtime.rocks import RocksKeyValue
from fsd.runtime.storage import KeyChange
from metadata.server import FAMILIES

WORDS = ["metadata", "--listen", "127.0.0.1:0", "--pg-count", "1"]


def start(data: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "fsd.cli", *WORDS, "--data", str(data)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Of a server that ran, with a hundred durable records more, as a kill -9 leaves it: all in the log and the tables."""
    child = start(tmp_path / "m")
    deadline = time.monotonic() + 60
    while not (tmp_path / "m" / "identity").exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)

    async def fill() -> None:
        store = RocksKeyValue(str(tmp_path / "m" / "tree"), FAMILIES)
        for number in range(100):
            store.apply([KeyChange("session", b"z%06d" % number, os.urandom(1000))])
            await store.durable()
        shutil.copytree(tmp_path / "m", tmp_path / "crashed")
        await store.aclose()

    trio.run(fill)
    return tmp_path / "crashed"


def largest(data: Path, pattern: str) -> Path:
    return max((data / "tree").glob(pattern), key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: flip(largest(data, "*.log")),
        lambda data: largest(data, "*.log").unlink(),
        lambda data: next((data / "tree").glob("MANIFEST-*")).unlink(),
        lambda data: (data / "tree" / "floor").write_bytes(b"garbage"),
        lambda data: (data / "identity").write_bytes(b"{"),
    ],
    ids=["flipped log", "log gone", "manifest gone", "floor damaged", "identity damaged"],
)
def test_a_damaged_directory_is_refused_in_one_line(data: Path, harm) -> None:
    harm(data)
    said, _ = start(data).communicate(timeout=60)
    lines = said.strip().splitlines()
    assert lines, "it said nothing"
    assert "Traceback" not in said
    assert lines[-1].startswith("fsd: ")
    assert str(data) in lines[-1]
