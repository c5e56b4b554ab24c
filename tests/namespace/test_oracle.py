"""Random programs: `apply` does what a local directory does, errno by errno, and leaves the same tree; fsck agrees."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsd.namespace.fsck import check
from tests.namespace.oracle import Pair, Step

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="acts as several users: needs root")

KINDS = (
    *("create", "mkdir", "mkdir", "rename", "rename", "unlink", "rmdir", "link", "symlink", "mknod"),
    *(
        "chmod",
        "chown",
        "write",
        "write",
        "truncate",
        "setxattr",
        "removexattr",
        "open",
        "write_handle",
        "close_handle",
    ),
)
NAMES = (b"a", b"b", b"c", b"\xff\xfe", b"x" * 255, b"x" * 256)
OFTEN = NAMES[:3] * 4 + NAMES
MODES = (0o644, 0o666, 0o600, 0o755, 0o4755, 0o1777)
STRONG_MODES = (*MODES, 0o2775, 0o6777, 0o2644, 0o3777)  # root's alone: set-gid for others depends on their groups
SIZES = (0, 1, 10, 63, 64, 65, 100, 5000)
# What each program begins with, so that most steps meet something: /a (sticky, of user 1000) with a file, a directory and
# a chunked file in it; /b empty and set-gid; /c with two names.
PRELUDE = (
    Step("mkdir", name=b"a", mode=0o1777, uid=1000),
    Step("mkdir", name=b"b"),
    Step("chmod", what=2, mode=0o2775),
    Step("create", name=b"c", mode=0o4755, uid=2000),
    Step("create", where=1, name=b"a", mode=0o6777),
    Step("mkdir", where=1, name=b"b"),
    Step("create", where=1, name=b"c", uid=2000, mode=0o666),
    Step("write", what=6, data=b"z" * 200),
    Step("link", what=3, where=2, name=b"a"),
)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    kind = draw(st.sampled_from(KINDS))
    uid = draw(st.sampled_from((0, 0, 1000, 2000)))
    root_only = uid == 0 or kind in ("chmod", "mkdir")
    return Step(
        kind,
        where=draw(st.integers(0, 5)),
        other=draw(st.integers(0, 5)),
        what=draw(st.integers(0, 9)),
        name=draw(st.sampled_from(OFTEN)),
        new_name=draw(st.sampled_from(OFTEN)),
        mode=draw(st.sampled_from(STRONG_MODES if root_only else MODES)),
        number=draw(st.integers(0, 5)),
        size=draw(st.sampled_from(SIZES)),
        data=draw(st.sampled_from((b"", b"x", b"hello", b"y" * 60, b"z" * 200))),
        uid=uid,
    )


def run_program(program: list[Step], *, compare_times: bool) -> None:
    umask = os.umask(0)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = Path(folder) / "tree"
        root.mkdir()
        pair = Pair(root, compare_times=compare_times)
        try:
            for step in (*PRELUDE, *program):
                pair.run(step)
            pair.compare()
            assert list(check(pair.model.view)) == []
        finally:
            pair.local.close()
            os.umask(umask)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps(), min_size=5, max_size=30))
def test_random_programs_end_as_on_a_local_directory(program: list[Step]) -> None:
    run_program(program, compare_times=False)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps(), min_size=5, max_size=20))
def test_random_programs_move_the_same_times(program: list[Step]) -> None:
    if not times_are_fine_grained():
        pytest.skip("two changes in a row get the same time on this kernel or file system")
    run_program(program, compare_times=True)


def times_are_fine_grained() -> bool:
    """Whether every change that follows a look gets a time of its own (Linux 6.13 and later)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        seen: set[int] = set()
        for number in range(20):
            path.write_bytes(b"x" * number)
            seen.add(path.stat().st_ctime_ns)
        return len(seen) == 20
