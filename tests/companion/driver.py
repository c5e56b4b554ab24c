"""A toy file system in a process: started, asked, stopped."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Toy:
    def __init__(self, mountpoint, log, pass_fds=(), **options):
        self.mountpoint, self.log = Path(mountpoint), Path(log)
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.companion.toyfs", str(mountpoint), json.dumps(options)],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, pass_fds=pass_fds,
            )  # fmt: skip
        first = self.process.stdout.readline()
        assert first, self.log.read_text()
        assert json.loads(first) == "ready"

    def ask(self, expression):
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)

    def stop(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


@contextlib.contextmanager
def toy(tmp_path, **options):
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir(exist_ok=True)
    started = Toy(mountpoint, tmp_path / "toy.log", **options)
    try:
        yield started
    finally:
        try:
            started.stop()
        finally:
            subprocess.run(["umount", "-l", str(mountpoint)], capture_output=True, check=False)


def child(code, **options):
    """A Python process that says what `code` prints."""
    preamble = "import os, sys, fcntl, errno, signal, time, struct\n"
    return subprocess.Popen(
        [sys.executable, "-u", "-S", "-c", preamble + code], stdout=subprocess.PIPE, text=True, **options
    )


def can_mount():
    return os.geteuid() == 0 and os.path.exists("/dev/fuse")
