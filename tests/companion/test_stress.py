"""Locks under fire: processes that lock, time out, and die by SIGKILL with the lock held."""

import multiprocessing
import os
import random
import signal
import time
from fcntl import LOCK_EX, LOCK_UN, flock, lockf

import pytest

from tests.companion import driver

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not driver.can_mount(), reason="needs root and /dev/fuse"),
]
WORKERS, SLOTS, DURATION_S = 6, 5, 8.0
GRANTED, TIMEOUTS, VIOLATIONS = SLOTS, SLOTS + 1, SLOTS + 2  # behind the slots in the shared array


class TimedOut(Exception):
    pass


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def worker(path, seed, end, shared):
    """Slot 4 is guarded by flock, the others by ranges; a slot holds the pid of its owner, or minus that of one who dies."""

    def alarm(*_):
        raise TimedOut

    choose = random.Random(seed)
    signal.signal(signal.SIGALRM, alarm)
    fd, me = os.open(path, os.O_RDWR), os.getpid()
    while time.time() < end:
        slot = choose.randrange(SLOTS)
        lock = (lambda how: flock(fd, how)) if slot == 4 else (lambda how, at=slot * 10: lockf(fd, how, 10, at))
        try:
            signal.setitimer(signal.ITIMER_REAL, choose.random() * 0.02 + 0.0005)
            lock(LOCK_EX)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except TimedOut:
            signal.setitimer(signal.ITIMER_REAL, 0)
            shared[TIMEOUTS] += 1
            lock(LOCK_UN)  # it may have been granted just before the signal
            continue
        shared[GRANTED] += 1
        if shared[slot] > 0 and is_alive(shared[slot]):
            shared[VIOLATIONS] += 1
        shared[slot] = me
        if choose.random() < 0.2:
            time.sleep(choose.random() * 0.003)
        if shared[slot] != me:
            shared[VIOLATIONS] += 1
        if choose.random() < 0.01:
            shared[slot] = -me
            os.kill(me, signal.SIGKILL)
        shared[slot] = 0
        lock(LOCK_UN)


def test_no_lock_is_held_twice_and_none_is_left_behind(tmp_path):
    context = multiprocessing.get_context("fork")
    with driver.toy(tmp_path, files=["file"]) as toy:
        path = str(toy.mountpoint / "file")
        shared = context.Array("i", SLOTS + 3, lock=False)
        end, seeds, killed = time.time() + DURATION_S, iter(range(10_000)), 0

        def begin():
            process = context.Process(target=worker, args=(path, next(seeds), end, shared))
            process.start()
            return process

        workers = [begin() for _ in range(WORKERS)]
        while time.time() < end:
            for at, process in enumerate(workers):
                if process.exitcode == -signal.SIGKILL:
                    killed += 1
                    workers[at] = begin()
            time.sleep(0.02)
        for process in workers:
            process.join(10)
        assert [process.exitcode is None for process in workers] == [False] * WORKERS
        assert shared[VIOLATIONS] == 0
        assert shared[GRANTED] > 500
        assert shared[TIMEOUTS] > 10
        assert killed > 3
        assert toy.ask("toy.locks.is_empty") is True
        assert toy.ask("info()")["waiting"] == 0
        print(f"{shared[GRANTED]} granted, {shared[TIMEOUTS]} interrupted, {killed} killed with a lock")
