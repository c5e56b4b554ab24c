"""mkdir, rmdir, mkfifo, mknod, readdir."""

import errno
import os
import socket
import stat
import threading

from tests.conformance.calls import Directory
from tests.conformance.trial import KINDS, Trial, case, make, mode_of, opened, read, remove, times, write


@case("mkdir", "000", "700", "755", "777", "1777", "2755", "4755")
def modes_of_new_directories(t: Trial, mode: str) -> None:
    for umask in (0, 0o22, 0o77):
        os.umask(umask)
        t.allows(os.mkdir, "d", int(mode, 8))
        t.same(mode_of("d"), int(mode, 8) & 0o1777 & ~umask)
        os.rmdir("d")
    os.umask(0o022)


@case("mkdir")
def what_a_new_directory_is(t: Trial) -> None:
    parent, links = times("."), os.stat(".").st_nlink
    t.tick()
    os.mkdir("d")
    t.same((os.stat("d").st_nlink, os.stat(".").st_nlink), (2, links + 1))
    t.true(times(".")[1] > parent[1] and times(".")[2] > parent[2], "times of the parent")
    t.same(os.listdir("d"), [])
    t.same(os.stat("d/..").st_ino, os.stat(".").st_ino)
    t.true(stat.S_ISDIR(os.stat("d").st_mode))
    t.refuses(errno.EISDIR, os.open, "d", os.O_WRONLY)
    t.refuses(errno.EISDIR, os.open, "d", os.O_CREAT | os.O_RDWR)
    with opened("d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        t.refuses(errno.EISDIR, os.read, fd, 10)
        t.allows(os.fsync, fd)


@case("mkdir")
def set_gid_is_inherited(t: Trial) -> None:
    os.mkdir("s")
    os.chown("s", 0, 77)
    os.chmod("s", 0o2777)
    for kind in KINDS:
        make(kind, f"s/{kind}")
        t.same(os.lstat(f"s/{kind}").st_gid, 77, kind)
    t.true(os.stat("s/dir").st_mode & stat.S_ISGID, "the bit too")
    t.true(not os.stat("s/file").st_mode & stat.S_ISGID)
    with t.user(1001, 1001):
        write("s/of-user", mode=0o2775)
        os.mkdir("s/dir-of-user")
    t.same((os.stat("s/of-user").st_uid, os.stat("s/of-user").st_gid), (1001, 77))
    t.true(not os.stat("s/of-user").st_mode & stat.S_ISGID, "no set-gid file for a stranger to the group")
    t.true(os.stat("s/dir-of-user").st_mode & stat.S_ISGID)


@case("mkdir", *(kind for kind in KINDS if kind not in ("block", "char")))
def only_in_directories_one_may_write(t: Trial, kind: str) -> None:
    os.mkdir("d", 0o755)
    with t.user(65534, 65534):
        t.refuses(errno.EACCES, make, kind, "d/x")
    os.chmod("d", 0o777)
    with t.user(65534, 65533):
        make(kind, "d/x", 0o600)
    t.same((os.lstat("d/x").st_uid, os.lstat("d/x").st_gid), (65534, 65533))
    os.chmod("d", 0o666)
    with t.user(65534, 65533):
        t.refuses(errno.EACCES, make, kind, "d/y")
        t.refuses(errno.EACCES, os.lstat, "d/x")


@case("rmdir")
def directories_go(t: Trial) -> None:
    os.mkdir("d")
    parent, links = times("."), os.stat(".").st_nlink
    t.tick()
    t.allows(os.rmdir, "d")
    t.refuses(errno.ENOENT, os.stat, "d")
    t.same(os.stat(".").st_nlink, links - 1)
    t.true(times(".")[1] > parent[1] and times(".")[2] > parent[2], "times of the parent")
    for kind in KINDS:
        os.mkdir("d")
        make(kind, "d/x")
        t.refuses((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, "d")
        remove(kind, "d/x")
        t.allows(os.rmdir, "d")
    os.makedirs("d/e")
    t.refuses(errno.EINVAL, os.rmdir, "d/.")
    t.refuses((errno.ENOTEMPTY, errno.EEXIST), os.rmdir, "d/e/..")
    for kind in KINDS:
        if kind != "dir":
            make(kind, "x")
            t.refuses(errno.ENOTDIR, os.rmdir, "x")
            os.unlink("x")


@case("rmdir")
def a_removed_directory_that_is_open(t: Trial) -> None:
    os.mkdir("d")
    here = os.open(".", os.O_RDONLY)
    os.chdir("d")
    fd = os.open(".", os.O_RDONLY)
    os.rmdir("../d")
    t.same(os.fstat(fd).st_nlink, 0)
    t.refuses(errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY)
    t.refuses(errno.ENOENT, os.mkdir, "x")
    t.same(os.listdir(fd), [])
    t.refuses(errno.ENOENT, os.rmdir, "../d")
    os.fchdir(here)
    os.close(fd)
    os.close(here)


@case("rmdir")
def who_may_remove(t: Trial) -> None:
    os.makedirs("d/e")
    with t.user(65534, 65534):
        t.refuses(errno.EACCES, os.rmdir, "d/e")
    os.chmod("d", 0o777)
    with t.user(65534, 65534):
        t.allows(os.rmdir, "d/e")


@case("mkfifo")
def a_pipe_with_a_name(t: Trial) -> None:
    os.mkfifo("p", 0o640)
    t.same((stat.S_ISFIFO(os.stat("p").st_mode), mode_of("p")), (True, 0o640))
    t.refuses(errno.ENXIO, os.open, "p", os.O_WRONLY | os.O_NONBLOCK)
    reader = os.open("p", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("p", os.O_WRONLY)
    os.write(writer, b"through")
    t.same(os.read(reader, 100), b"through")
    os.close(writer)
    t.same(os.read(reader, 100), b"")
    os.close(reader)
    got = []
    other = threading.Thread(target=lambda: got.append(read("p")))
    other.start()
    write_to_pipe("p", b"blocking")
    other.join(10)
    t.same(got, [b"blocking"])


def write_to_pipe(name: str, data: bytes) -> None:
    fd = os.open(name, os.O_WRONLY)
    os.write(fd, data)
    os.close(fd)


@case("mknod")
def devices(t: Trial) -> None:
    for kind, bits in (("c", stat.S_IFCHR), ("b", stat.S_IFBLK)):
        for major, minor in ((1, 3), (0, 0), (255, 255), (4095, 1_048_575), (8, 300)):
            t.allows(os.mknod, "n", bits | 0o640, os.makedev(major, minor))
            found = os.stat("n")
            t.same((stat.S_IFMT(found.st_mode), found.st_rdev), (bits, os.makedev(major, minor)), kind)
            os.unlink("n")
    t.allows(os.mknod, "plain", stat.S_IFREG | 0o600)
    t.true(stat.S_ISREG(os.stat("plain").st_mode))
    t.allows(os.mknod, "pipe", stat.S_IFIFO | 0o600)
    t.true(stat.S_ISFIFO(os.stat("pipe").st_mode))
    os.chmod(".", 0o777)
    with t.user(1001, 1001):
        t.refuses(errno.EPERM, os.mknod, "dev", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        t.allows(os.mknod, "userpipe", stat.S_IFIFO | 0o600)


@case("mknod")
def sockets_with_names(t: Trial) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind("s")
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    t.allows(client.connect, "s")
    peer, _ = server.accept()
    client.send(b"hello")
    t.same(peer.recv(10), b"hello")
    for one in (server, client, peer):
        one.close()
    t.refuses(errno.ECONNREFUSED, socket.socket(socket.AF_UNIX).connect, "s")
    t.refuses(errno.ENXIO, os.open, "s", os.O_RDONLY)


# --- readdir ----------------------------------------------------------------------------------------------------------


@case("readdir")
def every_name_once_with_its_type(t: Trial) -> None:
    for kind in KINDS:
        make(kind, kind)
    opened_dir = Directory(".")
    found = {}
    while (entry := opened_dir.next()) is not None:
        t.true(entry[0] not in found, f"{entry[0]} twice")
        found[entry[0]] = entry[1:]
    opened_dir.close()
    t.same(sorted(found), sorted([".", "..", *KINDS]))
    for kind in KINDS:
        status = os.lstat(kind)
        t.same(found[kind], (status.st_ino, stat.S_IFMT(status.st_mode) >> 12), kind)


@case("readdir")
def positions(t: Trial) -> None:
    for number in range(400):
        write(f"n{number:03}")
    directory = Directory(".")
    order, places = [], []
    while True:
        places.append(directory.tell())
        entry = directory.next()
        if entry is None:
            break
        order.append(entry[0])
    t.same(len(order), 402)
    for index in (0, 1, 2, 5, 100, 250, 399, 401):
        directory.seek(places[index])
        t.same(directory.rest(), order[index:], f"from {index}")
    directory.rewind()
    t.same(directory.rest(), order)
    for name in order[100:200]:
        if name not in (".", ".."):
            os.unlink(name)
    directory.seek(places[50])
    rest = directory.rest()
    t.same([name for name in rest if name in order[200:]], order[200:], "what stays keeps its place")
    directory.close()


@case("readdir")
def names_come_and_go_while_it_is_read(t: Trial) -> None:
    stay = {f"stay{number}" for number in range(300)}
    for name in stay:
        write(name)
    for number in range(300):
        write(f"go{number}")
    directory = Directory(".")
    seen = [directory.next()[0] for _ in range(20)]
    for number in range(300):
        os.unlink(f"go{number}")
        write(f"new{number}")
    seen += directory.rest()
    t.true(stay <= set(seen), "all that stayed are told")
    t.same(len(seen), len(set(seen)), "each once")
    directory.rewind()
    t.same(set(directory.rest()), stay | {f"new{number}" for number in range(300)} | {".", ".."})
    directory.close()


@case("readdir")
def removing_while_reading_empties_it(t: Trial) -> None:
    os.mkdir("d")
    for number in range(500):
        write(f"d/file-with-a-longer-name-{number}")
    directory = Directory("d")
    while (entry := directory.next()) is not None:
        if entry[0] not in (".", ".."):
            os.unlink(f"d/{entry[0]}")
    directory.close()
    t.same(os.listdir("d"), [])
    t.allows(os.rmdir, "d")


@case("readdir")
def a_name_renamed_while_reading(t: Trial) -> None:
    for number in range(200):
        write(f"x{number}")
    directory = Directory(".")
    seen = [directory.next()[0] for _ in range(5)]
    os.rename("x7", "y7")
    seen += directory.rest()
    t.true(seen.count("x7") + seen.count("y7") >= 1, "under one of its names at least")
    t.true(all(seen.count(f"x{number}") == 1 for number in range(200) if number != 7))
    directory.close()


@case("readdir")
def reading_needs_permission_and_changes_atime_only(t: Trial) -> None:
    os.mkdir("d", 0o311)
    write("d/f")
    os.chmod("d", 0o311)
    with t.user(65534, 65534):
        t.refuses(errno.EACCES, os.listdir, "d")
        t.allows(os.stat, "d/f")
    os.chmod("d", 0o744)
    with t.user(65534, 65534):
        t.same(os.listdir("d"), ["f"])
        t.refuses(errno.EACCES, os.stat, "d/f")
    before = times("d")
    t.tick()
    os.listdir("d")
    t.same(times("d")[1:], before[1:])
