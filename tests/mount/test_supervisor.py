"""The supervisor, with daemons that only speak its language and a pipe in place of /dev/fuse."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from fsd.mount import attach, control, mountinfo, serving
from fsd.mount import supervisor as module
from fsd.mount.attach import MountPlan
from fsd.mount.control import Kind, Word
from fsd.mount.mountinfo import Mount
from fsd.mount.supervisor import MountFailed, Plan, Supervisor

DAEMON = """
import os, signal, sys, time, socket
from fsd.mount.control import *
directory, fd = sys.argv[1], int(sys.argv[2])
starts = len(os.listdir(directory))
open(f"{directory}/{os.getpid()}", "w").close()
how = open(f"{directory}.how").read().split(",")
how = how[min(starts, len(how) - 1)]
link = Link(socket.socket(fileno=fd))
if how == "silent": sys.exit(7)
if how == "fails":
    link.say(Word(Kind.FAILED, "no such volume", 5)); sys.exit(5)
link.say(Word(Kind.WARM))
state = link.hear()[0].text
signal.signal(signal.SIGTERM, lambda *_: (link.say(Word(Kind.DONE)), os._exit(0)))
link.say(Word(Kind.CONNECTED))
word, device = link.hear()
if word.kind is Kind.DRAIN:
    link.say(Word(Kind.DONE)); sys.exit(0)
open(f"{state}/init", "w").close()
if how == "dies": os.kill(os.getpid(), signal.SIGKILL)
link.say(Word(Kind.SERVING))
word = link.hear()[0]
assert word.kind is Kind.SUSPEND
link.say(Word(Kind.SUSPENDED))
"""


class World:
    """What the supervisor sees of the host."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.starts = root / "starts"
        self.starts.mkdir()
        self.mounted = False
        self.ready: list[str] = []
        self.reader, self.writer = os.pipe()
        mount = Mount("0:9999", str(root / "point"), "fuse.fsd", "h:1:/v")
        (root / "point").mkdir()
        monkeypatch.setattr(serving, "directory", lambda: str(root / "run"))
        monkeypatch.setattr(serving, "_in_memory", lambda path: True)
        monkeypatch.setattr(attach, "check_device", lambda: None)
        monkeypatch.setattr(attach, "attach", self.attach)
        monkeypatch.setattr(attach, "is_alive", lambda fd: self.mounted)
        monkeypatch.setattr(mountinfo, "mounted_at", lambda path: mount if self.mounted else None)
        monkeypatch.setattr(mountinfo, "detach", self.detach)
        self.mount = mount

    def attach(self, plan: MountPlan) -> int:
        self.mounted = True
        return os.dup(self.writer)

    def detach(self, path: str) -> None:
        self.mounted = False

    def supervisor(self, how: str) -> Supervisor:
        """`how` each daemon in turn behaves; the last one counts for all after it."""
        (self.root / "starts.how").write_text(how)
        command = [sys.executable, "-c", DAEMON, str(self.starts)]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
        plan = Plan(MountPlan("h:1:/v", str(self.root / "point"), (), True), command, environment, fail_closed=False)
        return Supervisor(plan, self.ready.append)

    def told(self) -> dict:
        try:
            return json.loads((self.root / "run" / "0:9999.json").read_text())
        except (OSError, ValueError):
            return {}


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


def meanwhile(*steps) -> threading.Thread:
    """Signals come to the main thread, which is in `run`."""

    def act() -> None:
        for step in steps:
            step()

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def daemon_of(world: World) -> int:
    return (world.told().get("daemon") or {}).get("pid", 0)


def test_the_first_daemons_failure_is_the_mounts(world: World):
    with pytest.raises(MountFailed, match="no such volume") as caught:
        world.supervisor("fails").run()
    assert caught.value.exit_code == 5
    assert not world.mounted
    assert len(list(world.starts.iterdir())) == 1


@pytest.mark.parametrize("how", ["silent", "dies"])
def test_a_first_daemon_that_dies_unmounts_and_is_told(world: World, how: str):
    with pytest.raises(MountFailed, match="ended at once"):
        world.supervisor(how).run()
    assert not world.mounted
    assert list((world.root / "run").glob("mount-*")) == []


def test_a_killed_daemon_is_followed_by_another_until_the_mount_is_ended(world: World):
    def kill() -> None:
        before = daemon_of(world)
        os.kill(before, signal.SIGKILL)
        until(lambda: daemon_of(world) not in (0, before))

    thread = meanwhile(lambda: until(lambda: world.ready), kill, kill, terminate)
    assert world.supervisor("serves").run() == 0
    thread.join()
    assert world.ready == ["h:1:/v"]
    assert len(list(world.starts.iterdir())) == 3
    assert not world.mounted
    assert list((world.root / "run").iterdir()) == []


def test_daemons_that_die_young_are_followed_too(world: World):
    thread = meanwhile(
        lambda: until(lambda: world.ready),
        lambda: os.kill(daemon_of(world), signal.SIGKILL),
        lambda: until(lambda: len(list(world.starts.iterdir())) >= 5 and daemon_of(world)),
        lambda: time.sleep(0.1),
        terminate,
    )
    assert world.supervisor("serves,dies,silent,dies,serves").run() == 0
    thread.join()


def test_an_upgrade_changes_the_daemon_and_says_so(world: World):
    answers: list[Word] = []

    def upgrade() -> None:
        until(lambda: world.ready)
        answers.append(control.ask(world.told()["state"] + "/control", Word(Kind.UPGRADE), 60))
        terminate()

    thread = meanwhile(upgrade)
    assert world.supervisor("serves").run() == 0
    thread.join()
    assert [answer.kind for answer in answers] == [Kind.DONE]
    assert len(list(world.starts.iterdir())) == 2


def test_an_upgrade_to_what_does_not_start_leaves_the_old_daemon(world: World):
    seen: list[object] = []

    def upgrade() -> None:
        until(lambda: world.ready)
        before = daemon_of(world)
        answer = control.ask(world.told()["state"] + "/control", Word(Kind.UPGRADE), 60)
        seen.extend([answer.kind, daemon_of(world) == before])
        terminate()

    thread = meanwhile(upgrade)
    assert world.supervisor("serves,silent").run() == 0
    thread.join()
    assert seen == [Kind.FAILED, True]


def test_what_is_left_after_an_unmount_is_written_by_another_daemon(world: World):
    def unmount_and_kill() -> None:
        until(lambda: world.ready)
        world.mounted = False
        os.kill(daemon_of(world), signal.SIGKILL)

    thread = meanwhile(unmount_and_kill)
    assert world.supervisor("serves").run() == 0
    thread.join()
    assert len(list(world.starts.iterdir())) == 2


def test_it_leaves_the_mount_to_systemd_when_told_so(world: World, monkeypatch):
    stored: list[str] = []
    monkeypatch.setattr(module.notify, "store", lambda fd, name: stored.append(name))
    thread = meanwhile(lambda: until(lambda: world.ready), lambda: os.kill(os.getpid(), signal.SIGUSR2))
    assert world.supervisor("serves").run() == 0
    thread.join()
    assert stored == ["fuse"]
    assert world.mounted
    assert world.told()
