"""fsd under a real dockerd: mounts bound into containers, and the volume plugin."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from fsd.mount import mountinfo, serving
from tests.integration.conftest import REPOSITORY, eventually, run_fsd
from tests.integration.containers.conftest import DRIVER, SOCKET, ask

# --- binding a mount --------------------------------------------------------------------------------------------------


def test_a_mount_is_bound_read_only_and_for_other_users(dockerd, a):
    a.chmod(0o755)
    assert dockerd.run([f"{a}:/data"], "echo hello > /data/f; cat /data/f") == "hello"
    assert (a / "f").read_text() == "hello\n"
    assert "Read-only" in dockerd.refused("run", "--rm", "-v", f"{a}:/data:ro", "busybox", "touch", "/data/g")
    assert "Permission denied" in dockerd.refused(
        "run", "--rm", "-u", "1000", "-v", f"{a}:/data", "busybox", "touch", "/data/g"
    )
    a.chmod(0o1777)
    dockerd.run([f"{a}:/data"], "echo mine > /data/mine", "-u", "1000:1001")
    assert ((a / "mine").stat().st_uid, (a / "mine").stat().st_gid) == (1000, 1001)


def test_two_containers_on_two_mounts_see_each_others_writes_at_once(dockerd, a, b):
    """As on two hosts: each waits for the other's next file and answers it."""
    turn = "until [ -e /data/{hears}$i ]; do :; done; cat /data/{hears}$i >> /data/{says}.log; "
    say = "echo {says}$i > /data/.{says}; mv /data/.{says} /data/{says}$i; "
    loop = "i={first}; while [ $i -lt 20 ]; do {body} done"
    ping = loop.format(first=0, body=turn.format(hears="pong", says="ping") + "i=$((i+1)); " + say.format(says="ping"))
    pong = loop.format(first=1, body=turn.format(hears="ping", says="pong") + say.format(says="pong") + "i=$((i+1)); ")
    (a / "pong0").write_text("pong0\n")
    for name, mount, script in (("ping", a, ping), ("pong", b, pong)):
        words = ["--name", name, "--network", "none", "-v", f"{mount}:/data", "busybox", "sh", "-c", script]
        dockerd("run", "-d", *words)
    assert dockerd("wait", "ping") == "0"
    assert dockerd("wait", "pong") == "0"
    assert (b / "ping.log").read_text().split() == [f"pong{i}" for i in range(20)]
    assert (a / "pong.log").read_text().split() == [f"ping{i}" for i in range(1, 20)]
    dockerd("rm", "ping", "pong")


def test_a_mount_that_is_made_again_reaches_a_running_rslave_container(dockerd, cluster):
    parent = cluster.root / "shared"
    parent.mkdir()
    subprocess.run(["mount", "--bind", parent, parent], check=True)
    try:
        subprocess.run(["mount", "--make-rshared", parent], check=True)
        where = parent / "fs"
        where.mkdir()
        source = f"{cluster.processes('metadata')[0]['address']}:/default"
        assert run_fsd("mount", source, str(where)).returncode == 0
        (where / "rslave").write_text("first\n")
        dockerd(
            "run", "-d", "--name", "slave", "--network", "none", "-v", f"{parent}:/p:rslave", "busybox", "sleep", "1000"
        )
        assert dockerd("exec", "slave", "cat", "/p/fs/rslave") == "first"
        assert run_fsd("umount", str(where)).returncode == 0
        assert run_fsd("mount", source, str(where)).returncode == 0
        assert dockerd("exec", "slave", "cat", "/p/fs/rslave") == "first"
        dockerd("rm", "-f", "slave")
        assert run_fsd("umount", str(where)).returncode == 0
    finally:
        subprocess.run(["umount", "-R", "-l", parent], check=False)


def test_a_container_does_not_notice_that_the_mount_daemon_is_killed(dockerd, plugin, a, cluster):
    """On a bound mount and on a volume of the plugin: no error, no line lost, while the daemon is killed and replaced."""
    dockerd("volume", "create", "-d", plugin.driver, "hardy")
    script = "i=0; while [ ! -e /data/stop ]; do i=$((i+1)); echo $i >> /data/log || exit 1; "
    script += "tail -n 1 /data/log > /dev/null || exit 2; done"
    places = {"bound": (str(a), a, cluster.a), "volume": ("hardy", plugin.volumes / "hardy", plugin.volumes / "hardy")}
    for name, (source, _, _) in places.items():
        dockerd(
            "run", "-d", "--name", name, "--network", "none", "-v", f"{source}:/data", "busybox", "sh", "-c", script
        )
    for name, (_, seen, mountpoint) in places.items():
        eventually(lambda seen=seen: lines(seen) > 20, 30)
        for _ in range(2):
            eventually(lambda mountpoint=mountpoint: daemon_at(mountpoint) > 0, 30)
            old, before = daemon_at(mountpoint), lines(seen)
            os.kill(old, signal.SIGKILL)
            eventually(lambda seen=seen, before=before: lines(seen) > before + 20, 60)
            assert daemon_at(mountpoint) != old
        (seen / "stop").touch()
        assert dockerd("wait", name) == "0", dockerd("logs", name)
        written = (seen / "log").read_text().split()
        assert written == [str(i + 1) for i in range(len(written))]
        dockerd("rm", name)
    dockerd("volume", "rm", "hardy")


def lines(directory: Path) -> int:
    log = directory / "log"
    return len(log.read_bytes().splitlines()) if log.exists() else 0


def daemon_at(mountpoint: Path) -> int:
    """The pid of the daemon that serves a mount now."""
    mount = mountinfo.mounted_at(str(mountpoint))
    assert mount is not None
    served = serving.of(mount)
    assert served is not None
    return 0 if served.daemon is None else served.daemon.pid


# --- the plugin -------------------------------------------------------------------------------------------------------


def test_a_volume_from_its_creation_to_its_end(dockerd, plugin, cluster):
    options = ["-o", "size=10M", "-o", "replicas=2", "-o", "uid=1000", "-o", "mode=0750"]
    dockerd("volume", "create", "-d", plugin.driver, *options, "vol")
    assert "vol" in dockerd("volume", "ls", "-q").split()
    told = dockerd.inspect("vol")
    assert (told["Driver"], told["Scope"]) == (plugin.driver, "global")
    assert (told["Status"]["size"], told["Status"]["replicas"]) == ("10.0 MiB", 2)

    assert dockerd.run(["vol:/seeded"], "stat -c '%u %a' /seeded; cat /seeded/file") == "1000 750\nfrom the image"
    dockerd.run(["vol:/data"], "echo mine > /data/f", "-u", "1000")
    assert dockerd.run(["vol:/data:ro"], "cat /data/f") == "mine"
    fill = "dd if=/dev/zero of=/data/big bs=1M count=20 conv=fsync; code=$?; rm /data/big; exit $code"
    assert "quota exceeded" in dockerd.refused("run", "--rm", "-v", "vol:/data", "busybox", "sh", "-c", fill)

    dockerd("run", "-d", "--name", "user", "--network", "none", "-v", "vol:/data", "busybox", "sleep", "1000")
    assert plugin.mounted() == [f"{plugin.volumes}/vol"]
    assert "in use" in dockerd.refused("volume", "rm", "vol")
    dockerd("rm", "-f", "user")
    eventually(lambda: plugin.mounted() == [], 20, plugin.log_text)
    dockerd("volume", "rm", "vol")
    assert "vol" not in [volume["name"] for volume in cluster.status()["volumes"]]
    assert not (plugin.volumes / "vol").exists()


def test_bad_options_and_foreign_volumes_are_refused_by_name(dockerd, plugin, cluster):
    said = dockerd.refused("volume", "create", "-d", plugin.driver, "-o", "nonsense=1", "-o", "size=x", "bad")
    assert "unknown option 'nonsense'" in said
    assert "'x' is not a size" in said
    assert "bad" not in [volume["name"] for volume in cluster.status()["volumes"]]
    assert "was not made by docker" in dockerd.refused("volume", "rm", "default")
    assert "default" in [volume["name"] for volume in cluster.status()["volumes"]]


def test_a_volume_made_on_one_host_is_there_on_the_other_and_cannot_be_deleted_under_it(dockerd, plugin, other):
    """Two plugins of one cluster stand for two hosts; the second is asked by its socket, since one dockerd has one volume
    of a name."""
    dockerd("volume", "create", "-d", plugin.driver, "wide")
    dockerd.run(["wide:/data"], "echo far > /data/f")
    assert ask(other, "Get", Name="wide")["Err"] == ""
    path = ask(other, "Mount", Name="wide", ID="x")["Mountpoint"]
    assert (Path(path) / "f").read_text() == "far\n"
    assert "is mounted by" in dockerd.refused("volume", "rm", "wide")
    assert (Path(path) / "f").read_text() == "far\n"
    assert ask(other, "Unmount", Name="wide", ID="x") == {"Err": ""}
    dockerd("volume", "rm", "wide")
    assert "no volume wide" in ask(other, "Get", Name="wide")["Err"]


def test_a_running_container_does_not_notice_that_the_plugin_is_killed_and_started(dockerd, plugin):
    dockerd("volume", "create", "-d", plugin.driver, "keep")
    dockerd(
        "run",
        "-d",
        "--name",
        "keeper",
        "--network",
        "none",
        "-v",
        "keep:/data",
        "busybox",
        "sh",
        "-c",
        "while :; do date >> /data/log || exit 1; sleep 0.1; done",
    )
    plugin.stop(signal.SIGKILL)
    dockerd("exec", "keeper", "sh", "-c", "echo alone > /data/f")
    plugin.start()
    assert dockerd.run(["keep:/data"], "cat /data/f") == "alone"
    assert "in use" in dockerd.refused("volume", "rm", "keep")
    assert plugin.mounted() == [f"{plugin.volumes}/keep"]
    assert dockerd("inspect", "-f", "{{.State.Running}}", "keeper") == "true"
    plugin.stop(signal.SIGKILL)  # and now an Unmount is lost
    dockerd.docker("rm", "-f", "keeper")
    plugin.start()
    dockerd("volume", "rm", "-f", "keep")
    assert plugin.mounted() == []


def test_dockerd_comes_back_with_its_containers_volumes(dockerd, plugin):
    """Once stopped and once killed; each time the container is started again, with its volume."""
    dockerd("volume", "create", "-d", plugin.driver, "again")
    words = ["--restart", "always", "--network", "none", "--stop-timeout", "1", "-v", "again:/data", "busybox"]
    dockerd("run", "-d", "--name", "returning", *words, "sh", "-c", "echo start >> /data/starts; sleep 1000")
    for times, number in ((2, signal.SIGTERM), (3, signal.SIGKILL)):
        dockerd.stop(number)
        assert dockerd.start() is None
        path = plugin.volumes / "again" / "starts"
        eventually(
            lambda times=times, path=path: path.exists() and len(path.read_text().split()) == times, 60, plugin.log_text
        )
    dockerd("rm", "-f", "returning")
    dockerd("volume", "rm", "again")


def test_a_path_that_is_no_fsd_mount_is_not_given_to_a_container(dockerd, plugin, cluster):
    dockerd("volume", "create", "-d", plugin.driver, "closed")
    (plugin.volumes / "closed").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", plugin.volumes / "closed"], check=True)
    try:
        assert "none (tmpfs) is mounted on" in dockerd.refused(
            "run", "--rm", "-v", "closed:/data", "busybox", "touch", "/data/f"
        )
        assert list((plugin.volumes / "closed").iterdir()) == []
    finally:
        subprocess.run(["umount", plugin.volumes / "closed"], check=True)
    cluster.kill("metadata")
    assert "cannot reach the metadata server" in dockerd.refused("volume", "create", "-d", plugin.driver, "another")
    cluster.heal()
    dockerd.run(["closed:/data"], "touch /data/f")
    dockerd("volume", "rm", "closed")


def test_systemd_may_own_the_socket(dockerd, cluster, tmp_path):
    """As a socket unit does it: it listens, and the first call starts the plugin with the descriptor as number 3."""
    import socket

    path = SOCKET.with_name(f"{DRIVER}s.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        asked = threading.Thread(target=lambda: dockerd("volume", "create", "-d", f"{DRIVER}s", "activated"))
        asked.start()
        as_systemd = "os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); "
        as_systemd += "os.execv(sys.executable, [sys.executable, '-m', 'fsd.cli', *sys.argv[2:]])"
        words = [
            "plugin",
            "--data",
            str(cluster.data),
            "--volumes",
            str(tmp_path / "v"),
            "--log",
            str(tmp_path / "log"),
        ]
        words += ["--socket", str(path)]
        started = subprocess.Popen(
            [sys.executable, "-c", f"import os, sys; {as_systemd}", str(listening.fileno()), *words],
            pass_fds=(listening.fileno(),),
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        try:
            asked.join(60)
            assert not asked.is_alive()
            assert dockerd.inspect("activated")["Driver"] == f"{DRIVER}s"
            dockerd("volume", "rm", "activated")
            started.terminate()
            assert started.wait(30) == 0
            assert path.exists(), "the socket is systemd's"
        finally:
            started.kill()
            started.wait()
            path.unlink()
