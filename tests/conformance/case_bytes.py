"""Reading and writing: offsets, holes, truncation, lseek, vectors, copy_file_range, maps."""

import errno
import mmap
import os
import stat

from tests.conformance.calls import fallocate
from tests.conformance.trial import Trial, case, opened, read, times, write

TERA = 1 << 40


@case("rw")
def offsets_and_the_end(t: Trial) -> None:
    with opened("f") as fd:
        t.same(os.pwrite(fd, b"hello", 10), 5)
        t.same(os.pread(fd, 100, 0), bytes(10) + b"hello")
        t.same((os.pread(fd, 3, 15), os.pread(fd, 3, 1000), os.pread(fd, 2, 14)), (b"", b"", b"o"))
        os.write(fd, b"AB")
        t.same(os.lseek(fd, 0, os.SEEK_CUR), 2)
        t.same(os.read(fd, 4), bytes(4))
        t.same(os.write(fd, b""), 0)
        t.refuses(errno.EINVAL, os.pread, fd, 1, -1)
        t.refuses(errno.EINVAL, os.pwrite, fd, b"x", -1)
        t.same(os.fstat(fd).st_size, 15)


@case("rw", "1", "511", "4095", "4096", "4097", "65536", "65537", "1048575", "1048577", "5000000")
def sizes(t: Trial, text: str) -> None:
    size = int(text)
    data = os.urandom(size)
    write("f", data)
    t.same(os.stat("f").st_size, size)
    t.true(read("f") == data, "read back")
    with opened("f", os.O_RDWR) as fd:
        for offset in (0, 1, size // 2, size - 1, max(0, size - 4096)):
            t.true(os.pread(fd, 5000, offset) == data[offset : offset + 5000], f"at {offset}")
        os.pwrite(fd, b"@", size // 2)
        t.true(read("f") == data[: size // 2] + b"@" + data[size // 2 + 1 :], "after a change in the middle")
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        t.true(os.pread(fd, size, 0) == data[: size // 2] + b"@" + data[size // 2 + 1 :], "from the servers")


@case("rw")
def vectors(t: Trial) -> None:
    with opened("f") as fd:
        t.same(os.writev(fd, [b"one", b"", b"two", b"x" * 10_000]), 10_006)
        one, two = bytearray(3), bytearray(5)
        t.same(os.preadv(fd, [one, two], 0), 8)
        t.same((bytes(one), bytes(two)), (b"one", b"twoxx"))
        t.same(os.pwritev(fd, [b"A", b"B"], 20_000), 2)
        t.same(os.pread(fd, 10, 19_998), b"\0\0AB")


@case("rw")
def two_handles_see_each_other(t: Trial) -> None:
    with opened("f") as one, opened("f") as two:
        for number in range(50):
            os.pwrite(one, b"%4d" % number, number * 1000)
            t.same(os.pread(two, 4, number * 1000), b"%4d" % number)
            os.pwrite(two, b"back", number * 1000)
            t.same(os.pread(one, 4, number * 1000), b"back")
        os.ftruncate(one, 10)
        t.same(os.fstat(two).st_size, 10)
        t.same(os.pread(two, 100, 5), b"\0\0\0\0\0")


@case("sparse")
def files_as_large_as_they_may_be(t: Trial) -> None:
    with opened("f") as fd:
        for offset in (4 * (1 << 30) - 1, TERA, 8 * TERA - 3):
            t.allows(os.pwrite, fd, b"far", offset)
            t.same(os.fstat(fd).st_size, offset + 3)
            t.same(os.pread(fd, 10, offset - 2), b"\0\0far")
            t.same(os.pread(fd, 5, offset // 2 + 12345), bytes(5))
        t.refuses((errno.EFBIG, errno.EINVAL), os.pwrite, fd, b"x", (1 << 63) - 1)
        t.refuses((errno.EFBIG, errno.EINVAL), os.ftruncate, fd, (1 << 63) - 1)
        for beyond in (1 << 55, 1 << 60, (1 << 62) + 5):
            t.refuses(errno.EFBIG, os.ftruncate, fd, beyond)
            t.refuses(errno.EFBIG, os.pwrite, fd, b"x", beyond)
            t.refuses(errno.EFBIG, fallocate, fd, 0, beyond, 4096)
        os.ftruncate(fd, 5)
        t.same(read("f"), bytes(5))
        os.ftruncate(fd, TERA)
        t.same(os.pread(fd, 5, TERA - 5), bytes(5))
        t.same(os.pread(fd, 5, 4 * (1 << 30) - 3), bytes(5), "nothing comes back")


@case("truncate")
def sizes_down_and_up(t: Trial) -> None:
    data = os.urandom(300_000)
    for start, down, up in ((100, 10, 50), (100, 0, 9000), (300_000, 100_001, 300_000), (300_000, 65536, 70_000)):
        write("f", data[:start])
        os.truncate("f", down)
        t.true(read("f") == data[:down], f"{start} to {down}")
        os.truncate("f", up)
        t.true(read("f") == data[:down] + bytes(up - down), f"{down} to {up}")
        with opened("f", os.O_RDWR) as fd:
            os.ftruncate(fd, down)
            os.pwrite(fd, b"end", up + 10)
            t.true(read("f") == data[:down] + bytes(up + 10 - down) + b"end", "a write behind the end")
            os.ftruncate(fd, down)
            os.fsync(fd)
            os.ftruncate(fd, up)
            t.true(read("f") == data[:down] + bytes(up - down), "after fsync")


@case("truncate")
def truncate_refusals(t: Trial) -> None:
    write("f", b"hello")
    os.mkdir("d")
    t.refuses(errno.EISDIR, os.truncate, "d", 0)
    t.refuses(errno.EINVAL, os.truncate, "f", -1)
    os.mkfifo("p")
    t.refuses(errno.EINVAL, os.truncate, "p", 0)
    with opened("f", os.O_RDONLY) as fd:
        t.refuses((errno.EINVAL, errno.EBADF), os.ftruncate, fd, 0)
    os.chmod("f", 0o444)
    with t.user(1001, 1001):
        t.refuses(errno.EACCES, os.truncate, "f", 0)
    os.chmod("f", 0o222)
    with t.user(1001, 1001):
        t.allows(os.truncate, "f", 2)
    t.same(read("f"), b"he")
    os.symlink("f", "s")
    os.truncate("s", 1)
    t.same(read("f"), b"h")


@case("truncate")
def what_it_changes(t: Trial) -> None:
    write("f", b"x" * 100)
    before = times("f")
    t.tick()
    os.truncate("f", 100)
    t.true(times("f")[1] >= before[1])
    before = times("f")
    t.tick()
    with opened("f", os.O_RDWR) as fd:
        os.ftruncate(fd, 100)
    t.true(times("f")[1] > before[1], "ftruncate to the same size changes mtime on Linux")
    with opened("f", os.O_RDWR) as fd:
        os.lseek(fd, 50, os.SEEK_SET)
        os.ftruncate(fd, 10)
        t.same(os.lseek(fd, 0, os.SEEK_CUR), 50, "the position stays")
        os.write(fd, b"!")
    t.same(read("f"), b"x" * 10 + bytes(40) + b"!")


@case("lseek")
def positions(t: Trial) -> None:
    write("f", b"0123456789")
    with opened("f", os.O_RDWR) as fd:
        t.same(os.lseek(fd, 3, os.SEEK_SET), 3)
        t.same(os.lseek(fd, -1, os.SEEK_CUR), 2)
        t.same(os.lseek(fd, -2, os.SEEK_END), 8)
        t.same(os.lseek(fd, 10, os.SEEK_END), 20)
        t.same(os.read(fd, 5), b"")
        t.refuses(errno.EINVAL, os.lseek, fd, -1, os.SEEK_SET)
        t.refuses(errno.EINVAL, os.lseek, fd, -100, os.SEEK_CUR)
        with opened("f", os.O_WRONLY | os.O_APPEND) as other:
            os.write(other, b"ab")
        t.same(os.lseek(fd, 0, os.SEEK_END), 12, "the end that another handle made")
    os.mkfifo("p")
    with opened("p", os.O_RDWR) as fd:
        t.refuses(errno.ESPIPE, os.lseek, fd, 0, os.SEEK_SET)


@case("lseek")
def holes_and_data(t: Trial) -> None:
    with opened("f") as fd:
        t.refuses(errno.ENXIO, os.lseek, fd, 0, os.SEEK_DATA)
        t.refuses(errno.ENXIO, os.lseek, fd, 0, os.SEEK_HOLE)
        os.pwrite(fd, b"x" * 65536, 0)
        os.pwrite(fd, b"y" * 65536, 32 << 20)
        os.fsync(fd)
        size = (32 << 20) + 65536
        t.same(os.lseek(fd, 0, os.SEEK_DATA), 0)
        t.same(os.lseek(fd, 100, os.SEEK_DATA), 100)
        hole = os.lseek(fd, 0, os.SEEK_HOLE)
        t.true(65536 <= hole <= size, f"a hole at {hole}")
        data = os.lseek(fd, 1 << 20, os.SEEK_DATA)
        t.true(1 << 20 <= data <= 32 << 20, f"data at {data}")
        t.same(os.lseek(fd, size - 1, os.SEEK_HOLE), size, "the end is a hole")
        t.refuses(errno.ENXIO, os.lseek, fd, size, os.SEEK_DATA)
        t.refuses(errno.ENXIO, os.lseek, fd, size, os.SEEK_HOLE)
        at = 0
        seen = bytearray(size)
        while True:  # copying by holes gives the same bytes
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            stop = os.lseek(fd, at, os.SEEK_HOLE)
            seen[at:stop] = os.pread(fd, stop - at, at)
            at = stop
        t.true(bytes(seen) == b"x" * 65536 + bytes((32 << 20) - 65536) + b"y" * 65536)


@case("holes")
def a_hole_is_zeroes_and_takes_no_space(t: Trial) -> None:
    with opened("f") as fd:
        os.pwrite(fd, b"a", 0)
        os.pwrite(fd, b"z", 100 << 20)
        os.fsync(fd)
        t.true(os.fstat(fd).st_blocks * 512 < 64 << 20, "st_blocks of a sparse file")
        for offset in (1, 4096, 1 << 20, 50 << 20, (100 << 20) - 1):
            t.same(os.pread(fd, 1, offset), b"\0")
        os.pwrite(fd, b"m", 50 << 20)
        t.same(os.pread(fd, 3, (50 << 20) - 1), b"\0m\0")
        os.ftruncate(fd, 50 << 20)
        os.ftruncate(fd, 60 << 20)
        t.same(os.pread(fd, 3, (50 << 20) - 1), b"\0\0\0")
        os.ftruncate(fd, 0)
        os.fsync(fd)
        t.same(os.fstat(fd).st_blocks, 0)


@case("holes")
def blocks_of_a_full_file(t: Trial) -> None:
    with opened("f") as fd:
        os.write(fd, os.urandom(1 << 20))
        os.fsync(fd)
        t.true((1 << 20) <= os.fstat(fd).st_blocks * 512 <= (1 << 20) + 65536)
        t.same(os.fstat(fd).st_blksize & (os.fstat(fd).st_blksize - 1), 0, "a power of two")


@case("copy_file_range")
def ranges(t: Trial) -> None:
    data = os.urandom(400_000)
    write("f", data)
    with opened("f", os.O_RDWR) as source, opened("g") as target:
        copied = 0
        while copied < len(data):
            copied += os.copy_file_range(source, target, len(data) - copied)
        t.true(read("g") == data)
        t.same((os.lseek(source, 0, os.SEEK_CUR), os.lseek(target, 0, os.SEEK_CUR)), (400_000, 400_000))
        t.same(os.copy_file_range(source, target, 10), 0, "at the end")
        t.same(os.copy_file_range(source, target, 1000, 5, 70_000), 1000)
        t.true(os.pread(target, 1000, 70_000) == data[5:1005])
        t.same(os.copy_file_range(source, target, 100, 399_950, 500_000), 50)
        t.same(os.fstat(target).st_size, 500_050)
        t.same(os.pread(target, 10, 400_000), bytes(10))
        t.same(os.copy_file_range(source, source, 100, 0, 200_000), 100)
        t.true(os.pread(source, 100, 200_000) == data[:100])
        t.refuses(errno.EINVAL, os.copy_file_range, source, source, 100, 0, 50)
    with opened("f", os.O_RDONLY) as source, opened("f", os.O_RDONLY) as target:
        t.refuses(errno.EBADF, os.copy_file_range, source, target, 10)
    with opened("f", os.O_RDONLY) as source, opened("g", os.O_WRONLY | os.O_APPEND) as target:
        t.refuses(errno.EBADF, os.copy_file_range, source, target, 10)
    os.mkdir("d")
    with opened("f", os.O_RDONLY) as source, opened("d", os.O_RDONLY) as target:
        t.refuses((errno.EISDIR, errno.EBADF), os.copy_file_range, source, target, 10)


@case("copy_file_range")
def sendfile_and_splice(t: Trial) -> None:
    data = os.urandom(200_000)
    write("f", data)
    with opened("f", os.O_RDONLY) as source, opened("g") as target:
        sent = 0
        while sent < len(data):
            sent += os.sendfile(target, source, sent, len(data) - sent)
        t.true(read("g") == data)
        reading, writing = os.pipe()
        t.same(os.splice(source, writing, 4096, offset_src=100), 4096)
        t.same(os.splice(reading, target, 4096, offset_dst=0), 4096)
        t.true(os.pread(target, 4096, 0) == data[100:4196])
        os.close(reading)
        os.close(writing)


# --- mmap -------------------------------------------------------------------------------------------------------------


@case("mmap")
def shared_maps_and_the_file(t: Trial) -> None:
    write("f", b"a" * 20_000)
    with opened("f", os.O_RDWR) as fd, mmap.mmap(fd, 20_000) as mapped:
        t.same(mapped[:5], b"aaaaa")
        mapped[100:105] = b"hello"
        t.same(os.pread(fd, 5, 100), b"hello", "read sees the map")
        os.pwrite(fd, b"write", 9000)
        t.same(mapped[9000:9005], b"write", "the map sees write")
        mapped.flush()
        t.same(read("f")[100:105], b"hello")
        before = times("f")
        t.tick()
        mapped[0:1] = b"!"
        mapped.flush()
        os.fsync(fd)
        t.true(times("f")[1] > before[1], "mtime after msync")
    t.same(read("f")[:2], b"!a", "after close")


@case("mmap")
def after_the_descriptor_is_closed(t: Trial) -> None:
    write("f", bytes(10_000))
    fd = os.open("f", os.O_RDWR)
    mapped = mmap.mmap(fd, 10_000)
    os.close(fd)
    mapped[5000:5004] = b"late"
    t.same(read("f")[5000:5004], b"late")
    os.unlink("f")
    mapped[0:3] = b"yes"
    t.same(mapped[0:3], b"yes")
    mapped.close()


@case("mmap")
def private_maps(t: Trial) -> None:
    write("f", b"a" * 10_000)
    with opened("f", os.O_RDWR) as fd, mmap.mmap(fd, 10_000, flags=mmap.MAP_PRIVATE) as mapped:
        mapped[0:5] = b"mine!"
        t.same(os.pread(fd, 5, 0), b"aaaaa")
        os.pwrite(fd, b"theirs", 8000)
        t.same(mapped[0:5], b"mine!")
    t.same(read("f")[:5], b"aaaaa")


@case("mmap")
def two_processes(t: Trial) -> None:
    write("f", bytes(8192))
    with opened("f", os.O_RDWR) as fd, mmap.mmap(fd, 8192) as mapped:

        def other() -> int:
            again = os.open("f", os.O_RDWR)
            with mmap.mmap(again, 8192) as theirs:
                theirs[10:15] = b"child"
            return 0

        t.same(t.child(other), 0)
        t.same(mapped[10:15], b"child")
        t.same(os.pread(fd, 5, 10), b"child")


@case("mmap")
def the_end_and_beyond(t: Trial) -> None:
    write("f", b"x" * 100)
    with opened("f", os.O_RDWR) as fd:
        with mmap.mmap(fd, 100) as mapped:
            t.same(mapped[99:100], b"x")
        os.ftruncate(fd, 8192)
        with mmap.mmap(fd, 8192) as mapped:
            t.same(mapped[98:102], b"xx\0\0")
            mapped[8191:8192] = b"e"
            os.ftruncate(fd, 4096)

            def beyond() -> int:
                return mapped[5000]

            t.same(t.child(beyond), -7, "SIGBUS behind the end")
            os.ftruncate(fd, 8192)
            t.same(mapped[8191:8192], b"\0", "cut away")


@case("mmap")
def permissions(t: Trial) -> None:
    write("f", b"x" * 100)
    with opened("f", os.O_RDONLY) as fd:
        t.refuses(errno.EACCES, mmap.mmap, fd, 100, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with mmap.mmap(fd, 100, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
            mapped[0:1] = b"y"
    with opened("f", os.O_WRONLY) as fd:
        t.refuses(errno.EACCES, mmap.mmap, fd, 100, mmap.MAP_SHARED, mmap.PROT_READ)
    t.same(stat.S_IMODE(os.stat("f").st_mode), 0o644)


@case("mmap")
def through_an_append_handle(t: Trial) -> None:
    write("f", b"x" * 100)
    with opened("f", os.O_RDWR | os.O_APPEND) as fd, mmap.mmap(fd, 100) as mapped:
        os.write(fd, b"more")
        mapped[0:1] = b"m"
        mapped.flush()
        t.same(os.fstat(fd).st_size, 104)
    t.same(read("f"), b"m" + b"x" * 99 + b"more")
