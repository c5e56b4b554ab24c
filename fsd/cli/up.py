"""Start a whole cluster on this machine (one metadata server, three chunkservers, two copies of everything) and mount it.

A second `up` on the same data starts whatever does not run.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from typing import Any

from fsd.cli import administration, embedded, exits
from fsd.cli.processes import Process, ProcessFailed
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import DeadlineExceeded
from fsd.mount import mountinfo
from fsd.mount.mountpoint import prepare

OPTIONS: tuple[Option, ...] = (
    Option(
        "data",
        config.path,
        "where everything is kept (default /var/lib/fsd for root, else ~/.local/state/fsd)",
        metavar="DIR",
    ),
    Option("volume", config.volume_name, "the volume to mount", default="default", metavar="NAME"),
    Option("options", config.text, "mount options, as of fsd mount -o", default="", metavar="LIST", short="-o"),
    Option("detach", config.switch, "return when it is ready; fsd down stops it", default=False, switch=True),
)
NODES_TIMEOUT_S = 30.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="a directory; made if there is none")


def run(settings: dict[str, Any]) -> int:
    directory = settings["data"] or embedded.default_directory()
    mountpoint = mountinfo.normalize(settings["mountpoint"])
    cluster = embedded.EmbeddedCluster(directory, _say)
    try:
        with cluster.locked():
            started_at = time.monotonic()
            running = _bring_up(cluster, mountpoint, settings)
            _tell(cluster, mountpoint, running, time.monotonic() - started_at)
    except ProcessFailed as error:
        sys.stderr.write("".join(f"fsd: {line}\n" for line in str(error).splitlines()))
        return error.exit_code
    if settings["detach"]:
        return exits.OK
    return _stay(cluster)


def _say(line: str) -> None:
    print(line, flush=True)


def _bring_up(cluster: embedded.EmbeddedCluster, mountpoint: str, settings: dict[str, Any]) -> list[Process]:
    os.makedirs(os.path.join(cluster.directory, "log"), exist_ok=True)
    prepare(mountpoint)
    running = cluster.start_servers()
    _await_nodes(cluster, running)
    for other, volume in sorted(cluster.plan.mounts.items()):
        if other != mountpoint:
            prepare(other)
            running.append(cluster.start_mount(other, volume, settings["options"]))
    running.append(cluster.start_mount(mountpoint, settings["volume"], settings["options"]))
    return running


def _await_nodes(cluster: embedded.EmbeddedCluster, running: list[Process]) -> None:
    """Until the metadata server knows every chunkserver as up: so that the first placement uses all of them."""
    from fsd.cluster.map import NodeState
    from fsd.protocol.cluster import GetStatus, StatusReply

    wanted = {process.address for process in running if process.role == "chunkserver"}

    async def ask(talk: administration.Cluster) -> StatusReply:
        return await talk.ask(GetStatus())

    deadline = time.monotonic() + NODES_TIMEOUT_S
    while time.monotonic() < deadline:
        status = administration.run_with_cluster({"metadata": (cluster.metadata_address,), "timeout_s": 15.0}, ask)
        up = {s.node.address: int(s.node.node) for s in status.nodes if s.node.state is NodeState.UP}
        if wanted <= up.keys():
            cluster.remember_nodes(up)
            return
        time.sleep(0.1)
    raise DeadlineExceeded(
        f"the chunkservers did not register within {NODES_TIMEOUT_S:g} s; logs in {cluster.directory}/log"
    )


def _tell(cluster: embedded.EmbeddedCluster, mountpoint: str, running: list[Process], seconds: float) -> None:
    for process in cluster.shown():
        where = process.mountpoint or process.data or ""
        what = process.role if process.node is None else f"{process.role} {process.node}"
        _say(f"{what:<14} pid {process.pid:<8} {process.address:<28} {where}")
    default = cluster.directory == embedded.default_directory()
    flag = "" if default else f" --data {cluster.directory}"
    _say(
        f"\n{mountpoint} is ready after {seconds:.1f} s: two copies of everything, in zones {', '.join(embedded.ZONES)}."
    )
    fsd = _program()
    _say("Try next:")
    _say(f"  cp -r /usr/include {mountpoint}/ && du -sh {mountpoint}/include")
    _say(f"  {fsd} status{flag}")
    _say(f"  {fsd} info {mountpoint}/include/stdio.h")
    _say(f"  kill -9 the pid of a chunkserver, read everything again, then: {fsd} up {mountpoint}{flag} --detach")
    _say(f"  {fsd} down{flag}")


def _program() -> str:
    """How the user calls fsd: by name if it is on the path, else from the environment that it lives in."""
    beside = os.path.join(sys.prefix, "bin", "fsd")
    return "fsd" if shutil.which("fsd") or not os.path.exists(beside) else os.path.relpath(beside)


def _stay(cluster: embedded.EmbeddedCluster) -> int:
    """Until Ctrl-C (or SIGTERM); say so when a process ends in between."""
    _say("\nCtrl-C stops everything.")
    stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _frame: stop.append(received))
    told: set[str] = set()
    while not stop:
        for process in cluster.processes():
            key = f"{process.name} {process.pid}"
            if not process.alive and key not in told:
                told.add(key)
                _say(f"{process.name} (pid {process.pid}) has ended; fsd up on the same data starts it again")
        if not cluster.processes():
            _say("Stopped by fsd down.")
            return exits.OK
        time.sleep(0.2)
    _say("Stopping.")
    with cluster.locked():
        complaints = cluster.stop()
    for line in complaints:
        sys.stderr.write(f"fsd: {line}\n")
    return exits.FAILED if complaints else exits.OK
