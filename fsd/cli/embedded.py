"""A whole cluster on this machine: one metadata server, three chunkservers in three zones, mounts; data in one directory.

DIR/cluster.json      which ports, which mounts: what `fsd up` starts again
DIR/metadata, DIR/chunkserver-1..3   the servers' own directories
DIR/run/NAME.json     the process that was started last for each part
DIR/log/NAME.log
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

from fsd.cli import processes
from fsd.cli.processes import Process, Registry
from fsd.core.errors import Busy, ConfigurationError
from fsd.mount import closed, mountinfo, serving
from fsd.mount.serving import Serving
from fsd.runtime.process import start_time

HOST = "127.0.0.1"
ZONES = ("a", "b", "c")
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
VERSION = 1


def default_directory() -> str:
    """/var/lib/fsd for root, else the user's state directory."""
    if os.geteuid() == 0 and not os.environ.get("XDG_STATE_HOME"):
        return "/var/lib/fsd"
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "fsd")


@dataclass(slots=True)
class Plan:
    """What belongs to the cluster; `cluster.json`."""

    metadata_port: int
    chunkserver_ports: list[int]
    mounts: dict[str, str] = field(default_factory=dict[str, str])  # mount point -> volume


def read_plan(directory: str) -> Plan | None:
    """None if `fsd up` has never run on this directory. Raises ConfigurationError."""
    file = os.path.join(directory, "cluster.json")
    try:
        with open(file, encoding="utf-8") as stream:
            document = json.load(stream)
        if document["version"] != VERSION:
            raise ConfigurationError(f"{file} is of version {document['version']}; this fsd knows {VERSION}")
        return Plan(
            int(document["metadata_port"]), [int(p) for p in document["chunkserver_ports"]], dict(document["mounts"])
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(f"{file} is damaged") from None


def metadata_address(directory: str) -> str | None:
    plan = read_plan(directory)
    return f"{HOST}:{plan.metadata_port}" if plan else None


class EmbeddedCluster:
    """Starts what does not run, stops what does. Use under `locked`."""

    def __init__(self, directory: str, say: Callable[[str], None]) -> None:
        self.directory = directory
        self.registry = Registry(os.path.join(directory, "run"))
        self._say = say

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """One `up` or `down` at a time. Raises Busy."""
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            fd = os.open(os.path.join(self.directory, "up.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(f"cannot use {self.directory}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise Busy(f"another fsd up or fsd down is at work on {self.directory}") from None
        finally:
            os.close(fd)

    @property
    def metadata_address(self) -> str:
        return f"{HOST}:{self.plan.metadata_port}"

    @property
    def plan(self) -> Plan:
        plan = read_plan(self.directory)
        if plan is None:
            raise ConfigurationError(f"there is no cluster in {self.directory}; fsd up --data makes one")
        return plan

    def processes(self) -> list[Process]:
        """All that were started and not stopped, dead ones too; servers first."""
        order = {"metadata": 0, "chunkserver": 1, "mount": 2}
        return sorted(map(_with_supervisor, self.registry.all()), key=lambda p: (order.get(p.role, 3), p.name))

    def shown(self) -> list[Process]:
        """As `processes`, but a mount is its daemon, which may be killed; beside it is its supervisor, which starts others."""
        return [row for process in self.processes() for row in _with_daemon(process)]

    def alive(self, name: str) -> Process | None:
        process = self.registry.read(name)
        if process is None:
            return None
        process = _with_supervisor(process)
        if process.mountpoint is not None and _serving(process) is None:
            return None  # unmounted; it may still be ending
        return process if process.alive else None

    # --- up -----------------------------------------------------------------------------------------------------------

    def start_servers(self) -> list[Process]:
        """The servers that run afterwards; those that ran already are left alone."""
        self._settle_ports()
        plan = self.plan
        running = [self._start_metadata(plan)]
        running += [self._start_chunkserver(plan, number) for number in range(1, len(plan.chunkserver_ports) + 1)]
        return running

    def _settle_ports(self) -> None:
        """Choose free ports at the first start, and others for those that somebody else took meanwhile."""
        plan = read_plan(self.directory)
        if plan is None:
            if os.path.exists(os.path.join(self.directory, "metadata")):
                raise ConfigurationError(f"{self.directory} holds a metadata server's data but no cluster.json")
            ports = _free_ports(1 + len(ZONES))
            plan = Plan(ports[0], ports[1:])
        names = [f"chunkserver-{number}" for number in range(1, len(plan.chunkserver_ports) + 1)]
        if not any(process.alive for process in self.registry.all()) and not _is_free(plan.metadata_port):
            plan.metadata_port = _free_ports(1)[0]
        for index, name in enumerate(names):
            if not self.alive(name) and not _is_free(plan.chunkserver_ports[index]):
                plan.chunkserver_ports[index] = _free_ports(1)[0]
        self._write_plan(plan)

    def _write_plan(self, plan: Plan) -> None:
        processes.write_json(
            os.path.join(self.directory, "cluster.json"),
            {
                "version": VERSION,
                "metadata_port": plan.metadata_port,
                "chunkserver_ports": plan.chunkserver_ports,
                "mounts": plan.mounts,
            },
        )

    def _start_metadata(self, plan: Plan) -> Process:
        data = os.path.join(self.directory, "metadata")
        return self._start(
            "metadata",
            "metadata",
            data,
            ["--data", data, "--listen", f"{HOST}:{plan.metadata_port}", "--replicas", "2"],
        )

    def _start_chunkserver(self, plan: Plan, number: int) -> Process:
        name = f"chunkserver-{number}"
        data = os.path.join(self.directory, name)
        listen = f"{HOST}:{plan.chunkserver_ports[number - 1]}"
        zone = ZONES[(number - 1) % len(ZONES)]
        arguments = ["--data", data, "--listen", listen, "--metadata", self.metadata_address, "--zone", zone]
        return self._start("chunkserver", name, data, arguments)

    def start_mount(self, mountpoint: str, volume: str, options: str) -> Process:
        """Mount, or find it mounted by us already."""
        plan = self.plan
        name = _mount_name(mountpoint)
        source = f"{self.metadata_address}:/{volume}"
        process = self._start(
            "mount", name, None, [source, mountpoint, "--foreground", *(["-o", options] if options else [])], mountpoint
        )
        plan.mounts[mountpoint] = volume
        self._write_plan(plan)
        return process

    def _start(
        self, role: str, name: str, data: str | None, arguments: list[str], mountpoint: str | None = None
    ) -> Process:
        process = self.alive(name)
        if process is not None:
            return process
        log = os.path.join(self.directory, "log", f"{name}.log")
        pid, address = processes.start([role, *arguments], log, READY_TIMEOUT_S)
        process = Process(role, name, pid, start_time(pid) or 0, address, data, None, mountpoint)
        self.registry.write(process)
        return process

    def remember_nodes(self, node_by_address: dict[str, int]) -> None:
        """Write down which node each chunkserver is, for `fsd ps`."""
        for process in self.registry.all():
            node = node_by_address.get(process.address)
            if process.role == "chunkserver" and node is not None and node != process.node:
                self.registry.write(_with_node(process, node))

    # --- down ---------------------------------------------------------------------------------------------------------

    def stop(self) -> list[str]:
        """Mounts, then chunkservers, then the metadata server; the lines to tell about what did not go well."""
        complaints: list[str] = []
        for role in ("mount", "chunkserver", "metadata"):
            stopping = [process for process in self.processes() if process.role == role]
            for process in stopping:
                processes.send(process, 15)
            for process in stopping:
                if not processes.wait(process, STOP_TIMEOUT_S):
                    complaints.append(f"{process.name} (pid {process.pid}) had to be killed")
                self.registry.forget(process.name)
                self._open(process, complaints)
        return complaints

    def _open(self, process: Process, complaints: list[str]) -> None:
        """A mount point is an ordinary directory again."""
        if process.mountpoint is not None and mountinfo.mounted_at(process.mountpoint) is None:
            try:
                closed.reopen(process.mountpoint)
            except OSError as error:
                complaints.append(f"{process.mountpoint} still refuses writes: {error.strerror}")


def _with_node(process: Process, node: int) -> Process:
    return Process(
        process.role,
        process.name,
        process.pid,
        process.started,
        process.address,
        process.data,
        node,
        process.mountpoint,
    )


def _with_supervisor(process: Process) -> Process:
    """A mount's process as it is now: its supervisor may have been killed, and another one have taken over."""
    told = None if process.alive else _serving(process)
    if told is None:
        return process
    return replace(process, pid=told.supervisor.pid, started=told.supervisor.started)


def _with_daemon(process: Process) -> list[Process]:
    told = _serving(process)
    if told is None or told.daemon is None:
        return [process]
    daemon = replace(process, pid=told.daemon.pid, started=told.daemon.started)
    return [daemon, replace(process, role="supervisor")]


def _serving(process: Process) -> Serving | None:
    """Who serves the mount that `process` was started for."""
    mount = mountinfo.mounted_at(process.mountpoint) if process.mountpoint is not None else None
    return serving.of(mount) if mount is not None and mount.source == process.address else None


def _mount_name(mountpoint: str) -> str:
    return "mount" + "".join(c if c.isalnum() else "-" for c in mountpoint)[-100:]


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
        return True


def _free_ports(count: int) -> list[int]:
    """Ports of this machine's ephemeral range that nobody has now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind((HOST, 0))
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()
