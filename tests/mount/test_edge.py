"""The one edge: whatever a handler raises, pyfuse3 sees FUSEError or Cancelled and nothing else."""

import errno
import logging

import pyfuse3
import pytest
import trio

from fsd.core import errors
from fsd.mount.edge import edge


class Handlers:
    def __init__(self, deadline_s=None):
        self.deadline_s = deadline_s
        self.call_number = None

    @edge
    async def lookup(self, error):
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error
        return 7

    @edge
    async def read(self):
        await trio.sleep_forever()


async def errno_of(error) -> int:
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await Handlers().lookup(error)
    return raised.value.errno


async def test_a_result_passes():
    assert await Handlers().lookup(None) == 7


async def test_our_errors_become_their_errno():
    assert await errno_of(errors.NotFound("x")) == errno.ENOENT
    assert await errno_of(errors.QuotaExceeded("x")) == errno.EDQUOT
    assert await errno_of(ExceptionGroup("", [errors.NoSpace("x")])) == errno.ENOSPC


async def test_an_io_error_is_logged_with_its_facts(caplog):
    with caplog.at_level(logging.ERROR):
        assert await errno_of(errors.WriteLost("inode 7: 4096 bytes")) == errno.EIO
    assert "WriteLost: inode 7: 4096 bytes" in caplog.text


async def test_a_bug_is_eio_and_logged(caplog):
    with caplog.at_level(logging.ERROR):
        assert await errno_of(KeyError("oops")) == errno.EIO
    assert "bug" in caplog.text
    assert "KeyError" in caplog.text


async def test_a_fuse_error_passes():
    assert await errno_of(pyfuse3.FUSEError(errno.EXDEV)) == errno.EXDEV


async def test_a_deadline_is_etimedout(autojump_clock):
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await Handlers(deadline_s=5).read()
    assert raised.value.errno == errno.ETIMEDOUT


async def test_without_a_deadline_it_waits_and_cancelled_passes(autojump_clock):
    with trio.move_on_after(1000) as scope:
        await Handlers().read()
    assert scope.cancelled_caught


def test_every_handler_of_pyfuse3_is_ours_and_guarded():
    from fsd.mount.operations import Operations

    plain = {"init", "forget", "stacktrace", "poll"}
    handlers = {
        name for name in dir(pyfuse3.Operations) if not name.startswith("_") and callable(getattr(Operations, name))
    }
    for name in handlers - plain:
        assert hasattr(getattr(Operations, name), "__wrapped__"), f"{name} is not guarded"
    assert "forget" in vars(Operations)
