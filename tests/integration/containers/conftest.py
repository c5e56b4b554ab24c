"""A dockerd for the tests, and `fsd plugin` beside it, once or twice."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY, RealCluster, eventually
from tests.integration.containers import image
from tests.integration.containers.dockerd import Dockerd, missing

DRIVER = f"fsdtest{os.getpid()}"
SOCKET = Path(f"/run/docker/plugins/{DRIVER}.sock")


@pytest.fixture(scope="session")
def dockerd() -> Iterator[Dockerd]:
    lacks = missing()
    if lacks:
        pytest.skip(lacks)
    root = Path(tempfile.mkdtemp(prefix="fsd-dockerd-"))
    daemon = Dockerd(root)
    try:
        lacks = daemon.start()
        if lacks:
            pytest.skip(lacks)
        daemon.make_busybox()
        yield daemon
    finally:
        daemon.remove()


class Plugin:
    """`fsd plugin` as a process; `volumes` is where this "host" mounts."""

    def __init__(self, cluster: RealCluster, name: str) -> None:
        self.cluster = cluster
        self.driver = f"{DRIVER}{name}"
        self.socket = SOCKET.with_name(f"{self.driver}.sock")
        self.volumes = cluster.root / f"volumes-{name}"
        self.log = cluster.root / f"plugin-{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["plugin", "--data", str(self.cluster.data), "--socket", str(self.socket)]
        words += ["--volumes", str(self.volumes), "--log", str(self.log)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fsd.cli", *words], env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
        )
        eventually(self.socket.exists, 30, self.log_text)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else "no log"

    def mounted(self) -> list[str]:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return sorted(line.split()[4] for line in lines if f" {self.volumes}/" in line)


def made(cluster: RealCluster, name: str) -> Iterator[Plugin]:
    plugin = Plugin(cluster, name)
    try:
        plugin.start()
        yield plugin
        assert "Traceback" not in plugin.log_text()
        assert " ERROR " not in plugin.log_text()
    finally:
        plugin.stop()
        for mount in plugin.mounted():
            subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
        plugin.socket.unlink(missing_ok=True)
        Path(f"/run/fsd/plugin/{plugin.driver}.json").unlink(missing_ok=True)


@pytest.fixture
def plugin(dockerd: Dockerd, cluster: RealCluster) -> Iterator[Plugin]:
    yield from made(cluster, "a")


@pytest.fixture
def other(dockerd: Dockerd, cluster: RealCluster) -> Iterator[Plugin]:
    """A second one with its own mounts, as on another host."""
    yield from made(cluster, "b")


def ask(plugin: Plugin, call: str, **document: str) -> dict:
    """One call of the protocol, as dockerd makes it."""
    import http.client
    import json
    import socket

    connection = http.client.HTTPConnection("plugin")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(plugin.socket))
    connection.sock.settimeout(60)
    connection.request("POST", f"/VolumeDriver.{call}", json.dumps(document))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


@pytest.fixture(scope="session")
def fsd_image(dockerd: Dockerd) -> str:
    """An image that runs every role."""
    image.make(dockerd)
    return image.NAME
