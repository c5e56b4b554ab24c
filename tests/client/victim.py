"""A client process that is killed: `python -m tests.client.victim METADATA STATE SEED FIRST COUNT`.

Carries out calls FIRST, FIRST + 1, … of the sequence that SEED makes, says on stdout what was answered, and ends after COUNT of
them. The first one may have been carried out by the process before.
"""

import logging
import os
import sys
from dataclasses import dataclass, field
from random import Random

import trio

from fsd.client.calls import CALL, RESENT
from fsd.client.filesystem import FileSystem, open_filesystem
from fsd.client.options import Caller, ClientOptions
from fsd.core.ids import ROOT_INO
from fsd.runtime.local import real_runtime
from fsd.runtime.localstate import LocalState

ROOT = Caller(0, 0)
FILES = (b"f0", b"f1", b"f2")
HELD, LOG = 1, 2  # handles that are open from the first call to the last: of a file without a name, of the log


@dataclass
class Model:
    """What the volume must hold."""

    names: dict[bytes, bytearray] = field(default_factory=dict[bytes, bytearray])
    held: bytearray = field(default_factory=bytearray)
    log: bytearray = field(default_factory=bytearray)
    directories: set[bytes] = field(default_factory=set[bytes])


def overwrite(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


class Calls:
    """Call by number: on the model at once, on the file system as a coroutine."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.model = Model()

    def next(self, number: int):
        random, model = self.random, self.model
        kind = random.randrange(8)
        if number == 0:
            return self.make_held()
        if number == 1:
            return self.unlink_held()
        if number == 2:
            return self.make_log()
        if kind < 3:
            return self.append(number)
        if kind == 3:
            return self.write_held(
                random.choice((0, 5000, 300_000)), random.randbytes(random.choice((10, 4096, 200_000)))
            )
        name = b"d%d" % random.randrange(3)
        if kind == 4:
            if name in model.directories:
                model.directories.remove(name)
                return lambda fs: fs.rmdir(ROOT, ROOT_INO, name)
            model.directories.add(name)
            return lambda fs: fs.mkdir(ROOT, ROOT_INO, name, 0o755)
        name = random.choice(FILES)
        if name not in model.names:
            model.names[name] = bytearray()
            return lambda fs: create(fs, name, number)
        if kind == 5:
            new = random.choice(FILES)
            model.names[new] = model.names.pop(name)
            return lambda fs: fs.rename(ROOT, ROOT_INO, name, ROOT_INO, new)
        if kind == 6:
            del model.names[name]
            return lambda fs: fs.unlink(ROOT, ROOT_INO, name)
        size = random.choice((0, 100, 50_000))
        content = model.names[name]
        content[size:] = b""
        content.extend(bytes(size - len(content)))
        return lambda fs: truncate(fs, name, size)

    def make_held(self):
        return lambda fs: fs.create(ROOT, ROOT_INO, b"held", 0o600, os.O_RDWR, number=HELD)

    def unlink_held(self):
        return lambda fs: fs.unlink(ROOT, ROOT_INO, b"held")

    def make_log(self):
        return lambda fs: fs.create(ROOT, ROOT_INO, b"log", 0o600, os.O_RDWR | os.O_APPEND, number=LOG)

    def append(self, number: int):
        record = b"%06d\n" % number
        self.model.log += record
        return lambda fs: fs.write(HANDLES[LOG], 0, record)

    def write_held(self, offset: int, data: bytes):
        overwrite(self.model.held, offset, data)
        return lambda fs: fs.write(HANDLES[HELD], offset, data)


HANDLES = {}


async def create(fs: FileSystem, name: bytes, number: int) -> None:
    _, handle = await fs.create(ROOT, ROOT_INO, name, 0o644, os.O_RDWR | os.O_EXCL, number=100 + number)
    await fs.release(handle)


async def truncate(fs: FileSystem, name: bytes, size: int) -> None:
    await fs.setattr(ROOT, (await fs.lookup(ROOT_INO, name)).ino, size=size)


async def main(metadata: str, state: str, seed: int, first: int, count: int) -> None:
    calls = Calls(seed)
    for number in range(first):
        calls.next(number)
    options = ClientOptions(name="victim", write_back_age_s=0.3)
    async with open_filesystem(real_runtime(), (metadata,), "default", options, None, LocalState(state)) as fs:
        HANDLES.update(fs.restored_handles)
        for number in range(first, count):
            CALL.set(2 * number + 2 | (RESENT if number == first else 0))
            answer = await calls.next(number)(fs)
            if number in (0, 2):
                HANDLES[HELD if number == 0 else LOG] = answer[1]
            os.write(1, b"%d\n" % number)
            if number % 16 == 0:
                await trio.sleep(0.01)
        os.write(1, b"waiting\n")
        await trio.sleep_forever()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    trio.run(main, sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
