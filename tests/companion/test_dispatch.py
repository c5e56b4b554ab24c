"""The dispatcher with requests that no kernel sent: every one is answered, and once."""

import errno
import fcntl

import pyfuse3
import pytest
import trio
import trio.testing

from fsd.mount.companion import OFFSET_END, FileLock
from fsd.mount.companion import dispatch as dispatch_module
from fsd.mount.companion.dispatch import Dispatcher
from tests.companion.local_locks import LocalLocks


class FakeRequest:
    call = 0

    def __init__(self):
        self.answers = []
        self.interrupt = lambda: None
        self.refuse_reply = False

    @property
    def answered(self):
        return bool(self.answers)

    def answer(self, *what):
        assert not self.answers, "answered twice"
        self.answers.append(what)
        if self.refuse_reply:
            raise OSError(errno.EINVAL, "the kernel does not like it")

    def reply_error(self, number):
        self.answer("error", number)

    def reply_lock(self, *lock):
        self.answer("lock", *lock)

    def reply_offset(self, offset):
        self.answer("offset", offset)

    def context(self):
        return (0, 0, 77, 0o22)

    def on_interrupt(self, callback):
        self.interrupt = callback


class Handlers:
    def __init__(self):
        self.locks = LocalLocks()

    async def getlk(self, inode, fh, owner, lock, ctx):
        return self.locks.test(inode, owner, lock)

    async def setlk(self, inode, fh, owner, lock, wait, ctx):
        await self.locks.lock_range(inode, fh, owner, lock, wait)

    async def flock(self, inode, fh, owner, operation, wait, ctx):
        await self.locks.flock(inode, fh, owner, operation, wait, ctx.pid)

    async def lseek(self, inode, fh, offset, whence, ctx):
        if offset == 13:
            raise ValueError("a bug")
        if offset == 14:
            raise pyfuse3.FUSEError(errno.ENXIO)
        await trio.sleep(1)
        return offset


@pytest.fixture
def dispatcher(nursery):
    dispatcher = Dispatcher(Handlers())
    dispatcher.nursery = nursery
    return dispatcher


def start(dispatcher, name, *arguments):
    request = FakeRequest()
    dispatcher.dispatch(name, request, arguments)
    return request


def setlk(dispatcher, owner, kind, start_, length, wait):
    return start(dispatcher, "setlk", 2, 9, owner, kind, start_, length, 77, wait)


async def settled():
    await trio.testing.wait_all_tasks_blocked()


def test_only_what_there_is_is_registered():
    assert Dispatcher(Handlers()).mask() == 1 | 2 | 8
    assert Dispatcher(object()).mask() == 0


async def test_answers_errors_and_bugs(dispatcher, autojump_clock, caplog):
    requests = [start(dispatcher, "lseek", 2, 9, offset, 3) for offset in (5, 13, 14)]
    await trio.sleep(2)
    assert [request.answers for request in requests] == [
        [("offset", 5)], [("error", errno.EIO)], [("error", errno.ENXIO)],
    ]  # fmt: skip
    assert "a bug" in caplog.text
    assert dispatcher.running == 0


async def test_a_request_whose_reply_failed_is_left_alone(dispatcher, caplog):
    request = FakeRequest()
    request.refuse_reply = True
    dispatcher.dispatch("getlk", request, (2, 9, 1, fcntl.F_WRLCK, 0, 0, 77))
    await settled()
    assert request.answers == [("lock", fcntl.F_UNLCK, 0, 0, 0)]
    assert "does not like it" in caplog.text


async def test_an_ioctl_that_answers_too_much_is_a_bug(dispatcher, caplog):
    async def ioctl(*arguments):
        return 0, b"12345"

    dispatcher._operations.ioctl = ioctl
    request = start(dispatcher, "ioctl", 2, 9, 1, 0, 0, b"", 4)
    await settled()
    assert request.answers == [("error", errno.EIO)]


async def test_an_interrupt_ends_a_waiting_lock_and_nothing_else(dispatcher, autojump_clock):
    setlk(dispatcher, 1, fcntl.F_WRLCK, 0, 0, True)
    await settled()
    waiter = setlk(dispatcher, 2, fcntl.F_RDLCK, 5, 0, True)
    seeker = start(dispatcher, "lseek", 2, 9, 5, 3)
    await settled()
    assert waiter.answers == []
    waiter.interrupt()
    seeker.interrupt()
    await settled()
    assert waiter.answers == [("error", errno.EINTR)]
    unlock = setlk(dispatcher, 1, fcntl.F_UNLCK, 0, 0, True)
    await trio.sleep(2)
    assert unlock.answers == [("error", 0)]
    assert seeker.answers == [("offset", 5)]


async def test_an_interrupt_that_comes_with_the_lock_leaves_it(dispatcher):
    setlk(dispatcher, 1, fcntl.F_WRLCK, 0, 0, True)
    await settled()
    waiter = setlk(dispatcher, 2, fcntl.F_WRLCK, 0, 0, True)
    await settled()
    await Handlers.setlk(dispatcher._operations, 2, 9, 1, FileLock(fcntl.F_UNLCK, 0, OFFSET_END, 77), False, None)
    waiter.interrupt()  # granted, but its task did not run yet
    await settled()
    assert waiter.answers == [("error", 0)]
    held = start(dispatcher, "getlk", 2, 9, 3, fcntl.F_WRLCK, 0, 0, 77)
    await settled()
    assert held.answers == [("lock", fcntl.F_WRLCK, 0, 0, 77)]


async def test_too_many_requests_are_refused(dispatcher, monkeypatch, autojump_clock):
    monkeypatch.setattr(dispatch_module, "MAX_REQUESTS", 2)
    requests = [start(dispatcher, "lseek", 2, 9, 5, 3) for _ in range(3)]
    await trio.sleep(2)
    assert [request.answers[0] for request in requests] == [("offset", 5), ("offset", 5), ("error", errno.ENOLCK)]


async def test_the_end_of_the_mount_answers_who_waits(autojump_clock):
    dispatcher = Dispatcher(Handlers())
    async with trio.open_nursery() as nursery:
        dispatcher.nursery = nursery
        setlk(dispatcher, 1, fcntl.F_WRLCK, 0, 0, True)
        await settled()
        waiter = setlk(dispatcher, 2, fcntl.F_WRLCK, 0, 0, True)
        await settled()
        nursery.cancel_scope.cancel()
    assert waiter.answers == [("error", errno.EINTR)]
    dispatcher.nursery = None
    assert start(dispatcher, "lseek", 2, 9, 5, 3).answers == []  # the extension answers EIO
