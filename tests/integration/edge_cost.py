"""What an operation costs at the FUSE edge: requests of the kernel and CPU of the mount's process, for each.

python -m tests.integration.edge_cost HOST:PORT:/VOLUME [-o OPTIONS ...]: mounts the volume with each list of options in turn.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.conftest import run_fsd

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
MIB = 1 << 20
SETTLE_S = 1.5  # until what was written is written back


class Mount:
    def __init__(self, source: str, options: str) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="fsd-edge-"))
        self.point, self.log = self.root / "m", self.root / "log"
        self.point.mkdir()
        words = ["mount", source, str(self.point), "--log", str(self.log)]
        done = run_fsd(*words, *(["-o", options] if options else []))
        if done.returncode:
            sys.exit(done.stderr)
        self.work = self.point / f"edge-{time.monotonic_ns()}"
        self.work.mkdir()
        line = next(line for line in self.log.read_text().splitlines() if ", pid " in line)
        self.pid = int(line.rsplit(" ", 1)[1])

    def close(self) -> None:
        shutil.rmtree(self.work)
        run_fsd("umount", str(self.point))
        shutil.rmtree(self.root, ignore_errors=True)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def requests(self) -> dict[str, int]:
        lines = self._told()
        os.kill(self.pid, signal.SIGUSR1)
        while len(now := self._told()) == len(lines):
            time.sleep(0.01)
        return json.loads(now[-1].split("statistics ", 1)[1])["kernel"]

    def _told(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if " statistics {" in line]


def write(path: Path, size: int) -> None:
    path.write_bytes(b"x" * size)


def steps(work: Path) -> list[tuple[str, int, Callable[[], object]]]:
    """Name, operations, what does them all; in order, later ones use what earlier ones made."""
    names = [work / f"n{number}" for number in range(500)]
    small, large = work / "small", work / "large"

    def open_read_close() -> None:
        for _ in range(2000):
            with open(small, "rb", buffering=0) as file:
                file.read()

    def write_4k() -> None:
        with open(work / "w4k", "wb", buffering=0) as file:
            for _ in range(2000):
                file.write(b"y" * 4096)

    def write_1m() -> None:
        with open(large, "wb", buffering=0) as file:
            for _ in range(100):
                file.write(b"z" * MIB)

    def read_1m() -> None:
        with open(large, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for _ in range(100):
                file.read(MIB)

    def own_write_then_read() -> None:
        with open(work / "both", "w+b", buffering=0) as file:
            file.write(b"x" * MIB)
            for number in range(500):
                os.pwrite(file.fileno(), b"y", number)
                os.pread(file.fileno(), 4096, 8 * 65536)

    def eight_in_one_directory() -> None:
        children = []
        for who in range(8):
            pid = os.fork()
            if not pid:
                for number in range(250):
                    (work / f"absent-{who}-{number}").exists()
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)

    write(small, 4096)
    os.stat(small)
    return [
        ("stat, cached", 5000, lambda: [os.stat(small) for _ in range(5000)]),
        ("open+read+close 4k, cached", 2000, open_read_close),
        ("create, empty", 500, lambda: [name.touch() for name in names]),
        ("readdir of 500", 20, lambda: [os.listdir(work) for _ in range(20)]),
        ("8 processes look up", 2000, eight_in_one_directory),
        ("write 4k", 2000, write_4k),
        ("write 1 byte, read 4k", 500, own_write_then_read),
        ("write 1M", 100, write_1m),
        ("read 1M, cold", 100, read_1m),
        ("unlink", 500, lambda: [name.unlink() for name in names]),
    ]


def measure(source: str, options: str) -> None:
    mount = Mount(source, options)
    try:
        print(
            f"\n-o {options or '(default)'}\n{'operation':28}{'us':>9}{'CPU us':>9}{'requests':>10}  of each kind, for 100"
        )
        for name, count, work in steps(mount.work):
            time.sleep(SETTLE_S)
            before, cpu = mount.requests() if "nocompanion" not in options else {}, mount.cpu_s()
            began = time.monotonic()
            work()
            took = time.monotonic() - began
            time.sleep(0.3)  # RELEASE and what is left of it
            used = mount.cpu_s() - cpu
            after = mount.requests() if "nocompanion" not in options else {}
            kinds = {k: after[k] - before.get(k, 0) for k in sorted(after) if after[k] > before.get(k, 0)}
            shown = " ".join(f"{kind} {number * 100 / count:.0f}" for kind, number in kinds.items())
            total = f"{sum(kinds.values()) / count:.2f}" if kinds else "-"
            print(f"{name:28}{took / count * 1e6:9.0f}{used / count * 1e6:9.0f}{total:>10}  {shown}", flush=True)
    finally:
        mount.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.integration.edge_cost")
    parser.add_argument("source", metavar="HOST:PORT:/VOLUME")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS")
    words = parser.parse_args()
    subprocess.run(["sync"], check=True)
    for options in words.options or [""]:
        measure(words.source, options)


if __name__ == "__main__":
    main()
