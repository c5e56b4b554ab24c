"""Two mounts of one volume are one file system: what a system call has done on one, every later one on either sees (I14)."""

import contextlib
import errno
import mmap
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import RealCluster
from tests.simulation.check import (
    EMPTY_REGION,
    EMPTY_TREE,
    Operation,
    explain,
    linearizable,
    region_step,
    tree_step,
)

pytestmark = pytest.mark.real
PATIENCE_S = 60.0
CONTEXT = multiprocessing.get_context("fork")


def together(works: list[Callable[[Any], object]]) -> list[Any]:
    """What each returns, all run at once in processes of their own; `Any` is their barrier."""
    barrier = CONTEXT.Barrier(len(works))
    results = CONTEXT.Queue()

    def run(number: int, work: Callable[[Any], object]) -> None:
        try:
            results.put((number, work(barrier), None))
        except BaseException as error:
            results.put((number, None, repr(error)))
            barrier.abort()

    processes = [CONTEXT.Process(target=run, args=each, daemon=True) for each in enumerate(works)]
    for process in processes:
        process.start()
    told = [results.get(timeout=PATIENCE_S) for _ in processes]
    for process in processes:
        process.join()
    assert [error for _, _, error in told if error] == []
    return [result for _, result, _ in sorted(told, key=lambda each: each[0])]


# --- one after the other ----------------------------------------------------------------------------------------------


def test_what_was_closed_on_one_is_read_on_the_other(a: Path, b: Path):
    for number in range(60):
        here, there = (a, b) if number % 2 else (b, a)
        content = b"%d " % number * random.Random(number).choice((1, 500, 5000, 60_000))
        (here / "f").write_bytes(content)
        assert (there / "f").read_bytes() == content
        assert (here / "f").stat().st_mtime_ns == (there / "f").stat().st_mtime_ns


def test_what_was_written_on_one_is_read_on_the_other_without_a_close(a: Path, b: Path):
    with open(a / "f", "w+b", buffering=0) as here, open(b / "f", "r+b", buffering=0) as there:
        for number in range(60):
            writer, reader = (here, there) if number % 2 else (there, here)
            place = random.Random(number).randrange(200_000)
            os.pwrite(writer.fileno(), b"%6d" % number, place)
            assert os.pread(reader.fileno(), 6, place) == b"%6d" % number
            assert os.fstat(here.fileno()).st_size == os.fstat(there.fileno()).st_size


def test_names_made_moved_and_removed_on_one_are_so_on_the_other(a: Path, b: Path):
    for number in range(30):
        here, there = (a, b) if number % 2 else (b, a)
        (here / "n").mkdir()
        assert os.listdir(there) == ["n"]
        (there / "n" / "f").write_text("x")
        (here / "n" / "f").rename(here / "g")
        assert not (there / "n" / "f").exists()
        assert (there / "g").read_text() == "x"
        (there / "n").rmdir()
        assert not (here / "n").exists()
        os.chmod(there / "g", 0o600)
        assert (here / "g").stat().st_mode & 0o777 == 0o600
        (here / "g").unlink()
        assert os.listdir(there) == []


def test_a_file_without_a_name_is_one_file_wherever_it_is_open(a: Path, b: Path):
    (a / "f").write_bytes(b"old")
    with open(b / "f", "r+b", buffering=0) as there:
        with open(a / "f", "r+b", buffering=0) as here:
            os.pwrite(here.fileno(), b"new " * 50_000, 0)
        (a / "f").unlink()
        assert os.pread(there.fileno(), 300_000, 0) == b"new " * 50_000
        (a / "f").write_bytes(b"another")
        assert os.pwrite(there.fileno(), b"mine", 0) == 4
        assert os.pread(there.fileno(), 8, 0) == b"minenew "
        assert (b / "f").read_bytes() == b"another"
        assert os.fstat(there.fileno()).st_nlink == 0


def test_a_mapping_shows_what_the_other_mount_wrote(a: Path, b: Path):
    (a / "f").write_bytes(b"0" * 8192)
    with open(b / "f", "r+b") as there, mmap.mmap(there.fileno(), 8192) as mapped:
        assert mapped[:4] == b"0000"
        with open(a / "f", "r+b", buffering=0) as here:
            os.pwrite(here.fileno(), b"1111", 4096)
            assert mapped[4096:4100] == b"1111"
            mapped[0:4] = b"2222"
            mapped.flush()
            assert os.pread(here.fileno(), 8, 0) == b"22220000"


# --- at once ----------------------------------------------------------------------------------------------------------


def winners(directories: list[Path], attempt: Callable[[Path, int, int], object], rounds: int = 25) -> list[int]:
    """How many of all succeeded, in each round; the others were told that they came too late."""

    def race(directory: Path, who: int) -> Callable[[Any], list[int]]:
        def run(barrier: Any) -> list[int]:
            won: list[int] = []
            for number in range(rounds):
                barrier.wait(PATIENCE_S)
                try:
                    attempt(directory, number, who)
                    won.append(1)
                except OSError as error:
                    assert error.errno in (errno.EEXIST, errno.ENOENT), error
                    won.append(0)
            return won

        return run

    told = together([race(directory, who) for who, directory in enumerate(directories)])
    return [sum(each) for each in zip(*told, strict=True)]


def test_of_all_who_race_for_a_name_one_wins(a: Path, b: Path):
    everybody = [a, b, a, b]
    for number in range(25):
        (a / f"source{number}").touch()
        (a / f"prey{number}").touch()

    def create(directory: Path, number: int, _: int) -> None:
        os.close(os.open(directory / f"new{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    def link(directory: Path, number: int, _: int) -> None:
        os.link(directory / "source0", directory / f"link{number}")

    def rename(directory: Path, number: int, who: int) -> None:
        os.rename(directory / f"source{number}", directory / f"got{number}.{who}")

    races: list[Callable[[Path, int, int], object]] = [
        create,
        lambda directory, number, _: os.mkdir(directory / f"directory{number}"),
        link,
        lambda directory, number, _: os.unlink(directory / f"prey{number}"),
        rename,
    ]
    for race in races:
        assert winners(everybody, race) == [1] * 25


def test_appends_of_all_are_there_once_and_whole(a: Path, b: Path):
    def appends(path: Path, who: int) -> Callable[[Any], None]:
        def run(barrier: Any) -> None:
            barrier.wait(PATIENCE_S)
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            for number in range(100):
                os.write(fd, f"{who} {number}".ljust(40, ".").encode() + b"\n")
            os.close(fd)

        return run

    together([appends(mount / "log", who) for who, mount in enumerate((a, b, a, b))])
    for mount in (a, b):
        lines = (mount / "log").read_text().splitlines()
        assert sorted(lines) == sorted(f"{who} {number}".ljust(40, ".") for who in range(4) for number in range(100))


def clocked(client: str, kind: str, argument: Any, call: Callable[[], Any]) -> Operation:
    start = time.monotonic_ns()
    result = call()
    return Operation(client, kind, argument, result, start, time.monotonic_ns())


def judge(operations: list[Operation], initial: Any, step: Any) -> None:
    possible = linearizable(operations, initial, step)
    assert possible, "\n".join(map(str, explain(operations, initial, step)[-25:]))


@pytest.mark.parametrize(("size", "place", "length"), [(100, 0, 100), (4096, 0, 4096), (4096, 40_960, 150_000)])
def test_a_file_is_a_register(a: Path, b: Path, size: int, place: int, length: int):
    """Each write is of one page or less (more than that the kernel reads piece by piece), with a number that never comes again;
    who reads sees a whole one, and never an old one after a new one."""
    (a / "r").write_bytes(bytes(length))

    def use(path: Path, who: int) -> Callable[[Any], list[Operation]]:
        def run(barrier: Any) -> list[Operation]:
            chance = random.Random(size + who)
            fd = os.open(path, os.O_RDWR)
            seen: list[Operation] = []

            def write(number: int) -> None:
                assert os.pwrite(fd, (number.to_bytes(4, "big") * (size // 4 + 1))[:size], place) == size

            def read() -> int:
                content = os.pread(fd, size, place)
                number = int.from_bytes(content[:4], "big")
                assert content == (content[:4] * (size // 4 + 1))[:size], "a read of two writes"
                return number

            barrier.wait(PATIENCE_S)
            for number in range(1, 60):
                if chance.random() < 0.4:
                    value = who * 1000 + number
                    seen.append(clocked(f"c{who}", "write", value, lambda value=value: write(value)))
                else:
                    seen.append(clocked(f"c{who}", "read", None, read))
                time.sleep(chance.choice((0, 0, 0.002)))
            os.close(fd)
            return seen

        return run

    told = together([use(mount / "r", who + 1) for who, mount in enumerate((a, b))])
    judge([each for seen in told for each in seen], EMPTY_REGION, region_step)


def test_a_directory_is_linearizable(a: Path, b: Path):
    """One process on each mount (the kernel of one lets its other processes see a name until its own unlink has returned)."""

    def use(directory: Path, who: int) -> Callable[[Any], list[Operation]]:
        def run(barrier: Any) -> list[Operation]:
            chance = random.Random(who)
            seen: list[Operation] = []

            def tried(call: Callable[[], object]) -> object:
                try:
                    return call()
                except FileExistsError:
                    return "AlreadyExists"
                except FileNotFoundError:
                    return "NotFound"

            def create(name: str) -> int:
                fd = os.open(directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                with contextlib.closing(os.fdopen(fd, "wb")):
                    return os.fstat(fd).st_ino

            def unlink(name: str) -> str:
                os.unlink(directory / name)
                return "ok"

            def rename(name: str, other: str) -> str:
                os.rename(directory / name, directory / other)
                return "ok"

            barrier.wait(PATIENCE_S)
            for _ in range(150):
                name, other = chance.sample("abc", 2)
                call: Callable[[], object]
                match chance.randrange(5):
                    case 0 | 1:
                        kind, argument, call = "create", f"d/{name}", lambda name=name: create(name)
                    case 2:
                        kind, argument, call = "unlink", f"d/{name}", lambda name=name: unlink(name)
                    case 3:
                        kind, argument = "rename", (f"d/{name}", f"d/{other}")
                        call = lambda name=name, other=other: rename(name, other)  # noqa: E731
                    case _:
                        kind, argument = "lookup", f"d/{name}"
                        call = lambda name=name: os.stat(directory / name).st_ino  # noqa: E731
                seen.append(clocked(f"c{who}", kind, argument, lambda call=call: tried(call)))
            return seen

        return run

    told = together([use(mount, who) for who, mount in enumerate((a, b))])

    def step(state: Any, operation: Operation) -> Any:
        return tree_step(state, operation, mortal=())

    judge([each for seen in told for each in seen], EMPTY_TREE, step)


def test_two_mounts_that_count_in_one_file_under_a_lock_lose_nothing(cluster: RealCluster, a: Path, b: Path):
    import fcntl

    (a / "counter").write_text("0")

    def count(path: Path) -> Callable[[Any], None]:
        def run(barrier: Any) -> None:
            barrier.wait(PATIENCE_S)
            with open(path, "r+b", buffering=0) as file:
                for _ in range(40):
                    fcntl.lockf(file, fcntl.LOCK_EX)
                    value = int(os.pread(file.fileno(), 20, 0))
                    os.pwrite(file.fileno(), str(value + 1).encode(), 0)
                    fcntl.lockf(file, fcntl.LOCK_UN)

        return run

    together([count(mount / "counter") for mount in (a, b)])
    assert (a / "counter").read_text() == (b / "counter").read_text() == "80"
