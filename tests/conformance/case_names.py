"""link, symlink, unlink, rename, and what names and paths may be."""

import errno
import os
import stat

from tests.conformance import calls
from tests.conformance.trial import FILES, KINDS, Trial, case, make, opened, read, remove, times, write

NAME_MAX, PATH_MAX = 255, 4096
NOT_DIRECTORIES = tuple(kind for kind in KINDS if kind != "dir")

_ON_NAMES = {
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda name: os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    "open": lambda name: os.open(name, os.O_CREAT | os.O_RDWR, 0o600),
    "symlink": lambda name: os.symlink("x", name),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "chmod": lambda name: os.chmod(name, 0o600),
    "chown": lambda name: os.chown(name, 1, 1),
    "lchown": lambda name: os.lchown(name, 1, 1),
    "truncate": lambda name: os.truncate(name, 1),
    "utime": lambda name: os.utime(name),
    "stat": os.stat,
    "lstat": os.lstat,
    "link-from": lambda name: os.link(name, "other"),
    "link-to": lambda name: os.link("there", name),
    "rename-from": lambda name: os.rename(name, "other"),
    "rename-to": lambda name: os.rename("there", name),
    "statvfs": os.statvfs,
    "listdir": os.listdir,
    "setxattr": lambda name: os.setxattr(name, "user.x", b""),
}
_CREATING = ("mkdir", "mkfifo", "mknod", "open", "symlink", "link-to", "rename-to")
_NOT_ITSELF = ("link-from",)


@case("names", *_ON_NAMES)
def errors_that_every_call_with_a_path_has(t: Trial, which: str) -> None:
    call = _ON_NAMES[which]
    write("there")
    t.refuses(errno.ENOTDIR, call, "there/x")
    t.refuses(errno.ENAMETOOLONG, call, "n" * (NAME_MAX + 1))
    t.refuses(errno.ENAMETOOLONG, call, "d/" * 2100 + "x")
    t.refuses(errno.ENOENT, call, "absent/x")
    t.refuses(errno.ENOENT, call, "")
    os.symlink("loop2", "loop1")
    os.symlink("loop1", "loop2")
    t.refuses(errno.ELOOP, call, "loop1/x")
    if which not in _CREATING:
        t.refuses(errno.ENOENT, call, "absent")


@case("names", "mkdir", "mkfifo", "mknod", "open", "symlink")
def longest_names_and_paths(t: Trial, which: str) -> None:
    call = _ON_NAMES[which]
    longest = "n" * NAME_MAX
    made = t.allows(call, longest)
    t.same(os.listdir("."), [longest])
    if isinstance(made, int):
        os.close(made)
    path = ""
    while len(path) + 101 < PATH_MAX - 10:
        path += "p" * 99 + "/"
        os.mkdir(path)
    last = path + "q" * (PATH_MAX - 1 - len(path))
    made = t.allows(call, last)
    if isinstance(made, int):
        os.close(made)
    t.allows(os.lstat, last)
    t.refuses(errno.ENAMETOOLONG, call, last + "q")


@case("names", "mkdir", "mkfifo", "mknod", "symlink", "link-to")
def nothing_is_made_over_anything(t: Trial, which: str) -> None:
    write("there")
    for kind in KINDS:
        make(kind, kind)
        t.refuses(errno.EEXIST, _ON_NAMES[which], kind)
    t.refuses(errno.EEXIST, _ON_NAMES[which], ".")
    t.refuses(errno.EEXIST, _ON_NAMES[which], "dir/..")


@case("names")
def any_bytes_are_a_name(t: Trial) -> None:
    for name in (b"\xff\xfe", b"\n", b" ", b"...", b"\x01", "ä€𝄞".encode(), b"a\\b", b"*?[", b"-rf"):
        with t_open(name):
            pass
        t.same(os.listdir(b"."), [name])
        t.true(os.stat(name))
        os.unlink(name)
    with t_open(b"A"), t_open(b"a"):
        t.same(sorted(os.listdir(b".")), [b"A", b"a"], "case counts")


def t_open(name: bytes):
    return opened(os.fsdecode(name))


# --- link -------------------------------------------------------------------------------------------------------------


@case("link", *NOT_DIRECTORIES)
def one_more_name(t: Trial, kind: str) -> None:
    make(kind, "f")
    before = os.lstat("f")
    parent = times(".")
    t.tick()
    t.allows(os.link, "f", "l", follow_symlinks=False)
    after = os.lstat("l")
    t.same(after.st_ino, before.st_ino)
    t.same((before.st_nlink, after.st_nlink, os.lstat("f").st_nlink), (1, 2, 2))
    t.true(after.st_ctime_ns > before.st_ctime_ns, "ctime of the file")
    t.same(after.st_mtime_ns, before.st_mtime_ns)
    t.true(times(".")[1] > parent[1] and times(".")[2] > parent[2], "times of the directory")
    if kind != "symlink":
        os.chmod("l", 0o600)
        t.same(stat.S_IMODE(os.lstat("f").st_mode), 0o600)
        os.chown("f", 5, 6)
        t.same((os.lstat("l").st_uid, os.lstat("l").st_gid), (5, 6))
    os.unlink("f")
    t.same(os.lstat("l").st_nlink, 1)
    t.refuses(errno.ENOENT, os.lstat, "f")
    os.unlink("l")
    t.refuses(errno.ENOENT, os.lstat, "l")


@case("link")
def link_refusals(t: Trial) -> None:
    os.mkdir("d")
    t.refuses(errno.EPERM, os.link, "d", "e")
    t.refuses(errno.ENOENT, os.link, "no", "e")
    write("f")
    t.refuses(errno.EEXIST, os.link, "f", "f")
    t.refuses(errno.EEXIST, os.link, "f", "d")
    t.refuses(errno.EXDEV, os.link, "/proc/self/status", "e")
    t.refuses(errno.EXDEV, os.link, "f", "/dev/shm/conformance-x")
    os.mkdir("ro", 0o755)
    with t.user(65534, 65534):
        t.refuses((errno.EACCES, errno.EPERM), os.link, "f", "ro/x")
    os.chmod(".", 0o777)
    os.chmod("f", 0o000)
    with t.user(65534, 65534):
        t.refuses(errno.EPERM, os.link, "f", "x")  # protected_hardlinks or not owner
    t.refuses(errno.ENOENT, os.lstat, "x")


@case("link")
def a_name_for_a_nameless_file(t: Trial) -> None:
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
    except OSError as error:
        t.true(False, f"O_TMPFILE: {error.strerror}")
        return
    os.write(fd, b"hello")
    t.same(os.fstat(fd).st_nlink, 0)
    t.same(os.listdir("."), [])
    t.allows(calls.link_descriptor, fd, "named")
    os.close(fd)
    t.same(read("named"), b"hello")
    t.same((os.stat("named").st_nlink, stat.S_IMODE(os.stat("named").st_mode)), (1, 0o640))


@case("link")
def an_unlinked_file_gets_no_name_again(t: Trial) -> None:
    with opened("f") as fd:
        os.unlink("f")
        t.refuses(errno.ENOENT, calls.link_descriptor, fd, "g")
    with opened("f") as fd:
        os.link("f", "g")
        os.unlink("f")
        t.allows(calls.link_descriptor, fd, "h")
        t.same(os.fstat(fd).st_nlink, 2)


@case("link")
def many_names(t: Trial) -> None:
    write("f")
    for number in range(300):
        os.link("f", f"l{number}")
    t.same(os.stat("f").st_nlink, 301)
    for number in range(300):
        os.unlink(f"l{number}")
    t.same(os.stat("f").st_nlink, 1)


# --- symlink ----------------------------------------------------------------------------------------------------------


@case("symlink")
def links_say_what_they_were_told(t: Trial) -> None:
    for number, target in enumerate(("x", "/", "../..", "a/b/c", "t" * 1023, "ä€", " ", "t" * 4095)):
        t.allows(os.symlink, target, f"s{number}")
        t.same(os.readlink(f"s{number}"), target)
        t.same(os.lstat(f"s{number}").st_size, len(target.encode()))
        t.same(stat.S_IMODE(os.lstat(f"s{number}").st_mode), 0o777)
    t.refuses(errno.ENAMETOOLONG, os.symlink, "t" * 4096, "long")
    t.refuses(errno.ENOENT, os.symlink, "", "empty")
    write("f")
    t.refuses(errno.EINVAL, os.readlink, "f")
    t.refuses(errno.EINVAL, os.readlink, ".")


@case("symlink")
def links_are_followed(t: Trial) -> None:
    os.mkdir("d")
    write("d/f", b"there")
    os.symlink("d", "s")
    t.same(read("s/f"), b"there")
    t.same(sorted(os.listdir("s")), ["f"])
    os.symlink("s/f", "s2")
    t.same(read("s2"), b"there")
    t.refuses(errno.ENOTDIR, os.rmdir, "s")
    t.refuses(errno.ELOOP, os.open, "s2", os.O_RDONLY | os.O_NOFOLLOW)
    t.refuses(errno.ENOTDIR, os.open, "s", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    t.allows(os.unlink, "s2")
    t.same(read("d/f"), b"there")
    os.symlink("absent", "dangling")
    t.refuses(errno.ENOENT, os.stat, "dangling")
    write("dangling", b"made")
    t.same(read("absent"), b"made")
    os.symlink("absent2", "dangling2")
    t.refuses(errno.EEXIST, os.open, "dangling2", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    for number in range(41):
        os.symlink(f"chain{number + 1}" if number < 40 else "d/f", f"chain{number}")
    t.refuses(errno.ELOOP, os.stat, "chain0")
    t.allows(os.stat, "chain2")


@case("symlink")
def links_have_owners_and_times(t: Trial) -> None:
    os.symlink("x", "s")
    t.allows(os.lchown, "s", 3, 4)
    t.same((os.lstat("s").st_uid, os.lstat("s").st_gid), (3, 4))
    t.allows(os.utime, "s", ns=(1_000_000_001, 2_000_000_002), follow_symlinks=False)
    t.same(times("s")[:2], (1_000_000_001, 2_000_000_002))
    parent = times(".")
    t.tick()
    os.symlink("y", "s2")
    t.true(times(".")[1] > parent[1], "mtime of the directory")


# --- unlink -----------------------------------------------------------------------------------------------------------


@case("unlink", *NOT_DIRECTORIES)
def a_name_goes(t: Trial, kind: str) -> None:
    make(kind, "f")
    parent = times(".")
    t.tick()
    t.allows(os.unlink, "f")
    t.refuses(errno.ENOENT, os.lstat, "f")
    t.refuses(errno.ENOENT, os.unlink, "f")
    t.true(times(".")[1] > parent[1] and times(".")[2] > parent[2], "times of the directory")
    make("dir", "f")
    t.true(stat.S_ISDIR(os.stat("f").st_mode), "the name is free for anything")
    if kind in FILES:
        make(kind, "g")
        os.link("g", "h")
        before = times("h")
        t.tick()
        os.unlink("g")
        t.true(times("h")[2] > before[2], "ctime of what remains")


@case("unlink")
def unlink_refusals(t: Trial) -> None:
    os.mkdir("d")
    t.refuses(errno.EISDIR, os.unlink, "d")
    t.refuses(errno.ENOTDIR, os.rmdir, _file("f"))
    t.refuses((errno.EISDIR, errno.EPERM, errno.EINVAL), os.unlink, ".")
    t.refuses((errno.EISDIR, errno.EPERM), os.unlink, "d/..")
    t.refuses(errno.ENOTDIR, os.unlink, "f/")


def _file(name: str) -> str:
    write(name)
    return name


@case("unlink")
def an_open_file_stays_until_it_is_closed(t: Trial) -> None:
    for size in (10, 100_000):
        write("f", b"x" * size)
        with opened("f", os.O_RDWR) as fd, opened("f", os.O_RDONLY) as second:
            os.unlink("f")
            t.refuses(errno.ENOENT, os.stat, "f")
            t.same(os.fstat(fd).st_nlink, 0)
            t.same(os.fstat(fd).st_size, size)
            os.pwrite(fd, b"y", 0)
            t.same(os.pread(second, 3, 0), b"yxx")
            os.pwrite(fd, b"end", 300_000)
            t.same(os.fstat(second).st_size, 300_003)
            os.ftruncate(fd, 5)
            t.same(os.pread(second, 10, 0), b"yxxxx")
            os.fchmod(fd, 0o600)
            os.fchown(fd, 7, 7)
            t.same((os.fstat(fd).st_uid, stat.S_IMODE(os.fstat(fd).st_mode)), (7, 0o600))
            os.utime(fd, ns=(5, 6))
            t.same(os.fstat(fd).st_mtime_ns, 6)
            write("f", b"another")
            t.same(os.pread(second, 10, 0), b"yxxxx", "a new file of that name is another")
            t.true(os.fstat(fd).st_ino != os.stat("f").st_ino)
            os.fsync(fd)
            again = t.allows(os.open, f"/proc/self/fd/{fd}", os.O_RDONLY)
            if again is not None:
                t.same(os.read(again, 2), b"yx")
                os.close(again)
        os.unlink("f")


@case("unlink")
def a_file_that_was_renamed_over_stays_while_open(t: Trial) -> None:
    write("f", b"old" * 30_000)
    write("g", b"new")
    with opened("f", os.O_RDWR) as fd:
        os.rename("g", "f")
        t.same(os.fstat(fd).st_nlink, 0)
        t.same(os.pread(fd, 3, 0), b"old")
        os.pwrite(fd, b"OLD", 0)
        t.same(read("f"), b"new")
        t.same(os.pread(fd, 3, 0), b"OLD")


# --- rename -----------------------------------------------------------------------------------------------------------


@case("rename", *KINDS)
def a_name_moves(t: Trial, kind: str) -> None:
    make(kind, "old")
    os.mkdir("d")
    before, parent, other = os.lstat("old"), times("."), times("d")
    t.tick()
    t.allows(os.rename, "old", "new")
    after = os.lstat("new")
    t.same((after.st_ino, after.st_mode, after.st_nlink), (before.st_ino, before.st_mode, before.st_nlink))
    t.same(after.st_mtime_ns, before.st_mtime_ns)
    t.true(after.st_ctime_ns > before.st_ctime_ns, "ctime of what was moved")
    t.refuses(errno.ENOENT, os.lstat, "old")
    t.true(times(".")[1] > parent[1] and times(".")[2] > parent[2], "times of the directory")
    t.allows(os.rename, "new", "d/new")
    t.same(os.lstat("d/new").st_ino, before.st_ino)
    t.true(times("d")[1] > other[1], "mtime of the target directory")
    t.allows(os.rename, "d/new", "d/new")
    remove(kind, "d/new")


@case("rename", *NOT_DIRECTORIES)
def a_name_moves_over_another(t: Trial, kind: str) -> None:
    for other in NOT_DIRECTORIES:
        make(kind, "old")
        make(other, "new")
        if other in FILES:
            os.link("new", "kept")
        moved = os.lstat("old").st_ino
        t.allows(os.rename, "old", "new")
        t.same(os.lstat("new").st_ino, moved)
        t.refuses(errno.ENOENT, os.lstat, "old")
        if other in FILES:
            t.same(os.lstat("kept").st_nlink, 1)
            os.unlink("kept")
        os.unlink("new")
    make(kind, "old")
    os.mkdir("d")
    t.refuses(errno.EISDIR, os.rename, "old", "d")
    t.refuses(errno.ENOTDIR, os.rename, "d", "old")


@case("rename")
def directories_move(t: Trial) -> None:
    os.makedirs("a/b/c")
    os.makedirs("x/full/y")
    os.makedirs("x/empty")
    t.refuses(errno.EINVAL, os.rename, "a", "a/b")
    t.refuses(errno.EINVAL, os.rename, "a", "a/b/c/d")
    t.refuses(errno.EINVAL, os.rename, "a", "a/new")
    t.refuses((errno.ENOTEMPTY, errno.EEXIST), os.rename, "a/b/c", "a")
    t.refuses((errno.ENOTEMPTY, errno.EEXIST), os.rename, "a", "x/full")
    t.refuses((errno.EBUSY, errno.EINVAL), os.rename, "a/.", "q")
    t.refuses((errno.EBUSY, errno.EINVAL), os.rename, "a/..", "q")
    t.refuses((errno.EBUSY, errno.EINVAL, errno.EEXIST), os.rename, "x", "a/.")
    moved = os.stat("a").st_ino
    t.allows(os.rename, "a", "x/empty")
    t.same(os.stat("x/empty").st_ino, moved)
    t.same(os.stat("x/empty/b/..").st_ino, moved)
    t.same(os.stat("x/empty/..").st_ino, os.stat("x").st_ino)
    t.same((os.stat("x").st_nlink, os.stat(".").st_nlink), (4, 3))
    t.allows(os.rename, "x/empty", "back")
    t.same((os.stat("x").st_nlink, os.stat(".").st_nlink), (3, 4))
    t.same(os.stat("back/..").st_ino, os.stat(".").st_ino)
    t.allows(os.rename, "back/", "slash/")
    write("f")
    t.refuses(errno.ENOTDIR, os.rename, "f", "g/")
    t.refuses(errno.ENOTDIR, os.rename, "f/", "g")


@case("rename")
def two_names_of_one_file(t: Trial) -> None:
    write("f", b"x")
    os.link("f", "g")
    t.allows(os.rename, "f", "g")
    t.same((sorted(os.listdir(".")), os.stat("f").st_nlink), (["f", "g"], 2), "does nothing")


@case("rename")
def flags(t: Trial) -> None:
    write("f", b"f")
    write("g", b"g")
    os.makedirs("d/sub")
    t.refuses(errno.EEXIST, calls.rename2, "f", "g", calls.NOREPLACE)
    t.refuses(errno.EEXIST, calls.rename2, "f", "d", calls.NOREPLACE)
    t.allows(calls.rename2, "f", "h", calls.NOREPLACE)
    t.same(read("h"), b"f")
    t.allows(calls.rename2, "h", "g", calls.EXCHANGE)
    t.same((read("h"), read("g")), (b"g", b"f"))
    t.refuses(errno.ENOENT, calls.rename2, "h", "no", calls.EXCHANGE)
    t.refuses(errno.ENOENT, calls.rename2, "no", "h", calls.EXCHANGE)
    t.allows(calls.rename2, "h", "d", calls.EXCHANGE)
    t.same((read("d"), os.listdir("h")), (b"g", ["sub"]))
    t.allows(calls.rename2, "h/sub", "g", calls.EXCHANGE)
    t.same((read("h/sub"), os.listdir("g")), (b"f", []))
    t.same((os.stat("h").st_nlink, os.stat(".").st_nlink), (2, 4))
    t.same(os.stat("g/..").st_ino, os.stat(".").st_ino)
    t.refuses(errno.EINVAL, calls.rename2, "h", "h/sub", calls.EXCHANGE | calls.NOREPLACE)
    os.mkdir("h/inner")
    t.refuses(errno.EINVAL, calls.rename2, "h", "h/inner", calls.EXCHANGE)
    t.refuses(errno.EINVAL, calls.rename2, "h", "q", 1 << 10)


@case("rename")
def between_file_systems(t: Trial) -> None:
    write("f")
    t.refuses(errno.EXDEV, os.rename, "f", "/proc/x")
    t.refuses(errno.EXDEV, os.rename, "f", "/dev/shm/conformance-x")


@case("rename")
def who_may(t: Trial) -> None:
    os.chmod(".", 0o777)
    os.mkdir("theirs")
    os.mkdir("mine")
    os.chown("mine", 65534, 65534)
    write("theirs/f")
    write("mine/f")
    os.chown("theirs/f", 65534, 65534)
    os.mkdir("mine/dir")
    with t.user(65534, 65534):
        t.refuses(errno.EACCES, os.rename, "theirs/f", "mine/g")
        t.refuses(errno.EACCES, os.rename, "mine/f", "theirs/g")
        t.allows(os.rename, "mine/f", "mine/g")
        t.refuses(errno.EACCES, os.rename, "mine/dir", "dir")  # ".." of a directory of root's is to be written
        os.mkdir("mine/own")
        t.allows(os.rename, "mine/own", "own")


@case("rename")
def sticky_directories(t: Trial) -> None:
    os.mkdir("s")
    os.chmod("s", 0o1777)
    for name, owner in (("root", 0), ("mine", 1001), ("other", 1002)):
        write(f"s/{name}")
        os.chown(f"s/{name}", owner, owner)
    os.mkdir("free")
    os.chmod("free", 0o777)
    with t.user(1001, 1001):
        t.refuses(errno.EPERM, os.unlink, "s/root")
        t.refuses(errno.EPERM, os.unlink, "s/other")
        t.refuses(errno.EPERM, os.rename, "s/other", "s/x")
        t.refuses(errno.EPERM, os.rename, "s/other", "free/x")
        t.refuses(errno.EPERM, os.rename, "s/mine", "s/other")
        t.allows(os.rename, "s/mine", "s/mine2")
        write("free/over")
        t.refuses(errno.EPERM, os.rename, "free/over", "s/other")
        t.allows(os.unlink, "s/mine2")
    os.chown("s", 1001, 1001)
    with t.user(1001, 1001):
        t.allows(os.unlink, "s/other")
    os.mkdir("s/dir")
    with t.user(1002, 1002):
        t.refuses(errno.EPERM, os.rmdir, "s/dir")
