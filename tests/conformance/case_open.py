"""open and its flags, permissions to open, executing what is being written."""

import errno
import os
import stat
import subprocess
import sys

from tests.conformance.trial import Trial, case, make, mode_of, opened, read, times, write


@case("open", "000", "444", "600", "644", "666", "777", "4755", "2755", "1644", "7777")
def modes_of_new_files(t: Trial, mode: str) -> None:
    for umask in (0, 0o22, 0o77):
        os.umask(umask)
        fd = os.open("f", os.O_CREAT | os.O_EXCL | os.O_RDWR, int(mode, 8))
        t.same(mode_of("f"), int(mode, 8) & ~umask)
        t.same(os.write(fd, b"x"), 1, "writable through this handle whatever the mode says")
        os.close(fd)
        os.unlink("f")
    os.umask(0o022)


@case("open")
def creating(t: Trial) -> None:
    parent = times(".")
    t.tick()
    t.refuses(errno.ENOENT, os.open, "f", os.O_RDONLY)
    with opened("f", os.O_CREAT | os.O_WRONLY) as fd:
        found = os.fstat(fd)
        t.same((found.st_size, found.st_nlink, found.st_uid, found.st_gid), (0, 1, 0, 0))
        t.true(times(".")[1] > parent[1], "mtime of the directory")
        t.refuses(errno.EBADF, os.read, fd, 1)
    before, parent = times("f"), times(".")
    t.tick()
    with opened("f", os.O_CREAT | os.O_RDONLY) as fd:
        t.refuses(errno.EBADF, os.write, fd, b"x")
    t.same((times("f")[1:], times(".")[1:]), (before[1:], parent[1:]), "opening changes nothing")
    t.refuses(errno.EEXIST, os.open, "f", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    os.mkdir("d")
    t.refuses(errno.EEXIST, os.open, "d", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    t.refuses(errno.ENOTDIR, os.open, "f", os.O_RDONLY | os.O_DIRECTORY)
    t.refuses((errno.ENOTDIR, errno.EISDIR), os.open, "f/", os.O_RDONLY)
    t.refuses(errno.EISDIR, os.open, "new/", os.O_CREAT | os.O_RDWR)
    t.refuses((errno.EISDIR, errno.EINVAL), os.open, "d", os.O_RDONLY | os.O_CREAT)


@case("open")
def truncating(t: Trial) -> None:
    for size in (5, 100_000):
        write("f", b"x" * size)
        before = times("f")
        t.tick()
        with opened("f", os.O_WRONLY | os.O_TRUNC):
            t.same(os.stat("f").st_size, 0)
        t.same(read("f"), b"")
        t.true(times("f")[1] > before[1] and times("f")[2] > before[2], "times")
        write("f", b"x" * size)
        with opened("f", os.O_CREAT | os.O_RDWR | os.O_TRUNC) as fd:
            t.same(os.fstat(fd).st_size, 0)
    write("f", b"x")
    os.chmod("f", 0o444)
    with t.user(1001, 1001):
        t.refuses(errno.EACCES, os.open, "f", os.O_RDONLY | os.O_TRUNC)
        t.refuses(errno.EACCES, os.open, "f", os.O_WRONLY | os.O_TRUNC)
    t.same(read("f"), b"x")


@case("open")
def appending(t: Trial) -> None:
    write("f", b"one")
    with opened("f", os.O_WRONLY | os.O_APPEND) as one, opened("f", os.O_RDWR | os.O_APPEND) as two:
        os.write(one, b"two")
        os.write(two, b"three")
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"four")
        t.same(os.lseek(one, 0, os.SEEK_CUR), 15)
        t.same(os.pread(two, 100, 0), b"onetwothreefour")
        os.truncate("f", 3)
        os.write(two, b"!")
        t.same(read("f"), b"one!")
        os.pwrite(two, b"?", 0)
        t.same(read("f"), b"one!?", "pwrite appends too on Linux")


@case("open")
def appends_of_processes_do_not_overwrite(t: Trial) -> None:
    children = []
    for who in range(4):
        pid = os.fork()
        if not pid:
            fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            for number in range(100):
                os.write(fd, b"%d:%03d\n" % (who, number))
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    lines = read("log").splitlines()
    t.same(len(lines), 400)
    t.same(sorted(lines), sorted(b"%d:%03d" % (who, number) for who in range(4) for number in range(100)))


@case(
    "open", *(f"{mode:03o}" for mode in (0o400, 0o200, 0o100, 0o040, 0o020, 0o010, 0o004, 0o002, 0o001, 0o000, 0o640))
)
def who_may_open(t: Trial, text: str) -> None:
    mode = int(text, 8)
    write("f", b"x")
    os.chown("f", 1001, 2001)
    os.chmod("f", mode)
    people = ((1001, 1001, (), 6), (1002, 2001, (), 3), (1002, 1002, (2001,), 3), (1003, 1003, (), 0))
    for uid, gid, groups, shift in people:
        allowed = mode >> shift & 7
        with t.user(uid, gid, *groups):
            for flags, needed in ((os.O_RDONLY, 4), (os.O_WRONLY, 2), (os.O_RDWR, 6)):
                if allowed & needed == needed:
                    fd = t.allows(os.open, "f", flags)
                    if fd is not None:
                        os.close(fd)
                else:
                    t.refuses(errno.EACCES, os.open, "f", flags)
            for wanted in (os.R_OK, os.W_OK, os.X_OK):
                got = os.access("f", wanted, effective_ids=True)
                t.same(got, bool(allowed & wanted), f"access {wanted} of {uid}")
    with opened("f", os.O_RDWR):
        t.true(True, "root may")
    t.same(os.access("f", os.X_OK), bool(mode & 0o111), "root executes if anybody may")


@case("open", *(f"{mode:03o}" for mode in (0o700, 0o500, 0o300, 0o100, 0o070, 0o010, 0o007, 0o001, 0o000)))
def who_may_search(t: Trial, text: str) -> None:
    mode = int(text, 8)
    os.mkdir("d")
    write("d/f")
    os.chmod("d/f", 0o666)
    os.chown("d", 1001, 2001)
    os.chmod("d", mode)
    for uid, gid, shift in ((1001, 1001, 6), (1002, 2001, 3), (1003, 1003, 0)):
        allowed = mode >> shift & 7
        with t.user(uid, gid):
            if allowed & 1:
                t.allows(os.stat, "d/f")
            else:
                t.refuses(errno.EACCES, os.stat, "d/f")
                t.refuses(errno.EACCES, os.open, "d/f", os.O_RDONLY)
            if allowed & 3 == 3:
                fd = t.allows(os.open, "d/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                if fd is not None:
                    os.close(fd)
                    t.allows(os.unlink, "d/new")
            else:
                t.refuses(errno.EACCES, os.open, "d/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                t.refuses(errno.EACCES, os.unlink, "d/f")
            if allowed & 4:
                t.same(os.listdir("d"), ["f"])
            else:
                t.refuses(errno.EACCES, os.listdir, "d")


@case("open")
def permission_is_checked_when_opening_not_later(t: Trial) -> None:
    write("f", b"x")
    os.chown("f", 1001, 1001)
    with t.user(1001, 1001):
        fd = os.open("f", os.O_RDWR)
        os.chmod("f", 0)
        t.same(os.pread(fd, 1, 0), b"x")
        t.same(os.pwrite(fd, b"y", 0), 1)
        t.refuses(errno.EACCES, os.open, "f", os.O_RDONLY)
        os.close(fd)


@case("open")
def without_a_name(t: Trial) -> None:
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        t.true(False, f"O_TMPFILE: {error.strerror}")
        return
    t.same(os.write(fd, b"x" * 100_000), 100_000)
    t.same(os.pread(fd, 5, 99_995), b"xxxxx")
    t.same((os.fstat(fd).st_nlink, os.listdir(".")), (0, []))
    os.close(fd)
    fd = t.allows(os.open, ".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    if fd is not None:
        os.close(fd)
    t.refuses(errno.EINVAL, os.open, ".", os.O_TMPFILE | os.O_RDONLY, 0o600)


@case("open")
def paths_only(t: Trial) -> None:
    write("f", b"x")
    os.chmod("f", 0)
    os.symlink("f", "s")
    with t.user(1001, 1001), opened("f", os.O_PATH) as fd:
        t.same(os.fstat(fd).st_size, 1)
        t.refuses(errno.EBADF, os.read, fd, 1)
    with opened("s", os.O_PATH | os.O_NOFOLLOW) as fd:
        t.true(stat.S_ISLNK(os.fstat(fd).st_mode))
        t.same(os.readlink("", dir_fd=fd), "f")


@case("open")
def past_the_cache(t: Trial) -> None:
    import mmap

    fd = t.allows(os.open, "f", os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o644)
    if fd is None:
        return
    page = mmap.mmap(-1, 65536)
    page.write(b"d" * 65536)
    t.same(os.pwritev(fd, [page], 0), 65536)
    with opened("f") as cached:
        t.same(os.pread(cached, 65537, 0), b"d" * 65536)
        os.pwrite(cached, b"C" * 4096, 4096)
        t.same(os.preadv(fd, [page], 0), 65536)
        t.same(page[4095:8193], b"d" + b"C" * 4096 + b"d")
        t.same(os.preadv(fd, [page], 65536), 0)
    os.close(fd)


@case("open", "O_SYNC", "O_DSYNC", "O_NOATIME", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY")
def flags_that_change_little(t: Trial, name: str) -> None:
    fd = t.allows(os.open, "f", os.O_CREAT | os.O_RDWR | getattr(os, name), 0o644)
    if fd is not None:
        os.write(fd, b"x" * 5000)
        t.same(os.pread(fd, 6000, 0), b"x" * 5000)
        os.close(fd)


@case("open")
def other_kinds(t: Trial) -> None:
    for kind in ("char", "block", "fifo", "socket"):
        make(kind, kind)
        with opened(kind, os.O_PATH) as fd:
            t.true(os.fstat(fd).st_mode == os.stat(kind).st_mode)
    t.refuses(errno.ENXIO, os.open, "socket", os.O_RDWR)


@case("open")
def text_that_runs(t: Trial) -> None:
    program = os.path.realpath("/bin/true")
    with open(program, "rb") as file:
        write("true", file.read(), 0o755)
    t.same(subprocess.run(["./true"], check=False).returncode, 0)
    with opened("true", os.O_WRONLY):
        t.refuses(errno.ETXTBSY, subprocess.run, ["./true"])
    write("script", b"#!/bin/sh\nexit 7\n", 0o755)
    t.same(subprocess.run(["./script"], check=False).returncode, 7)
    os.chmod("script", 0o644)
    t.refuses(errno.EACCES, subprocess.run, ["./script"])
    os.chmod("script", 0o711)
    with open("/bin/sleep", "rb") as file:
        write("sleep", file.read(), 0o755)
    running = subprocess.Popen(["./sleep", "30"])
    try:
        t.refuses(errno.ETXTBSY, os.open, "sleep", os.O_WRONLY)
        t.refuses(errno.ETXTBSY, os.open, "sleep", os.O_WRONLY | os.O_TRUNC)
        t.refuses(errno.ETXTBSY, os.truncate, "sleep", 0)
        t.allows(os.unlink, "sleep")
    finally:
        running.kill()
        running.wait()
    with open("/bin/true", "rb") as file:
        os.mkdir("x")
        write("x/true", file.read(), 0o700)
    os.chown("x/true", 1001, 1001)

    def as_other() -> int:
        os.setgroups([])
        os.setgid(1002)
        os.setuid(1002)
        os.execv("x/true", ["true"])
        return 0

    t.same(t.child(as_other), errno.EACCES, "executing what is another's alone")


@case("open")
def python_runs_from_here(t: Trial) -> None:
    os.mkdir("package")
    write("package/__init__.py", b"from package.other import value\n")
    write("package/other.py", b"value = 42\n")
    script = (
        "import sys; sys.dont_write_bytecode = False; sys.path.insert(0, '.'); import package; print(package.value)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    t.same(done.stdout, b"42\n")
    t.same(sorted(os.listdir("package")), ["__init__.py", "__pycache__", "other.py"])
