"""A dockerd of our own beside the machine's, and an image without a registry."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

BUSYBOX = "/bin/busybox"
TIMEOUT_S = 60


def missing() -> str | None:
    """What this machine lacks to run a dockerd."""
    if os.geteuid() != 0:
        return "dockerd needs root"
    for program in ("dockerd", "docker", "containerd", "runc"):
        if shutil.which(program) is None:
            return f"{program} is not installed (apt-get install docker.io)"
    if not os.path.exists(BUSYBOX):
        return "busybox is not installed (apt-get install busybox-static)"
    if not any(Path("/sys/fs/cgroup").glob("*")):
        return "no cgroups are mounted on /sys/fs/cgroup"
    return None


def _command_of(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


class Dockerd:
    """`run` and friends speak to it alone. No bridge, no iptables: the machine's network is left as it is."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "docker.sock"
        self.log = root / "dockerd.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"DOCKER_HOST": f"unix://{self.socket}"}

    def start(self) -> str | None:
        """Why it does not run, if it does not."""
        for pid_file in (self.root / "pid", self.root / "exec" / "containerd" / "containerd.pid"):
            pid_file.unlink(missing_ok=True)  # where no init reaps, a killed one's zombie would be taken for it
        words = ["dockerd", "--data-root", str(self.root / "data"), "--exec-root", str(self.root / "exec")]
        words += ["--pidfile", str(self.root / "pid"), "-H", f"unix://{self.socket}"]
        words += ["--bridge", "none", "--iptables=false", "--ip6tables=false"]
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + TIMEOUT_S
        while self.docker("version").returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                return "dockerd does not run here: " + " ".join(self.log.read_text().splitlines()[-1:])
            time.sleep(0.1)
        return None

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(TIMEOUT_S)
        self.process = None

    def remove(self) -> None:
        """Everything of it, also what a killed one has left: shims by their address, mounts by their place."""
        self.stop()
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and str(self.root).encode() in _command_of(process):
                os.kill(int(process.name), signal.SIGKILL)
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        for mount in sorted((line.split()[4] for line in lines if f" {self.root}/" in line), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.root, ignore_errors=True)

    def docker(
        self, *words: str, timeout_s: float = TIMEOUT_S, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Whatever its outcome."""
        done = subprocess.run(
            ["docker", *words],
            input=stdin,
            capture_output=True,
            env=self.environment,
            timeout=timeout_s,
            check=False,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def __call__(self, *words: str, timeout_s: float = TIMEOUT_S, stdin: bytes | None = None) -> str:
        """Must succeed; its output."""
        done = self.docker(*words, timeout_s=timeout_s, stdin=stdin)
        assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def refused(self, *words: str) -> str:
        """Must fail; what it says."""
        done = self.docker(*words)
        assert done.returncode != 0, f"docker {' '.join(words)} succeeded: {done.stdout}"
        return done.stderr

    def run(self, volumes: Sequence[str], script: str, *options: str) -> str:
        """A busybox container that runs a shell script and goes."""
        bound = [word for volume in volumes for word in ("-v", volume)]
        return self("run", "--rm", "--network", "none", *bound, *options, "busybox", "sh", "-c", script)

    def inspect(self, volume: str) -> dict:
        return json.loads(self("volume", "inspect", volume))[0]

    def make_busybox(self) -> None:
        """The image `busybox`; its /seeded has a file, which Docker copies into a new volume."""
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            root.chmod(0o755)
            for name in ("bin", "etc", "dev", "proc", "sys", "tmp", "root", "data", "seeded"):
                (root / name).mkdir()
            (root / "tmp").chmod(0o1777)
            (root / "seeded" / "file").write_text("from the image\n")
            shutil.copy2(BUSYBOX, root / "bin" / "busybox")
            names = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
            for name in names:
                if name != "busybox":
                    (root / "bin" / name).symlink_to("busybox")
            (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
            packed = subprocess.run(["tar", "-C", directory, "-c", "."], capture_output=True, check=True).stdout
        self("import", "-c", 'CMD ["/bin/sh"]', "-c", "ENV PATH=/bin", "-", "busybox", stdin=packed)
