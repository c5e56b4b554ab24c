"""Everybody works on the same few names at once: files are made, written, read, moved, replaced and removed while others have
them open. Nothing fails and nothing is killed here, so nobody may wait long, be evicted or lose a byte.

    slot d0/a .. d1/c -> some inode       each inode has the regions of `workload`, each written whole, with a unique number

The names and every region of every inode are checked for linearizability, those of inodes that lost their last name too.
"""

import dataclasses
import os
from collections.abc import Awaitable, Callable
from math import inf
from random import Random
from typing import Any

import trio

from fsd.client.file import FileHandle
from fsd.core.errors import AlreadyExists, NotFound, StaleHandle
from tests.simulation.check import Operation
from tests.simulation.kernel import Fault
from tests.simulation.scenario import Plan
from tests.simulation.workload import REGIONS, ROOT, Worker, pattern, read_number, slot_name

LONGEST_CALL_S = 5.0  # in virtual time; a lease holder that is evicted for its silence takes twice the session's ttl
MAX_OPEN = 4


class Contender(Worker):
    """See the module."""

    async def attempt(
        self, kind: str, argument: Any, call: Callable[[], Awaitable[Any]], note: Callable[[Operation], None]
    ) -> Any:
        begin = trio.current_time()
        result = await super().attempt(kind, argument, call, note)
        took = trio.current_time() - begin
        if took > LONGEST_CALL_S:
            raise Fault(f"{self.client.name}: {kind} {argument} took {took:.1f} s")
        if self.client.evictions:
            raise Fault(f"{self.client.name} was evicted")
        return result

    async def opened(self, flags: int = os.O_RDWR) -> FileHandle | None:
        """Some name, opened as a kernel does it: what is gone between looking and opening is looked up again, once."""
        directory, name = self.slot()
        found: list[FileHandle] = []

        async def call() -> int | str:
            for last in (False, True):
                try:
                    inode = await self.fs.lookup(self.client.directories[directory], name)
                    found.append(await self.fs.open(inode.ino, flags))
                    return inode.ino
                except NotFound:
                    return "NotFound"
                except StaleHandle:
                    if last:
                        raise
            raise AssertionError

        def note(operation: Operation) -> None:
            if operation.end < inf:
                self.history.name(operation._replace(kind="lookup", argument=slot_name(directory, name)))

        await self.attempt("open", (directory, name), call, note)
        return found[0] if found else None

    async def made(self) -> FileHandle | None:
        """As open(2) with O_CREAT | O_EXCL."""
        directory, name = self.slot()
        found: list[FileHandle] = []

        async def call() -> int | str:
            try:
                inode, handle = await self.fs.create(
                    ROOT, self.client.directories[directory], name, 0o644, os.O_RDWR | os.O_EXCL
                )
            except AlreadyExists:
                return "AlreadyExists"
            found.append(handle)
            return inode.ino

        await self.attempt(
            "create",
            slot_name(directory, name),
            call,
            lambda operation: self.history.name(operation),
        )
        return found[0] if found else None

    async def create(self) -> None:
        handle = await self.made()
        if handle is not None:
            await self.work_on(handle)

    async def write_some(self) -> None:
        handle = await self.opened()
        if handle is not None:
            await self.work_on(handle)

    async def empty(self) -> None:
        handle = await self.opened()
        if handle is None:
            return

        async def call() -> None:
            await self.fs.setattr(ROOT, handle.ino, size=0)

        def note(operation: Operation) -> None:
            for index in range(len(REGIONS)):
                self.history.region(key_of(handle), index, operation._replace(kind="write", argument=0))

        await self.attempt("truncate", 0, call, note)
        await self.done_with(handle)

    async def work_on(self, handle: FileHandle) -> None:
        for _ in range(self.random.randint(1, 3)):
            await self.write_there(handle)
        if self.random.random() < 0.2:
            await self.attempt("fsync", handle.ino, lambda: self.fs.fsync(handle), lambda _: None)
        await self.done_with(handle)

    async def write_there(self, handle: FileHandle) -> None:
        index = self.random.randrange(len(REGIONS))
        offset, length = REGIONS[index]
        number = self.history.number()

        async def call() -> None:
            await self.fs.write(handle, offset, pattern(number, length))

        await self.attempt(
            "write", number, call, lambda operation: self.history.region(key_of(handle), index, operation)
        )

    async def read_some(self) -> None:
        handle = await self.opened(os.O_RDONLY)
        if handle is not None:
            await self.read_there(handle)
            await self.done_with(handle)

    async def read_there(self, handle: FileHandle) -> None:
        index = self.random.randrange(len(REGIONS))
        offset, length = REGIONS[index]

        async def call() -> int:
            return read_number(await self.fs.read(handle, offset, length), length)

        def note(operation: Operation) -> None:
            if operation.end < inf:
                self.history.region(key_of(handle), index, operation)

        await self.attempt("read", handle.ino, call, note)

    async def done_with(self, handle: FileHandle) -> None:
        """Closed now, or some time, when its name may be gone."""
        if len(self.client.open) < MAX_OPEN and self.random.random() < 0.5:
            self.client.open.append(handle)
        else:
            await self.fs.release(handle)

    async def use_open(self) -> None:
        if not self.client.open:
            return
        handle = self.client.open.pop(self.random.randrange(len(self.client.open)))
        try:
            await (self.read_there(handle) if self.random.random() < 0.5 else self.write_there(handle))
        finally:
            await self.fs.release(handle)

    async def change_mode(self) -> None:
        directory, name = self.slot()

        async def call() -> None:
            for last in (False, True):
                try:
                    inode = await self.fs.lookup(self.client.directories[directory], name)
                    await self.fs.setattr(ROOT, inode.ino, mode=self.random.choice((0o600, 0o644)))
                    return
                except NotFound:
                    return
                except StaleHandle:
                    if last:
                        return  # of two inodes in a row: chmod(2) may say so

        await self.attempt("chmod", name, call, lambda _: None)

    ACTIONS = (
        create,
        write_some,
        read_some,
        use_open,
        empty,
        change_mode,
        Worker.unlink,
        Worker.rename,
        Worker.lookup,
        Worker.list,
        Worker.sync_names,
    )
    WEIGHTS = (20, 14, 14, 12, 3, 3, 14, 14, 4, 6, 1)
    READER_WEIGHTS = WEIGHTS


def key_of(handle: FileHandle) -> bytes:
    return f"inode {handle.ino}".encode()


def plan_of(seed: int) -> Plan:
    """A cluster that nothing happens to."""
    random = Random(f"contention {seed}")
    return dataclasses.replace(
        Plan.of(seed),
        worker=Contender,
        nodes=2,
        replicas=2,
        min_replicas=1,
        clients=random.choice((2, 2, 3)),
        workers=random.choice((2, 3)),
        steps=random.choice((40, 80)),
        think_s=random.choice((0.001, 0.01, 0.05)),
        write_back_age_s=random.choice((0.005, 0.02, 1.0)),
        faults=(),
        strikes=0,
        readers=False,
        watchers=False,
        power_loss_at_end=False,
    )
