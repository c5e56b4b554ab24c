"""A mount point refuses writes while nothing is mounted there."""

import os

import pytest

from fsd.mount import closed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the flag is root's")


@pytest.fixture
def point(tmp_path):
    directory = tmp_path / "point"
    directory.mkdir(mode=0o750)
    yield directory
    closed.reopen(str(directory))


def close(point) -> bool:
    with closed.closing(str(point)) as done:
        (point / "before the mount").touch()
        (point / "before the mount").unlink()
    return done[0]


def test_nobody_writes_into_a_closed_mount_point(point):
    if not close(point):
        pytest.skip("this file system keeps no trusted attributes")
    assert closed.is_closed(str(point))
    if os.stat(point).st_mode & 0o777:  # else it has no immutable flag, and root may
        with pytest.raises(PermissionError):
            (point / "file").touch()


def test_it_is_as_it_was_when_it_is_opened_again(point):
    close(point)
    closed.reopen(str(point))
    assert not closed.is_closed(str(point))
    assert os.stat(point).st_mode & 0o777 == 0o750
    assert os.listxattr(point) == []
    (point / "file").touch()


def test_closing_twice_and_opening_twice_are_harmless(point):
    close(point)
    close_again = closed.is_closed(str(point))
    with closed.closing(str(point)):
        pass
    assert closed.is_closed(str(point)) == close_again
    assert closed.reopen(str(point)) == close_again
    assert not closed.reopen(str(point))
    assert not closed.reopen(str(point / "nothing"))


def test_without_the_flag_the_mode_goes(point, monkeypatch):
    monkeypatch.setattr(closed, "_change_flags", lambda fd, *, set_it: False)
    if not close(point):
        pytest.skip("this file system keeps no trusted attributes")
    assert os.stat(point).st_mode & 0o777 == 0
    assert closed.reopen(str(point))
    assert os.stat(point).st_mode & 0o777 == 0o750


def test_a_failed_mount_closes_nothing(point):
    with pytest.raises(RuntimeError), closed.closing(str(point)):
        raise RuntimeError("no mount")
    assert not closed.is_closed(str(point))
