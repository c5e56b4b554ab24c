"""flock, fcntl's locks of ranges, and those of open file descriptions."""

import errno
import fcntl
import os
import struct
import time

from tests.conformance.trial import Trial, case, opened, write

OFD_GETLK, OFD_SETLK = 36, 37
_BUSY = (errno.EAGAIN, errno.EACCES)


def range_lock(fd: int, kind: int, start: int, length: int, command: int = fcntl.F_SETLK) -> None:
    fcntl.fcntl(fd, command, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))


def holder(fd: int, kind: int, start: int, length: int) -> tuple[int, int, int, int]:
    """F_GETLK: kind, start, length, pid."""
    found = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))
    kind, _, start, length, pid = struct.unpack("hhqqi4x", found)
    return kind, start, length, pid


def lock_in_child(t: Trial, kind: int, start: int, length: int) -> int:
    def work() -> None:
        range_lock(os.open("f", os.O_RDWR), kind, start, length)

    return t.child(work)


@case("locks")
def ranges_exclude_other_processes(t: Trial) -> None:
    write("f", b"x" * 100)
    with opened("f", os.O_RDWR) as fd:
        range_lock(fd, fcntl.F_WRLCK, 10, 10)
        t.true(lock_in_child(t, fcntl.F_WRLCK, 15, 1) in _BUSY)
        t.true(lock_in_child(t, fcntl.F_RDLCK, 0, 0) in _BUSY)
        t.same(lock_in_child(t, fcntl.F_WRLCK, 0, 10), 0)
        t.same(lock_in_child(t, fcntl.F_WRLCK, 20, 0), 0)
        range_lock(fd, fcntl.F_UNLCK, 12, 3)
        t.same(lock_in_child(t, fcntl.F_WRLCK, 12, 3), 0, "a hole in the middle")
        t.true(lock_in_child(t, fcntl.F_WRLCK, 11, 1) in _BUSY)
        range_lock(fd, fcntl.F_RDLCK, 0, 0)
        t.same(lock_in_child(t, fcntl.F_RDLCK, 0, 0), 0, "readers share")
        t.true(lock_in_child(t, fcntl.F_WRLCK, 1000, 1) in _BUSY)
        parent = os.getpid()

        def ask() -> int:
            kind, start, length, pid = holder(os.open("f", os.O_RDWR), fcntl.F_WRLCK, 0, 0)
            return int((kind, start, length, pid) == (fcntl.F_RDLCK, 0, 0, parent))

        t.same(t.child(ask), 1, "F_GETLK tells who holds it")
        range_lock(fd, fcntl.F_UNLCK, 0, 0)
        t.same(holder(fd, fcntl.F_WRLCK, 0, 0)[0], fcntl.F_UNLCK)


@case("locks")
def closing_any_descriptor_lets_go(t: Trial) -> None:
    write("f", b"x")
    with opened("f", os.O_RDWR) as fd:
        range_lock(fd, fcntl.F_WRLCK, 0, 0)
        os.close(os.open("f", os.O_RDONLY))
        t.same(lock_in_child(t, fcntl.F_WRLCK, 0, 0), 0)


@case("locks")
def the_dead_hold_nothing(t: Trial) -> None:
    write("f", b"x")

    def take_and_die() -> None:
        fd = os.open("f", os.O_RDWR)
        range_lock(fd, fcntl.F_WRLCK, 0, 0)
        fcntl.flock(os.open("f", os.O_RDWR), fcntl.LOCK_EX)
        os.kill(os.getpid(), 9)

    t.same(t.child(take_and_die), -9)
    with opened("f", os.O_RDWR) as fd:
        t.allows(range_lock, fd, fcntl.F_WRLCK, 0, 0)
        t.allows(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@case("locks")
def waiting(t: Trial) -> None:
    write("f", b"x")
    with opened("f", os.O_RDWR) as fd:
        range_lock(fd, fcntl.F_WRLCK, 0, 0)
        pid = os.fork()
        if not pid:
            range_lock(os.open("f", os.O_RDWR), fcntl.F_WRLCK, 0, 0, fcntl.F_SETLKW)
            os._exit(7)
        time.sleep(0.2)
        t.same(os.waitpid(pid, os.WNOHANG)[0], 0, "it waits")
        range_lock(fd, fcntl.F_UNLCK, 0, 0)
        t.same(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 7)


@case("locks")
def deadlocks_are_told(t: Trial) -> None:
    write("f", b"x")
    with opened("f", os.O_RDWR) as fd:
        range_lock(fd, fcntl.F_WRLCK, 0, 1)
        pid = os.fork()
        if not pid:
            other = os.open("f", os.O_RDWR)
            range_lock(other, fcntl.F_WRLCK, 1, 1)
            try:
                range_lock(other, fcntl.F_WRLCK, 0, 1, fcntl.F_SETLKW)
            except OSError as error:
                os._exit(error.errno or 1)
            os._exit(0)
        time.sleep(0.2)
        t.refuses(errno.EDEADLK, range_lock, fd, fcntl.F_WRLCK, 1, 1, fcntl.F_SETLKW)
        range_lock(fd, fcntl.F_UNLCK, 0, 0)
        t.same(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)


@case("locks")
def signals_end_waiting(t: Trial) -> None:
    write("f", b"x")
    with opened("f", os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        pid = os.fork()
        if not pid:
            fcntl.flock(os.open("f", os.O_RDWR), fcntl.LOCK_EX)
            os._exit(0)
        time.sleep(0.2)
        os.kill(pid, 9)
        t.same(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), -9)


@case("locks")
def locks_of_open_files(t: Trial) -> None:
    with opened("f") as one, opened("f") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        t.refuses(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        t.refuses(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB)
        t.allows(fcntl.flock, one, fcntl.LOCK_SH)
        t.allows(fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB)
        t.refuses(errno.EAGAIN, fcntl.flock, one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(two, fcntl.LOCK_UN)
        fcntl.flock(one, fcntl.LOCK_EX)
        copy = os.dup(one)
        t.allows(fcntl.flock, copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(copy)
        t.refuses(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        t.same(t.child(lambda: fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)), 0, "inherited by a child")
        range_lock(two, fcntl.F_WRLCK, 0, 0)
        t.true(True, "flock and fcntl do not know each other")
    with opened("f", os.O_RDONLY) as fd:
        t.allows(fcntl.flock, fd, fcntl.LOCK_EX)
        t.refuses(errno.EBADF, range_lock, fd, fcntl.F_WRLCK, 0, 0)


@case("locks")
def locks_of_open_file_descriptions(t: Trial) -> None:
    with opened("f") as one, opened("f") as two:
        t.allows(range_lock, one, fcntl.F_WRLCK, 0, 10, OFD_SETLK)
        t.refuses(_BUSY, range_lock, two, fcntl.F_WRLCK, 5, 1, OFD_SETLK)
        t.allows(range_lock, two, fcntl.F_WRLCK, 10, 5, OFD_SETLK)
        os.close(os.open("f", os.O_RDONLY))
        t.refuses(_BUSY, range_lock, two, fcntl.F_RDLCK, 0, 0, OFD_SETLK)
        t.allows(range_lock, one, fcntl.F_UNLCK, 0, 0, OFD_SETLK)
        t.allows(range_lock, two, fcntl.F_WRLCK, 0, 0, OFD_SETLK)
