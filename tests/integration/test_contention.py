"""Many processes on two mounts in one directory and on one file: nobody waits for a lease that waits for him."""

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from tests.integration.conftest import RealCluster

pytestmark = pytest.mark.real
LONGEST_CALL_S = 8.0  # below the session's ttl: nobody was evicted to go on
SECONDS = 8.0


def churn(directory: str, seed: int, seconds: float, results: "multiprocessing.Queue[tuple[int, float, str]]") -> None:
    """Create, write, rename, list, read, unlink names that all others use too."""
    chance = random.Random(seed)
    names = [f"n{i}" for i in range(6)]
    count, longest, failure = 0, 0.0, ""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not failure:
        start = time.monotonic()
        try:
            step(chance, directory, chance.choice(names), chance.choice(names))
        except FileNotFoundError:
            pass
        except BaseException as error:
            failure = f"{error!r} {error.__traceback__.tb_next.tb_lineno}"
        longest = max(longest, time.monotonic() - start)
        count += 1
    results.put((count, longest, failure))


def step(chance: random.Random, directory: str, name: str, other: str) -> None:
    path = os.path.join(directory, name)
    match chance.randrange(7):
        case 0:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        case 1:
            fd = os.open(path, os.O_CREAT | os.O_RDWR)
            try:
                os.pwrite(fd, b"x" * chance.choice((10, 5_000, 50_000)), chance.choice((0, 4096, 100_000)))
            finally:
                os.close(fd)
        case 2:
            os.rename(path, os.path.join(directory, other))
        case 3:
            os.listdir(directory)
        case 4:
            with open(path, "rb") as file:
                file.read()
        case 5:
            os.unlink(path)
        case _:
            os.stat(path)


def test_a_directory_that_all_change_at_once_stalls_nobody(cluster: RealCluster, a: Path, b: Path):
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[tuple[int, float, str]] = context.Queue()
    workers = [
        context.Process(target=churn, args=(str(mount), seed, SECONDS, results), daemon=True)
        for seed, mount in enumerate((a, b, a, b))
    ]
    for worker in workers:
        worker.start()
    told = [results.get(timeout=SECONDS + 60) for _ in workers]
    assert [failure for _, _, failure in told if failure] == []
    assert max(longest for _, longest, _ in told) < LONGEST_CALL_S
    assert sum(count for count, _, _ in told) > 100, told
    assert sorted(os.listdir(a)) == sorted(os.listdir(b))
    for name in os.listdir(a):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def rewrite(path: str, rounds: int, who: int, results: "multiprocessing.Queue[float]") -> None:
    """Pages of one file, in place, each checked to be of one writer."""
    fd = os.open(path, os.O_RDWR)
    longest = 0.0
    for number in range(rounds):
        start = time.monotonic()
        os.pwrite(fd, bytes([who]) * 8192, 8192 * (number % 4))
        page = os.pread(fd, 8192, 8192 * ((number + 1) % 4))
        longest = max(longest, time.monotonic() - start)
        if len(set(page)) != 1:
            longest = float("inf")
            break
    os.close(fd)
    results.put(longest)


def test_a_file_that_two_mounts_rewrite_stalls_nobody_and_is_never_torn(cluster: RealCluster, a: Path, b: Path):
    (a / "f").write_bytes(bytes(4 * 8192))
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[float] = context.Queue()
    workers = [
        context.Process(target=rewrite, args=(str(mount / "f"), 60, who + 1, results), daemon=True)
        for who, mount in enumerate((a, b))
    ]
    for worker in workers:
        worker.start()
    assert max(results.get(timeout=90) for _ in workers) < LONGEST_CALL_S
    assert (a / "f").read_bytes() == (b / "f").read_bytes()
