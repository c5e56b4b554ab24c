"""The files of docs/examples that run containers, run: a cluster from one image, and an application on a plugin's volume. The
application is a web service that keeps an SQLite database on fsd.
"""

import os
import shutil
import signal
import socket
import subprocess
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY, eventually
from tests.integration.containers.dockerd import Dockerd

EXAMPLES = REPOSITORY / "docs" / "examples"
TIMEOUT_S = 240


class Compose:
    """One compose file as a project, with what it takes from the environment."""

    def __init__(self, dockerd: Dockerd, file: str, **settings: str) -> None:
        self.dockerd = dockerd
        self.project = f"fsdtest{os.getpid()}"
        self.words = ["docker-compose", "-p", self.project, "-f", str(EXAMPLES / "docker" / file)]
        self.port = free_port()
        self.environment = dockerd.environment | {"FSD_PORT": f"127.0.0.1:{self.port}"} | settings

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            [*self.words, *words], env=self.environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}{done.stdout}{self.logs()}"
        return done.stdout

    def logs(self) -> str:
        done = subprocess.run(
            [*self.words, "logs", "--tail", "20"], env=self.environment, capture_output=True, text=True
        )
        return done.stdout

    def container(self, service: str) -> str:
        return self("ps", "-q", service).strip()

    def kill(self, service: str) -> None:
        """kill -9 of its process, as a crash."""
        os.kill(int(self.dockerd("inspect", "-f", "{{.State.Pid}}", self.container(service))), signal.SIGKILL)

    def ask(self, text: str | None = None, timeout_s: float = 30) -> str | None:
        """The web application's answer; None if it has none. With `text`: posted."""
        data = None if text is None else text.encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}", data, timeout_s) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, OSError):
            return None

    def guests(self) -> list[str]:
        answer = self.ask()
        return [] if answer is None else [line.split(" ", 1)[1] for line in answer.splitlines()]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory whose mounts are seen in containers and come from them."""
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=True)
    try:
        subprocess.run(["mount", "--make-rshared", tmp_path], check=True)
        yield tmp_path
    finally:
        subprocess.run(["umount", "-R", "-l", tmp_path], check=True)


def is_mounted(path: Path) -> bool:
    return f" {path} " in Path("/proc/self/mountinfo").read_text()


def test_a_cluster_of_containers_serves_an_application_through_crashes(dockerd, fsd_image, shared):
    compose = Compose(dockerd, "compose.yaml", FSD_IMAGE=fsd_image, FSD_MOUNT=str(shared))
    mount = shared / "default"
    try:
        compose("up", "-d", "--no-build")
        eventually(lambda: compose.ask("first") is not None, 60, compose.logs)
        assert (mount / "guestbook" / "guests.db").stat().st_size > 0

        compose.kill("chunkserver-1")
        assert compose.ask("without a chunkserver") == "2\n"
        compose.kill("metadata")
        eventually(lambda: compose.ask("without metadata") is not None, 60, compose.logs)
        assert set(compose.guests()) >= {"first", "without a chunkserver", "without metadata"}

        compose.kill("client")
        eventually(lambda: compose.ask("after the client's crash") is not None, 90, compose.logs)
        assert set(compose.guests()) >= {
            "first",
            "without a chunkserver",
            "without metadata",
            "after the client's crash",
        }
        assert is_mounted(mount)
    finally:
        compose("down", "-v")
    assert not is_mounted(mount)
    assert list(mount.iterdir()) == [], "something was written below the mount"


def test_an_application_keeps_its_data_on_a_volume_of_the_plugin(dockerd, fsd_image, plugin, cluster, shared):
    compose = Compose(dockerd, "compose-plugin.yaml", FSD_IMAGE=fsd_image, FSD_DRIVER=plugin.driver)

    def volumes() -> list[str]:
        return [volume["name"] for volume in cluster.status()["volumes"]]

    try:
        compose("up", "-d")
        eventually(lambda: compose.ask("hello") is not None, 60, compose.logs)
        compose("down")
        assert "guests" in volumes()
        compose("up", "-d")
        eventually(lambda: compose.ask("again") is not None, 60, compose.logs)
        assert compose.guests() == ["hello", "again"]
    finally:
        compose("down", "-v")
    assert "guests" not in volumes()


def test_the_dockerfile_takes_all_of_the_product_and_nothing_else():
    dockerfile = (EXAMPLES / "docker" / "Dockerfile").read_text()
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]:
        package = pattern.removesuffix("*")
        assert f"COPY {package} /src/{package}\n" in dockerfile
        assert f"!{package}" in ignored
    assert ignored[1] == "*"
    needed = set((REPOSITORY / "bootstrap").read_text().split('packages="')[1].split('"')[0].split())
    assert all(name in dockerfile for name in needed)


@pytest.mark.parametrize("file", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda file: file.name)
def test_examples_are_yaml_and_kubernetes_objects_are_whole(file):
    yaml = shutil.which("python3", path="/usr/bin:/bin")
    script = "import sys, yaml, json; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)"
    done = subprocess.run([yaml or "python3", "-c", script, file], capture_output=True, text=True, check=False)
    if "No module named" in done.stderr:
        pytest.skip("python3-yaml is not installed")
    assert done.returncode == 0, done.stderr
    if file.parent.name != "kubernetes":
        return
    import json

    for item in json.loads(done.stdout):
        assert {"apiVersion", "kind", "metadata"} <= item.keys()
        assert item["metadata"]["name"]
        if item["kind"] in ("DaemonSet", "Deployment"):
            template = item["spec"]["template"]
            assert item["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
            named = {volume["name"] for volume in template["spec"]["volumes"]}
            assert {m["name"] for c in template["spec"]["containers"] for m in c["volumeMounts"]} <= named
