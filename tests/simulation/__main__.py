"""`python -m tests.simulation --seeds N [--start S] [--jobs J]`: run seeds. `--seed S [--trace]`: one of them, again."""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator

from tests.simulation.scenario import Outcome, Plan, run_quietly, run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every event")
    parser.add_argument("--mutation", help='how many seeds it takes to find this planted bug ("all": each of them)')
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failing seed")
    options = parser.parse_args()
    if options.seed is not None:
        return one(options.seed, options.trace)
    if options.mutation is not None:
        return hunt(options.mutation)
    return many(options)


def hunt(name: str) -> int:
    from tests.simulation import (
        mutations,
        mutations_of_daemons,
        mutations_of_flushes,
        mutations_of_leases,
        mutations_of_members,
    )

    missed = 0
    for mutation in [
        *mutations.MUTATIONS,
        *mutations_of_members.MUTATIONS,
        *mutations_of_leases.MUTATIONS,
        *mutations_of_flushes.MUTATIONS,
        *mutations_of_daemons.MUTATIONS_OF_DAEMONS,
    ]:
        if name in ("all", mutation.name):
            begin = time.monotonic()
            outcome = mutation.hunt()
            missed += outcome is None
            found = f"seed {outcome.seed}: {(outcome.fault or '').splitlines()[0][:110]}" if outcome else "NOT FOUND"
            print(f"{mutation.name}: {found} ({time.monotonic() - begin:.0f} s)", flush=True)
    return 1 if missed else 0


def one(seed: int, trace: bool) -> int:
    print(Plan.of(seed))
    outcome = run_seed(seed, trace=print if trace else None)
    print(
        f"seed {seed}: {outcome.operations} operations, {outcome.events} events, {outcome.virtual_s:.0f} virtual s, "
        f"digest {outcome.digest}"
    )
    if outcome.fault:
        print(f"FAILED: {outcome.fault}")
    return 1 if outcome.fault else 0


def many(options: argparse.Namespace) -> int:
    seeds = range(options.start, options.start + options.seeds)
    begin = time.monotonic()
    failed = operations = 0
    virtual = 0.0
    for done, outcome in enumerate(outcomes(seeds, options.jobs), 1):
        operations += outcome.operations
        virtual += outcome.virtual_s
        if outcome.fault:
            failed += 1
            print(f"\nseed {outcome.seed} FAILED: {outcome.fault[:2000]}")
            print(f"reproduce: python -m tests.simulation --seed {outcome.seed}")
            if not options.keep_going:
                break
        if done % 10 == 0 or outcome.fault or done == len(seeds):
            spent = time.monotonic() - begin
            print(
                f"{done} of {len(seeds)} seeds, {failed} failed, {operations} operations, {virtual:.0f} virtual s, "
                f"{spent:.0f} s ({spent / done:.2f} s each)",
                flush=True,
            )
    return 1 if failed else 0


def outcomes(seeds: range, jobs: int) -> Iterator[Outcome]:
    if jobs <= 1:
        yield from map(run_quietly, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(run_quietly, seeds)


if __name__ == "__main__":
    sys.exit(main())
