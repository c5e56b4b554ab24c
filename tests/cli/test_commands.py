"""The command line without a cluster: help, faults in one line each, exit codes, shapes of JSON."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fsd.cli import doctor, exits, failure, fsck, health, status, top, volume
from fsd.cli.main import COMMANDS, main
from fsd.cluster.map import ClusterMap, Node, NodeState, Pool, Row
from fsd.core import errors
from fsd.core.ids import Incarnation, LayerId, MapEpoch, Member, NodeId, PgEpoch, PgId, PoolId, SessionId
from fsd.namespace.records import Volume
from fsd.protocol.cluster import CreateVolume, NodeLoad, NodeStatus, SetVolume, StatusReply

REPOSITORY = Path(__file__).resolve().parents[2]


def fsd(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FSD_")}
    clean["PYTHONPATH"] = str(REPOSITORY)
    return subprocess.run(
        [sys.executable, "-m", "fsd.cli", *words], capture_output=True, text=True, env=clean | environment, timeout=60
    )


def only_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What was said on stderr: `fsd: ` lines only, no traceback."""
    lines = done.stderr.splitlines()
    assert all(line.startswith("fsd: ") for line in lines), done.stderr
    return lines


def test_help_names_every_command_and_is_quick():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = fsd("--help")
        times.append(time.perf_counter() - start)
    assert all(f"  {command} " in done.stdout for command in COMMANDS)
    assert done.returncode == exits.OK
    assert min(times) < 0.25  # 30 ms when nothing else runs


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_refuses_unknown_options_by_name(command):
    assert fsd(command, "--help").returncode == exits.OK
    done = fsd(command, "--no-such-thing")
    assert done.returncode == exits.USAGE
    assert len(only_lines(done)) == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), exits.USAGE, ""),
        (("bake",), exits.USAGE, "unknown command bake"),
        (("--bake",), exits.USAGE, "unknown option --bake"),
        (("status", "--bake", "--metadata", "h:1"), exits.USAGE, "unknown option or argument: --bake"),
        (("metadata",), exits.USAGE, "--data is missing"),
        (("chunkserver", "--data", "/tmp/x"), exits.USAGE, "--metadata is missing"),
        (("metadata", "--data", "/tmp/x", "--listen", "nowhere"), exits.USAGE, "'nowhere' is not an address"),
        (("metadata", "--data", "/tmp/x", "--lease-s", "9"), exits.USAGE, "--grace-s must be more"),
        (("metadata", "--data", "/tmp/x", "--min-replicas", "3"), exits.USAGE, "--min-replicas is above"),
        (("status", "--metadata", "127.0.0.1:1"), exits.UNREACHABLE, "nobody listens there"),
        (("fsck", "--metadata", "127.0.0.1:1"), exits.UNREACHABLE, "nobody listens there"),
        (("status", "--data", "/nonexistent"), exits.USAGE, "there is no cluster in /nonexistent"),
        (("ps", "--data", "/nonexistent"), exits.USAGE, "there is no cluster in /nonexistent"),
        (("down", "--data", "/nonexistent"), exits.USAGE, "there is no cluster in /nonexistent"),
        (("mount", "h:1", "/mnt"), exits.USAGE, "is not HOST:PORT"),
        (("mount", "h:1:/v", "/mnt", "-o", "bake,cache=x"), exits.USAGE, "unknown mount option bake"),
        (("mount", "h:1:/v", "/no/such/directory"), exits.USAGE, "the mount point /no/such/directory does not exist"),
        (("mount", "h:1:/v", "/proc"), exits.BUSY, "the mount point /proc is busy"),
        (("umount", "/tmp"), exits.USAGE, "no fsd volume is mounted on /tmp"),
        (("info", "/etc/passwd"), exits.USAGE, "/etc/passwd is not on a volume of fsd"),
        (("volume", "create", "--metadata", "h:1"), exits.USAGE, "needs the NAME"),
        (("volume", "create", "a/b", "--metadata", "h:1"), exits.USAGE, "is not a volume name"),
        (("volume", "set", "v", "--metadata", "h:1"), exits.USAGE, "nothing to set"),
        (("status", "--config", "/no/such/file"), exits.USAGE, "cannot read the configuration file"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_with_its_exit_code(words, code, said):
    done = fsd(*words)
    assert done.returncode == code
    if words:
        assert said in only_lines(done)[0]


def test_settings_come_from_the_file_and_the_environment_too(tmp_path):
    file = tmp_path / "fsd.toml"
    file.write_text('[status]\nmetadata = "127.0.0.1:2"\n')
    assert "127.0.0.1:2" in fsd("status", "--config", str(file)).stderr
    assert "127.0.0.1:3" in fsd("status", "--config", str(file), FSD_METADATA="127.0.0.1:3").stderr
    assert "127.0.0.1:2" in fsd("status", FSD_CONFIG=str(file)).stderr
    file.write_text("[status]\nmeta = 1\n[sttus]\n")
    assert "[sttus]" in only_lines(fsd("status", "--config", str(file)))[0]
    file.write_text("not toml")
    assert "is not TOML" in only_lines(fsd("status", "--config", str(file)))[0]


def test_every_error_has_its_exit_code():
    assert exits.code_of(errors.ConfigurationError("x")) == exits.USAGE
    assert exits.code_of(errors.ConnectionRefused("x")) == exits.UNREACHABLE
    assert exits.code_of(errors.DirectoryInUse("x")) == exits.BUSY
    assert exits.code_of(errors.ForeignFileSystem("x")) == exits.FOREIGN
    assert exits.code_of(errors.MissingOnHost("x")) == exits.MISSING
    assert exits.code_of(errors.NotFound("x")) == exits.FAILED


def test_an_error_out_of_a_nursery_is_told_as_itself():
    group = BaseExceptionGroup("", [ExceptionGroup("", [errors.NotFound("no such volume")])])
    assert failure.explain(group) == ("no such volume", exits.FAILED)
    assert failure.explain(ExceptionGroup("", [errors.NotFound("x"), KeyError("bug")]))[1] == exits.INTERNAL


def a_status(**changes) -> StatusReply:
    node = Node(NodeId(1), 1, "h:1", "a", 1, changes.pop("state", NodeState.UP))
    figures = {"total": 4, "in_sync": 4, "degraded": 0, "down": 0} | changes
    return StatusReply(
        file_system="f",
        version="1",
        map_epoch=1,
        nodes=(NodeStatus(node, NodeLoad(), 0.1),),
        sessions=(),
        volumes=(Volume("default", LayerId(1), PoolId(1), 2, 1),),
        uptime_s=1.0,
        collecting=0,
        **figures,
    )


def test_status_has_the_promised_fields():
    document = json.loads(json.dumps(status.document(a_status())))
    assert document["health"] == "ok"
    groups = document["placement_groups"]
    assert {key: groups[key] for key in ("total", "in_sync", "degraded", "down")} == {
        "total": 4,
        "in_sync": 4,
        "degraded": 0,
        "down": 0,
    }
    assert document["nodes"][0]["state"] == "up"
    assert document["sessions"] == []
    assert document["volumes"][0]["name"] == "default"
    assert "ok: 1 nodes up" in status.table(a_status())


def test_health_says_what_is_wrong():
    assert status.health(a_status(in_sync=3, degraded=1)) == (
        "degraded",
        "degraded: 1 of 4 placement groups have too few copies",
    )
    assert status.health(a_status(down=1))[0] == "down"
    assert status.health(a_status(state=NodeState.DOWN))[0] == "degraded"


def test_every_reason_has_a_code_that_is_explained(capsys):
    node = Node(NodeId(1), 1, "h:1", "a", 1, NodeState.DOWN, draining=True)
    silent = Node(NodeId(2), 1, "h:2", "a", 1, NodeState.UP, full=True)
    load = NodeLoad(total_bytes=100, free_bytes=0, lost=1, repaired=2, deep_scrub_s=1e9, version="2")
    bad = a_status(down=2, settling=1, degraded=2, single=1, moving=3, paused=True, repairing=1, left_s=90.0)
    bad = dataclasses.replace(bad, nodes=(NodeStatus(node, load, -1.0), NodeStatus(silent, NodeLoad(), 5.0)))
    found = health.reasons(bad)
    assert {reason.code for reason in found} == set(health.CODES) - {"FSD-N2", "FSD-N4", "FSD-V1"}
    assert found[0].severity == health.DOWN
    assert "about 90 s left" in status.table(bad)
    assert top.page(bad, bad, 1.0)
    assert main(["explain", "fsd-g3"]) == exits.OK
    assert "one copy left" in capsys.readouterr().out
    assert main(["explain", "FSD-X9"]) == exits.FAILED


def test_doctor_tells_what_a_death_would_do():
    nodes = tuple(Node(NodeId(n), 1, f"h{n}:1", "z", 1, NodeState.UP) for n in (1, 2, 3))
    one, two, three = (Member(node.node, Incarnation(1)) for node in nodes)
    rows = (
        Row(PgId(1 << 16), PgEpoch(1), one, (one, two), (), (one, two), True),
        Row(PgId(1 << 16 | 1), PgEpoch(1), three, (three,), (), (three,), True),
    )
    pool = Pool(PoolId(1), 2, 2)
    cluster = ClusterMap(MapEpoch(1), "f", 1, 2, nodes, (pool,), rows, (), SessionId(1))
    assert doctor.if_died(cluster, set()) == doctor.Loss(0, 1, 1)
    assert doctor.if_died(cluster, {NodeId(1)}) == doctor.Loss(0, 2, 2)
    assert doctor.if_died(cluster, {NodeId(3)}) == doctor.Loss(1, 0, 0)


def test_volume_requests():
    plain = {"quota": None, "quota_inodes": None, "replicas": None, "min_replicas": None, "name": "v"}
    assert volume.request(plain | {"action": "create"}) == CreateVolume("v", 2, 1)
    assert volume.request(plain | {"action": "set", "quota": 5}) == SetVolume("v", 5)
    with pytest.raises(errors.ConfigurationError, match="above"):
        volume.request(plain | {"action": "create", "replicas": 1, "min_replicas": 2})


def test_fsck_names_copies_that_differ():
    from fsd.cluster.map import Row
    from fsd.core.ids import ChunkId, DataId, Member, Order
    from fsd.protocol.chunk import ChunkSummary

    members = (Member(NodeId(1), 1), Member(NodeId(2), 1))
    row = Row(65536, 1, members[0], members, (), members, True)
    chunk = ChunkId(DataId(5), 0)
    same = ChunkSummary(chunk, Order(1, 2), 10, 0xAB)
    assert list(fsck._differences(row, {1: {chunk: same}, 2: {chunk: same}})) == []
    (fault,) = fsck._differences(row, {1: {chunk: same}, 2: {}})
    assert fault == ("chunk 5.0 of placement group 65536 differs: node 1: order 1.2 10 bytes 000000ab, node 2: absent")
