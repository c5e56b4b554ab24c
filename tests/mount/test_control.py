"""The words between supervisor and daemon, and the small parts around them."""

import os
import subprocess
import sys

import pytest

from fsd.mount import attach, control, serving
from fsd.mount.control import Kind, Word
from fsd.mount.givenup import is_dying
from fsd.mount.mountinfo import Mount


def test_a_word_and_a_descriptor_arrive_together():
    ours, theirs = control.pair()
    with pytest.raises(BlockingIOError):
        ours.hear()
    reader, writer = os.pipe()
    assert theirs.say(Word(Kind.DEVICE, "0:99", 3, 0.5), writer)
    os.close(writer)
    heard = ours.hear()
    assert heard is not None
    word, fd = heard
    assert word == Word(Kind.DEVICE, "0:99", 3, 0.5)
    assert fd is not None
    os.write(fd, b"through it")
    os.close(fd)
    assert os.read(reader, 100) == b"through it"
    os.close(reader)
    theirs.close()
    assert ours.hear() is None
    assert not ours.say(Word(Kind.GO))
    ours.close()


def test_a_command_gets_its_answer(tmp_path):
    listener = control.listen(str(tmp_path / "control"))
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys\nfrom fsd.mount.control import *\n"
         "print(ask(sys.argv[1], Word(Kind.UPGRADE), 20))", str(tmp_path / "control")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    listener.setblocking(True)
    link = control.Link(listener.accept()[0])
    assert link.hear() == (Word(Kind.UPGRADE), None)
    link.say(Word(Kind.DONE, "77"))
    assert "text='77'" in child.communicate(timeout=20)[0]
    link.close()
    listener.close()
    with pytest.raises(OSError):
        control.ask(str(tmp_path / "nothing"), Word(Kind.UPGRADE), 1)


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ((), ["nosuid", "nodev"]),
        (("suid", "dev"), []),
        (("ro", "noatime"), ["nosuid", "nodev", "ro", "noatime"]),
        (("ro", "rw", "noexec", "exec"), ["nosuid", "nodev"]),
        (("rw", "ro"), ["nosuid", "nodev", "ro"]),
    ],
)
def test_the_last_of_a_pair_of_options_counts(options, flags):
    assert attach.flags_of(options) == flags


def test_who_serves_a_mount_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "directory", lambda: str(tmp_path / "run"))
    mount = Mount("0:77", "/mnt/x", "fuse.fsd", "h:1:/v")
    own = serving.process(os.getpid())
    assert own is not None
    told = serving.Serving("/mnt/x", "h:1:/v", own, None, "/state")
    assert serving.of(mount) is None
    serving.remember(mount, told)
    assert serving.of(mount) == told
    assert told.alive
    assert serving.of(Mount("0:77", "/mnt/y", "fuse.fsd", "h:1:/v")) is None
    (tmp_path / "run" / "0:77.json").write_text("{")
    assert serving.of(mount) is None
    serving.forget(mount)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_state_directory_is_ours_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "directory", lambda: str(tmp_path / "run"))
    monkeypatch.setattr(serving, "_in_memory", lambda path: path.startswith(str(tmp_path)))
    path = serving.make_state_directory()
    assert path.startswith(str(tmp_path))
    assert os.stat(path).st_mode & 0o777 == 0o700
    serving.remove_state_directory(path)
    assert not os.path.exists(path)


def test_a_process_is_dying_when_sigkill_is_pending():
    assert not is_dying(os.getpid())
    assert not is_dying(2**22 + 1)
    child = subprocess.Popen(["sleep", "100"])
    assert not is_dying(child.pid)
    child.kill()
    child.wait()
