"""sd_notify as systemd sees it: a socket of the test's own takes its place."""

import array
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fsd.runtime import notify


@pytest.fixture
def systemd(tmp_path, monkeypatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield receiver


def test_without_systemd_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.notify("READY=1")


def test_assignments_go_in_one_datagram_one_line_each(systemd):
    assert notify.notify("READY=1", "STATUS=two\nlines")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=two lines"


def test_an_abstract_socket_is_found(monkeypatch):
    name = f"fsd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name)
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify.feed_watchdog()
        assert receiver.recv(4096) == b"WATCHDOG=1"


def test_a_stored_descriptor_arrives_and_is_the_same_file(systemd, tmp_path):
    with open(tmp_path / "kept", "wb") as file:
        assert notify.store(file.fileno(), "fuse")
    said, passed, _, _ = systemd.recvmsg(4096, 4096)
    assert said == b"FDSTORE=1\nFDNAME=fuse"
    (fd,) = array.array("i", passed[0][2])
    try:
        assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "kept"))
    finally:
        os.close(fd)
    assert notify.discard("fuse")
    assert systemd.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=fuse"


def test_reloading_tells_the_time(systemd):
    assert notify.reloading()
    first, second = systemd.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0


def test_a_socket_that_is_gone_is_told_and_not_raised(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify.notify("READY=1")
    assert "READY=1" in caplog.text


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.0),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "junk"}, None),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_watchdog_is_fed_three_times_in_its_time(monkeypatch, environment, expected):
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert notify.watchdog_s() == expected


_CHILD = """
import os
from fsd.runtime import notify
if os.environ["SENT_TO"] == "me":
    os.environ["LISTEN_PID"] = str(os.getpid())
print(notify.passed(), notify.passed(), "LISTEN_FDS" in os.environ)
"""


@pytest.mark.parametrize(
    ("to", "expected"), [("me", "{'fuse': [3], 'unknown': [4]} {} False"), ("another", "{} {} False")]
)
def test_passed_descriptors_are_told_once_and_only_to_their_receiver(to, expected):
    """In a process of its own: they are the numbers 3 and 4."""
    script = 'exec 3</dev/null 4</dev/null; exec "$0" -c "$1"'
    environment = os.environ | {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "fuse", "SENT_TO": to}
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, _CHILD], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.strip() == expected, done.stderr
