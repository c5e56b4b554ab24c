"""python -m tests.conformance DIRECTORY [DIRECTORY ...] [--json] [--category NAME] [--match TEXT]"""

import argparse
import dataclasses
import json
import os
import sys

from tests.conformance.run import run, table
from tests.conformance.trial import CASES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="POSIX semantics of directories.")
    parser.add_argument("directories", nargs="+", metavar="DIRECTORY", help="the first is the model, e.g. on ext4")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--category", action="append", default=[])
    parser.add_argument("--skip", action="append", default=[], metavar="CATEGORY")
    parser.add_argument("--match", default="", help="only cases with this in their names")
    words = parser.parse_args()
    if os.geteuid():
        parser.error("needs root: it acts as several users")
    wanted = [name for name in words.category or CASES if name not in words.skip]
    columns = {directory: run(directory, wanted, words.match) for directory in words.directories}
    if words.json:
        told = {d: {c: dataclasses.asdict(f) for c, f in figures.items()} for d, figures in columns.items()}
        print(json.dumps(told, indent=1))
    else:
        for directory, figures in columns.items():
            for failure in (failure for f in figures.values() for failure in f.failures):
                print(f"{directory}: {failure}")
        print(table(columns))
    return 1 if any(f.failures for figures in columns.values() for f in figures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
