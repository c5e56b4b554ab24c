"""A file system in memory on pyfuse3 and its companion, in a process of its own; see tests.companion.driver.

    python -m tests.companion.toyfs MOUNTPOINT JSON
    JSON: {"plain": no companion, "kill_privileges": bool, "state": path, "successor": bool, "blocking": bool}

It takes Python expressions from stdin, one per line, and answers with their JSON, one per line.
"""

import dataclasses
import errno
import json
import os
import stat
import struct
import sys
import time

OPTIONS = json.loads(sys.argv[2])
if OPTIONS.get("plain"):
    sys.modules["fsd.mount.companion._companion"] = None  # as if it had never been built

import fsd.mount.companion as companion_module  # noqa: E402

companion = companion_module.load()

import pyfuse3  # noqa: E402  (must come after the companion)
import trio  # noqa: E402

from tests.companion.local_locks import LocalLocks  # noqa: E402

FALLOC_KEEP, FALLOC_PUNCH, FALLOC_ZERO = 1, 2, 16
GETFLAGS, DOUBLE = 0x80086601, 0xC0045801


class Node:
    def __init__(self, ino, mode):
        self.ino, self.mode, self.data, self.extents, self.children = ino, mode, bytearray(), [], {}
        self.size = 0

    def attributes(self):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_nlink, entry.st_size = self.ino, self.mode, 1, len(self.data)
        entry.attr_timeout = entry.entry_timeout = OPTIONS.get("ttl", 0)
        return entry


class Toy(pyfuse3.Operations):
    def __init__(self):
        super().__init__()
        self.nodes = {1: Node(1, stat.S_IFDIR | 0o777)}
        self.locks = LocalLocks()
        self.calls = []
        self.handles = {}  # number -> inode; each open file its own, since locks go with it
        self.lookups = self.most_lookups = 0
        self.frozen_s = 0.0

    def note(self, *call):
        self.calls.append(call)
        del self.calls[:-1000]

    def handle(self, inode):
        number = 1000 + len(self.handles)
        self.handles[number] = inode
        return pyfuse3.FileInfo(fh=number)

    def inode_of(self, fh):
        """A handle that a predecessor gave out is its inode: all its opens were of the same file."""
        return self.handles.get(fh, 2)

    async def lookup(self, parent, name, ctx):
        self.lookups += 1
        self.most_lookups = max(self.most_lookups, self.lookups)
        try:
            if name.startswith(b"slow"):
                await trio.sleep(0.2)
            if name not in self.nodes[parent].children:
                raise pyfuse3.FUSEError(errno.ENOENT)
            return self.nodes[self.nodes[parent].children[name]].attributes()
        finally:
            self.lookups -= 1

    async def getattr(self, inode, ctx):
        return self.nodes[inode].attributes()

    async def setattr(self, inode, attr, fields, fh, ctx):
        node = self.nodes[inode]
        if companion:
            self.note("setattr", companion.current().kills_privileges)
        if fields.update_size:
            node.data[attr.st_size :] = b""
            node.data.extend(bytes(attr.st_size - len(node.data)))
        if fields.update_mode:
            node.mode = attr.st_mode
        return node.attributes()

    async def create(self, parent, name, mode, flags, ctx):
        node = Node(max(self.nodes) + 1, mode | stat.S_IFREG)
        self.nodes[node.ino] = node
        self.nodes[parent].children[name] = node.ino
        return self.handle(node.ino), node.attributes()

    async def open(self, inode, flags, ctx):
        return self.handle(inode)

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start, token):
        for at, (name, ino) in list(enumerate(sorted(self.nodes[fh].children.items())))[start:]:
            if not pyfuse3.readdir_reply(token, name, self.nodes[ino].attributes(), at + 1):
                return

    async def read(self, fh, offset, size):
        if OPTIONS.get("hang_reads"):
            await trio.sleep_forever()
        return bytes(self.nodes[self.inode_of(fh)].data[offset : offset + size])

    async def write(self, fh, offset, data):
        if companion:
            now = companion.current()
            self.note("write", now.kills_privileges, now.from_page_cache, now.lock_owner != 0, now.unique, now.resent)
        stored = self.nodes[self.inode_of(fh)].data
        stored.extend(bytes(max(0, offset - len(stored))))
        stored[offset : offset + len(data)] = data
        return len(data)

    async def flush(self, fh):
        if companion:
            now = companion.current()
            self.note("flush", now.lock_owner != 0)
            self.locks.closed(self.inode_of(fh), now.lock_owner)

    async def release(self, fh):
        if companion:
            self.note("release", companion.current().flock_release)
            self.locks.released(fh)

    async def fsync(self, fh, datasync):
        pass

    async def getxattr(self, inode, name, ctx):
        raise pyfuse3.FUSEError(errno.ENODATA)


class Toyer(Toy):
    """With the extra operations."""

    async def getlk(self, inode, fh, owner, lock, ctx):
        return self.locks.test(inode, owner, lock)

    async def setlk(self, inode, fh, owner, lock, wait, ctx):
        await self.locks.lock_range(inode, fh, owner, lock, wait)

    async def flock(self, inode, fh, owner, operation, wait, ctx):
        await self.locks.flock(inode, fh, owner, operation, wait, ctx.pid)

    async def fallocate(self, inode, fh, mode, offset, length, ctx):
        node = self.nodes[inode]
        if mode & ~(FALLOC_KEEP | FALLOC_PUNCH | FALLOC_ZERO):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        if mode & (FALLOC_PUNCH | FALLOC_ZERO):
            end = min(offset + length, len(node.data))
            node.data[offset:end] = bytes(max(0, end - offset))
        if not mode & FALLOC_KEEP:
            node.data.extend(bytes(max(0, offset + length - len(node.data))))

    async def lseek(self, inode, fh, offset, whence, ctx):
        data = self.nodes[inode].data
        if offset >= len(data):
            raise pyfuse3.FUSEError(errno.ENXIO)
        if whence == os.SEEK_DATA:
            found = next((at for at in range(offset, len(data)) if data[at]), None)
            if found is None:
                raise pyfuse3.FUSEError(errno.ENXIO)
            return found
        return next((at for at in range(offset, len(data)) if not data[at]), len(data))

    async def copy_file_range(self, inode, fh, offset, inode_to, fh_to, offset_to, length, flags, ctx):
        data = await self.read(fh, offset, length)
        self.note("copy_file_range", len(data))
        return await self.write(fh_to, offset_to, data) if data else 0

    async def ioctl(self, inode, fh, command, argument, flags, data, out_size, ctx):
        if command == GETFLAGS:
            return 0, struct.pack("q", 0x10)[:out_size]
        if command == DOUBLE:
            return 7, struct.pack("i", 2 * struct.unpack("i", data)[0])
        if command == 0x5801:
            raise ValueError("a bug of the handler")
        raise pyfuse3.FUSEError(errno.ENOTTY)


async def heart(toy):
    """How long the event loop stood still, at most."""
    while True:
        before = time.monotonic()
        await trio.sleep(0.01)
        toy.frozen_s = max(toy.frozen_s, time.monotonic() - before - 0.01)


async def control(toy):
    names = {"toy": toy, "companion": companion, "info": session_info, "pyfuse3": pyfuse3, "os": os, "trap": TRAP}
    while True:
        line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        if not line:
            pyfuse3.terminate()
            return
        try:
            answer = eval(line, names)
        except Exception as error:
            answer = repr(error)
        print(json.dumps(answer, default=str), flush=True)


def session_info():
    return {**dataclasses.asdict(companion.info()), "waiting": companion.waiting}


TRAP = []  # pids of callers to be killed between the moment their request is seen and the moment it is read


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def set_trap():
    wait = pyfuse3._wait_fuse_readable

    async def trapped():
        readable = await wait()
        while TRAP:
            pid = TRAP.pop()
            os.kill(pid, 9)
            while is_running(pid):
                time.sleep(0.001)
        return readable

    pyfuse3._wait_fuse_readable = trapped


async def main(toy):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heart, toy)
        nursery.start_soon(control, toy)
        if OPTIONS.get("successor"):
            await trio.to_thread.run_sync(companion.resend)
        if OPTIONS.get("trap"):
            nursery.start_soon(set_trap)
        print(json.dumps("ready"), flush=True)
        if OPTIONS.get("nopoll"):
            companion._poll_before_wait = lambda _: lambda: None
        await (companion.main(8, 99) if companion else pyfuse3.main(8, 99))
        nursery.cancel_scope.cancel()


def save_state(info):
    with open(OPTIONS["state"], "wb") as file:
        file.write(companion.state())


def run():
    toy = Toy() if OPTIONS.get("plain") else Toyer()
    if companion:
        settings = companion_module.SessionSettings(kill_privileges=bool(OPTIONS.get("kill_privileges")))
        if OPTIONS.get("successor"):
            with open(OPTIONS["state"], "rb") as file:
                companion.resume(file.read())
        companion.install(toy, settings, save_state if OPTIONS.get("state") else None)
    for name in OPTIONS.get("files", ()):
        node = Node(max(toy.nodes) + 1, stat.S_IFREG | 0o666)
        toy.nodes[node.ino] = node
        toy.nodes[1].children[name.encode()] = node.ino
    pyfuse3.init(toy, sys.argv[1], {"fsname=toyfs", "default_permissions", "allow_other"})
    try:
        trio.run(main, toy)
    finally:
        pyfuse3.close(unmount=not OPTIONS.get("state"))


run()
