"""The load, a process for each kind of work: `python -m tests.integration.faults.load KIND DIRECTORY LEDGER EVENTS`.

The ledger is a small file beside the file system, mapped by the writer, its reader and the judge:

    for each slot   attempted u32, acknowledged u32     a version is acknowledged when its fsync has returned
    at the end      bytes written u64

A slot's bytes follow from (slot, version), so whoever reads knows every right answer: any version from the acknowledged
one (as it was before the read) to the attempted one (as it was after it). Events are lines of JSON: calls that failed, calls
that were slow, bytes that are wrong. SIGTERM ends the work.
"""

import contextlib
import errno
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FILES, SLOTS = 6, 8  # slots in each file
SLOT = 200_000  # bytes: neighbours share blocks, some lie across two chunks
PIECE = 1000
PAIR = struct.Struct("<II")
COUNT = FILES * SLOTS
SLOW_S = 0.1
PAUSE_S = 0.03
FIO_BYTES = 8 << 20
stopped: list[int] = []


def content(slot: int, version: int) -> bytes:
    """Version 0 is what was never written."""
    return random.Random(slot * 1_000_003 + version).randbytes(SLOT) if version else bytes(SLOT)


class Ledger:
    def __init__(self, path: Path) -> None:
        with open(path, "ab") as file:
            file.truncate(COUNT * PAIR.size + 8)
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def get(self, slot: int) -> tuple[int, int]:
        """(attempted, acknowledged)."""
        return PAIR.unpack_from(self._map, slot * PAIR.size)

    def put(self, slot: int, attempted: int, acknowledged: int) -> None:
        PAIR.pack_into(self._map, slot * PAIR.size, attempted, acknowledged)

    @property
    def written(self) -> int:
        return struct.unpack_from("<Q", self._map, COUNT * PAIR.size)[0]

    def add_written(self, count: int) -> None:
        struct.pack_into("<Q", self._map, COUNT * PAIR.size, self.written + count)


class Events:
    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - until the process ends

    def tell(self, **what: Any) -> None:
        self._file.write(json.dumps(what) + "\n")

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Timed; a failure is told and raised."""
        begin, name = time.monotonic(), getattr(function, "__name__", "call")
        try:
            return function(*arguments)
        except OSError as error:
            self.tell(t=begin, d=time.monotonic() - begin, call=name, error=errno.errorcode.get(error.errno or 0, "?"))
            raise
        finally:
            if time.monotonic() - begin > SLOW_S:
                self.tell(t=begin, d=time.monotonic() - begin, call=name)


def wrong_bytes(slot: int, got: bytes, oldest: int, newest: int) -> int:
    """How many bytes are of no version from `oldest` to `newest`."""
    if any(got == content(slot, version) for version in range(newest, oldest - 1, -1)):
        return 0
    right = [content(slot, version) for version in range(oldest, newest + 1)]
    got = got.ljust(SLOT, b"\0")
    wrong = 0
    for start in range(0, SLOT, PIECE):
        piece = got[start : start + PIECE]
        if not any(piece == r[start : start + PIECE] for r in right):
            wrong += sum(all(byte != r[start + i] for r in right) for i, byte in enumerate(piece))
    return wrong


def path_of(directory: Path, slot: int) -> tuple[Path, int]:
    return directory / f"slots{slot // SLOTS}", slot % SLOTS * SLOT


def writer(directory: Path, ledger: Ledger, events: Events) -> None:
    rng = random.Random(str(directory))
    while not stopped:
        slot = rng.randrange(COUNT)
        path, offset = path_of(directory, slot)
        attempted, acknowledged = ledger.get(slot)
        ledger.put(slot, attempted + 1, acknowledged)
        with contextlib.suppress(OSError):
            fd = events.call(os.open, path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                data, done = content(slot, attempted + 1), 0
                while done < SLOT:
                    done += events.call(os.pwrite, fd, data[done:], offset + done)
                events.call(os.fsync, fd)
                ledger.put(slot, attempted + 1, attempted + 1)
                ledger.add_written(SLOT)
            finally:
                events.call(os.close, fd)
        time.sleep(PAUSE_S)


def reader(directory: Path, ledger: Ledger, events: Events) -> None:
    rng = random.Random(f"r{directory}")
    while not stopped:
        slot = rng.randrange(COUNT)
        with contextlib.suppress(OSError):
            check_slot(directory, ledger, events, slot)
        time.sleep(PAUSE_S)


def check_slot(directory: Path, ledger: Ledger, events: Events, slot: int) -> int:
    """Wrong bytes, told as well."""
    path, offset = path_of(directory, slot)
    oldest = ledger.get(slot)[1]
    if not oldest:
        return 0
    fd = events.call(os.open, path, os.O_RDONLY)
    try:
        got = events.call(os.pread, fd, SLOT, offset)
    finally:
        os.close(fd)
    newest = ledger.get(slot)[0]
    wrong = wrong_bytes(slot, got, oldest, newest)
    if wrong:
        events.tell(t=time.monotonic(), d=0, wrong=wrong, what=f"{path} slot {slot}, versions {oldest} to {newest}")
    return wrong


State = dict[str, str]


def names(directory: Path, ledger: Ledger, events: Events) -> None:
    """Symlinks made, renamed, linked and removed against an oracle; after an error either outcome is right."""
    rng, number, state = random.Random(str(directory)), 0, State()
    while not stopped:
        number += 1
        after, step = plan(rng, state, directory, number)
        try:
            events.call(*step)
            state = after
        except OSError:
            state = settle(directory, events, (state, after))
        if number % 20 == 0:
            state = settle(directory, events, (state,))
        time.sleep(PAUSE_S / 3)
    settle(directory, events, (state,), patience_s=60)


def plan(rng: random.Random, state: State, directory: Path, number: int) -> tuple[State, tuple[Any, ...]]:
    """(the state afterwards, the call)."""
    name = f"n{rng.randrange(12)}"
    token = f"t{number}"
    if name not in state:
        return state | {name: token}, (os.symlink, token, directory / name)
    rest = {key: value for key, value in state.items() if key != name}
    if rng.random() < 0.4:
        return rest, (os.unlink, directory / name)
    target = f"n{rng.randrange(12)}"
    if target == name:
        return rest, (os.unlink, directory / name)
    return rest | {target: state[name]}, (os.rename, directory / name, directory / target)


def settle(directory: Path, events: Events, right: tuple[State, ...], patience_s: float = 120) -> State:
    """What is there, as soon as it can be read; it must be one of `right`."""
    give_up = time.monotonic() + patience_s
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError):
            there = {name: os.readlink(directory / name) for name in events.call(os.listdir, directory)}
            if there not in right:
                events.tell(t=time.monotonic(), d=0, wrong=1, what=f"names {there} instead of one of {right}")
            return there
        time.sleep(PAUSE_S)
    events.tell(t=time.monotonic(), d=patience_s, call="listdir", error="HANGS")
    return right[0]


def fio(directory: Path, ledger: Ledger, events: Events) -> None:
    words = f"--name=v --size={FIO_BYTES} --rw=randwrite --bsrange=4k-128k --ioengine=psync --end_fsync=1 "
    words += "--verify=crc32c --verify_fatal=1 --verify_state_save=0 --rate=8m"
    while not stopped:
        begin = time.monotonic()
        done = subprocess.run(
            ["fio", *words.split(), f"--directory={directory}"], capture_output=True, text=True, check=False
        )
        if "verify:" in done.stdout + done.stderr and "bad" in done.stdout + done.stderr:
            events.tell(t=time.monotonic(), d=0, wrong=1, what=f"fio: {done.stderr[-300:]}")
        elif done.returncode and not stopped:
            kind = next((code for code in ("ENOSPC",) if "No space" in done.stderr), "EIO")
            events.tell(t=begin, d=time.monotonic() - begin, call="fio", error=kind, text=done.stderr[-300:])
            time.sleep(PAUSE_S)
        else:
            ledger.add_written(FIO_BYTES)


KINDS = {function.__name__: function for function in (writer, reader, names, fio)}


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)


def main() -> int:
    kind, directory, ledger, events = sys.argv[1:5]
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    KINDS[kind](Path(directory), Ledger(Path(ledger)), Events(Path(events)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
