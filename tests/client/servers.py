"""Real servers as processes, for tests and measurements of the client library without a mount."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
START_S = 30


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def servers(root: Path) -> Iterator[str]:
    """One metadata server and one chunkserver; the address of the former."""
    address = f"127.0.0.1:{free_port()}"
    commands = (
        ("metadata", "--data", str(root / "m"), "--listen", address, "--replicas", "1"),
        ("chunkserver", "--data", str(root / "s"), "--listen", "127.0.0.1:0", "--metadata", address),
    )
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, words in enumerate(commands):
            with (root / f"{words[0]}.log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "fsd.cli", *words], cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT
                )
            processes.append(process)
            if number == 0:
                await_listener(address)
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait(START_S)


def await_listener(address: str) -> None:
    host, _, port = address.rpartition(":")
    end = time.monotonic() + START_S
    while True:
        try:
            with socket.create_connection((host, int(port)), 1):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
