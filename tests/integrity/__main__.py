"""python -m tests.integrity DIRECTORY [--second DIRECTORY] [--seed N] [--seeds N] [--operations N] [--minutes M]

Ends with 1 at the first mismatch and prints the line that reproduces it.
"""

import argparse
import itertools
import sys
import time
import traceback

from tests.integrity.exercise import Exercise, Settings, sparse


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.integrity")
    parser.add_argument("directory")
    parser.add_argument("--second", help="the same directory on another mount")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--operations", type=int, default=1000)
    parser.add_argument("--minutes", type=float, help="as many seeds as fit")
    parser.add_argument("--max-size", type=int, default=1 << 20)
    parser.add_argument("--no-maps", action="store_true")
    parser.add_argument("--sparse", action="store_true", help="terabytes with holes instead")
    parser.add_argument("--check-every", type=int, default=50)
    words = parser.parse_args()
    directories = (words.directory, words.second) if words.second else (words.directory,)
    settings = Settings(directories, words.max_size, maps=not words.no_maps, check_every=words.check_every)
    began = time.monotonic()
    seeds = itertools.count(words.seed) if words.minutes else range(words.seed, words.seed + words.seeds)
    done = 0
    for seed in seeds:
        if words.minutes and time.monotonic() - began > words.minutes * 60:
            break
        try:
            if words.sparse:
                sparse(words.directory, seed, words.operations)
            else:
                Exercise(settings, seed).run(words.operations)
        except Exception:
            traceback.print_exc()
            again = [f"--operations {words.operations}", f"--max-size {words.max_size}", f"--seed {seed}"]
            again += [f"--check-every {words.check_every}"]
            again += [f"--second {words.second}"] * bool(words.second)
            again += ["--no-maps"] * words.no_maps + ["--sparse"] * words.sparse
            print(f"reproduce: python -m tests.integrity {words.directory} {' '.join(again)}")
            return 1
        done += words.operations
    print(f"{done} operations, no mismatch, {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
