"""INIT, the device, and a session that changes hands."""

import ctypes
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from fsd.mount.companion.protocol import OFFSET_END, FileLock, InitFlag
from tests.companion import driver

real = [pytest.mark.real, pytest.mark.skipif(not driver.can_mount(), reason="needs root and /dev/fuse")]


MNT_FORCE = 1


def abort(mountpoint):
    """End a connection to which nobody answers any more; whoever waits gets ECONNABORTED."""
    ctypes.CDLL(None).umount2(bytes(mountpoint), MNT_FORCE)


def agreed(toy):
    return InitFlag(toy.ask("info()")["agreed"])


def test_a_lock_to_the_end_of_the_file_has_length_0():
    assert FileLock.from_length(1, 5, 0, 9) == FileLock(1, 5, OFFSET_END, 9)
    assert FileLock.from_length(1, 5, 0, 9).length == 0
    assert FileLock.from_length(1, 5, 3, 9).length == 3


def test_the_companion_says_why_it_is_not_there():
    code = "import pyfuse3, logging; logging.basicConfig(); from fsd.mount.companion import load; print(load(), load())"
    done = subprocess.run([sys.executable, "-c", code], cwd=driver.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "None None\n"
    assert done.stderr.count("\n") == 1
    assert "pyfuse3 was imported before it" in done.stderr


def test_a_state_must_be_one():
    code = """
from fsd.mount.companion import load
companion = load()
for state in (b"", b"fsd\\x01\\0\\0\\0\\0", b"fsd\\x01" + bytes([56, 0, 80, 0]) + bytes(136), b"x" * 200):
    try: companion.resume(state)
    except ValueError as error: print(error)
try: companion.state()
except RuntimeError as error: print(error)
try: companion.resend()
except RuntimeError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=driver.ROOT, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 6, done.stdout + done.stderr


class TestOnAMount:
    pytestmark = real

    def test_flags_are_asked_for_and_shown(self, tmp_path):
        with driver.toy(tmp_path) as toy:
            os.listdir(toy.mountpoint)
            info = toy.ask("info()")
            assert info["mounted"]
            assert info["hooked"]
            assert info["max_background"] == 64
            assert info["max_write"] >= 1 << 20
            flags = agreed(toy)
            offered = InitFlag(info["offered"])
            for flag in (InitFlag.PARALLEL_DIROPS, InitFlag.EXPLICIT_INVAL_DATA, InitFlag.DIRECT_IO_ALLOW_MMAP):
                assert (flag in flags) == (flag in offered), flag
            assert InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS in flags
            assert InitFlag.PARALLEL_DIROPS in flags
            assert InitFlag.AUTO_INVAL_DATA not in flags
            assert InitFlag.HANDLE_KILLPRIV_V2 not in flags

    @pytest.mark.parametrize("kill_privileges", [False, True])
    def test_kill_privileges_saves_a_request_per_write_and_tells_who_must_lose_them(self, tmp_path, kill_privileges):
        with driver.toy(tmp_path, kill_privileges=kill_privileges) as toy:
            path = str(toy.mountpoint / "file")
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    f"import os\nfd = os.open({path!r}, os.O_CREAT | os.O_RDWR, 0o666)\nos.setuid(65534)\n"
                    "for at in range(50): os.pwrite(fd, b'x', at)",
                ],
                check=True,
            )
            counts = toy.ask("companion.request_counts()")
            assert counts["WRITE"] == 50
            assert (counts.get("GETXATTR", 0) < 3) == kill_privileges
            writes = [call for call in toy.ask("toy.calls") if call[0] == "write"]
            assert {call[1] for call in writes} == {kill_privileges}

    def test_lookups_in_one_directory_run_side_by_side(self, tmp_path):
        with driver.toy(tmp_path, files=[f"slow{number}" for number in range(8)]) as toy:
            begin = time.monotonic()
            threads = [
                threading.Thread(target=os.stat, args=(toy.mountpoint / f"slow{number}",)) for number in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert time.monotonic() - begin < 1
            assert toy.ask("toy.most_lookups") == 8

    @pytest.mark.parametrize("blocking", [False, True])
    def test_a_caller_killed_at_the_wrong_moment_does_not_freeze_the_loop(self, tmp_path, blocking):
        """With a blocking device, as pyfuse3 has it, it does: the test is worth something."""
        with driver.toy(tmp_path, files=["file"], trap=True) as toy:
            for _ in range(20):  # until every worker goes through the trap
                os.stat(toy.mountpoint / "file")
            if blocking:
                toy.ask("os.set_blocking(info()['fd'], True)")
            threading.Timer(1.5, os.stat, [toy.mountpoint]).start()  # thaws it
            caller = driver.child(f"print(os.getpid())\ntime.sleep(.3)\nos.stat('{toy.mountpoint}/file')")
            pid = int(caller.stdout.readline())
            toy.ask(f"trap.append({pid})")
            caller.wait(10)
            time.sleep(0.1)
            begin = time.monotonic()
            lost = toy.ask("info()")["lost_races"]
            frozen_s = max(time.monotonic() - begin, toy.ask("toy.frozen_s"))
            assert (frozen_s > 0.5) == blocking
            assert (lost > 0) != blocking
            os.listdir(toy.mountpoint)

    def test_notifications_reach_the_kernel(self, tmp_path):
        with driver.toy(tmp_path, files=["file"], ttl=1000) as toy:
            os.stat(toy.mountpoint / "file")
            os.stat(toy.mountpoint / "file")
            assert toy.ask("companion.request_counts()")["LOOKUP"] == 1
            if toy.ask("companion.raise_epoch()") is None:  # Linux 6.16
                os.stat(toy.mountpoint / "file")
                assert toy.ask("companion.request_counts()")["LOOKUP"] == 2
            assert toy.ask("companion.prune([2])") in (None, "OSError(22, 'Invalid argument')")  # Linux 6.18
            assert toy.ask("companion.notify(99)") == "OSError(22, 'Invalid argument')"

    def test_without_the_extension_there_is_plain_pyfuse3_and_one_warning(self, tmp_path):
        with driver.toy(tmp_path, plain=True, files=["file"]) as toy:
            with open(toy.mountpoint / "file", "wb+") as file:
                file.write(b"data")
                file.flush()
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel's own
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 4
            assert toy.ask("companion is None") is True
            assert toy.log.read_text().count("companion extension not available") == 1


class TestASuccessor:
    pytestmark = real

    @pytest.fixture
    def device(self, tmp_path):
        """/dev/fuse, mounted and held by us, as a supervisor does."""
        mountpoint = tmp_path / "mnt"
        mountpoint.mkdir()
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(b"toyfs", bytes(mountpoint), b"fuse.toyfs", 6, options.encode()) == 0, ctypes.get_errno()
        watchdog = threading.Timer(30, abort, [mountpoint])
        watchdog.start()
        yield fd
        watchdog.cancel()
        subprocess.run(["umount", "-l", str(mountpoint)], capture_output=True, check=False)
        os.close(fd)

    def start(self, device, tmp_path, **options):
        return driver.Toy(
            f"/dev/fd/{device}", tmp_path / "toy.log", pass_fds=(device,), state=str(tmp_path / "state"), files=["file"],
            **options,
        )  # fmt: skip

    def test_serves_the_same_mount_after_a_kill(self, device, tmp_path):
        """The file is held by a child: this process may not have files there, or starting a successor (fork) would hang."""
        first = self.start(device, tmp_path)
        path = tmp_path / "mnt" / "file"
        holder = driver.child(
            f"fd = os.open({str(path)!r}, os.O_RDWR)\nwhile True:\n print(len(os.pread(fd, 10, 0)))\n sys.stdin.readline()",
            stdin=subprocess.PIPE,
        )
        assert holder.stdout.readline() == "0\n"
        before = first.ask("info()")
        for _ in range(3):
            first.process.kill()
            first.process.wait()
            first = self.start(device, tmp_path, successor=True)
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert holder.stdout.readline() == "0\n"
            assert os.stat(path).st_size == 0
            after = first.ask("info()")
            assert after["agreed"] == before["agreed"]
            assert after["max_write"] == before["max_write"]
            assert after["max_background"] == before["max_background"]
        holder.kill()
        holder.wait()
        first.stop()

    def test_gets_what_the_dead_one_had_read(self, device, tmp_path):
        first = self.start(device, tmp_path, hang_reads=True)
        path = tmp_path / "mnt" / "file"
        os.truncate(path, 5)
        reader = driver.child(f"print(len(open({str(path)!r}, 'rb', 0).read(4096)))")
        end = time.monotonic() + 10
        while "READ" not in first.ask("companion.request_counts()"):
            assert time.monotonic() < end
            time.sleep(0.01)
        first.process.kill()
        first.process.wait()
        second = self.start(device, tmp_path, successor=True)
        assert reader.communicate(timeout=10)[0] == "0\n"  # this toy's memory died with it
        second.stop()
