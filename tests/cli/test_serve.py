"""What servers do for the one who runs them: reload, priorities in the journal, the watchdog."""

import logging
import os
import signal
import socket
import subprocess
import sys

import pytest

from fsd.cli import logs
from fsd.cli.serve import Serving, reload
from fsd.core.errors import ConfigurationError
from fsd.http.face import Face
from tests.cli.test_commands import REPOSITORY


class NoServer:
    async def run(self, *, task_status) -> None:
        task_status.started("nowhere")


def serving(taken: list[dict]) -> Serving:
    return Serving(NoServer(), Face("test"), live=("scrub_rate",), reconfigure=taken.append)


def settings(**values) -> dict:
    return {"log_level": "info", "scrub_rate": 1, "listen": "a:1"} | values


@pytest.fixture(autouse=True)
def root_level():
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def test_a_reload_changes_what_it_can_and_names_what_waits(caplog):
    caplog.set_level(logging.INFO)
    taken: list[dict] = []
    wanted = settings(log_level="info", scrub_rate=5, listen="b:2")
    old = settings()
    old["read_again"] = lambda: wanted | {"read_again": None}
    new = reload(serving(taken), old)
    assert new["scrub_rate"] == 5
    assert new["listen"] == "a:1"
    assert taken[0]["scrub_rate"] == 5
    assert "listen is a:1 until the next restart" in caplog.text
    assert "scrub_rate is now 5" in caplog.text


def test_a_reload_of_a_bad_file_changes_nothing_and_says_why(caplog):
    def fails():
        raise ConfigurationError("scrub_rate: 'x' is no size")

    taken: list[dict] = []
    old = settings(read_again=fails)
    assert reload(serving(taken), old) == old
    assert taken == []
    assert "scrub_rate: 'x' is no size" in caplog.text


def test_every_line_in_the_journal_has_its_priority():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("fsd.x", logging.ERROR, "", 0, "bad %s", ("news",), sys.exc_info())
    lines = logs.JournalFormatter().format(record).split("\n")
    assert lines[0] == "<3>fsd.x: bad news"
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


@pytest.mark.parametrize(("level", "priority"), [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4)])
def test_levels_become_priorities(level, priority):
    assert logs.with_priority("x", level) == f"<{priority}>x"


def test_the_journal_is_told_by_its_inode_and_not_by_the_variable_alone(monkeypatch):
    stderr = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stderr.st_dev}:{stderr.st_ino}")
    assert logs.stderr_is_the_journal()
    for other in ("1:2", "", "junk"):
        monkeypatch.setenv("JOURNAL_STREAM", other)
        assert not logs.stderr_is_the_journal()


def test_a_metadata_server_tells_systemd_its_life(tmp_path):
    """READY, the watchdog, RELOADING and READY again, STOPPING: by a socket in systemd's place, with a real process."""
    config = tmp_path / "fsd.toml"
    config.write_text('[metadata]\nlisten = "127.0.0.1:0"\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "300000",
        }
        server = subprocess.Popen(
            [sys.executable, "-m", "fsd.cli", "metadata", "--config", str(config), "--data", str(tmp_path / "data")],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for(systemd, "READY=1")
            wait_for(systemd, "WATCHDOG=1")
            config.write_text('[metadata]\nlisten = "127.0.0.1:0"\nlog_level = "debug"\nlease_s = 5\n')
            server.send_signal(signal.SIGHUP)
            wait_for(systemd, "RELOADING=1")
            wait_for(systemd, "READY=1")
            server.send_signal(signal.SIGTERM)
            wait_for(systemd, "STOPPING=1")
            assert server.wait(60) == 0
        finally:
            server.kill()
            _, said = server.communicate()
    assert "log_level is now debug" in said
    assert "lease_s is 6.0 until the next restart" in said


def wait_for(systemd: socket.socket, assignment: str) -> None:
    """The next datagram that begins so; its time-out fails the test."""
    while systemd.recv(4096).decode().split("\n")[0] != assignment:
        pass
