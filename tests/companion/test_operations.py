"""Each extra operation, by system calls on a toy file system."""

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import struct
import subprocess
import threading
import time

import pytest

from tests.companion import driver

pytestmark = [pytest.mark.real, pytest.mark.skipif(not driver.can_mount(), reason="needs root and /dev/fuse")]
F_OFD_SETLK = 37
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    with driver.toy(tmp_path_factory.mktemp("toy")) as started:
        yield started


@pytest.fixture
def path(toy, request):
    path = str(toy.mountpoint / request.node.name)
    with open(path, "wb"):
        pass
    yield path
    assert toy.ask("toy.locks.is_empty") is True
    assert toy.ask("info()")["waiting"] == 0


@pytest.fixture
def fd(path):
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)
    with open(path):  # RELEASE is answered to nobody: whoever opens the file afterwards comes behind it
        pass


def fallocate(fd, mode, offset, length):
    if LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) < 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def ofd_lock(fd, kind):
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 10, 0))


@contextlib.contextmanager
def another(path, code):
    """A child that has carried out `code` with the file open as `fd`."""
    process = driver.child(
        f"fd = os.open({path!r}, os.O_RDWR)\n{code}\nprint('done')\nsys.stdin.read()", stdin=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == "done\n"
        yield process
    finally:
        process.kill()
        process.wait()


def waiting(toy, count=1):
    """Until so many requests wait in the file system."""
    end = time.monotonic() + 10
    while toy.ask("info()")["waiting"] != count:
        assert time.monotonic() < end
        time.sleep(0.01)


def errno_of(call, *args):
    with pytest.raises(OSError) as caught:
        call(*args)
    return caught.value.errno


def test_fallocate_extends_punches_and_zeroes(fd):
    fallocate(fd, 0, 0, 8192)
    assert os.fstat(fd).st_size == 8192
    os.pwrite(fd, b"D" * 8192, 0)
    fallocate(fd, 3, 1000, 100)
    assert os.pread(fd, 102, 999) == b"D" + bytes(100) + b"D"
    fallocate(fd, 16, 8190, 10)
    assert os.fstat(fd).st_size == 8200
    assert errno_of(fallocate, fd, 8, 0, 4096) == errno.EOPNOTSUPP  # collapse: the kernel refuses


def test_seek_data_and_hole(fd):
    os.pwrite(fd, b"D" * 100, 100)
    os.ftruncate(fd, 300)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 100
    assert os.lseek(fd, 150, os.SEEK_HOLE) == 200
    assert errno_of(os.lseek, fd, 200, os.SEEK_DATA) == errno.ENXIO
    assert errno_of(os.lseek, fd, 300, os.SEEK_HOLE) == errno.ENXIO


def test_copy_file_range_moves_no_bytes_through_the_caller(toy, fd):
    os.pwrite(fd, b"abcdef", 0)
    with open(toy.mountpoint / "copy", "wb+") as other:
        assert os.copy_file_range(fd, other.fileno(), 4, 1, 2) == 4
        assert os.pread(other.fileno(), 10, 0) == b"\0\0bcde"
    assert ["copy_file_range", 4] in toy.ask("toy.calls")


def test_ioctl_in_and_out(fd):
    assert fcntl.ioctl(fd, 0x80086601, bytes(8)) == b"\x10" + bytes(7)
    answer = bytearray(struct.pack("i", 21))
    assert fcntl.ioctl(fd, 0xC0045801, answer) == 7
    assert struct.unpack("i", answer) == (42,)
    assert errno_of(fcntl.ioctl, fd, 0x5802) == errno.ENOTTY


def test_a_bug_in_a_handler_is_eio_and_the_mount_lives_on(toy, fd):
    assert errno_of(fcntl.ioctl, fd, 0x5801) == errno.EIO
    assert "a bug of the handler" in toy.log.read_text()
    os.listdir(toy.mountpoint)


def test_range_locks_conflict_between_processes_and_tell_who(path, fd):
    with another(path, "fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)") as process:
        assert errno_of(fcntl.lockf, fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 14) == errno.EAGAIN
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 15)
        found = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0))
        assert struct.unpack("hhqqi4x", found) == (fcntl.F_WRLCK, os.SEEK_SET, 5, 10, process.pid)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    found = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    assert struct.unpack("hhqqi4x", found)[0] == fcntl.F_UNLCK


def test_closing_any_descriptor_drops_a_process_range_locks(path, fd):
    with another(path, f"fcntl.lockf(fd, fcntl.LOCK_EX)\nos.close(os.open({path!r}, os.O_RDONLY))"):
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_flock_goes_with_the_last_descriptor(toy, path, fd):
    other = os.open(path, os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    twin = os.dup(other)
    assert errno_of(fcntl.flock, fd, fcntl.LOCK_SH | fcntl.LOCK_NB) == errno.EAGAIN
    os.close(other)
    assert errno_of(fcntl.flock, fd, fcntl.LOCK_SH | fcntl.LOCK_NB) == errno.EAGAIN
    os.close(twin)
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert ["release", True] in toy.ask("toy.calls")


def test_open_file_description_locks_go_with_the_handle(path, fd):
    other = os.open(path, os.O_RDWR)
    ofd_lock(other, fcntl.F_WRLCK)
    assert errno_of(ofd_lock, fd, fcntl.F_WRLCK) == errno.EAGAIN
    os.close(other)
    os.stat(path)
    ofd_lock(fd, fcntl.F_WRLCK)


def test_a_waiting_lock_is_granted_when_it_is_free(toy, path, fd):
    fcntl.lockf(fd, fcntl.LOCK_EX)
    waiter = driver.child(f"fd = os.open({path!r}, os.O_RDWR)\nfcntl.lockf(fd, fcntl.LOCK_EX)\nprint('mine')")
    waiting(toy)
    fcntl.lockf(fd, fcntl.LOCK_UN)
    assert waiter.communicate(timeout=10)[0] == "mine\n"


@pytest.mark.parametrize("call", ["fcntl.lockf(fd, fcntl.LOCK_EX)", "fcntl.flock(fd, fcntl.LOCK_EX)"])
def test_a_signal_ends_a_waiting_lock(toy, path, fd, call):
    fcntl.lockf(fd, fcntl.LOCK_EX)
    fcntl.flock(fd, fcntl.LOCK_EX)
    waiter = driver.child(
        f"""
class Alarm(Exception): pass
def alarm(*_): raise Alarm
signal.signal(signal.SIGUSR1, alarm)
fd = os.open({path!r}, os.O_RDWR)
try: {call}
except Alarm: print('interrupted')
"""
    )
    waiting(toy)
    waiter.send_signal(signal.SIGUSR1)
    assert waiter.communicate(timeout=10)[0] == "interrupted\n"


def test_a_killed_waiter_dies_and_leaves_the_queue(toy, path, fd):
    fcntl.lockf(fd, fcntl.LOCK_EX)
    waiter = driver.child(f"fd = os.open({path!r}, os.O_RDWR)\nfcntl.lockf(fd, fcntl.LOCK_EX)")
    waiting(toy)
    waiter.kill()
    waiter.wait(10)
    waiting(toy, 0)


def test_a_deadlock_is_refused(toy, path, fd):
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
    waiter = driver.child(
        f"fd = os.open({path!r}, os.O_RDWR)\nfcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)\nfcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)"
    )
    waiting(toy)
    assert errno_of(fcntl.lockf, fd, fcntl.LOCK_EX, 1, 1) == errno.EDEADLK
    fcntl.lockf(fd, fcntl.LOCK_UN)
    assert waiter.wait(10) == 0


def test_more_waiters_than_workers_do_not_stop_the_mount(toy, path, fd):
    fcntl.flock(fd, fcntl.LOCK_EX)
    got = []

    def wait():
        mine = os.open(path, os.O_RDWR)
        fcntl.flock(mine, fcntl.LOCK_SH)
        got.append(mine)

    threads = [threading.Thread(target=wait) for _ in range(120)]
    for thread in threads:
        thread.start()
    waiting(toy, 120)
    begin = time.monotonic()
    os.listdir(toy.mountpoint)
    os.stat(path)
    assert time.monotonic() - begin < 1
    fcntl.flock(fd, fcntl.LOCK_UN)
    for thread in threads:
        thread.join(10)
    assert len(got) == 120
    for mine in got:
        os.close(mine)
