"""What the companion adds, on real mounts: locks, fallocate, holes, set-id bits."""

import ctypes
import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.real
LIBC = ctypes.CDLL(None, use_errno=True)
KEEP, PUNCH, ZERO = 1, 2, 16


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) < 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def run_as_nobody(directory: Path, code: str) -> None:
    """In `directory`, whose parents may be root's alone."""
    preamble = f"import os\nos.chdir({str(directory)!r})\nos.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n"
    subprocess.run([sys.executable, "-S", "-c", preamble + code], check=True)


def test_fallocate_makes_size_and_zeroes(a: Path, b: Path):
    fd = os.open(a / "file", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 100_000)
    assert os.stat(b / "file").st_size == 100_000
    os.pwrite(fd, b"D" * 100_000, 0)
    fallocate(fd, KEEP | PUNCH, 10_000, 80_000)
    assert os.pread(fd, 100_000, 0) == b"D" * 10_000 + bytes(80_000) + b"D" * 10_000
    fallocate(fd, ZERO, 95_000, 10_000)
    expected = b"D" * 10_000 + bytes(80_000) + b"D" * 5_000 + bytes(10_000)
    assert os.pread(fd, 200_000, 0) == expected
    assert (b / "file").read_bytes() == expected
    fallocate(fd, KEEP, 0, 1 << 20)
    fallocate(fd, KEEP | PUNCH, 1 << 30, 1 << 40)  # beyond the end: nothing to do
    assert os.fstat(fd).st_size == 105_000
    with pytest.raises(OSError, match="fallocate") as caught:
        fallocate(fd, 8, 0, 4096)
    assert caught.value.errno == errno.EOPNOTSUPP
    os.close(fd)


def test_a_file_is_data_with_a_hole_at_its_end(a: Path):
    fd = os.open(a / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 1000)
    assert os.lseek(fd, 10, os.SEEK_DATA) == 10
    assert os.lseek(fd, 10, os.SEEK_HOLE) == 1000
    with pytest.raises(OSError, match="No such device or address"):
        os.lseek(fd, 1000, os.SEEK_DATA)
    os.close(fd)


def test_copy_file_range_copies(a: Path):
    (a / "from").write_bytes(os.urandom(200_000))
    with open(a / "from", "rb") as source, open(a / "to", "wb") as target:
        done = 0
        while done < 200_000:
            done += os.copy_file_range(source.fileno(), target.fileno(), 200_000 - done)
    assert (a / "to").read_bytes() == (a / "from").read_bytes()


def test_locks_between_processes_and_a_killed_waiter(a: Path):
    path = str(a / "file")
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    fcntl.flock(fd, fcntl.LOCK_EX)
    code = f"import fcntl, os, sys\nfd = os.open({path!r}, os.O_RDWR)\nprint(1, flush=True)\n"
    waiters = [
        subprocess.Popen([sys.executable, "-S", "-c", code + call], stdout=subprocess.PIPE)
        for call in (
            "fcntl.lockf(fd, fcntl.LOCK_EX)",
            "fcntl.flock(fd, fcntl.LOCK_SH)",
            "fcntl.lockf(fd, fcntl.LOCK_EX)",
        )
    ]
    for waiter in waiters:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == b"1\n"
    time.sleep(0.3)
    assert [waiter.poll() for waiter in waiters] == [None] * 3
    waiters[0].kill()
    assert waiters[0].wait(5) == -9
    os.close(fd)
    assert waiters[1].wait(5) == 0
    assert waiters[2].wait(5) == 0


def test_many_waiters_do_not_stop_the_mount(a: Path):
    path = a / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)

    def wait() -> None:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    threads = [threading.Thread(target=wait) for _ in range(50)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    begin = time.monotonic()
    (a / "other").write_bytes(b"x")
    assert time.monotonic() - begin < 2
    os.close(fd)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("change", ["os.write(os.open(p, os.O_WRONLY), b'x')", "os.truncate(p, 3)", "open(p, 'w')"])
def test_who_is_not_root_and_changes_a_file_takes_its_set_id_bits(a: Path, b: Path, change: str):
    path = a / "file"
    path.write_bytes(b"12345")
    os.chmod(path, 0o6777)
    os.chmod(a, 0o755)
    run_as_nobody(a, f"p = 'file'\n{change}")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o777
    assert stat.S_IMODE(os.stat(b / "file").st_mode) == 0o777


def test_a_chown_takes_the_set_id_bits_and_root_s_write_does_not(a: Path):
    path = a / "file"
    path.write_bytes(b"12345")
    os.chmod(path, 0o6755)
    with open(path, "r+b") as file:
        file.write(b"x")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o6755
    os.chown(path, 1, 1)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755


def test_who_follows_a_growing_log_sees_its_bytes_and_no_zeroes(a: Path):
    path, end = a / "log", time.monotonic() + 3
    path.touch()
    code = f"""
import os, time
fd = os.open({str(path)!r}, os.O_WRONLY | os.O_APPEND)
end = time.monotonic() + 2.5
number = 0
while time.monotonic() < end:
    os.write(fd, b'%07d|' % number)
    number += 1
"""
    appender = subprocess.Popen([sys.executable, "-S", "-c", code])
    fd, seen = os.open(path, os.O_RDONLY), 0
    while time.monotonic() < end:
        new = os.pread(fd, 65536, seen)
        assert b"\0" not in new
        seen += len(new)
        os.pread(fd, 4096, max(0, seen - 100))  # the page at the end is wanted all the time
    os.close(fd)
    assert appender.wait(5) == 0
    assert path.read_bytes() == b"".join(b"%07d|" % number for number in range(seen // 8))
