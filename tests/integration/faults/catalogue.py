"""The faults. Each begins, lasts, ends; the run then waits until everything is in sync again.

What an application may see is part of the fault: nothing at all, unless its own mount was away for longer than its
session lives.
"""

import contextlib
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.integration.conftest import eventually
from tests.integration.faults.world import Host, World, run, sleep

BLOCK = 65_536
FLIPS = 12


class Failed(Exception):
    """What an administrator does while the fault lasts has failed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`strike` answers the bytes that have to move because of it, or -1: a node's share of what is written meanwhile.
    `allowed`: errors that calls may tell."""

    name: str
    strike: Callable[[World, random.Random], int]
    allowed: frozenset[str] = frozenset()


FENCED = frozenset({"EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "ECONNABORTED"})


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def longer_than_leases(world: World) -> float:
    return world.times.grace + 2


def some_chunkserver(world: World, rng: random.Random) -> Host:
    return rng.choice(world.chunkservers)


def kill_chunkserver(world: World, rng: random.Random) -> int:
    host = some_chunkserver(world, rng)
    host.kill()
    sleep(2)
    host.start()
    return -1


def kill_metadata(world: World, rng: random.Random) -> int:
    world.metadata.kill()
    sleep(1)
    world.metadata.start()
    return 0


def kill_mount(world: World, rng: random.Random) -> int:
    """The daemon; its supervisor starts another."""
    host = rng.choice(world.mounts)
    old = world.daemon(host)
    os.kill(old, signal.SIGKILL)
    eventually(lambda: world.daemon(host) not in (0, old), 30)
    return 0


def stop_chunkserver(world: World, rng: random.Random) -> int:
    process = some_chunkserver(world, rng).process
    assert process is not None
    with stopped(process.pid):
        sleep(longer_than_leases(world))
    return -1


def stop_metadata(world: World, rng: random.Random) -> int:
    assert world.metadata.process is not None
    with stopped(world.metadata.process.pid):
        sleep(longer_than_leases(world))
    return -1


def stop_mount(world: World, rng: random.Random) -> int:
    """Mount b, longer than its session lives."""
    with stopped(world.daemon(world.mounts[1])):
        sleep(world.times.session_ttl + 2)
    return 0


def cut(host: Host, direction: str, seconds: float, peer: Host | None = None) -> None:
    host.cut(direction, peer)
    try:
        sleep(seconds)
    finally:
        host.mend()


def cut_chunkserver(direction: str) -> Callable[[World, random.Random], int]:
    def strike(world: World, rng: random.Random) -> int:
        cut(some_chunkserver(world, rng), direction, longer_than_leases(world))
        return -1

    return strike


def cut_chunkserver_from_metadata(world: World, rng: random.Random) -> int:
    cut(some_chunkserver(world, rng), rng.choice(("in", "out", "both")), longer_than_leases(world), world.metadata)
    return -1


def cut_two_chunkservers(world: World, rng: random.Random) -> int:
    first, second = rng.sample(world.chunkservers, 2)
    cut(first, "both", longer_than_leases(world), second)
    return -1


def cut_metadata(world: World, rng: random.Random) -> int:
    cut(world.metadata, rng.choice(("in", "out", "both")), longer_than_leases(world))
    return -1


def cut_mount_from_chunkserver(world: World, rng: random.Random) -> int:
    cut(world.mounts[0], "both", longer_than_leases(world), some_chunkserver(world, rng))
    return 0


def cut_mount(world: World, rng: random.Random) -> int:
    """Mount b from everybody, longer than its session lives."""
    cut(world.mounts[1], rng.choice(("in", "out", "both")), world.times.session_ttl + 2)
    return 0


def slow_and_losing(world: World, rng: random.Random) -> int:
    assert world.proxy is not None
    assert world.proxy.stdin is not None
    for line, seconds in (("0.03 0.02", 6.0), ("0 0", 0.0)):
        world.proxy.stdin.write(f"{line}\n")
        world.proxy.stdin.flush()
        sleep(seconds)
    return -1


def full_disk(world: World, rng: random.Random) -> int:
    """Somebody else fills the small disk up to the last block."""
    filler = world.root / world.chunkservers[-1].name / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    sleep(6)
    filler.unlink()
    return 0


def flip_bits(world: World, rng: random.Random) -> int:
    """In written blocks of one node; what is hit is found by readers or by a deep scrub, and mended. Blocks that were freed
    since they were written are hit as well. Answers the bytes that were found rotten."""
    before = sum(node["rotten"] for node in world.status()["nodes"])
    host = some_chunkserver(world, rng)
    hit = sum(_flip(path, rng) for path in _segments(world.root / host.name / "data"))
    if not hit:
        raise Failed(f"node {host.name} holds nothing to flip")
    code, said = world.fsd("scrub", "--deep", "--wait", "--json")
    if code:
        raise Failed(f"scrub: {said}")
    return (json.loads(said)["rotten"] - before) * BLOCK


def _segments(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / "segments").rglob("*") if path.is_file())


def _flip(path: Path, rng: random.Random) -> int:
    blocks = path.stat().st_size // BLOCK
    hit = 0
    with open(path, "r+b") as file:
        for _ in range(FLIPS * 4 if blocks else 0):
            offset = rng.randrange(blocks) * BLOCK + rng.randrange(4096)
            byte = os.pread(file.fileno(), 1, offset)
            if byte not in (b"", b"\0"):
                os.pwrite(file.fileno(), bytes([byte[0] ^ 1 << rng.randrange(8)]), offset)
                hit += 1
            if hit == FLIPS:
                break
    return hit


def add_drain_remove(world: World, rng: random.Random) -> int:
    """A node comes, the one that came before it (or itself) goes. Answers the bytes that lay on what went."""
    host = world.add_chunkserver()
    eventually(world.healthy, 60, world.told)
    world.fsd("rebalance")
    number = world.number_of(host)
    stored = next(n["stored_bytes"] for n in world.status()["nodes"] if n["node"] == number)
    for words in (("node", "drain", str(number), "--wait", "--timeout-s", "60"), ("node", "remove", str(number))):
        code, said = world.fsd(*words)
        if code:
            raise Failed(f"fsd {' '.join(words)}: {said}")
    world.chunkservers.remove(host)
    host.kill()
    run("ip", "netns", "delete", host.namespace)
    return stored


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill chunkserver", kill_chunkserver),
        Fault("kill metadata", kill_metadata),
        Fault("kill mount daemon", kill_mount),
        Fault("stop chunkserver", stop_chunkserver),
        Fault("stop metadata", stop_metadata),
        Fault("stop mount", stop_mount, FENCED),
        Fault("cut chunkserver", cut_chunkserver("both")),
        Fault("cut chunkserver in", cut_chunkserver("in")),
        Fault("cut chunkserver out", cut_chunkserver("out")),
        Fault("cut chunkserver-metadata", cut_chunkserver_from_metadata),
        Fault("cut two chunkservers", cut_two_chunkservers),
        Fault("cut metadata", cut_metadata),
        Fault("cut mount-chunkserver", cut_mount_from_chunkserver),
        Fault("cut mount", cut_mount, FENCED),
        Fault("slow and losing link", slow_and_losing),
        Fault("full disk", full_disk, frozenset({"ENOSPC"})),
        Fault("flipped bits", flip_bits),
        Fault("add, drain, remove", add_drain_remove),
    )
}
