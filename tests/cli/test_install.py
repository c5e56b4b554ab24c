"""fsd install and uninstall below a prefix; what they install is looked at by the programs that use it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fsd.cli import completions, exits, installing, manpages, tree
from fsd.cli.main import COMMANDS
from tests.cli.test_commands import REPOSITORY, fsd, only_lines

PROGRAM = "/opt/fsd/bin/fsd"
WORDS = ("--program", PROGRAM, "--systemd", "--mount-helper", "--plugin")


def installed(root: Path) -> dict[str, bytes]:
    """Every file and link below `root`, the manifest left out."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = "/" + path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = b"-> " + os.readlink(path).encode()
        elif path.is_file() and name != installing.MANIFEST:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An installation of everything."""
    root = tmp_path_factory.mktemp("root")
    done = fsd("install", *WORDS, "--prefix", str(root))
    assert done.returncode == 0, done.stderr
    return root


def test_units_helpers_manuals_and_completions_are_where_their_users_look(whole):
    files = installed(whole)
    assert files["/usr/sbin/mount.fsd"] == f"-> {PROGRAM}".encode()
    assert files["/usr/sbin/umount.fuse.fsd"] == f"-> {PROGRAM}".encode()
    assert f"ExecStart={PROGRAM} metadata".encode() in files["/usr/local/lib/systemd/system/fsd-metadata.service"]
    for command in COMMANDS:
        assert f"/usr/local/share/man/man1/fsd-{command}.1" in files
    assert "/etc/fsd/fsd.toml" in files
    assert not any(b"/usr/bin/fsd" in content for content in files.values())


def test_again_changes_nothing(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    done = fsd("install", *WORDS, "--prefix", str(whole))
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"unchanged"}
    after = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    manifest = whole / installing.MANIFEST.lstrip("/")
    assert {p: t for p, t in before.items() if p != manifest} == {p: t for p, t in after.items() if p != manifest}


def test_uninstall_leaves_nothing_behind(tmp_path):
    (tmp_path / "usr/local").mkdir(parents=True)
    assert fsd("install", *WORDS, "--prefix", str(tmp_path)).returncode == 0
    done = fsd("uninstall", "--prefix", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "usr", tmp_path / "usr/local"]


def test_a_foreign_file_is_not_overwritten_and_nothing_else_is_done(tmp_path):
    foreign = tmp_path / "usr/sbin/mount.fsd"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    done = fsd("install", *WORDS, "--prefix", str(tmp_path))
    assert done.returncode == exits.BUSY
    assert str(foreign) in only_lines(done)[0]
    assert installed(tmp_path) == {"/usr/sbin/mount.fsd": b"mine"}


def test_what_somebody_changed_is_kept(tmp_path):
    assert fsd("install", *WORDS, "--prefix", str(tmp_path)).returncode == 0
    settings = tmp_path / "etc/fsd/fsd.toml"
    settings.write_text("[metadata]\n")
    unit = tmp_path / "usr/local/lib/systemd/system/fsd.target"
    unit.write_text("changed")
    done = fsd("install", *WORDS, "--prefix", str(tmp_path))
    assert done.returncode == exits.BUSY
    assert len([line for line in only_lines(done) if "fsd.target" in line]) == 1
    unit.unlink()
    done = fsd("install", *WORDS, "--prefix", str(tmp_path))
    assert done.returncode == 0
    assert f"keep      {settings}" in done.stdout.splitlines()
    assert f"install   {unit}" in done.stdout.splitlines()
    done = fsd("uninstall", "--prefix", str(tmp_path))
    assert f"keep      {settings} (it was changed)" in done.stdout.splitlines()
    assert installed(tmp_path) == {"/etc/fsd/fsd.toml": b"[metadata]\n"}


def test_another_version_is_an_update_of_what_is_ours(tmp_path):
    assert fsd("install", *WORDS, "--prefix", str(tmp_path)).returncode == 0
    done = fsd("install", "--program", "/opt/new/fsd", *WORDS[2:], "--prefix", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert installed(tmp_path)["/usr/sbin/mount.fsd"] == b"-> /opt/new/fsd"
    assert "update    " in done.stdout


def test_a_dry_run_tells_all_and_does_nothing(tmp_path):
    done = fsd("install", *WORDS, "--prefix", str(tmp_path), "--dry-run")
    assert done.returncode == 0
    assert "mount.fsd" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_uninstall_of_nothing_and_a_damaged_manifest_are_told(tmp_path):
    done = fsd("uninstall", "--prefix", str(tmp_path))
    assert done.returncode == exits.USAGE
    assert len(only_lines(done)) == 1
    manifest = tmp_path / installing.MANIFEST.lstrip("/")
    manifest.parent.mkdir(parents=True)
    for text in ("{", json.dumps({"format": 9})):
        manifest.write_text(text)
        done = fsd("uninstall", "--prefix", str(tmp_path))
        assert done.returncode == exits.USAGE
        assert str(manifest) in only_lines(done)[0]


def test_an_installation_that_the_services_could_not_read_is_refused(monkeypatch):
    with pytest.raises(Exception, match="out of the services' sight"):
        installing.check_services_see("/home/me/fsd/bin/fsd")


def test_an_unprivileged_umask_does_not_close_the_files(tmp_path):
    root = tmp_path / "root"
    old = os.umask(0o077)
    try:
        assert fsd("install", *WORDS, "--prefix", str(root)).returncode == 0
    finally:
        os.umask(old)
    for path in (root / "usr").rglob("*"):
        if not path.is_symlink():
            assert path.stat().st_mode & 0o044 == 0o044, path


# --- what is installed is good ----------------------------------------------------------------------------------------


def test_units_are_verified_by_systemd(whole, tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is missing (package systemd)")
    units = whole / "usr/local/lib/systemd/system"
    place = tmp_path / "units"
    place.mkdir()
    for unit in units.iterdir():  # with a program that exists here: verify looks
        (place / unit.name).write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    names = [
        "fsd.target",
        "fsd-servers.target",
        "fsd-metadata.service",
        "fsd-chunkserver@d.service",
        "fsd-mount@m.service",
        "fsd-plugin.service",
        "fsd-plugin.socket",
    ]
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{place}:"}
    done = subprocess.run(
        [program, "verify", "--man=no", *names], cwd=place, env=environment, capture_output=True, text=True, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if "fsd" in line]
    assert done.returncode == 0, done.stderr
    assert ours == []


@pytest.mark.parametrize("unit", ["fsd-metadata.service", "fsd-chunkserver@.service"])
def test_the_servers_exposure_is_small(unit):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is missing (package systemd)")
    done = subprocess.run(
        [program, "security", "--offline=true", "--no-pager", "--threshold=20", str(REPOSITORY / "systemd" / unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


def test_manual_pages_are_good_roff(whole):
    pages = sorted((whole / "usr/local/share/man").rglob("*.[18]"))
    assert len(pages) == len(COMMANDS) + 2
    for page in pages:
        lines = page.read_text().splitlines()
        assert lines[0].startswith(".TH ")
        requests = {line.split()[0] for line in lines if line.startswith((".", "'"))}
        assert requests <= {".TH", ".SH", ".PP", ".TP", ".B", ".BR", ".I", ".IR", ".nf", ".fi", ".br"}, page
    groff = shutil.which("groff")
    if groff is not None:
        done = subprocess.run(
            [groff, "-ww", "-man", "-z", "-Tutf8", *map(str, pages)], capture_output=True, text=True, timeout=60
        )
        assert done.stderr == ""


def test_a_manual_page_tells_every_option_and_escapes_what_roff_would_take():
    flag = tree.Flag(("--a-b",), "X", ".starts with a dot \\ and a backslash")
    command = tree.Command("x-y", "summary", "first\n\n'quote", (flag,), ())
    page = manpages.page(command, "1.0")
    assert "\\-\\-a\\-b" in page
    assert "\\&.starts with a dot \\e and" in page
    assert "\n\\&'quote\n" in page


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(words)
    program = (
        f"source {script}; COMP_WORDS=({line} {'' if words[-1] else chr(39) * 2}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1));"
        ' _fsd; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_commands_options_and_choices(whole):
    script = whole / "usr/local/share/bash-completion/completions/fsd"
    assert complete(script, "fsd", "chu") == ["chunkserver"]
    assert set(COMMANDS) <= set(complete(script, "fsd", ""))
    assert "--listen" in complete(script, "fsd", "chunkserver", "--l")
    assert "create" in complete(script, "fsd", "volume", "c")
    assert complete(script, "fsd", "chunkserver", "--data", "--l") == []  # the value of --data is a path: bash's own


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_scripts_parse(whole, shell):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is missing")
    places = {"zsh": "zsh/site-functions/_fsd", "fish": "fish/vendor_completions.d/fsd.fish"}
    script = whole / "usr/local/share" / places[shell]
    done = subprocess.run([program, "-n", str(script)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_completions_name_every_option_in_every_shell():
    offered = tree.commands()
    texts = {"bash": completions.bash(offered), "zsh": completions.zsh(offered), "fish": completions.fish(offered)}
    for command in offered:
        for flag in command.flags:
            for shell, text in texts.items():
                assert (f"-l {flag.long[2:]}" if shell == "fish" else flag.long) in text, (shell, flag)


def test_the_tree_is_the_parsers():
    """Every option of `fsd COMMAND --help` is in the tree."""
    done = fsd("volume", "--help")
    volume = next(command for command in tree.commands() if command.name == "volume")
    for flag in volume.flags:
        assert flag.long in done.stdout
    assert volume.positionals[0].choices[:2] == ("create", "list")
