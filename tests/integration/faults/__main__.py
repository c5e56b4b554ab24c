"""By hand: python -m tests.integration.faults --minutes N --seed S [--only NAME,NAME] [--json] [--lease-s S ...]"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.integration.faults.catalogue import FAULTS
from tests.integration.faults.judge import run
from tests.integration.faults.world import CannotRun, Times, World


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help=f"each once, separated by semicolons: {'; '.join(FAULTS)}")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="leave the directory with the logs")
    parser.add_argument("--lease-s", type=float, default=Times().lease)
    parser.add_argument("--grace-s", type=float, default=Times().grace)
    parser.add_argument("--session-ttl-s", type=float, default=Times().session_ttl)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="fsd-faults-"))
    world = World(root, Times(options.lease_s, options.grace_s, options.session_ttl_s))
    failed = True
    try:
        world.up()
        only = [name.strip() for name in options.only.split(";") if name.strip()]
        result = run(world, options.seed, time.monotonic() + options.minutes * 60, only, sys.stderr)
        print(result.json() if options.json else result.table())
        failed = bool(result.faults)
    except CannotRun as error:
        print(f"cannot run: {error}", file=sys.stderr)
    finally:
        world.down()
        if failed or options.keep:
            print(f"logs: {root}", file=sys.stderr)
        else:
            shutil.rmtree(root, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
