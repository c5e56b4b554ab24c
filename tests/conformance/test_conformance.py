"""The suite passes on the local file system, so it asks for nothing unusual, and on a mount but for what is known."""

import os
from pathlib import Path

import pytest

from tests.conformance.run import run
from tests.conformance.trial import CASES
from tests.integration.conftest import a, b, cluster, real_cluster, usable  # noqa: F401  (fixtures)

KNOWN = {  # what a mount does not do yet, by case
    "acl/an_acl_lets_one_more_in": "no POSIX ACLs: setting one is refused",
    "acl/defaults_are_inherited": "no POSIX ACLs",
    "fallocate/holes_of_any_size": "zeroes are written: more than 256 MiB are refused",
    "holes/a_hole_is_zeroes_and_takes_no_space": "st_blocks is the size",
    "link/a_name_for_a_nameless_file": "no O_TMPFILE: EOPNOTSUPP, which its users expect",
    "open/without_a_name": "no O_TMPFILE",
}
pytestmark = [pytest.mark.real, pytest.mark.skipif(os.geteuid() != 0, reason="acts as several users")]


@pytest.mark.parametrize("category", sorted(CASES))
def test_local_file_system(category: str, tmp_path: Path):
    assert run(str(tmp_path), [category])[category].failures == []


@pytest.mark.skipif(not usable(), reason="needs root, /dev/fuse and fusermount3")
@pytest.mark.parametrize("category", sorted(CASES))
def test_mount(category: str, a: Path):  # noqa: F811
    failures = run(str(a), [category])[category].failures
    assert [failure for failure in failures if failure.split(":")[0] not in KNOWN] == []
    for part in KNOWN:
        if part.startswith(f"{category}/"):
            assert any(failure.startswith(part) for failure in failures), (
                f"{part} works now: no longer known as missing"
            )
