"""POSIX by category, on a real mount, and what the other mount sees of it at once."""

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import RealCluster

pytestmark = pytest.mark.real
AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def fails_with(number: int):
    with pytest.raises(OSError) as error:
        yield
    assert error.value.errno == number, error.value


def rename2(old: Path, new: Path, flags: int) -> None:
    if libc.renameat2(AT_FDCWD, bytes(old), AT_FDCWD, bytes(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_names_and_their_errors(a: Path):
    (a / "d").mkdir()
    (a / "f").write_text("x")
    with fails_with(errno.EEXIST):
        (a / "d").mkdir()
    with fails_with(errno.ENOENT):
        (a / "no" / "x").mkdir()
    with fails_with(errno.ENOTDIR):
        (a / "f" / "x").mkdir()
    with fails_with(errno.EISDIR):
        os.unlink(a / "d")
    with fails_with(errno.ENOTDIR):
        os.rmdir(a / "f")
    (a / "d" / "x").touch()
    with fails_with(errno.ENOTEMPTY):
        os.rmdir(a / "d")
    (a / ("n" * 255)).touch()
    with fails_with(errno.ENAMETOOLONG):
        (a / ("n" * 256)).touch()
    os.unlink(a / ("n" * 255))
    assert sorted(os.listdir(a)) == ["d", "f"]
    odd = os.path.join(bytes(a), b"\xff\x01 \n")
    os.mkdir(odd)
    assert b"\xff\x01 \n" in os.listdir(bytes(a))


def test_rename_in_all_its_forms(a: Path):
    (a / "f").write_text("f")
    (a / "g").write_text("g")
    os.rename(a / "f", a / "g")
    assert (a / "g").read_text() == "f"
    (a / "f").write_text("2")
    with fails_with(errno.EEXIST):
        rename2(a / "f", a / "g", RENAME_NOREPLACE)
    rename2(a / "f", a / "g", RENAME_EXCHANGE)
    assert ((a / "f").read_text(), (a / "g").read_text()) == ("f", "2")
    (a / "d" / "e").mkdir(parents=True)
    with fails_with(errno.EINVAL):
        os.rename(a / "d", a / "d" / "e" / "x")
    with fails_with(errno.EISDIR):
        os.rename(a / "f", a / "d")
    with fails_with(errno.ENOTDIR):
        os.rename(a / "d", a / "f")
    os.rename(a / "d" / "e", a / "e2")
    assert os.stat(a / "d").st_nlink == 2


def test_links_of_both_kinds(a: Path):
    (a / "f").write_text("x")
    os.link(a / "f", a / "l")
    assert os.stat(a / "l").st_nlink == 2
    assert os.stat(a / "l").st_ino == os.stat(a / "f").st_ino
    os.unlink(a / "f")
    assert (a / "l").read_text() == "x"
    assert os.stat(a / "l").st_nlink == 1
    with fails_with(errno.EPERM):
        os.link(a, a / "x")
    os.symlink("l", a / "s")
    assert os.readlink(a / "s") == "l"
    assert (a / "s").read_text() == "x"
    os.symlink("loop", a / "loop")
    with fails_with(errno.ELOOP):
        (a / "loop").read_text()


def test_special_files(a: Path):
    os.mkfifo(a / "fifo")
    os.mknod(a / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as sock, contextlib.chdir(a):  # the path of a socket is short
        sock.bind("sock")
    kinds = {name: stat.S_IFMT(os.lstat(a / name).st_mode) for name in os.listdir(a)}
    assert kinds == {"fifo": stat.S_IFIFO, "device": stat.S_IFCHR, "sock": stat.S_IFSOCK}
    assert os.lstat(a / "device").st_rdev == os.makedev(1, 3)


def test_attributes_and_times(a: Path):
    file = a / "f"
    file.write_text("x")
    os.chmod(file, 0o4751)
    os.chown(file, 12, 34)
    assert stat.S_IMODE(os.stat(file).st_mode) in (0o4751, 0o751)
    assert (os.stat(file).st_uid, os.stat(file).st_gid) == (12, 34)
    os.utime(file, ns=(1_234_567_891, 9_876_543_219))
    assert (os.stat(file).st_atime_ns, os.stat(file).st_mtime_ns) == (1_234_567_891, 9_876_543_219)
    before = os.stat(a).st_mtime_ns
    (a / "g").touch()
    assert os.stat(a).st_mtime_ns > before
    before = os.stat(file)
    os.chmod(file, 0o600)
    assert os.stat(file).st_ctime_ns > before.st_ctime_ns
    assert os.stat(file).st_mtime_ns == before.st_mtime_ns
    assert os.statvfs(a).f_namemax == 255


def test_permissions_are_checked(a: Path):
    a.chmod(0o755)
    (a / "secret").write_text("x")
    (a / "secret").chmod(0o600)
    (a / "open").mkdir(0o777)
    (a / "open").chmod(0o1777)
    (a / "open" / "mine").touch()
    script = (
        "import os, sys; os.setgroups([]); os.setgid(4242); os.setuid(4242)\n"
        "def denied(call, *args):\n"
        "    try: call(*args)\n"
        "    except PermissionError: return\n"
        "    sys.exit(f'{args} was allowed')\n"
        f"os.chdir({str(a)!r})\n"
        "denied(open, 'secret')\n"
        "denied(os.mkdir, 'x')\n"
        "denied(os.unlink, 'open/mine')\n"  # the sticky bit
        "os.mkdir('open/theirs')\n"
    )
    for part in (a.parent, *list(a.parent.parents)[:-1]):
        part.chmod(part.stat().st_mode | 0o011)
    subprocess.run([sys.executable, "-c", script], check=True)
    assert os.stat(a / "open" / "theirs").st_uid == 4242


def test_set_gid_of_a_directory_is_inherited(a: Path):
    (a / "d").mkdir()
    os.chown(a / "d", 0, 77)
    os.chmod(a / "d", 0o2775)
    (a / "d" / "sub").mkdir()
    (a / "d" / "f").touch()
    assert os.stat(a / "d" / "sub").st_gid == os.stat(a / "d" / "f").st_gid == 77
    assert os.stat(a / "d" / "sub").st_mode & stat.S_ISGID


def test_reading_and_writing_at_offsets(a: Path, b: Path):
    fd = os.open(a / "f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"tail", 9_000_000)
    os.pwrite(fd, b"head", 0)
    assert os.fstat(fd).st_size == 9_000_004
    assert os.pread(fd, 10, 0) == b"head" + bytes(6)
    assert os.pread(fd, 10, 8_999_998) == b"\0\0tail"
    assert os.pread(fd, 10, 9_000_004) == b""
    os.ftruncate(fd, 4_500_000)
    os.ftruncate(fd, 9_500_000)
    assert os.pread(fd, 10, 8_999_998) == bytes(10)
    os.fsync(fd)
    os.close(fd)
    data = (b / "f").read_bytes()
    assert len(data) == 9_500_000
    assert data[:4] == b"head"
    assert not any(data[4:])


def test_appends_of_two_mounts_never_overwrite_each_other(a: Path, b: Path):
    writers = [os.open(mount / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT) for mount in (a, b)]
    for number in range(20):
        for who, fd in enumerate(writers):
            os.write(fd, f"{who}:{number:04}\n".encode())
    for fd in writers:
        os.close(fd)
    lines = (a / "log").read_text().splitlines()
    assert lines == [f"{who}:{number:04}" for number in range(20) for who in (0, 1)]


def test_an_unlinked_open_file_lives_until_its_last_handle_is_gone(a: Path, b: Path):
    (a / "f").write_bytes(b"x" * 100_000)
    mine = os.open(a / "f", os.O_RDWR)
    theirs = os.open(b / "f", os.O_RDONLY)
    os.unlink(b / "f")
    assert not (a / "f").exists()
    assert os.fstat(mine).st_nlink == 0
    os.pwrite(mine, b"y", 0)
    assert os.pread(theirs, 2, 0) == b"yx"
    os.close(mine)
    assert os.pread(theirs, 100_001, 0) == b"y" + b"x" * 99_999
    os.close(theirs)


def test_extended_attributes(a: Path, b: Path):
    (a / "f").touch()
    os.setxattr(a / "f", "user.one", b"1")
    assert os.getxattr(b / "f", "user.one") == b"1"
    with fails_with(errno.EEXIST):
        os.setxattr(a / "f", "user.one", b"2", os.XATTR_CREATE)
    with fails_with(errno.ENODATA):
        os.setxattr(a / "f", "user.two", b"2", os.XATTR_REPLACE)
    os.setxattr(b / "f", "user.one", b"2" * 1000)
    assert os.getxattr(a / "f", "user.one") == b"2" * 1000
    assert os.listxattr(a / "f") == ["user.one"]
    os.removexattr(a / "f", "user.one")
    with fails_with(errno.ENODATA):
        os.getxattr(b / "f", "user.one")


def test_memory_maps(a: Path, b: Path):
    (a / "f").write_bytes(bytes(200_000))
    with open(a / "f", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[100_000:100_005] = b"hello"
        mapped.flush()
        os.fsync(file.fileno())
    assert (b / "f").read_bytes()[100_000:100_005] == b"hello"


def test_a_directory_of_many_names_is_listed_once_each(a: Path, b: Path):
    names = {f"file-{number:05}" for number in range(1500)}
    for name in names:
        (a / name).touch()
    for mount in (a, b):
        listed = os.listdir(mount)
        assert len(listed) == len(names)
        assert set(listed) == names
        assert {entry.name for entry in os.scandir(mount) if entry.is_file() and entry.stat().st_size == 0} == names
    assert {".", ".."} <= set(subprocess.run(["ls", "-a", str(a)], capture_output=True, text=True).stdout.split())


def test_each_mount_sees_what_the_other_did_at_once(a: Path, b: Path):
    for number in range(30):
        name = f"f{number}"
        assert not (b / name).exists()  # the absence is cached, and must be forgotten
        (a / name).write_text(f"one {number}")
        assert (b / name).read_text() == f"one {number}"
        (b / name).write_text(f"two {number} longer")
        assert (a / name).read_text() == f"two {number} longer"
        os.rename(a / name, a / "moved")
        assert not (b / name).exists()
        assert (b / "moved").stat().st_size == len(f"two {number} longer")
        os.unlink(b / "moved")
        assert os.listdir(a) == os.listdir(b) == []


def test_a_write_is_seen_without_close_or_sync(a: Path, b: Path):
    (a / "f").write_bytes(bytes(70_000))
    writer = os.open(a / "f", os.O_RDWR)
    reader = os.open(b / "f", os.O_RDONLY)
    for number in range(30):
        os.pwrite(writer, b"%8d" % number, 8 * number)
        assert os.pread(reader, 8, 8 * number) == b"%8d" % number
        assert os.fstat(reader).st_mtime_ns == os.fstat(writer).st_mtime_ns
    os.pwrite(writer, b"end", 70_000)
    assert os.fstat(reader).st_size == 70_003
    os.ftruncate(writer, 5)
    assert os.fstat(reader).st_size == 5
    assert os.pread(reader, 10, 0) == b"       0"[:5]
    os.close(writer)
    os.close(reader)


def test_no_space_beyond_a_quota(cluster: RealCluster, tmp_path: Path):
    where = ("--data", str(cluster.data))
    cluster.fsd("volume", "create", "small", "--quota", "1M", *where)
    source = cluster.processes("metadata")[0]["address"] + ":/small"
    cluster.fsd("mount", source, str(tmp_path), "--log", str(cluster.data / "log" / "small.log"))
    try:
        with fails_with(errno.EDQUOT), open(tmp_path / "f", "wb") as file:
            for _ in range(40):
                file.write(bytes(100_000))
                file.flush()
                os.fsync(file.fileno())
        os.unlink(tmp_path / "f")
        (tmp_path / "g").write_bytes(bytes(10_000))
    finally:
        cluster.fsd("umount", str(tmp_path))
    cluster.fsd("volume", "delete", "small", "--force", *where)
