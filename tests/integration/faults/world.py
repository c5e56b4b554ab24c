"""A cluster whose every process is a host of its own: a network namespace with one address on a common bridge.

    hub (bridge, 10.99.0.1; proxies; the administrator)
     ├── m   10.99.0.2          metadata server
     ├── 1-N 10.99.0.11 ...     chunkservers; the last one's disk is a small ext4 on a loop device,
     │                          the one before it is reached through a proxy in the hub
     └── a, b 10.99.0.101, 102  mounts

The namespaces' names carry this process's id: several such clusters do not meet. The mount namespace is the host's own, so
what is mounted is seen by everybody.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.integration.conftest import REPOSITORY, eventually

PROGRAMS = ("ip", "nft", "nsenter", "losetup", "mkfs.ext4", "fio")
HUB_ADDRESS = "10.99.0.1"
LOOP_DISK_BYTES = 384 << 20
LOOP_RESERVE = "48M"


class CannotRun(Exception):
    """This host has not what the cluster needs; the text says what."""


@dataclass(frozen=True, slots=True)
class Times:
    """The cluster's patience, in seconds."""

    lease: float = 2.0
    grace: float = 3.0
    session_ttl: float = 6.0


def run(*words: str, timeout_s: float = 60) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise CannotRun(f"{' '.join(words)}: {' '.join(done.stderr.split())}")
    return done.stdout


class Host:
    """One namespace and the one process that lives in it."""

    def __init__(self, world: "World", name: str, number: int) -> None:
        self.world = world
        self.name = name
        self.namespace = f"{world.prefix}{name}"
        self.address = f"10.99.0.{number}"
        self.arguments: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        hub, veth = self.world.hub, f"{self.world.prefix}{self.name}"
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", veth, "netns", hub, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        run("ip", "-n", hub, "link", "set", veth, "master", "bridge", "up")
        run("ip", "-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        run("ip", "-n", self.namespace, "link", "set", "eth0", "up")
        run("ip", "-n", self.namespace, "link", "set", "lo", "up")

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        with open(self.world.root / f"{self.name}.out", "ab") as output:
            self.process = self.world.fsd_in(self.namespace, self.arguments, output)

    def send(self, number: int) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(30)

    def cut(self, direction: str, peer: "Host | None" = None) -> None:
        """Drop what comes `in`, goes `out`, or `both`; of one peer or of everybody."""
        source, target = ("", "") if peer is None else (f"ip saddr {peer.address}", f"ip daddr {peer.address}")
        rules = ["add table inet cut"]
        if direction in ("in", "both"):
            rules.append("add chain inet cut in { type filter hook input priority 0; }")
            rules.append(f'add rule inet cut in iifname "eth0" {source} drop')
        if direction in ("out", "both"):
            rules.append("add chain inet cut out { type filter hook output priority 0; }")
            rules.append(f'add rule inet cut out oifname "eth0" {target} drop')
        self.nft("; ".join(rules))

    def mend(self) -> None:
        self.nft("add table inet cut; delete table inet cut")

    def nft(self, rules: str) -> None:
        run("nsenter", f"--net=/run/netns/{self.namespace}", "nft", rules)


class World:
    """Made by `up`, ended by `down`; `down` may be called after any failure."""

    def __init__(self, root: Path, times: Times, chunkservers: int = 4) -> None:
        self.root = root
        self.times = times
        self.prefix = f"f{os.getpid() % 100_000}"
        self.hub = f"{self.prefix}hub"
        self.metadata = Host(self, "m", 2)
        self.chunkservers = [Host(self, str(n + 1), 11 + n) for n in range(chunkservers)]
        self.mounts = [Host(self, name, 101 + n) for n, name in enumerate("ab")]
        self.proxy: subprocess.Popen[str] | None = None
        self._loop = ""
        self._added = chunkservers

    # --- life ---------------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Raises CannotRun."""
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing:
            raise CannotRun(f"missing programs: {', '.join(missing)}")
        run("ip", "netns", "add", self.hub)
        run("ip", "-n", self.hub, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", self.hub, "addr", "add", f"{HUB_ADDRESS}/24", "dev", "bridge")
        run("ip", "-n", self.hub, "link", "set", "bridge", "up")
        run("ip", "-n", self.hub, "link", "set", "lo", "up")
        for host in (self.metadata, *self.chunkservers, *self.mounts):
            host.make()
        self._prepare_metadata()
        self._make_loop_disk(self.chunkservers[-1])
        for host in self.chunkservers:
            self._prepare_chunkserver(host)
        proxied = self.chunkservers[-2]
        self._start_proxy(proxied)
        proxied.arguments += ["--advertise", f"{HUB_ADDRESS}:7401"]
        for host in (self.metadata, *self.chunkservers):
            host.start()
        eventually(self.healthy, 60, self.complaint)
        for host in self.mounts:
            self._start_mount(host)

    def _prepare_metadata(self) -> None:
        times = self.times
        self.metadata.arguments = [
            "metadata", "--data", str(self.root / "m"), "--listen", f"{self.metadata.address}:7400",
            "--chunk-size", "1M", "--pg-count", "32", "--lease-s", str(times.lease), "--grace-s", str(times.grace),
            "--session-ttl-s", str(times.session_ttl), "--rebalance-after-s", "1000", "--log", str(self.root / "m.log"),
        ]  # fmt: skip

    def _prepare_chunkserver(self, host: Host) -> None:
        reserve = LOOP_RESERVE if host is self.chunkservers[-1] else "256M"
        host.arguments = [
            "chunkserver", "--data", str(self.root / host.name / "data"), "--listen", f"{host.address}:7401",
            "--metadata", self.authority, "--reserve", reserve, "--weight", "1G", "--scrub-rate", "0",
            "--log", str(self.root / f"{host.name}.log"),
        ]  # fmt: skip
        (self.root / host.name).mkdir(exist_ok=True)

    def _make_loop_disk(self, host: Host) -> None:
        image, directory = self.root / "disk.img", self.root / host.name
        directory.mkdir()
        with open(image, "wb") as file:
            file.truncate(LOOP_DISK_BYTES)
        run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        self._loop = run("losetup", "-f", "--show", str(image)).strip()
        run("mount", self._loop, str(directory))

    def _start_proxy(self, host: Host) -> None:
        words = [sys.executable, "-m", "tests.integration.faults.proxy", f"{HUB_ADDRESS}:7401", f"{host.address}:7401"]
        self.proxy = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.hub}", *words],
            stdin=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True,
        )  # fmt: skip

    def _start_mount(self, host: Host) -> None:
        directory = self.root / "mnt" / host.name
        directory.mkdir(parents=True, exist_ok=True)
        host.arguments = [
            "mount", "--foreground", "--wait", "--log", str(self.root / f"{host.name}.log"),
            f"{self.authority}:/default", str(directory),
        ]  # fmt: skip
        host.start()
        eventually(lambda: mounted(directory), 60, lambda: (self.root / f"{host.name}.out").read_text()[-500:])

    def down(self) -> None:
        for host in self.mounts:
            if host.running:
                host.send(signal.SIGCONT)
                host.send(signal.SIGTERM)
        for host in self.mounts:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if host.process is not None:
                    host.process.wait(30)
            directory = self.root / "mnt" / host.name
            for pid in [daemon(directory)] if host.running else []:
                if pid:
                    os.kill(pid, signal.SIGKILL)
            if host.running:
                host.kill()
            for _ in range(2 if mounted(directory) else 0):  # FUSE, and what a second daemon may have put over it
                subprocess.run(["umount", "-l", str(directory)], check=False, timeout=30)
            subprocess.run(
                ["chattr", "-i", str(directory)], check=False, capture_output=True, timeout=30
            )  # mount/closed
        for host in (self.metadata, *self.chunkservers):
            if host.running:
                host.kill()
        if self.proxy is not None:
            self.proxy.kill()
            self.proxy.wait(30)
        if self._loop:
            subprocess.run(["umount", "-l", self._loop], check=False, capture_output=True, timeout=30)
            subprocess.run(["losetup", "-d", self._loop], check=False, capture_output=True, timeout=30)
        for name in [host.namespace for host in (self.metadata, *self.chunkservers, *self.mounts)] + [self.hub]:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=30)

    # --- what is done with it -----------------------------------------------------------------------------------------

    @property
    def authority(self) -> str:
        return f"{self.metadata.address}:7400"

    def mountpoint(self, host: Host) -> Path:
        return self.root / "mnt" / host.name

    def fsd_in(self, namespace: str, words: Sequence[str], output: object) -> "subprocess.Popen[bytes]":
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FSD_")}
        environment["PYTHONPATH"] = str(REPOSITORY)
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{namespace}", sys.executable, "-m", "fsd.cli", *words],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd="/",  # type: ignore[call-overload]
        )  # fmt: skip

    def fsd(self, *words: str, timeout_s: float = 120) -> tuple[int, str]:
        """As the administrator, in the hub: exit code and what was said."""
        child = self.fsd_in(self.hub, [*words, "--metadata", self.authority], subprocess.PIPE)
        try:
            said, _ = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            return -1, f"fsd {' '.join(words)} took more than {timeout_s} s"
        return child.returncode, said.decode(errors="replace")

    def status(self) -> dict:
        code, said = self.fsd("status", "--json", "--timeout-s", "5")
        return (
            json.loads(said) if code == 0 or said.lstrip().startswith("{") else {"health": "unreachable", "nodes": []}
        )

    def healthy(self) -> bool:
        """Every chunkserver is up and everything is in sync."""
        status = self.status()
        up = sum(node["state"] == "up" for node in status["nodes"])
        groups = status.get("placement_groups", {})
        return up >= len(self.chunkservers) and groups.get("in_sync") == groups.get("total")

    def told(self) -> str:
        return str(self.status().get("summary", "the metadata server does not answer"))

    def complaint(self) -> str:
        said = [path.read_text(errors="replace")[-300:] for path in sorted(self.root.glob("*.out"))]
        return " ".join([self.told(), *said])

    def revive(self) -> list[str]:
        """Start again what does not run, as systemd would; its names."""
        dead = [host for host in (self.metadata, *self.chunkservers) if not host.running]
        for host in dead:
            host.start()
        return [host.name for host in dead]

    def add_chunkserver(self) -> Host:
        self._added += 1
        host = Host(self, str(self._added), 10 + self._added)
        host.make()
        self.chunkservers.insert(0, host)
        self._prepare_chunkserver(host)
        host.start()
        return host

    def number_of(self, host: Host) -> int:
        return next(n["node"] for n in self.status()["nodes"] if n["address"].startswith(f"{host.address}:"))

    def daemon(self, host: Host) -> int:
        """Process id of a mount's daemon; its supervisor is the host's process."""
        return daemon(self.mountpoint(host))


def mounted(directory: Path) -> bool:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(directory) and " - fuse" in line for line in lines)


def daemon(directory: Path) -> int:
    for path in Path("/run/fsd").glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(path.read_text())
            if told.get("mountpoint") == str(directory) and told.get("daemon"):
                return int(told["daemon"]["pid"])
    return 0


def sleep(seconds: float) -> None:
    """How long a fault lasts: part of the fault, nothing waits for a result by it."""
    time.sleep(seconds)
