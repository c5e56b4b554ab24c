"""Real programs on the mount: an unpacked and compiled source tree, git, SQLite; volumes; info."""

import compileall
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.integration.conftest import RealCluster

pytestmark = pytest.mark.real
TREE_FILES = 400


def make_tree(root: Path) -> None:
    """A source tree of Python modules, some nested, some large, with links."""
    for number in range(TREE_FILES):
        package = root / f"package{number % 20}" / f"sub{number % 3}"
        package.mkdir(parents=True, exist_ok=True)
        body = "".join(f"def f{i}(x):\n    return x + {i}\n\n" for i in range(number % 50 + 1))
        (package / f"module{number}.py").write_text(body)
    (root / "data.bin").write_bytes(os.urandom(9_000_000))
    os.symlink("package0/sub0", root / "link")


def digest(root: Path) -> dict[str, str]:
    """Every file's hash by its path, without byte code."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_a_source_tree_is_unpacked_compiled_and_read_back_after_a_chunkserver_was_killed(
    cluster: RealCluster, a: Path, b: Path, tmp_path: Path
):
    make_tree(tmp_path / "src")
    with tarfile.open(tmp_path / "src.tar", "w") as tar:
        tar.add(tmp_path / "src", "src")
    subprocess.run(["tar", "xf", str(tmp_path / "src.tar"), "-C", str(a)], check=True)
    assert compileall.compile_dir(str(a / "src"), quiet=1)
    subprocess.run(["sync", "-f", str(a)], check=True)
    cluster.kill("chunkserver", 1)
    wanted = digest(tmp_path / "src")
    assert digest(b / "src") == wanted
    assert digest(a / "src") == wanted
    assert len(list((b / "src").rglob("*.pyc"))) == TREE_FILES
    shutil.rmtree(a / "src")
    assert os.listdir(b) == []


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git(a: Path, b: Path):
    make_tree(a / "src")

    def git(where: Path, *words: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "safe.directory=*"]
        return subprocess.run(
            ["git", *identity, "-C", str(where), *words], check=True, capture_output=True, text=True
        ).stdout

    git(a / "src", "init", "-q")
    git(a / "src", "add", ".")
    git(a / "src", "commit", "-qm", "all")
    assert git(b / "src", "status", "--porcelain") == ""
    git(b / "src", "fsck", "--strict")
    (b / "src" / "package0" / "sub0" / "module0.py").write_text("changed\n")
    assert git(a / "src", "status", "--porcelain").split() == ["M", "package0/sub0/module0.py"]


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_sqlite(a: Path, mode: str):
    database = sqlite3.connect(a / "db", timeout=30)
    assert database.execute(f"PRAGMA journal_mode={mode}").fetchone()[0].upper() == mode
    database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
    for batch in range(10):
        with database:
            database.executemany("INSERT INTO t VALUES (?, ?)", [(batch * 50 + i, os.urandom(500)) for i in range(50)])
    with database:
        database.execute("DELETE FROM t WHERE k % 3 = 0")
    assert database.execute("SELECT count(*) FROM t").fetchone()[0] == 333
    assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    database.close()
    again = sqlite3.connect(a / "db")
    assert again.execute("SELECT count(*) FROM t").fetchone()[0] == 333
    again.close()


def test_info_tells_where_the_copies_are(cluster: RealCluster, a: Path):
    (a / "small").write_text("x")
    with open(a / "large", "wb") as file:
        file.write(os.urandom(5_000_000))
        os.fsync(file.fileno())
    small = json.loads(cluster.fsd("info", str(a / "small"), "--json").stdout)
    large = json.loads(cluster.fsd("info", str(a / "large"), "--json").stdout)
    assert small["stored"] == "inline" or small["chunk_count"] <= 1
    assert (large["stored"], large["chunk_count"], large["inode"]["size"]) == ("chunks", 2, 5_000_000)
    for chunk in large["chunks"]:
        assert [copy["state"] for copy in chunk["copies"]] == ["stored", "stored"]
        assert len({copy["checksum"] for copy in chunk["copies"]}) == 1
        assert len({copy["zone"] for copy in chunk["copies"]}) == 2
    assert "chunk 1 in placement group" in cluster.fsd("info", str(a / "large")).stdout


def test_volumes_are_created_listed_set_and_deleted(cluster: RealCluster):
    where = ("--data", str(cluster.data))
    cluster.fsd("volume", "create", "other", "--replicas", "3", "--min-replicas", "2", *where)
    cluster.fsd("volume", "set", "other", "--quota", "1G", "--quota-inodes", "1000", *where)
    rows = json.loads(cluster.fsd("volume", "list", "--json", *where).stdout)["volumes"]
    other = next(row for row in rows if row["name"] == "other")
    assert (other["replicas"], other["min_replicas"], other["quota_bytes"], other["quota_inodes"]) == (
        3,
        2,
        1 << 30,
        1000,
    )
    cluster.fsd("volume", "delete", "other", *where)
    rows = json.loads(cluster.fsd("volume", "list", "--json", *where).stdout)["volumes"]
    assert [row["name"] for row in rows] == ["default"]
