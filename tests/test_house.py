"""The house rules: import directions, purity, lint, types. One test command says yes or no."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("fsd", "metadata", "chunkserver")

SINGLE_IMPORTERS = {
    "pyfuse3": "fsd/mount/",
    "msgpack": "fsd/wire/codec.py",
    "rocksdict": "fsd/runtime/rocks.py",
    "h11": "fsd/http/server.py",
    "dns": "fsd/runtime/discovery.py",
}

PURE = (
    "fsd/core/",
    "fsd/wire/",
    "fsd/protocol/",
    "fsd/cluster/",
    "fsd/namespace/",
    "fsd/client/writeback.py",
    "fsd/plugin/options.py",
    "fsd/client/readahead.py",
    "metadata/sessions.py",
    "metadata/leases.py",
    "metadata/balance.py",
    "metadata/membership.py",
    "metadata/moving.py",
    "chunkserver/replica.py",
    "chunkserver/resync.py",
)
NOT_PURE = ("trio", "time", "random", "socket", "threading", "subprocess", "psutil")

TOP_LEVEL = {
    "pyproject.toml", "README.md", "LICENSE", "bootstrap",
    "fsd", "metadata", "chunkserver", "tests", "systemd", "docs",
}  # fmt: skip


def sources(*tops: str) -> list[Path]:
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py") if "__pycache__" not in path.parts)


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Import):
            names |= {alias.name for alias in item.names}
        elif isinstance(item, ast.ImportFrom) and item.module and item.level == 0:
            names.add(item.module)
    return names


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}"


def test_the_top_level_stays_as_the_user_fixed_it():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    tops = {name.split("/")[0] for name in tracked if name and not name.startswith(".")}
    assert tops <= TOP_LEVEL


@pytest.mark.parametrize(("package", "only"), SINGLE_IMPORTERS.items())
def test_a_package_with_one_importer_has_one(package, only):
    importers = {
        relative(path) for path in sources(*PRODUCT) if package in {name.split(".")[0] for name in imported(path)}
    }
    assert importers, f"nobody imports {package}"
    assert all(importer.startswith(only) for importer in importers), importers


@pytest.mark.parametrize("path", [path for path in sources(*PRODUCT) if relative(path).startswith(PURE)], ids=relative)
def test_pure_modules_do_no_io_and_know_no_clock_and_no_chance(path):
    bad = {name for name in imported(path) if name.split(".")[0] in NOT_PURE or name.startswith("fsd.runtime")}
    assert not bad, f"{relative(path)} imports {bad}"


@pytest.mark.parametrize("path", sources(*PRODUCT), ids=relative)
def test_a_file_is_one_thought(path):
    assert len(path.read_text().splitlines()) <= 700, "split it"
    assert path.stem not in {"utils", "util", "helpers", "misc", "common"}
    assert ast.get_docstring(ast.parse(path.read_text())), "a module says what it is"


def test_nothing_iterates_rocksdb_in_a_way_that_hides_damage():
    """`items`, `keys` and `values` of rocksdict end early without an exception on a damaged block."""
    text = (ROOT / "fsd/runtime/rocks.py").read_text()
    for item in ast.walk(ast.parse(text)):
        if isinstance(item, ast.Attribute) and item.attr in {"items", "keys", "values", "snapshot"}:
            raise AssertionError(f"line {item.lineno}: {item.attr}")


def test_print_is_only_for_the_command_line():
    for path in sources(*PRODUCT):
        if relative(path).startswith("fsd/cli/"):
            continue
        calls = [
            item.lineno
            for item in ast.walk(ast.parse(path.read_text()))
            if isinstance(item, ast.Call) and isinstance(item.func, ast.Name) and item.func.id == "print"
        ]
        assert not calls, f"{relative(path)} prints in lines {calls}"


def test_import_directions_hold():
    run(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")


def test_ruff_is_clean():
    run(sys.executable, "-m", "ruff", "check", "--no-cache", ".")


def test_the_format_is_ruffs():
    run(sys.executable, "-m", "ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.slow
def test_the_types_are_clean():
    run(sys.executable, "-m", "pyright", "--pythonpath", sys.executable)
