"""kill -9 of a mount's daemon again and again under all kinds of work: errors, losses and pauses are counted.

    python -m tests.integration.kill_loop MOUNTPOINT SECONDS [--every S] [--upgrade]

Each worker is a process of its own that checks what it does against what it knows must be so. By hand; CI runs a short one.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

GIT = "git -c user.name=t -c user.email=t@t -c gc.auto=0"


class Pauses:
    """How long single calls took."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def timed(self, call: Callable[..., object], *arguments: object) -> object:
        begin = time.monotonic()
        result = call(*arguments)
        self.all.append(time.monotonic() - begin)
        return result


def names(directory: Path, until: float) -> dict:
    """Every call has one right answer: mkdir of a new name, unlink of one that is there, O_EXCL, link, rename."""
    pauses, number = Pauses(), 0
    while time.monotonic() < until:
        path = directory / f"n{number}"
        pauses.timed(path.mkdir)
        os.close(pauses.timed(os.open, path / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        pauses.timed(os.link, path / "f", path / "g")
        pauses.timed(os.rename, path / "g", path / "h")
        pauses.timed(os.symlink, "h", path / "s")
        assert sorted(os.listdir(path)) == ["f", "h", "s"]
        assert os.stat(path / "s").st_nlink == 2
        for name in ("f", "h", "s"):
            pauses.timed(os.unlink, path / name)
        pauses.timed(path.rmdir)
        number += 1
    assert list(directory.iterdir()) == []
    return {"count": len(pauses.all), "pauses": pauses.all}


def appends(directory: Path, until: float) -> dict:
    """O_APPEND: each line once, in order."""
    pauses, number = Pauses(), 0
    fd = os.open(directory / "log", os.O_CREAT | os.O_APPEND | os.O_RDWR)
    while time.monotonic() < until:
        line = b"%09d\n" % number
        assert pauses.timed(os.write, fd, line) == 10
        number += 1
    os.close(fd)
    assert (directory / "log").read_bytes() == b"".join(b"%09d\n" % n for n in range(number))
    return {"count": number, "pauses": pauses.all}


def blocks(directory: Path, until: float) -> dict:
    """Random blocks of a file, read back against memory, some synced."""
    pauses, size, rng = Pauses(), 4 << 20, random.Random(1)
    image, count = bytearray(size), 0
    fd = os.open(directory / "blocks", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, size)
    while time.monotonic() < until:
        length = rng.choice((1, 100, 4096, 65536, 1 << 20))
        offset = rng.randrange(size - length + 1)
        if rng.random() < 0.5:
            data = rng.randbytes(length)
            assert pauses.timed(os.pwrite, fd, data, offset) == length
            image[offset : offset + length] = data
        else:
            got = pauses.timed(os.pread, fd, length, offset)
            assert got == bytes(image[offset : offset + length]), f"block {offset}+{length} differs"
        if rng.random() < 0.02:
            pauses.timed(os.fsync, fd)
        count += 1
    os.close(fd)
    assert (directory / "blocks").read_bytes() == bytes(image)
    return {"count": count, "pauses": pauses.all}


def nameless(directory: Path, until: float) -> dict:
    """An open file without a name."""
    pauses, number = Pauses(), 0
    fd = os.open(directory / "nameless", os.O_CREAT | os.O_RDWR)
    os.unlink(directory / "nameless")
    while time.monotonic() < until:
        data = b"%010d" % number
        pauses.timed(os.pwrite, fd, data, number % 1000 * 10)
        assert pauses.timed(os.pread, fd, 10, number % 1000 * 10) == data
        assert os.fstat(fd).st_nlink == 0
        number += 1
        time.sleep(0.002)
    return {"count": number, "pauses": pauses.all}


def locked(directory: Path, until: float) -> dict:
    """A held flock keeps others out; another one is taken and given back all the time."""
    pauses, count = Pauses(), 0
    path = directory / "lock"
    with open(path, "w") as held, open(directory / "other", "w") as other:
        fcntl.flock(held, fcntl.LOCK_EX)
        while time.monotonic() < until:
            with open(path) as another:
                try:
                    fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    raise AssertionError("a held lock was given to somebody else")
                except BlockingIOError:
                    pass
            pauses.timed(fcntl.flock, other, fcntl.LOCK_EX)
            pauses.timed(fcntl.flock, other, fcntl.LOCK_UN)
            count += 1
            time.sleep(0.01)
    return {"count": count, "pauses": pauses.all}


def database(directory: Path, until: float) -> dict:
    pauses, number = Pauses(), 0
    with sqlite3.connect(directory / "db", timeout=120) as base:
        base.execute("create table t(n integer primary key, x blob, h text)")
        while time.monotonic() < until:
            blob = os.urandom(random.randrange(1, 9000))
            base.execute("insert into t values (?, ?, ?)", (number, blob, hashlib.md5(blob).hexdigest()))
            pauses.timed(base.commit)
            number += 1
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
        rows = base.execute("select n, x, h from t order by n").fetchall()
    assert [row[0] for row in rows] == list(range(number))
    assert all(hashlib.md5(row[1]).hexdigest() == row[2] for row in rows)
    return {"count": number, "pauses": pauses.all}


def repository(directory: Path, until: float) -> dict:
    pauses, number = Pauses(), 0

    def git(words: str) -> None:
        done = subprocess.run(f"{GIT} {words}", shell=True, cwd=directory, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"git {words}: {done.stderr}"

    git("init -q .")
    while time.monotonic() < until:
        (directory / f"f{number % 20}").write_text(f"{number}\n" * 50)
        pauses.timed(git, "add .")
        pauses.timed(git, f"commit -qm {number}")
        number += 1
    git("fsck --strict")
    return {"count": number, "pauses": []}


def fio(directory: Path, until: float) -> dict:
    rounds = 0
    while time.monotonic() < until:
        words = "--name=v --size=8M --rw=randwrite --bsrange=4k-128k --ioengine=psync --verify=crc32c --verify_fatal=1"
        words += " --verify_state_save=0"
        done = subprocess.run(
            ["fio", *words.split(), f"--directory={directory}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout[-2000:]
        (directory / "v.0.0").unlink()
        rounds += 1
    return {"count": rounds, "pauses": []}


WORKERS = {work.__name__: work for work in (names, appends, blocks, nameless, locked, database, repository, fio)}


def serving(mountpoint: str) -> dict:
    for path in Path("/run/fsd").glob("*.json"):
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if told.get("mountpoint") == mountpoint and told.get("daemon"):
            return told
    return {}


def kill_for(mountpoint: str, until: float, every_s: float, upgrade: bool) -> tuple[int, int]:
    """(kills, upgrades) of daemons that served."""
    kills, upgrades, rng, last = 0, 0, random.Random(7), 0
    while time.monotonic() < until:
        time.sleep(every_s * rng.uniform(0.3, 1.7))
        told = serving(mountpoint)
        if not told or told["daemon"]["pid"] == last:
            continue
        if upgrade and rng.random() < 0.5:
            done = subprocess.run(
                [sys.executable, "-m", "fsd.cli", "upgrade", mountpoint], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            upgrades += 1
        else:
            last = told["daemon"]["pid"]
            with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile, in a hand-over
                os.kill(last, signal.SIGKILL)
            kills += 1
    return kills, upgrades


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mountpoint")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--every", type=float, default=2.0)
    parser.add_argument("--upgrade", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--worker")
    options = parser.parse_args()
    if options.worker:
        result = WORKERS[options.worker](Path(options.mountpoint), time.monotonic() + options.seconds)
        print(json.dumps(result))
        return 0
    top = f"{options.mountpoint}/kill-{time.monotonic_ns()}"
    wanted = [name for name in options.only.split(",") if name] or [
        n for n in WORKERS if n != "fio" or shutil.which("fio")
    ]
    children: dict[str, subprocess.Popen[str]] = {}
    for name in wanted:
        os.makedirs(f"{top}/{name}")
        words = [
            sys.executable,
            "-m",
            "tests.integration.kill_loop",
            f"{top}/{name}",
            str(options.seconds),
            "--worker",
            name,
        ]
        children[name] = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kills, upgrades = kill_for(options.mountpoint, time.monotonic() + options.seconds, options.every, options.upgrade)
    failed = 0
    everything: list[float] = []
    for name, child in children.items():
        try:
            said, complaint = child.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            child.kill()
            said, complaint = "", "hangs"
        if child.returncode != 0:
            failed += 1
            print(f"{name:<12} FAILED: {complaint.strip()[-1500:]}")
            continue
        told = json.loads(said.splitlines()[-1])
        longest = max(told["pauses"], default=0.0)
        everything += told["pauses"]
        print(f"{name:<12} {told['count']:>8} done, longest call {longest:.2f} s")
    waits = sorted((pause for pause in everything if pause > 0.2), reverse=True)
    middle = waits[len(waits) // 2] if waits else 0.0
    longest = waits[0] if waits else 0.0
    print(f"{kills} kills, {upgrades} upgrades, {failed} workers failed")
    print(f"calls over 0.2 s: {len(waits)}, median {middle:.2f} s, longest {longest:.2f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
