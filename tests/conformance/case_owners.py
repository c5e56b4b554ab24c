"""chmod, chown, what takes set-id bits away, times."""

import errno
import os
import stat

from tests.conformance.calls import KEEP, PUNCH, UTIME_NOW, UTIME_OMIT, fallocate, utimensat
from tests.conformance.trial import FILES, Trial, case, make, mode_of, opened, read, times, write

_PLAIN = (*FILES, "dir")


@case("chmod", *_PLAIN)
def modes_are_kept(t: Trial, kind: str) -> None:
    make(kind, "f")
    for mode in (0o000, 0o111, 0o222, 0o444, 0o640, 0o777, 0o1777, 0o2755, 0o4755, 0o7777):
        before = times("f")
        t.allows(os.chmod, "f", mode)
        t.same(mode_of("f"), mode)
    before = times("f")
    t.tick()
    os.chmod("f", 0o600)
    t.true(times("f")[2] > before[2], "ctime")
    t.same(times("f")[1], before[1], "mtime")
    before = times("f")
    t.tick()
    with t.user(1001, 1001):
        t.refuses(errno.EPERM, os.chmod, "f", 0o777)
    t.same((mode_of("f"), times("f")[2]), (0o600, before[2]))
    os.chown("f", 1001, 1001)
    with t.user(1001, 1001):
        t.allows(os.chmod, "f", 0o755)
    t.same(mode_of("f"), 0o755)


@case("chmod")
def through_descriptors_and_links(t: Trial) -> None:
    write("f")
    os.symlink("f", "s")
    os.chmod("s", 0o601)
    t.same((mode_of("f"), mode_of("s")), (0o601, 0o777))
    with opened("f", os.O_RDONLY) as fd:
        t.allows(os.fchmod, fd, 0o640)
    t.same(mode_of("f"), 0o640)
    with opened("f", os.O_PATH) as fd:
        t.refuses(errno.EBADF, os.fchmod, fd, 0o600)


@case("chmod")
def set_gid_needs_the_group(t: Trial) -> None:
    write("f")
    os.mkdir("d")
    for name in ("f", "d"):
        os.chown(name, 1001, 2001)
        with t.user(1001, 1001):
            t.allows(os.chmod, name, 0o2755)
        t.same(mode_of(name), 0o755, "silently without, for a stranger to the group")
        with t.user(1001, 1001, 2001):
            t.allows(os.chmod, name, 0o2755)
        t.same(mode_of(name), 0o2755)
    with t.user(1001, 1001):
        t.allows(os.chmod, "f", 0o1644)
    t.same(mode_of("f"), 0o1644, "Linux lets anybody set the sticky bit of a file")


@case("chown", *_PLAIN)
def owners_are_kept(t: Trial, kind: str) -> None:
    make(kind, "f")
    for uid, gid in ((1, 2), (65534, 65534), (4_000_000_000, 4_000_000_001), (0, 0)):
        t.allows(os.chown, "f", uid, gid)
        t.same((os.stat("f").st_uid, os.stat("f").st_gid), (uid, gid))
    os.chown("f", 5, 6)
    t.allows(os.chown, "f", -1, 7)
    t.allows(os.chown, "f", 8, -1)
    t.same((os.stat("f").st_uid, os.stat("f").st_gid), (8, 7))
    before = times("f")
    t.tick()
    os.chown("f", 9, 9)
    t.true(times("f")[2] > before[2], "ctime")
    t.same(times("f")[1], before[1])


@case("chown")
def who_may_change_owners(t: Trial) -> None:
    write("f")
    os.chown("f", 1001, 1001)
    with t.user(1001, 1001, 2001):
        t.refuses(errno.EPERM, os.chown, "f", 1002, -1)
        t.refuses(errno.EPERM, os.chown, "f", 0, 0)
        t.refuses(errno.EPERM, os.chown, "f", -1, 2002)
        t.allows(os.chown, "f", -1, 2001)
        t.allows(os.chown, "f", 1001, 1001)
        t.allows(os.chown, "f", -1, -1)
    with t.user(1002, 1002, 1001):
        t.refuses(errno.EPERM, os.chown, "f", -1, 1002)
        t.refuses(errno.EPERM, os.chown, "f", 1002, 1002)
    t.same((os.stat("f").st_uid, os.stat("f").st_gid), (1001, 1001))
    os.symlink("f", "s")
    os.chown("s", 3, 3)
    t.same((os.stat("f").st_uid, os.lstat("s").st_uid), (3, 0))
    with opened("f", os.O_RDONLY) as fd:
        os.fchown(fd, 4, 4)
    t.same(os.stat("f").st_uid, 4)


# --- set-id bits ------------------------------------------------------------------------------------------------------

_MODES = (0o4755, 0o2755, 0o6755, 0o6777, 0o2745, 0o4644, 0o6711)


def _after(mode: int) -> int:
    """Linux: set-uid goes, set-gid if the group may execute."""
    return mode & ~(0o6000 if mode & 0o010 else 0o4000)


@case("setid", *(f"{mode:o}" for mode in _MODES))
def chown_takes_them_away(t: Trial, text: str) -> None:
    mode = int(text, 8)
    write("f", b"x")
    os.chown("f", 1001, 2001)
    os.chmod("f", mode)
    with t.user(1001, 2001, 2002):
        os.chown("f", -1, 2002)
    t.same(mode_of("f"), _after(mode), "by the owner")
    os.chmod("f", mode)
    os.chown("f", 7, 7)
    t.same(mode_of("f"), _after(mode), "by root")
    os.mkdir("d")
    os.chmod("d", mode)
    os.chown("d", 7, 7)
    t.same(mode_of("d"), mode, "not from directories")


_CHANGES = {
    "write": lambda: _write("f", b"y", os.O_WRONLY),
    "append": lambda: _write("f", b"y", os.O_WRONLY | os.O_APPEND),
    "truncate": lambda: os.truncate("f", 3),
    "truncate-up": lambda: os.truncate("f", 300_000),
    "ftruncate": lambda: _ftruncate("f", 1),
    "open-trunc": lambda: os.close(os.open("f", os.O_WRONLY | os.O_TRUNC)),
    "fallocate": lambda: _fallocate(0, 0, 100_000),
    "punch": lambda: _fallocate(PUNCH | KEEP, 0, 2),
    "copy_file_range": lambda: _copy(),
    "direct": lambda: _direct(),
    "mmap": lambda: _mapped(),
}


def _write(name: str, data: bytes, flags: int) -> None:
    fd = os.open(name, flags)
    os.write(fd, data)
    os.close(fd)


def _ftruncate(name: str, size: int) -> None:
    fd = os.open(name, os.O_WRONLY)
    os.ftruncate(fd, size)
    os.close(fd)


def _fallocate(mode: int, offset: int, length: int) -> None:
    fd = os.open("f", os.O_RDWR)
    fallocate(fd, mode, offset, length)
    os.close(fd)


def _copy() -> None:
    source, target = os.open("source", os.O_RDONLY), os.open("f", os.O_WRONLY)
    os.copy_file_range(source, target, 10)
    os.close(source)
    os.close(target)


def _direct() -> None:
    import mmap

    page = mmap.mmap(-1, 4096)
    fd = os.open("f", os.O_RDWR | os.O_DIRECT)
    os.pwritev(fd, [page], 0)
    os.close(fd)


def _mapped() -> None:
    import mmap

    fd = os.open("f", os.O_RDWR)
    with mmap.mmap(fd, 5) as mapped:
        mapped[0:1] = b"m"
        mapped.flush()
    os.close(fd)


@case("setid", *(name for name in _CHANGES if name != "mmap"))
def changing_the_bytes_takes_them_away(t: Trial, which: str) -> None:
    write("source", b"0123456789")
    for mode in (0o4777, 0o2777, 0o6777, 0o2767, 0o6766):
        write("f", b"hello")
        os.chmod("f", mode)
        with t.user(1001, 1001):
            _CHANGES[which]()
        wanted = mode & ~0o4000
        if mode & 0o010 or mode & 0o2000:  # not of the group: gone whether the group may execute or not
            wanted &= ~0o2000
        t.same(mode_of("f"), wanted, f"{mode:o} by another")
        with opened("f", os.O_RDONLY) as fd:
            t.same(stat.S_IMODE(os.fstat(fd).st_mode), wanted)
    write("f", b"hello")
    os.chmod("f", 0o6755)
    if which not in ("fallocate", "punch"):  # there the kernel leaves even root's to the file system's taste
        _CHANGES[which]()
        t.same(mode_of("f"), 0o6755, "root keeps them")


@case("setid")
def the_owner_loses_them_too(t: Trial) -> None:
    write("f", b"hello")
    os.chown("f", 1001, 1001)
    os.chmod("f", 0o6755)
    with t.user(1001, 1001):
        _write("f", b"x", os.O_WRONLY)
    t.same(mode_of("f"), 0o755)
    os.chmod("f", 0o6755)
    with opened("f", os.O_WRONLY) as fd:
        with t.user(1001, 1001):
            os.write(fd, b"x")
        t.same(mode_of("f"), 0o755, "through a handle that root opened")
    with t.user(1001, 1001):
        t.allows(os.chmod, "f", 0o4755)
    t.same(read("f"), b"xello")


# --- times ------------------------------------------------------------------------------------------------------------


@case("utimensat", *_PLAIN)
def times_are_kept(t: Trial, kind: str) -> None:
    make(kind, "f")
    for atime, mtime in (
        (0, 0),
        (1, 2),
        (1_234_567_890_123_456_789, 1_000_000_000_000_000_001),
        (2_200_000_000_000_000_000, 4_000_000_000_000_000_000),
        (-1, -1_000_000_001),
    ):
        t.allows(os.utime, "f", ns=(atime, mtime))
        t.same(times("f")[:2], (atime, mtime))
    before = times("f")
    t.tick()
    os.utime("f", ns=(5, 6))
    t.true(times("f")[2] > before[2], "ctime")


@case("utimensat")
def now_and_omit(t: Trial) -> None:
    write("f")
    os.utime("f", ns=(1_000_000_000, 2_000_000_000))
    utimensat("f", (0, UTIME_OMIT), (7, 8))
    t.same(times("f")[:2], (1_000_000_000, 7_000_000_008))
    utimensat("f", (9, 10), (0, UTIME_OMIT))
    t.same(times("f")[:2], (9_000_000_010, 7_000_000_008))
    before = times("f")
    t.tick()
    utimensat("f", (0, UTIME_NOW), (0, UTIME_OMIT))
    t.true(times("f")[0] > before[2], "atime is now")
    t.same(times("f")[1], 7_000_000_008)
    utimensat("f", (0, UTIME_NOW), (0, UTIME_NOW))
    t.true(abs(times("f")[1] - times("f")[2]) < 2_000_000_000)
    t.refuses(errno.EINVAL, utimensat, "f", (0, 1_000_000_000), (0, 0))
    before = times("f")
    t.tick()
    utimensat("f", (0, UTIME_OMIT), (0, UTIME_OMIT))
    t.same(times("f"), before)


@case("utimensat")
def who_may_set_times(t: Trial) -> None:
    write("f")
    os.chmod("f", 0o644)
    with t.user(1001, 1001):
        t.refuses(errno.EACCES, os.utime, "f")
        t.refuses(errno.EPERM, os.utime, "f", ns=(1, 2))
    os.chmod("f", 0o666)
    with t.user(1001, 1001):
        t.allows(os.utime, "f")
        t.refuses(errno.EPERM, os.utime, "f", ns=(1, 2))
        t.refuses(errno.EPERM, utimensat, "f", (0, UTIME_NOW), (0, UTIME_OMIT))
    os.chown("f", 1001, 1001)
    os.chmod("f", 0o400)
    with t.user(1001, 1001):
        t.allows(os.utime, "f", ns=(1, 2))
        t.allows(os.utime, "f")


@case("times")
def what_changes_which(t: Trial) -> None:
    write("f", b"hello")

    def changed(call, *args) -> tuple[bool, bool]:
        before = times("f")
        t.tick()
        call(*args)
        after = times("f")
        return after[1] > before[1], after[2] > before[2]

    t.same(changed(lambda: _write("f", b"x", os.O_WRONLY)), (True, True), "write")
    t.same(changed(lambda: _write("f", b"", os.O_WRONLY)), (False, False), "write of nothing")
    t.same(changed(lambda: _write("f", b"x", os.O_WRONLY | os.O_APPEND)), (True, True), "append")
    t.same(changed(os.truncate, "f", 2), (True, True), "truncate down")
    t.same(changed(os.truncate, "f", 200_000), (True, True), "truncate up")
    t.same(changed(read, "f"), (False, False), "read")
    t.same(changed(os.chmod, "f", 0o600), (False, True), "chmod")
    t.same(changed(os.link, "f", "l"), (False, True), "link")
    t.same(changed(os.unlink, "l"), (False, True), "unlink of another name")
    t.same(changed(os.setxattr, "f", "user.x", b""), (False, True), "setxattr")
    t.same(changed(os.stat, "f"), (False, False), "stat")
    with opened("f", os.O_RDWR) as fd:
        t.true(changed(fallocate, fd, 0, 0, 400_000)[1], "fallocate")
        t.same(changed(fallocate, fd, PUNCH | KEEP, 0, 4096), (True, True), "punch")
        t.same(changed(os.fsync, fd), (False, False), "fsync")


@case("times")
def same_seen_through_every_way(t: Trial) -> None:
    write("f", b"x" * 10)
    with opened("f", os.O_RDWR) as fd:
        for _ in range(5):
            os.write(fd, b"y")
            t.same(os.fstat(fd).st_mtime_ns, os.stat("f").st_mtime_ns)
            t.same(os.fstat(fd).st_size, os.stat("f").st_size)
        mtime = os.stat("f").st_mtime_ns
        os.fsync(fd)
        t.same(os.stat("f").st_mtime_ns, mtime, "not changed by writing back")
    t.same(os.stat("f").st_mtime_ns, mtime, "nor by close")
    t.tick()
    t.same(os.stat("f").st_mtime_ns, mtime)
    with opened("f", os.O_RDWR) as fd:
        os.write(fd, b"z")
        os.utime(fd, ns=(3, 4))
    t.same(times("f")[:2], (3, 4), "a time set after a write stays")


@case("times")
def they_are_of_this_hour(t: Trial) -> None:
    import time

    before = time.time_ns() - 1_000_000_000
    write("f", b"x")
    os.mkdir("d")
    os.symlink("x", "s")
    for name in ("f", "d", "s"):
        for value in times(name):
            t.true(before <= value <= time.time_ns() + 1_000_000_000, name)
