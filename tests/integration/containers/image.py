"""The image `fsd-test` without a registry and without a download: this Python, fsd with its dependencies, fusermount3, and
busybox for the rest. It runs what docs/examples/docker/Dockerfile's image runs; that one is built by hand, it needs a network.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.integration.containers.dockerd import BUSYBOX, Dockerd

REPOSITORY = Path(__file__).resolve().parents[3]
NAME = "fsd-test"
LEFT_OUT = shutil.ignore_patterns(
    "test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "site-packages", "dist-packages",
    "__pycache__", "config-*", "*.a",
)  # fmt: skip
ENTRY = '#!/bin/sh\nexec python3 -m fsd.cli "$@"\n'


def make(dockerd: Dockerd) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        _fill(root)
        packed = subprocess.run(["tar", "-C", directory, "-c", "."], capture_output=True, check=True).stdout
    settings = ['ENTRYPOINT ["fsd"]', "ENV PATH=/opt/fsd/bin:/usr/bin:/bin", "ENV PYTHONPATH=/opt/fsd/lib"]
    dockerd("import", *(word for setting in settings for word in ("-c", setting)), "-", NAME, stdin=packed)


def _fill(root: Path) -> None:
    root.chmod(0o755)
    for name in (
        "bin",
        "usr/bin",
        "etc",
        "dev",
        "proc",
        "sys",
        "tmp",
        "run",
        "root",
        "data",
        "app",
        "srv/fsd",
        "opt/fsd/bin",
        "opt/fsd/lib",
    ):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    shutil.copy2(BUSYBOX, root / "bin" / "busybox")
    for name in ("sh", "grep", "stat", "cat", "ls", "mkdir", "sleep", "env", "kill"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "opt/fsd/bin/fsd").write_text(ENTRY)
    (root / "opt/fsd/bin/fsd").chmod(0o755)
    python = Path(sys.executable).resolve()
    prefix = Path(sys.base_prefix)
    stdlib = Path(sysconfig.get_path("stdlib"))
    inside = root / stdlib.relative_to("/")
    shutil.copytree(stdlib, inside, ignore=LEFT_OUT)
    _copy(python, root)
    (root / "opt/fsd/bin/python3").symlink_to(python)
    _copy(Path(shutil.which("fusermount3") or "/usr/bin/fusermount3"), root)
    for name in _needed("fsd"):
        _copy_distribution(name, root / "opt/fsd/lib")
    for package in ("fsd", "metadata", "chunkserver"):
        shutil.copytree(
            REPOSITORY / package, root / "opt/fsd/lib" / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    assert prefix in python.parents
    for library in _libraries(
        [path for path in root.rglob("*") if path.suffix == ".so" or ".so." in path.name]
        + [root / python.relative_to("/"), root / "usr/bin/fusermount3"]
    ):
        _copy(library, root)


def _copy(path: Path, root: Path) -> None:
    """To the same place below `root`."""
    to = root / path.relative_to("/")
    to.parent.mkdir(parents=True, exist_ok=True)
    if not to.exists():
        shutil.copy2(path, to)


def _needed(name: str) -> list[str]:
    """The distributions that `name` needs, itself left out."""
    found: list[str] = []
    waiting = [name]
    while waiting:
        for needed in importlib.metadata.requires(waiting.pop()) or []:
            plain = re.split(r"[^A-Za-z0-9._-]", needed)[0]
            if "extra ==" not in needed and plain not in found and _is_installed(plain):
                found.append(plain)
                waiting.append(plain)
    return found


def _is_installed(name: str) -> bool:
    """Some are for other systems or Pythons."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _copy_distribution(name: str, to: Path) -> None:
    distribution = importlib.metadata.distribution(name)
    for file in distribution.files or []:
        if ".." in file.parts or "__pycache__" in file.parts or "tests" in file.parts:
            continue
        target = to / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file.locate(), target)


def _libraries(programs: list[Path]) -> set[Path]:
    """What the dynamic linker would load for them."""
    told = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    names = re.findall(r"(?:=> |^\s+)(/\S+) \(0x", told, re.MULTILINE)
    return {Path(name) for name in names}
