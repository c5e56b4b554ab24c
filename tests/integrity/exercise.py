"""An fsx of our own: random operations on a file through several handles (on several mounts), each answer compared.

The model is a bytearray and is told everything first. A seed makes a run; the operations are drawn without looking at what
the file system answers, so that a failure is reproduced by its seed and cut short by `--operations`.
"""

import errno
import mmap
import os
import random
from collections import deque
from dataclasses import dataclass

from tests.conformance.calls import KEEP, PUNCH, ZERO, fallocate

HISTORY = 30


class Mismatch(AssertionError):
    """What was read is not what was written."""


@dataclass(frozen=True)
class Settings:
    directories: tuple[str, ...]  # the same directory, on one mount or several
    max_size: int = 1 << 20
    handles: int = 3
    maps: bool = True
    check_every: int = 50


class Exercise:
    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings = settings
        self.random = random.Random(seed)
        self.model = bytearray()
        self.history: deque[str] = deque(maxlen=HISTORY)
        self.name = f"integrity-{os.getpid()}-{seed}"
        self.handles: list[int] = []
        self.done = 0

    def run(self, operations: int) -> None:
        """Raises Mismatch, OSError, with the last operations in its notes."""
        try:
            self.handles = [self._open(index) for index in range(self.settings.handles)]
            for self.done in range(1, operations + 1):
                kind, call = self._draw()
                self.history.append(f"{self.done}: {kind}")
                call()
                if self.done % self.settings.check_every == 0:
                    self.check_all()
            self.check_all()
        except Exception as error:
            error.add_note("the last operations:\n  " + "\n  ".join(self.history))
            raise
        finally:
            for fd in self.handles:
                os.close(fd)
        for directory in self.settings.directories[:1]:
            os.unlink(os.path.join(directory, self.name))

    # --- drawing ------------------------------------------------------------------------------------------------------

    _WEIGHTS = {
        "write": 20, "append": 4, "read": 20, "truncate": 4, "extend": 3, "punch": 4, "zero": 4, "allocate": 2,
        "copy": 4, "map_read": 6, "map_write": 8, "reopen": 4, "fsync": 3, "size": 4, "rewrite": 1, "drop": 2,
        "vector": 3, "replace": 1,
    }  # fmt: skip

    def _draw(self):
        names = [n for n in self._WEIGHTS if self.settings.maps or not n.startswith("map")]
        kind = self.random.choices(names, [self._WEIGHTS[n] for n in names])[0]
        which = self.random.randrange(len(self.handles))
        return getattr(self, "_" + kind)(which)

    def _range(self, end: int) -> tuple[int, int]:
        """Somewhere below `end`, often at blocks' edges, mostly short."""
        length = min(end, self.random.choice((1, 17, 4096, 5000, 65536, 66_000, 200_000)))
        length = self.random.randint(1, max(1, length))
        offset = self.random.randint(0, max(0, end - length))
        if self.random.random() < 0.3:
            offset -= offset % self.random.choice((512, 4096, 65536))
        return offset, length

    def _bytes(self, length: int) -> bytes:
        return self.random.randbytes(length)

    def _open(self, which: int) -> int:
        directory = self.settings.directories[which % len(self.settings.directories)]
        return os.open(os.path.join(directory, self.name), os.O_RDWR | os.O_CREAT, 0o644)

    def _path(self, which: int) -> str:
        return os.path.join(self.settings.directories[which % len(self.settings.directories)], self.name)

    # --- operations: each draws first, then returns what it is called and what it does ---------------------------------

    def _model_write(self, offset: int, data: bytes) -> None:
        if offset > len(self.model):
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    def _write(self, which: int):
        offset, length = self._range(self.settings.max_size)
        data = self._bytes(length)

        def call() -> None:
            self._model_write(offset, data)
            self._whole(os.pwrite(self.handles[which], data, offset), length)

        return f"write {offset}+{length} by {which}", call

    def _vector(self, which: int):
        offset, length = self._range(self.settings.max_size)
        data = self._bytes(length)
        cut = self.random.randint(0, length)

        def call() -> None:
            self._model_write(offset, data)
            self._whole(os.pwritev(self.handles[which], [data[:cut], data[cut:]], offset), length)

        return f"writev {offset}+{length} by {which}", call

    def _append(self, which: int):
        data = self._bytes(self.random.choice((1, 100, 4096, 70_000)))

        def call() -> None:
            if len(self.model) + len(data) > self.settings.max_size:
                return
            self.model.extend(data)
            fd = os.open(self._path(which), os.O_WRONLY | os.O_APPEND)
            try:
                self._whole(os.write(fd, data), len(data))
            finally:
                os.close(fd)

        return f"append {len(data)} by {which}", call

    def _read(self, which: int):
        offset, length = self._range(self.settings.max_size)

        def call() -> None:
            self._compare(os.pread(self.handles[which], length, offset), offset, length, f"read by {which}")

        return f"read {offset}+{length} by {which}", call

    def _truncate(self, which: int):
        part = self.random.random()
        by_path = self.random.random() < 0.3

        def call() -> None:
            size = int(part * len(self.model))
            del self.model[size:]
            os.truncate(self._path(which) if by_path else self.handles[which], size)

        return f"truncate to {part:.4f} by {which}", call

    def _extend(self, which: int):
        size = self.random.randint(0, self.settings.max_size)

        def call() -> None:
            if size <= len(self.model):
                del self.model[size:]
            else:
                self.model.extend(bytes(size - len(self.model)))
            os.ftruncate(self.handles[which], size)

        return f"truncate to {size} by {which}", call

    def _punch(self, which: int):
        offset, length = self._range(self.settings.max_size)

        def call() -> None:
            end = min(len(self.model), offset + length)
            if offset < end:
                self.model[offset:end] = bytes(end - offset)
            fallocate(self.handles[which], PUNCH | KEEP, offset, length)

        return f"punch {offset}+{length} by {which}", call

    def _zero(self, which: int):
        offset, length = self._range(self.settings.max_size)
        keep = self.random.random() < 0.5

        def call() -> None:
            end = min(len(self.model), offset + length) if keep else offset + length
            if offset < end:
                self._model_write(offset, bytes(end - offset))
            fallocate(self.handles[which], ZERO | (KEEP if keep else 0), offset, length)

        return f"zero {offset}+{length} keep={keep} by {which}", call

    def _allocate(self, which: int):
        offset, length = self._range(self.settings.max_size)
        keep = self.random.random() < 0.5

        def call() -> None:
            if not keep and offset + length > len(self.model):
                self.model.extend(bytes(offset + length - len(self.model)))
            fallocate(self.handles[which], KEEP if keep else 0, offset, length)

        return f"allocate {offset}+{length} keep={keep} by {which}", call

    def _copy(self, which: int):
        offset, length = self._range(self.settings.max_size)
        target = self.random.randint(0, max(0, self.settings.max_size - length))

        def call() -> None:
            wanted = bytes(self.model[offset : offset + length])
            if abs(target - offset) < length or not wanted:
                return
            self._model_write(target, wanted)
            source, done = self.handles[which], 0
            os.fstat(
                source
            )  # Linux goes by the size it last heard of, and asks nobody whether another host made it longer
            while done < len(wanted):
                copied = os.copy_file_range(source, source, len(wanted) - done, offset + done, target + done)
                if not copied:
                    raise Mismatch(f"copy_file_range ended after {done} of {len(wanted)}")
                done += copied

        return f"copy {offset}+{length} to {target} by {which}", call

    def _map_read(self, which: int):
        offset, length = self._range(self.settings.max_size)

        def call() -> None:
            if offset >= len(self.model):
                return
            with mmap.mmap(self.handles[which], len(self.model), mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
                self._compare(mapped[offset : offset + length], offset, length, f"map read by {which}")

        return f"map read {offset}+{length} by {which}", call

    def _map_write(self, which: int):
        offset, length = self._range(self.settings.max_size)
        data = self._bytes(length)
        flush = len(self.settings.directories) > 1 or self.random.random() < 0.5

        def call() -> None:
            piece = data[: max(0, len(self.model) - offset)]
            if not piece:
                return
            self._model_write(offset, piece)
            with mmap.mmap(self.handles[which], len(self.model)) as mapped:
                mapped[offset : offset + len(piece)] = piece
                if flush:
                    mapped.flush()

        return f"map write {offset}+{length} flush={flush} by {which}", call

    def _reopen(self, which: int):
        def call() -> None:
            os.close(self.handles[which])
            self.handles[which] = self._open(which)

        return f"reopen {which}", call

    def _fsync(self, which: int):
        call = self.random.choice((os.fsync, os.fdatasync))
        return f"fsync {which}", lambda: call(self.handles[which])

    def _drop(self, which: int):
        """What the kernel has in memory is forgotten."""

        def call() -> None:
            os.fsync(self.handles[which])
            os.posix_fadvise(self.handles[which], 0, 0, os.POSIX_FADV_DONTNEED)

        return f"drop cache {which}", call

    def _size(self, which: int):
        def call() -> None:
            sizes = {os.fstat(self.handles[which]).st_size, os.stat(self._path(which)).st_size}
            if sizes != {len(self.model)}:
                raise Mismatch(f"size {sizes} instead of {len(self.model)} by {which}")

        return f"stat {which}", call

    def _rewrite(self, which: int):
        """open(O_TRUNC) and another content."""
        data = self._bytes(self.random.choice((10, 5000, 300_000)))

        def call() -> None:
            data_now = data[: self.settings.max_size]
            self.model[:] = data_now
            fd = os.open(self._path(which), os.O_WRONLY | os.O_TRUNC)
            try:
                self._whole(os.write(fd, data_now), len(data_now))
            finally:
                os.close(fd)

        return f"rewrite with {len(data)} by {which}", call

    def _replace(self, which: int):
        """As an editor saves: another file under the same name."""
        data = self._bytes(self.random.choice((0, 100, 100_000)))

        def call() -> None:
            data_now = data[: self.settings.max_size]
            new = self._path(which) + ".new"
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                if data_now:
                    self._whole(os.write(fd, data_now), len(data_now))
            finally:
                os.close(fd)
            os.rename(new, self._path(which))
            for index, old in enumerate(self.handles):
                self._compare(os.pread(old, 5000, 0), 0, 5000, f"the replaced file by {index}")
                os.close(old)
                self.handles[index] = self._open(index)
            self.model[:] = data_now

        return f"replace with {len(data)} by {which}", call

    # --- comparing ----------------------------------------------------------------------------------------------------

    def check_all(self) -> None:
        for which, fd in enumerate(self.handles):
            size = os.fstat(fd).st_size
            if size != len(self.model):
                raise Mismatch(f"size {size} instead of {len(self.model)} by {which}")
            self._compare(_read_all(fd, size + 1), 0, size + 1, f"all by {which}")

    def _compare(self, got: bytes, offset: int, length: int, what: str) -> None:
        wanted = bytes(self.model[offset : offset + length])
        if got == wanted:
            return
        if len(got) != len(wanted):
            more = got[len(wanted) :]
            kind = ", zeroes more" if more and not any(more) else ", others more" if more else ""
            raise Mismatch(f"{what}: {len(got)} bytes at {offset} instead of {len(wanted)}{kind}")
        first = next(i for i, (one, two) in enumerate(zip(got, wanted, strict=True)) if one != two)
        last = next(i for i in range(len(got) - 1, -1, -1) if got[i] != wanted[i])
        zero = not any(got[first : last + 1])
        raise Mismatch(f"{what}: differs in {offset + first}..{offset + last}{', zeroes there' if zero else ''}")

    def _whole(self, done: int, wanted: int) -> None:
        if done != wanted:
            raise Mismatch(f"wrote {done} of {wanted}")


def _read_all(fd: int, length: int) -> bytes:
    pieces, offset = [], 0
    while offset < length:
        piece = os.pread(fd, length - offset, offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


def sparse(directory: str, seed: int, operations: int, span: int = 8 << 40) -> None:
    """A file of terabytes of which little is there: extents in a dictionary as the model."""
    chance = random.Random(seed)
    name = os.path.join(directory, f"sparse-{os.getpid()}-{seed}")
    block = 8192
    model: dict[int, bytes] = {}
    size = 0
    fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        for number in range(operations):
            place = (
                chance.randrange(0, span // block) if chance.random() < 0.6 or not model else chance.choice(list(model))
            )
            match chance.choice(("write", "write", "read", "read", "truncate")):
                case "write":
                    model[place] = chance.randbytes(block)
                    os.pwrite(fd, model[place], place * block)
                    size = max(size, (place + 1) * block)
                case "read":
                    wanted = model.get(place, bytes(block)) if (place + 1) * block <= size else b""
                    if os.pread(fd, block, place * block) != wanted:
                        raise Mismatch(f"operation {number}: block {place}")
                case "truncate":
                    size = place * block
                    os.ftruncate(fd, size)
                    model = {at: data for at, data in model.items() if at < place}
            if os.fstat(fd).st_size != size:
                raise Mismatch(f"operation {number}: size {os.fstat(fd).st_size} instead of {size}")
        os.fsync(fd)
        for place, data in model.items():
            if os.pread(fd, block, place * block) != data:
                raise Mismatch(f"at the end: block {place}")
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise Mismatch(f"{error}") from None
    finally:
        os.close(fd)
    os.unlink(name)
