"""fallocate, statvfs, fsync and its family."""

import errno
import os

from tests.conformance.calls import COLLAPSE, INSERT, KEEP, PUNCH, ZERO, fallocate, syncfs
from tests.conformance.trial import Trial, case, opened, read, write


@case("fallocate")
def sizes(t: Trial) -> None:
    with opened("f") as fd:
        t.allows(fallocate, fd, 0, 0, 1000)
        t.same(read("f"), bytes(1000))
        os.pwrite(fd, b"hello", 500)
        t.allows(fallocate, fd, 0, 0, 100)
        t.same((os.fstat(fd).st_size, os.pread(fd, 5, 500)), (1000, b"hello"))
        t.allows(fallocate, fd, KEEP, 0, 1 << 20)
        t.same(os.fstat(fd).st_size, 1000)
        t.allows(fallocate, fd, 0, 1 << 20, 1 << 20)
        t.same(os.fstat(fd).st_size, 2 << 20)
        t.same(os.pread(fd, 1000, 0), bytes(500) + b"hello" + bytes(495))
        t.allows(os.posix_fallocate, fd, 0, 3 << 20)
        t.same(os.fstat(fd).st_size, 3 << 20)


@case("fallocate", "10", "5000", "300000", "5000000")
def punching(t: Trial, text: str) -> None:
    size = int(text)
    data = os.urandom(size)
    write("f", data)
    with opened("f", os.O_RDWR) as fd:
        first, length = size // 3, size // 2
        t.allows(fallocate, fd, PUNCH | KEEP, first, length)
        wanted = data[:first] + bytes(length) + data[first + length :]
        t.true(read("f") == wanted, "zeroes in the hole, the rest as it was")
        t.allows(fallocate, fd, PUNCH | KEEP, size - 1, 100_000)
        wanted = wanted[:-1] + b"\0"
        t.true(read("f") == wanted, "across the end, whose place stays")
        t.allows(fallocate, fd, PUNCH | KEEP, size + 1000, 1000)
        t.same(os.fstat(fd).st_size, size)
        os.fsync(fd)
        t.true(read("f") == wanted, "after fsync")
        t.allows(fallocate, fd, ZERO | KEEP, 0, 5)
        wanted = bytes(min(5, size)) + wanted[5:]
        t.true(read("f") == wanted, "zero range")
        t.allows(fallocate, fd, ZERO, size, 1000)
        t.true(read("f") == wanted + bytes(1000), "zero range that makes it longer")
        t.allows(fallocate, fd, ZERO | KEEP, size, 100_000)
        t.same(os.fstat(fd).st_size, size + 1000)


@case("fallocate")
def holes_of_any_size(t: Trial) -> None:
    with opened("f") as fd:
        os.pwrite(fd, b"begin", 0)
        os.pwrite(fd, b"end", 2 << 30)
        t.allows(fallocate, fd, PUNCH | KEEP, 3, (2 << 30) - 3)
        t.same((os.pread(fd, 6, 0), os.pread(fd, 3, 2 << 30)), (b"beg\0\0\0", b"end"))
        t.allows(fallocate, fd, ZERO, 0, 1 << 30)
        t.same((os.pread(fd, 6, 0), os.pread(fd, 3, 2 << 30)), (bytes(6), b"end"))


@case("fallocate")
def refusals(t: Trial) -> None:
    write("f", b"x" * 10)
    with opened("f", os.O_RDWR) as fd:
        t.refuses(errno.EINVAL, fallocate, fd, 0, 0, 0)
        t.refuses(errno.EINVAL, fallocate, fd, 0, -1, 10)
        t.refuses(errno.EINVAL, fallocate, fd, 0, 0, -1)
        t.refuses((errno.EOPNOTSUPP, errno.EINVAL), fallocate, fd, PUNCH, 0, 10)
        t.refuses((errno.EOPNOTSUPP, errno.EINVAL), fallocate, fd, PUNCH | ZERO | KEEP, 0, 10)
        t.refuses(errno.EFBIG, fallocate, fd, 0, (1 << 63) - 10, 9)
        t.refuses((errno.EOPNOTSUPP, errno.EINVAL), fallocate, fd, COLLAPSE, 1, 3)
        t.refuses((errno.EOPNOTSUPP, errno.EINVAL), fallocate, fd, INSERT, 1, 3)
    with opened("f", os.O_RDONLY) as fd:
        t.refuses(errno.EBADF, fallocate, fd, 0, 0, 10)
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as fd:
        t.refuses((errno.EBADF, errno.EISDIR), fallocate, fd, 0, 0, 10)
    reading, writing = os.pipe()
    t.refuses((errno.ESPIPE, errno.ENODEV), fallocate, writing, 0, 0, 10)
    os.close(reading)
    os.close(writing)
    t.same(read("f"), b"x" * 10)


@case("statvfs")
def figures(t: Trial) -> None:
    found = os.statvfs(".")
    t.same(found.f_namemax, 255)
    t.true(found.f_bsize > 0 and found.f_frsize > 0)
    t.true(0 < found.f_bavail <= found.f_bfree <= found.f_blocks)
    t.true(0 < found.f_favail <= found.f_ffree <= found.f_files)
    write("f")
    t.same(os.statvfs("f").f_blocks, found.f_blocks)
    with opened("f") as fd:
        t.same(os.fstatvfs(fd).f_blocks, found.f_blocks)


@case("sync")
def everything_can_be_synced(t: Trial) -> None:
    with opened("f") as fd:
        os.write(fd, b"x" * 100_000)
        for call in (os.fsync, os.fdatasync, syncfs, os.fsync):
            t.allows(call, fd)
    with opened("f", os.O_RDONLY) as fd:
        t.allows(os.fsync, fd)
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as fd:
        write("d/x")
        t.allows(os.fsync, fd)
        t.allows(os.fdatasync, fd)
    reading, writing = os.pipe()
    t.refuses(errno.EINVAL, os.fsync, writing)
    os.close(reading)
    os.close(writing)
    with opened("f", os.O_PATH) as fd:
        t.refuses(errno.EBADF, os.fsync, fd)
