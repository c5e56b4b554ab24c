"""Real servers without a mount: grow, drain, remove, lose a disk, scrub: nothing acknowledged is lost, figures are told."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fsd.client.filesystem import ROOT, open_filesystem
from fsd.client.options import ClientOptions
from fsd.core.ids import ROOT_INO
from fsd.core.units import MIB
from fsd.runtime.local import real_runtime
from tests.integration.conftest import REPOSITORY, run_fsd

FILES = 24
FILE_BYTES = 4 * MIB


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def content(number: int) -> bytes:
    return random.Random(number).randbytes(FILE_BYTES)


class Servers:
    """A metadata server and chunkservers as processes of this test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metadata = f"127.0.0.1:{free_port()}"
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        quick = ["--rebalance-after-s", "2", "--rebuild-after-s", "4", "--pg-count", "32"]
        self.start("m", "metadata", "--listen", self.metadata, *quick)
        end = time.monotonic() + 30
        while run_fsd("status", "--metadata", self.metadata).returncode:
            assert time.monotonic() < end, (root / "m.log").read_text()
            time.sleep(0.2)

    def start(self, name: str, role: str, *words: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        with open(self.root / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "fsd.cli", role, "--data", str(self.root / name), *words],
                stdout=log,
                stderr=log,
                env=environment,
                cwd="/",
            )

    def add(self, number: int) -> None:
        name = f"c{number}"
        listen = f"127.0.0.1:{free_port()}"
        self.start(
            name,
            "chunkserver",
            *("--listen", listen, "--metadata", self.metadata, "--zone", name, "--scrub-rate", "0"),
        )

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for name in list(self.running):
            self.kill(name)

    def ask(self, *words: str, code: int = 0) -> dict:
        done = run_fsd(*words, "--metadata", self.metadata, "--json")
        assert done.returncode == code, f"fsd {' '.join(words)}: {done.returncode} {done.stderr}{done.stdout}"
        return json.loads(done.stdout) if done.stdout else {}

    def wait(self, condition, timeout_s: float = 60.0) -> dict:
        end = time.monotonic() + timeout_s
        while True:
            status = self.ask("status")
            if condition(status):
                return status
            assert time.monotonic() < end, status
            time.sleep(0.3)

    def wait_quiet(self, nodes: int) -> dict:
        def quiet(status: dict) -> bool:
            groups = status["placement_groups"]
            up = sum(node["state"] == "up" for node in status["nodes"])
            whole = up == nodes and groups["total"] == groups["in_sync"] == 32
            return whole and self.ask("rebalance")["moves"] == 0

        return self.wait(quiet)

    def with_files(self, job) -> None:
        async def main() -> None:
            async with open_filesystem(real_runtime(), (self.metadata,), "default", ClientOptions(name="test")) as fs:
                with trio.fail_after(100):
                    await job(fs)

        trio.run(main)


async def write_all(fs) -> None:
    for number in range(FILES):
        _, handle = await fs.create(ROOT, ROOT_INO, b"f%d" % number, 0o644, os.O_RDWR)
        await fs.write(handle, 0, content(number))
        await fs.fsync(handle)
        await fs.release(handle)


async def verify_all(fs) -> None:
    for number in range(FILES):
        handle = await fs.open((await fs.lookup(ROOT_INO, b"f%d" % number)).ino, os.O_RDONLY)
        read = b"".join([bytes(await fs.read(handle, at, MIB)) for at in range(0, FILE_BYTES, MIB)])
        assert read == content(number), f"file {number} has wrong bytes"
        await fs.release(handle)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    made = Servers(tmp_path)
    yield made
    made.stop()


@pytest.mark.slow
def test_nodes_come_and_go_and_disks_die_and_rot_and_no_byte_is_lost(servers: Servers) -> None:
    for number in (1, 2, 3):
        servers.add(number)
    servers.wait(lambda status: sum(node["state"] == "up" for node in status["nodes"]) == 3)
    servers.with_files(write_all)

    servers.add(4)
    servers.wait(lambda status: len(status["nodes"]) == 4)
    plan = servers.ask("rebalance", "--dry-run")
    assert 15 <= plan["moves"] + plan["moving"] <= 16  # of 64 copies a quarter
    servers.wait_quiet(4)
    assert {node["groups"] for node in servers.ask("rebalance")["nodes"]} == {16}

    victim = next(n["node"] for n in servers.ask("node", "list")["nodes"] if n["zone"] == "c2")
    servers.ask("node", "remove", str(victim), code=4)
    assert servers.ask("node", "drain", str(victim), "--wait")["safe"]
    servers.ask("node", "remove", str(victim))
    servers.kill("c2")
    servers.with_files(verify_all)

    lost = next(n["node"] for n in servers.ask("node", "list")["nodes"] if n["zone"] == "c3")
    servers.kill("c3")
    shutil.rmtree(servers.root / "c3")
    servers.wait(lambda status: status["placement_groups"]["degraded"] > 0)
    servers.wait(  # on the two that are left
        lambda status: status["placement_groups"]["in_sync"] == 32 and status["placement_groups"]["one_copy"] == 0
    )
    servers.ask("node", "remove", str(lost), "--force")
    servers.with_files(verify_all)

    flip_bits(servers.root / "c1")
    found = servers.ask("scrub", "--deep", "--wait")
    assert found["rotten"] > 0
    assert (found["repaired"], found["lost"]) == (found["rotten"], 0)
    servers.with_files(verify_all)
    assert servers.ask("scrub", "--deep", "--wait")["rotten"] == found["rotten"]
    assert servers.ask("fsck", "--repair")["clean"]
    assert servers.ask("status")["health"] == "ok"


def flip_bits(directory: Path) -> None:
    """One bit in each MiB of the first segment."""
    with open(directory / "segments" / "00000000", "r+b") as segment:
        for offset in range(12_345, 64 * MIB, MIB):
            segment.seek(offset)
            byte = segment.read(1)[0]
            segment.seek(offset)
            segment.write(bytes([byte ^ 4]))
