"""Running cases in fresh directories and adding them up."""

import os
import shutil
import signal
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.conformance import (  # noqa: F401  (each registers its cases)
    case_bytes,
    case_directories,
    case_locks,
    case_names,
    case_open,
    case_owners,
    case_space,
    case_xattrs,
)
from tests.conformance.trial import CASES, Trial

CASE_S = 60


@dataclass
class Figures:
    """Of one category."""

    passed: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0

    @property
    def checks(self) -> int:
        return self.passed + len(self.failures)


class CaseTimeout(Exception):
    pass


def run(directory: str, categories: Iterable[str] = (), match: str = "") -> dict[str, Figures]:
    """All cases (of these categories) in `directory`; root only."""
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    figures: dict[str, Figures] = {}
    umask = os.umask(0o022)
    signal.signal(signal.SIGALRM, _timeout)
    try:
        for category in sorted(categories or CASES):
            total = figures[category] = Figures()
            for name, function in CASES[category].items():
                if match not in name:
                    continue
                began = time.monotonic()
                trial = run_case(directory, f"{category}/{name}", function)
                total.seconds += time.monotonic() - began
                total.passed += trial.passed
                total.failures += trial.failures
    finally:
        os.umask(umask)
        os.fchdir(here)
        os.close(here)
    return figures


def run_case(directory: str, name: str, function) -> Trial:
    trial = Trial(name)
    work = os.path.join(directory, f"conformance-{os.getpid()}-{time.monotonic_ns()}")
    os.mkdir(work, 0o755)
    os.chdir(work)
    os.umask(0o022)
    signal.alarm(CASE_S)
    try:
        function(trial)
    except CaseTimeout:
        trial.failures.append(f"{name}: not done in {CASE_S} s")
    except Exception as error:
        line = error.__traceback__
        while line is not None and line.tb_next is not None and "case_" in line.tb_next.tb_frame.f_code.co_filename:
            line = line.tb_next
        trial.failures.append(f"{name}: line {line.tb_lineno if line else 0}: ended by {error!r}")
    finally:
        signal.alarm(0)
        os.chdir("/")
        shutil.rmtree(work, onerror=_open_up)
    return trial


def _timeout(number: int, frame: object) -> None:
    raise CaseTimeout


def _open_up(function, path: str, error) -> None:
    try:
        os.chmod(os.path.dirname(path), stat.S_IRWXU)
        function(path)
    except OSError:
        pass


def table(columns: dict[str, dict[str, Figures]]) -> str:
    """Categories down, directories across: passed of checks."""
    lines = [f"{'category':18}" + "".join(f"{label:>16}" for label in columns)]
    names = sorted({name for figures in columns.values() for name in figures})
    for name in names:
        cells = [columns[label].get(name, Figures()) for label in columns]
        lines.append(f"{name:18}" + "".join(f"{f'{cell.passed} of {cell.checks}':>16}" for cell in cells))
    sums = [
        (sum(f.passed for f in figures.values()), sum(f.checks for f in figures.values()))
        for figures in columns.values()
    ]
    lines.append(f"{'all':18}" + "".join(f"{f'{passed} of {checks}':>16}" for passed, checks in sums))
    return "\n".join(lines)
