"""Extended attributes and POSIX ACLs."""

import errno
import os
import struct

from tests.conformance.trial import Trial, case, make, mode_of, opened, times, write


@case("xattr", "file", "dir")
def attributes(t: Trial, kind: str) -> None:
    make(kind, "f", 0o755)
    t.same(os.listxattr("f"), [])
    t.refuses(errno.ENODATA, os.getxattr, "f", "user.a")
    t.refuses(errno.ENODATA, os.removexattr, "f", "user.a")
    t.allows(os.setxattr, "f", "user.a", b"one")
    t.allows(os.setxattr, "f", "user.b", b"")
    t.same((os.getxattr("f", "user.a"), os.getxattr("f", "user.b")), (b"one", b""))
    t.same(sorted(os.listxattr("f")), ["user.a", "user.b"])
    t.refuses(errno.EEXIST, os.setxattr, "f", "user.a", b"two", os.XATTR_CREATE)
    t.allows(os.setxattr, "f", "user.a", b"two", os.XATTR_REPLACE)
    t.refuses(errno.ENODATA, os.setxattr, "f", "user.c", b"", os.XATTR_REPLACE)
    t.allows(os.setxattr, "f", "user.c", b"\0\xff" * 500, os.XATTR_CREATE)
    t.same(os.getxattr("f", "user.c"), b"\0\xff" * 500)
    t.same(os.getxattr("f", "user.a"), b"two")
    before = times("f")
    t.tick()
    t.allows(os.removexattr, "f", "user.a")
    t.true(times("f")[2] > before[2], "ctime")
    t.same(times("f")[1], before[1])
    t.refuses(errno.ENODATA, os.getxattr, "f", "user.a")
    t.same(sorted(os.listxattr("f")), ["user.b", "user.c"])
    os.rename("f", "g")
    t.same(os.getxattr("g", "user.b"), b"")


@case("xattr")
def limits(t: Trial) -> None:
    write("f")
    t.refuses(errno.EOPNOTSUPP, os.setxattr, "f", "nospace", b"")
    t.refuses(errno.EOPNOTSUPP, os.setxattr, "f", "strange.a", b"")
    t.refuses(errno.ERANGE, os.setxattr, "f", "user." + "n" * 251, b"")
    t.allows(os.setxattr, "f", "user." + "n" * 250, b"x")
    t.refuses(errno.E2BIG, os.setxattr, "f", "user.large", b"x" * 65537)
    t.refuses((errno.EINVAL, errno.EOPNOTSUPP), os.setxattr, "f", "user.", b"")
    t.same(os.getxattr("f", "user." + "n" * 250), b"x")
    t.refuses(errno.ENOENT, os.getxattr, "no", "user.a")


@case("xattr")
def kinds_without_user_attributes(t: Trial) -> None:
    for kind in ("fifo", "char", "socket", "symlink"):
        make(kind, kind)
        t.refuses(errno.EPERM, os.setxattr, kind, "user.a", b"", follow_symlinks=False)
        t.allows(os.setxattr, kind, "trusted.a", b"x", follow_symlinks=False)
        t.same(os.getxattr(kind, "trusted.a", follow_symlinks=False), b"x")


@case("xattr")
def who_may(t: Trial) -> None:
    write("f")
    os.setxattr("f", "user.a", b"x")
    os.setxattr("f", "trusted.a", b"secret")
    os.chmod("f", 0o644)
    with t.user(1001, 1001):
        t.same(os.getxattr("f", "user.a"), b"x")
        t.refuses(errno.EACCES, os.setxattr, "f", "user.a", b"y")
        t.refuses(errno.EACCES, os.removexattr, "f", "user.a")
        t.refuses(errno.ENODATA, os.getxattr, "f", "trusted.a")
        t.refuses(errno.EPERM, os.setxattr, "f", "trusted.b", b"")
        t.same(os.listxattr("f"), ["user.a"])
    os.chmod("f", 0o600)
    with t.user(1001, 1001):
        t.refuses(errno.EACCES, os.getxattr, "f", "user.a")
    t.same(sorted(os.listxattr("f")), ["trusted.a", "user.a"])
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    with t.user(1001, 1001):
        t.refuses(errno.EPERM, os.setxattr, "sticky", "user.a", b"")


@case("xattr")
def through_descriptors(t: Trial) -> None:
    with opened("f") as fd:
        t.allows(os.setxattr, fd, "user.a", b"1")
        os.unlink("f")
        t.same(os.getxattr(fd, "user.a"), b"1")
        t.allows(os.setxattr, fd, "user.b", b"2")
        t.same(sorted(os.listxattr(fd)), ["user.a", "user.b"])


@case("xattr")
def file_capabilities(t: Trial) -> None:
    write("f", b"x", 0o755)
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep
    t.allows(os.setxattr, "f", "security.capability", capability)
    try:
        t.same(os.getxattr("f", "security.capability"), capability)
    except OSError as error:
        t.true(False, f"security.capability: {error.strerror}")
        return
    with opened("f", os.O_WRONLY) as fd:
        os.write(fd, b"y")
    t.refuses(errno.ENODATA, os.getxattr, "f", "security.capability")
    os.setxattr("f", "security.capability", capability)
    os.truncate("f", 0)
    t.refuses(errno.ENODATA, os.getxattr, "f", "security.capability")
    os.setxattr("f", "security.capability", capability)
    os.chown("f", 5, 5)
    t.refuses(errno.ENODATA, os.getxattr, "f", "security.capability")
    with t.user(5, 5):
        t.refuses(errno.EPERM, os.setxattr, "f", "security.capability", capability)


# --- ACLs -------------------------------------------------------------------------------------------------------------

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NO_ID = 0xFFFFFFFF
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ONE_MORE_USER = acl((USER_OBJ, 6, NO_ID), (USER, 6, 1001), (GROUP_OBJ, 4, NO_ID), (MASK, 6, NO_ID), (OTHER, 0, NO_ID))


@case("acl")
def an_acl_lets_one_more_in(t: Trial) -> None:
    write("f", b"x")
    os.chmod("f", 0o640)
    if t.allows(os.setxattr, "f", ACCESS, ONE_MORE_USER) is None and ACCESS not in os.listxattr("f"):
        return
    t.same(os.getxattr("f", ACCESS), ONE_MORE_USER)
    t.same(mode_of("f"), 0o660, "the mask is the group's mode")
    with t.user(1001, 1001):
        fd = t.allows(os.open, "f", os.O_RDWR)
        if fd is not None:
            os.close(fd)
    with t.user(1002, 1002):
        t.refuses(errno.EACCES, os.open, "f", os.O_RDONLY)
        t.refuses(errno.EPERM, os.setxattr, "f", ACCESS, ONE_MORE_USER)
    os.chmod("f", 0o600)
    with t.user(1001, 1001):
        t.refuses(errno.EACCES, os.open, "f", os.O_RDONLY)
    t.allows(os.removexattr, "f", ACCESS)
    t.refuses(errno.ENODATA, os.getxattr, "f", ACCESS)
    t.refuses(errno.EINVAL, os.setxattr, "f", ACCESS, b"\x02\0\0\0\1")
    t.refuses(errno.EACCES, os.setxattr, "f", DEFAULT, ONE_MORE_USER)


@case("acl")
def defaults_are_inherited(t: Trial) -> None:
    os.mkdir("d")
    t.allows(os.setxattr, "d", DEFAULT, ONE_MORE_USER)
    if DEFAULT not in os.listxattr("d"):
        return
    os.umask(0o077)
    write("d/f", mode=0o666)
    os.mkdir("d/sub", 0o777)
    os.umask(0o022)
    t.same(mode_of("d/f"), 0o660, "the umask does not count where there is a default")
    t.same(os.getxattr("d/sub", DEFAULT), ONE_MORE_USER)
    t.true(ACCESS in os.listxattr("d/f"))
    os.chmod("d", 0o755)
    with t.user(1001, 1001):
        fd = t.allows(os.open, "d/f", os.O_RDWR)
        if fd is not None:
            os.close(fd)
