"""A few minutes of `python -m tests.integration.faults` take place here, under a seed; all of it is run by hand."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.integration.faults import load
from tests.integration.faults.catalogue import FAULTS
from tests.integration.faults.judge import run
from tests.integration.faults.world import CannotRun, Times, World

SEED = 20
IN_CI = (
    "kill chunkserver",
    "kill metadata",
    "kill mount daemon",
    "stop chunkserver",
    "cut chunkserver in",
    "cut chunkserver-metadata",
    "full disk",
    "flipped bits",
)


def test_real_faults_lose_no_acknowledged_byte_and_show_no_wrong_one():
    root = Path(tempfile.mkdtemp(prefix="fsd-faults-"))
    world = World(root, Times())
    try:
        try:
            world.up()
        except CannotRun as error:
            pytest.skip(f"no hosts of our own here: {error}")
        result = run(world, SEED, 0, IN_CI)
        assert result.faults == [], result.table()
        assert {line.fault for line in result.lines} == set(IN_CI) <= set(FAULTS)
    finally:
        world.down()
        shutil.rmtree(root, ignore_errors=True)


def test_a_reader_accepts_versions_from_the_acknowledged_to_the_attempted_one_and_no_other():
    assert load.wrong_bytes(3, load.content(3, 5), 4, 5) == 0
    assert load.wrong_bytes(3, load.content(3, 4), 4, 5) == 0
    assert load.wrong_bytes(3, load.content(3, 4)[:90_000] + load.content(3, 5)[90_000:], 4, 5) == 0
    assert load.wrong_bytes(3, load.content(3, 3), 4, 5) > load.SLOT * 0.9
    flipped = bytearray(load.content(3, 5))
    flipped[1234] ^= 1
    assert load.wrong_bytes(3, bytes(flipped), 5, 5) == 1
    assert load.wrong_bytes(3, load.content(3, 5)[:-10], 5, 5) in range(8, 11)
