"""A bounded number of random operations, on a local file system (the model is right) and on mounts."""

import os
from pathlib import Path

import pytest

from tests.integration.conftest import a, b, cluster, real_cluster, usable  # noqa: F401  (fixtures)
from tests.integrity.exercise import Exercise, Settings, sparse

on_mounts = [pytest.mark.real, pytest.mark.skipif(not usable(), reason="needs root, /dev/fuse and fusermount3")]


@pytest.mark.parametrize("seed", range(3))
def test_the_model_agrees_with_the_local_file_system(seed: int, tmp_path: Path):
    Exercise(Settings((str(tmp_path),)), seed).run(400)
    sparse(str(tmp_path), seed, 200, span=1 << 40)


class TestMount:
    pytestmark = on_mounts

    @pytest.mark.parametrize("seed", [1, 2])
    def test_one_mount(self, seed: int, a: Path):  # noqa: F811
        Exercise(Settings((str(a),)), seed).run(600)

    @pytest.mark.parametrize("seed", [1, 106])  # 106: read in parts at once, behind an end that another mount has moved
    def test_two_mounts(self, seed: int, a: Path, b: Path):  # noqa: F811
        Exercise(Settings((str(a), str(b))), seed).run(450)

    def test_terabytes_with_holes(self, a: Path):  # noqa: F811
        sparse(str(a), 1, 150)

    def test_pages_written_through_a_map_are_no_append(self, a: Path):  # noqa: F811
        import mmap

        fd = os.open(a / "f", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.write(fd, b"x" * 100)
        with mmap.mmap(fd, 100) as mapped:
            os.write(fd, b"more")
            mapped[:4] = b"head"
            mapped.flush()
        os.close(fd)
        assert (a / "f").read_bytes() == b"head" + b"x" * 96 + b"more"
