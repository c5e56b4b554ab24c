"""A machine booted by a real systemd, out of this host's own root directory: nothing is downloaded or copied.

    tmpfs ── upper ─┐
    /  (read only) ─┴─ overlay ── systemd-nspawn: its own init, mounts, processes, network, journal
                                  /opt/fsd: a Python environment whose packages and sources are this repository's

What the machine writes goes to the tmpfs; its services are only those that fsd needs.
"""

import contextlib
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.integration.conftest import REPOSITORY, eventually

INIT = "/lib/systemd/systemd"
BOOT_TIMEOUT_S = 60
PROGRAM = "/opt/fsd/bin/fsd"


class CannotBoot(Exception):
    """This host cannot run such a machine; the text says why."""


class Machine:
    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self.leader = leader

    def run(self, *command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """In the machine, as its root."""
        inside = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "--", "env", "-i"]
        environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]
        return subprocess.run(
            [*inside, *environment, *command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )

    def do(self, *command: str, timeout_s: float = 60) -> str:
        """Must succeed; what it said."""
        done = self.run(*command, timeout_s=timeout_s)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}\n{self.journal('-n', '12')}"
        return done.stdout.strip()

    def shell(self, script: str, timeout_s: float = 60) -> str:
        return self.do("sh", "-ec", script, timeout_s=timeout_s)

    def write(self, path: str, text: str) -> None:
        """By the machine's own view: /run and /tmp are its own."""
        command = [
            "nsenter",
            "-t",
            str(self.leader),
            "-m",
            "-p",
            "--",
            "sh",
            "-c",
            'mkdir -p "${1%/*}" && cat >"$1"',
            "-",
        ]
        subprocess.run([*command, path], input=text, text=True, check=True, timeout=30)

    def show(self, unit: str, name: str) -> str:
        return self.do("systemctl", "show", "-p", name, "--value", unit)

    def await_state(self, unit: str, wanted: str = "active", timeout_s: float = 60) -> None:
        def state() -> str:
            return self.show(unit, "ActiveState")

        eventually(lambda: state() == wanted, timeout_s, lambda: f"{unit} is {state()}\n{self.journal('-n', '40')}")

    def journal(self, *words: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", *words).stdout

    def mounted(self, directory: str) -> bool:
        """Whether an fsd volume is mounted there; looking does not touch it."""
        lines = self.do("cat", "/proc/self/mountinfo").splitlines()
        return any(line.split()[4] == directory and " - fuse.fsd " in line for line in lines)


@contextlib.contextmanager
def booted() -> Iterator[Machine]:
    """Raises CannotBoot."""
    for program in ("systemd-nspawn", "nsenter", INIT):
        if shutil.which(program) is None:
            raise CannotBoot(f"{program} is missing (package systemd-container)")
    base = Path(tempfile.mkdtemp(prefix="fsd-machine-"))
    try:
        with _root(base) as root:
            _prepare(root)
            with _running(base, root) as leader:
                yield Machine(root, leader)
    finally:
        shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def _root(base: Path) -> Iterator[Path]:
    _mount("-t", "tmpfs", "-o", "size=1g,mode=755", "tmpfs", str(base))
    try:
        upper, work, root = base / "upper", base / "work", base / "root"
        for directory in (upper, work, root):
            directory.mkdir()
            directory.chmod(0o755)
        _mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", "overlay", str(root))
        try:
            yield root
        finally:
            subprocess.run(["umount", "-l", str(root)], check=False, timeout=30)
    finally:
        subprocess.run(["umount", "-l", str(base)], check=False, timeout=30)


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise CannotBoot(f"mount {' '.join(words[:2])}: {' '.join(done.stderr.split())}")


def _prepare(root: Path) -> None:
    """No service of the host's, no disk of the host's, an environment with this fsd."""
    system = root / "etc/systemd/system"
    shutil.rmtree(system, ignore_errors=True)
    system.mkdir(parents=True)
    (root / "etc/fstab").write_text("")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    for name in ("systemd-logind.service", "getty.target", "systemd-udevd.service", "systemd-timesyncd.service"):
        (system / name).symlink_to("/dev/null")
    for path in ("var/log/journal", "usr/local/lib/systemd", "etc/fsd", "var/lib/fsd", "opt/fsd"):
        shutil.rmtree(root / path, ignore_errors=True)  # of the host itself
    opt = root / "opt/fsd"
    packages = opt / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for directory in (opt / "bin", opt / "source", opt / "packages", packages):
        directory.mkdir(parents=True)
    home = "/opt/python" if _own_python() else sys.base_prefix
    (opt / "pyvenv.cfg").write_text(f"home = {home}/bin\ninclude-system-site-packages = false\n")
    (opt / "bin/python").symlink_to(f"{home}/bin/{os.path.basename(os.path.realpath(sys.executable))}")
    (root / "opt/python").mkdir(exist_ok=True)
    (root / "etc/ld.so.conf.d/fsd-test.conf").write_text("/opt/python/lib\n")
    (opt / "share").mkdir()
    (opt / "share/fsd").symlink_to("/opt/fsd/source")  # where pip puts the units: share/fsd/systemd
    for name in ("fsd", "metadata", "chunkserver"):
        (packages / name).symlink_to(f"/opt/fsd/source/{name}")
    for entry in os.listdir(_site_packages()):
        if "editable" not in entry and not entry.startswith("fsd"):
            (packages / entry).symlink_to(f"/opt/fsd/packages/{entry}")
    script = opt / "bin/fsd"
    script.write_text("#!/opt/fsd/bin/python\nimport sys\nfrom fsd.cli.main import main\nsys.exit(main())\n")
    script.chmod(0o755)
    _open_to_all(root / "opt", opt)
    # Quick for the tests; the shipped values are checked by test_install.
    for unit, text in {"fsd-metadata": "WatchdogSec=3\n", "fsd-mount@": "WatchdogSec=5\n"}.items():
        drop_in = system / f"{unit}.service.d" / "test.conf"
        drop_in.parent.mkdir()
        drop_in.write_text(f"[Service]\n{text}")


def _own_python() -> bool:
    """Whether this Python is not the system's; services may not see where it lies."""
    return sys.base_prefix not in ("/usr", "/usr/local")


def _open_to_all(*directories: Path) -> None:
    for top in directories:
        for path in (top, *(p for p in top.rglob("*") if p.is_dir() and not p.is_symlink())):
            path.chmod(0o755)


def _site_packages() -> str:
    return next(path for path in site.getsitepackages() if os.path.isdir(path))


@contextlib.contextmanager
def _running(base: Path, root: Path) -> Iterator[int]:
    log = base / "console.log"
    command = [
        "systemd-nspawn", "--quiet", "-D", str(root), "--register=no", "--keep-unit", "--private-network",
        "--bind=/dev/fuse", *(["--bind=/dev/autofs"] if os.path.exists("/dev/autofs") else []),
        f"--bind-ro={REPOSITORY}:/opt/fsd/source", f"--bind-ro={_site_packages()}:/opt/fsd/packages",
        *([f"--bind-ro={sys.base_prefix}:/opt/python"] if _own_python() else []),
        "--console=pipe", "-b", "systemd.unit=multi-user.target",
    ]  # fmt: skip
    with open(log, "wb") as output:
        nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        leader = _await_boot(nspawn, log)
        if _own_python():
            Machine(root, leader).do("ldconfig")
        yield leader
    finally:
        _power_off(nspawn)


def _await_boot(nspawn: "subprocess.Popen[bytes]", log: Path) -> int:
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < deadline:
        if nspawn.poll() is not None:
            said = " ".join(log.read_text(errors="replace").split())[-500:]
            raise CannotBoot(f"systemd-nspawn ended with exit code {nspawn.returncode}: {said}")
        for leader in _children(nspawn.pid):
            done = Machine(Path("/"), leader).run("systemctl", "is-system-running", timeout_s=20)
            if done.stdout.strip() in ("running", "degraded"):
                return leader
        time.sleep(0.1)
    raise CannotBoot(f"no systemd within {BOOT_TIMEOUT_S} s: {log.read_text(errors='replace')[-500:]}")


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def _power_off(nspawn: "subprocess.Popen[bytes]") -> None:
    for leader in _children(nspawn.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGRTMIN + 3)  # systemd(1): halt, services stopped in order
    try:
        nspawn.wait(60)
    except subprocess.TimeoutExpired:
        for leader in _children(nspawn.pid):
            os.kill(leader, signal.SIGKILL)
        nspawn.kill()
        nspawn.wait(30)
