"""One run: the load goes on while faults follow each other; afterwards everything is looked at. The table is the result."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.integration.conftest import REPOSITORY
from tests.integration.faults import load
from tests.integration.faults.catalogue import FAULTS, Failed
from tests.integration.faults.world import World

WORK = ("writer a", "writer b", "reader a", "reader b", "names a", "fio a")
HEALTH_S = 90
END_S = 150


@dataclass(slots=True)
class Line:
    """One fault. `needed` -1: what the load wrote while it lasted, times a node's share."""

    fault: str
    begin: float
    end: float = 0.0
    redundant_s: float = 0.0
    moved: int = 0
    needed: int = 0
    pause_s: float = 0.0
    errors: int = 0
    refused: list[str] = field(default_factory=list[str])  # errors that the fault does not excuse
    wrong: int = 0
    notes: str = ""


@dataclass(slots=True)
class Result:
    lines: list[Line]
    lost: int
    faults: list[str]  # anything that is not as it must be

    def table(self) -> str:
        titles = {"pause s": 8, "errors": 8, "wrong": 7, "redundant s": 13, "moved MB": 10, "needed MB": 11}
        head = f"{'fault':<26}" + "".join(f"{title:>{width}}" for title, width in titles.items()) + "  notes"
        rows = [
            f"{line.fault:<26}{line.pause_s:>8.1f}{line.errors:>8}{line.wrong:>7}{line.redundant_s:>13.1f}"
            f"{line.moved / 1e6:>10.1f}{line.needed / 1e6:>11.1f}  {line.notes}"
            for line in self.lines
        ]
        return "\n".join([head, *rows, f"bytes lost: {self.lost}", *self.faults])

    def json(self) -> str:
        return json.dumps(asdict(self), indent=1)


class Load:
    """The workers; a writer's reader is on the other mount and shares its ledger."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.events = {work: world.root / f"{work.replace(' ', '-')}.events" for work in WORK}
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def ledger_path(self, work: str) -> Path:
        kind, mount = work.split()
        if kind == "reader":
            return self.world.root / f"writer-{'b' if mount == 'a' else 'a'}.ledger"
        return self.world.root / f"{kind}-{mount}.ledger"

    def directory(self, work: str, mount: str) -> Path:
        """A reader reads what the other mount's writer writes."""
        kind, own = work.split()
        name = f"writer-{'b' if own == 'a' else 'a'}" if kind == "reader" else f"{kind}-{own}"
        return self.world.root / "mnt" / mount / name

    def start(self) -> None:
        for work in WORK:
            kind, mount = work.split()
            self.directory(work, mount).mkdir(exist_ok=True)
            words = [str(self.directory(work, mount)), str(self.ledger_path(work)), str(self.events[work])]
            self.children[work] = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.faults.load", kind, *words],
                stdin=subprocess.DEVNULL, cwd=REPOSITORY,
            )  # fmt: skip

    def written(self) -> int:
        return sum(load.Ledger(self.ledger_path(work)).written for work in WORK if not work.startswith("reader"))

    def acknowledged(self) -> int:
        ledgers = [load.Ledger(self.ledger_path(work)) for work in WORK if work.startswith("writer")]
        return sum(ledger.get(slot)[1] for ledger in ledgers for slot in range(load.COUNT))

    def stop(self) -> list[str]:
        """What did not end as it should."""
        for child in self.children.values():
            child.send_signal(signal.SIGTERM)
        faults: list[str] = []
        for work, child in self.children.items():
            try:
                if child.wait(END_S):
                    faults.append(f"{work}: exit code {child.returncode}")
            except subprocess.TimeoutExpired:
                child.kill()
                faults.append(f"{work}: hangs")
        return faults

    def read(self) -> Iterator[dict]:
        for path in self.events.values():
            if path.exists():
                yield from load.read_events(path)

    def lost(self) -> int:
        """Acknowledged bytes that are not there, looked at from both mounts."""
        lost, events = 0, load.Events(self.world.root / "check.events")
        for work in WORK:
            if work.startswith("writer"):
                ledger = load.Ledger(self.ledger_path(work))
                for mount in "ab":
                    directory = self.directory(work, mount)
                    lost += sum(load.check_slot(directory, ledger, events, slot) for slot in range(load.COUNT))
        return lost


def run(world: World, seed: int, until: float, only: Sequence[str] = (), out: object = None) -> Result:
    """Faults in random order under `seed`: each of `only` once, or all again and again `until` the clock says so."""
    rng = random.Random(seed)
    work = Load(world)
    work.start()
    lines: list[Line] = []
    faults: list[str] = []
    try:
        for name in _order(rng, only):
            if not only and time.monotonic() > until:
                break
            lines.append(_one(world, work, name, rng, faults))
            if out is not None:
                print(f"{name}: in sync again after {lines[-1].redundant_s:.1f} s", file=sys.stderr, flush=True)
            if faults:
                break
    finally:
        faults += work.stop()
    if not work.acknowledged():
        faults.append("the load wrote nothing")
    _attribute(lines, list(work.read()), faults)
    lost = 0
    with contextlib.suppress(OSError):
        lost = work.lost()
    if lost:
        faults.append(f"{lost} acknowledged bytes are lost or wrong")
    for words in (("scrub", "--deep", "--wait"), ("fsck",)):
        code, said = world.fsd(*words)
        if code:
            faults.append(f"fsd {' '.join(words)}: exit code {code}: {said.strip()[-800:]}")
    return Result(lines, lost, faults)


def _order(rng: random.Random, only: Sequence[str]) -> Iterator[str]:
    while True:
        names = list(only or FAULTS)
        rng.shuffle(names)
        yield from names
        if only:
            return


def _one(world: World, work: Load, name: str, rng: random.Random, faults: list[str]) -> Line:
    line = Line(name, time.monotonic())
    sent, written = _sent(world), work.written()
    try:
        line.needed = FAULTS[name].strike(world, rng)
    except (Failed, AssertionError) as error:
        faults.append(f"{name}: {error}")
    healed = time.monotonic()
    if line.needed < 0:
        line.needed = (work.written() - written) * 2 // len(world.chunkservers)
    while True:
        again = world.revive()
        if again:
            line.notes += f"ended by itself: {', '.join(again)} "
        if world.healthy():
            break
        if time.monotonic() > healed + HEALTH_S:
            faults.append(f"after {name}: not in sync within {HEALTH_S} s: {world.told()}")
            break
        time.sleep(0.2)
    line.end = time.monotonic()
    line.redundant_s = line.end - healed
    now = _sent(world)
    line.moved = sum(count - sent.get(node, 0) if count >= sent.get(node, 0) else count for node, count in now.items())
    return line


def _sent(world: World) -> dict[int, int]:
    return {node["node"]: node["resynced_bytes"] for node in world.status()["nodes"]}


def _attribute(lines: list[Line], events: list[dict], faults: list[str]) -> None:
    """Give every event to the fault in whose time it ended."""
    for event in events:
        end = event["t"] + event["d"]
        line = next((x for x in lines if x.begin <= end and event["t"] <= x.end), None)
        error = event.get("error")
        if "wrong" in event:
            faults.append(f"{event['wrong']} wrong bytes: {event['what']}")
        if line is None:
            if error:
                faults.append(f"without a fault: {event['call']} failed with {error}")
            continue
        line.wrong += event.get("wrong", 0)
        if event.get("call") != "fio":
            line.pause_s = max(line.pause_s, event["d"])
        if error:
            line.errors += 1
            if error not in FAULTS[line.fault].allowed:
                line.refused.append(error)
                faults.append(
                    f"during {line.fault}: {event['call']} failed with {error} {event.get('text', '')}".strip()
                )
