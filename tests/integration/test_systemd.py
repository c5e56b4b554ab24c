"""fsd as services of a real systemd: installed, started, reloaded, hung, crashed, mounted, upgraded, stopped, uninstalled.

The tests build on each other, as an administrator's day does; each leaves the cluster running.
"""

import contextlib
import json
import re
from collections.abc import Iterator

import pytest

from tests.integration.conftest import eventually
from tests.integration.machine import PROGRAM, CannotBoot, Machine, booted

pytestmark = pytest.mark.slow
SERVERS = ("fsd-metadata", "fsd-chunkserver@d1", "fsd-chunkserver@d2")
SOURCE = "127.0.0.1:7400:/default"
SETTINGS = """[metadata]
listen = "127.0.0.1:7400"
lease_s = 2
grace_s = 3
[chunkserver]
metadata = ["127.0.0.1:7400"]
reserve = "16M"
[plugin]
metadata = ["127.0.0.1:7400"]
"""


@pytest.fixture(scope="module")
def bare() -> Iterator[Machine]:
    try:
        with booted() as machine:
            yield machine
    except CannotBoot as reason:
        pytest.skip(f"cannot boot a machine with systemd here: {reason}")


@pytest.fixture(scope="module")
def machine(bare: Machine) -> Machine:
    """With fsd installed and a cluster of two chunkservers started."""
    bare.do(PROGRAM, "install", "--systemd", "--mount-helper", "--plugin")
    bare.write("/etc/fsd/fsd.toml", SETTINGS)
    for number in (1, 2):
        bare.write(f"/etc/fsd/chunkserver-d{number}.env", f"FSD_LISTEN=127.0.0.1:740{number}\nFSD_ZONE=z{number}\n")
    bare.write("/etc/fsd/mounts/data.env", f"SOURCE={SOURCE}\nTARGET=/srv/data\nOPTIONS=noatime\n")
    bare.do("systemctl", "enable", "--now", "fsd.target", "fsd-servers.target", *SERVERS, timeout_s=120)
    await_health(bare)
    return bare


@pytest.fixture
def data(machine: Machine) -> Iterator[Machine]:
    """With the unit's mount on /srv/data."""
    machine.do("systemctl", "start", "fsd-mount@data", timeout_s=100)
    yield machine
    machine.do("systemctl", "stop", "fsd-mount@data", timeout_s=150)


def await_health(machine: Machine) -> None:
    def healthy() -> bool:
        return '"health": "ok"' in machine.run("fsd", "status", "--metadata", "127.0.0.1:7400", "--json").stdout

    eventually(healthy, 60, lambda: machine.journal("-n", "60", "-u", "fsd-*"))


def stop_all(machine: Machine) -> None:
    machine.do("systemctl", "stop", "fsd.target", "fsd-*", timeout_s=150)


def restarts(machine: Machine, unit: str) -> int:
    return int(machine.show(unit, "NRestarts"))


def pid(machine: Machine, unit: str) -> str:
    return machine.show(unit, "MainPID")


def test_an_installation_again_changes_nothing_and_settings_stay(machine):
    said = machine.do("fsd", "install", "--systemd", "--mount-helper", "--plugin")
    kinds = {line.split()[0]: line for line in said.splitlines()}
    assert set(kinds) == {"unchanged", "keep", "run", "next"}
    assert kinds["keep"].endswith("/etc/fsd/fsd.toml")


def test_servers_run_as_their_own_user_and_are_ready_when_systemd_says_so(machine):
    for unit in SERVERS:
        assert machine.show(unit, "ActiveState") == "active"
        assert machine.show(unit, "StatusText").startswith("serving on 127.0.0.1:740")
        assert machine.do("ps", "-o", "user=", "-p", pid(machine, unit)) == "fsd"
    assert machine.do("stat", "-c", "%U %a", "/var/lib/fsd/metadata") == "fsd 700"


def test_the_journal_knows_priorities(machine):
    assert "serving on" in machine.journal("-u", "fsd-metadata", "-p", "info")
    assert "serving on" not in machine.journal("-u", "fsd-metadata", "-p", "warning")
    assert "<6>" not in machine.journal("-u", "fsd-metadata")


def test_reload_reads_the_settings_again(machine):
    before = pid(machine, "fsd-metadata")
    machine.write("/etc/fsd/fsd.toml", SETTINGS.replace("lease_s", 'log_level = "debug"\nlease_s'))
    machine.do("systemctl", "reload", "fsd-metadata")
    eventually(lambda: "log_level is now debug" in machine.journal("-u", "fsd-metadata"), 20)
    machine.write("/etc/fsd/fsd.toml", SETTINGS.replace("lease_s = 2", 'lease_s = "soon"'))
    machine.do("systemctl", "reload", "fsd-metadata")
    eventually(lambda: "'soon'" in machine.journal("-u", "fsd-metadata", "-p", "err"), 20)
    eventually(lambda: "refused" in machine.show("fsd-metadata", "StatusText"), 20)
    machine.write("/etc/fsd/fsd.toml", SETTINGS)
    machine.do("systemctl", "reload", "fsd-metadata")
    machine.await_state("fsd-metadata")
    assert pid(machine, "fsd-metadata") == before


def test_a_loop_that_hangs_is_killed_and_started_again(machine):
    before = restarts(machine, "fsd-metadata")
    machine.do("kill", "-STOP", pid(machine, "fsd-metadata"))
    eventually(lambda: restarts(machine, "fsd-metadata") > before, 60, lambda: machine.journal("-n", "30"))
    machine.await_state("fsd-metadata")
    assert "atchdog" in machine.journal("_PID=1", "-u", "fsd-metadata") + machine.journal("-u", "fsd-metadata")
    await_health(machine)


def test_a_killed_chunkserver_comes_back(machine):
    before = restarts(machine, "fsd-chunkserver@d1")
    machine.do("kill", "-KILL", pid(machine, "fsd-chunkserver@d1"))
    eventually(lambda: restarts(machine, "fsd-chunkserver@d1") > before, 30)
    machine.await_state("fsd-chunkserver@d1")
    await_health(machine)


def test_bad_settings_are_told_once_and_not_tried_for_ever(machine):
    machine.write("/etc/fsd/chunkserver-bad.env", "FSD_LISTEN=nowhere\n")
    assert machine.run("systemctl", "start", "fsd-chunkserver@bad").returncode != 0
    machine.await_state("fsd-chunkserver@bad", "failed")
    assert restarts(machine, "fsd-chunkserver@bad") == 0
    said = machine.journal("-u", "fsd-chunkserver@bad", "-p", "err")
    assert "'nowhere' is not an address" in said
    assert "Traceback" not in said
    machine.do("systemctl", "reset-failed", "fsd-chunkserver@bad")


def test_a_mount_unit_mounts_and_its_stop_unmounts_with_everything_written(machine):
    machine.do("systemctl", "start", "fsd-mount@data", timeout_s=100)
    assert machine.mounted("/srv/data")
    machine.shell("head -c 3000000 /dev/urandom >/srv/data/stopped; sha256sum </srv/data/stopped >/root/sum")
    machine.do("systemctl", "stop", "fsd-mount@data", timeout_s=150)
    assert not machine.mounted("/srv/data")
    machine.do("systemctl", "start", "fsd-mount@data", timeout_s=100)
    machine.shell("sha256sum </srv/data/stopped | cmp - /root/sum")
    machine.do("systemctl", "stop", "fsd-mount@data", timeout_s=150)
    assert machine.show("fsd-mount@data", "Result") == "success"


ROUNDS = """
cd /srv/data; i=0
while [ ! -e /root/enough ]; do
    i=$((i + 1)); echo $i >loop && [ "$(cat loop)" = $i ] || echo "round $i failed"
done
echo $i rounds
"""


@pytest.mark.parametrize(
    "how",
    [
        "systemctl restart fsd-mount@data",
        "kill -KILL $(systemctl show -p MainPID --value fsd-mount@data)",
        "kill -STOP $(systemctl show -p MainPID --value fsd-mount@data)",
    ],
    ids=["upgrade", "crash", "hang"],
)
def test_the_mount_outlives_its_service(data, how):
    """Who works on it, with an open file and a working directory, sees no error; a hang is ended by the watchdog."""
    data.write("/root/rounds", ROUNDS)
    before = pid(data, "fsd-mount@data")
    work = "exec 5>>/srv/data/held; sh /root/rounds >/root/said 2>&1; echo held >&5; : >/root/done"
    data.shell(f"rm -f /root/enough; setsid sh -c '{work}' >/dev/null 2>&1 &")
    data.shell(how)
    eventually(lambda: pid(data, "fsd-mount@data") not in (before, "0"), 60, lambda: data.journal("-n", "30"))
    data.await_state("fsd-mount@data")
    data.shell("ls -l /srv/data; : >/root/enough; while [ ! -e /root/done ]; do sleep 0.1; done; rm /root/done")
    assert re.fullmatch(r"[0-9]+ rounds", data.do("cat", "/root/said"))
    assert data.do("tail", "-1", "/srv/data/held") == "held"
    mounts = [line for line in data.do("cat", "/proc/self/mountinfo").splitlines() if " /srv/data " in line]
    assert len(mounts) == 1


def test_a_mount_waits_for_servers_that_boot_too(machine):
    stop_all(machine)
    machine.do("systemctl", "start", "--no-block", "fsd-mount@data")
    eventually(lambda: pid(machine, "fsd-mount@data") != "0", 30)
    machine.do("systemctl", "start", *SERVERS, timeout_s=100)
    machine.await_state("fsd-mount@data")
    assert restarts(machine, "fsd-mount@data") == 0
    machine.do("systemctl", "start", "fsd-servers.target", "fsd.target")
    machine.do("systemctl", "stop", "fsd-mount@data", timeout_s=150)


def test_containers_start_after_the_mount_and_stop_before_it(machine):
    """A service in docker's place: it must see the mount whenever it runs."""
    looks = "grep -q ' /srv/data .* fuse.fsd ' /proc/self/mountinfo"
    machine.write(
        "/etc/systemd/system/docker.service",
        f'[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c "{looks}"\nExecStop=/bin/sh -c "{looks}"\n',
    )
    machine.do("systemctl", "daemon-reload")
    machine.do("systemctl", "enable", "fsd-mount@data")
    stop_all(machine)
    machine.do("systemctl", "start", "fsd.target", "docker.service", timeout_s=150)
    assert machine.mounted("/srv/data")
    assert machine.show("docker.service", "ActiveState") == "active"
    stop_all(machine)
    assert not machine.mounted("/srv/data")
    assert machine.show("docker.service", "Result") == "success"
    machine.do("systemctl", "start", "fsd.target", timeout_s=150)
    machine.do("systemctl", "disable", "--now", "fsd-mount@data", timeout_s=150)
    machine.do("rm", "/etc/systemd/system/docker.service")
    machine.do("systemctl", "daemon-reload")


def test_mount_and_umount_of_util_linux(machine):
    machine.do("mkdir", "-p", "/mnt/plain")
    machine.do("mount", "-t", "fsd", SOURCE, "/mnt/plain", "-o", "noatime,nofail,_netdev")
    assert machine.mounted("/mnt/plain")
    machine.shell("head -c 3000000 /dev/urandom >/mnt/plain/util-linux; sha256sum </mnt/plain/util-linux >/root/sum")
    machine.do("umount", "/mnt/plain")
    assert not machine.mounted("/mnt/plain")
    assert machine.run("pgrep", "-f", "fsd.cli mount").stdout == "", "umount came back before the daemon's end"
    machine.do("mount", "-t", "fsd", SOURCE, "/mnt/plain", "-r")
    machine.shell("sha256sum </mnt/plain/util-linux | cmp - /root/sum")
    assert "Read-only" in machine.run("touch", "/mnt/plain/x").stderr
    machine.do("umount", "/mnt/plain")
    refused = machine.run("mount", "-t", "fsd", SOURCE, "/mnt/plain", "-o", "cahce=1G")
    assert refused.returncode == 1
    assert "cahce" in refused.stderr


def test_fstab_mounts_at_boot(machine):
    with fstab(machine, "/mnt/boot", "_netdev,nofail,x-systemd.after=fsd-servers.target"):
        machine.do("systemctl", "stop", "remote-fs.target")
        machine.do("systemctl", "start", "remote-fs.target")  # as at boot; nofail: it does not wait
        eventually(lambda: machine.mounted("/mnt/boot"), 60, lambda: machine.journal("-n", "20"))
        assert "fsd-servers.target" in machine.show("mnt-boot.mount", "After")
        machine.shell("echo by fstab >/mnt/boot/by-fstab")
    assert not machine.mounted("/mnt/boot")


def test_fstab_mounts_on_first_access_and_idle_it_is_unmounted(machine):
    with fstab(machine, "/mnt/auto", "_netdev,nofail,noauto,x-systemd.automount,x-systemd.idle-timeout=2"):
        machine.do("systemctl", "start", "mnt-auto.automount")
        assert not machine.mounted("/mnt/auto")
        machine.shell("echo by automount >/mnt/auto/by-automount")
        assert machine.mounted("/mnt/auto")
        eventually(lambda: not machine.mounted("/mnt/auto"), 60, lambda: machine.journal("-n", "20"))
        assert machine.do("cat", "/mnt/auto/by-automount") == "by automount"


@contextlib.contextmanager
def fstab(machine: Machine, directory: str, options: str) -> Iterator[None]:
    """With a line in /etc/fstab; nothing is mounted afterwards."""
    unit = directory.strip("/").replace("/", "-")
    machine.do("mkdir", "-p", directory)
    machine.write("/etc/fstab", f"{SOURCE} {directory} fsd {options} 0 0\n")
    machine.do("systemctl", "daemon-reload")
    try:
        yield
    finally:
        machine.run("systemctl", "stop", f"{unit}.automount", f"{unit}.mount", "remote-fs.target", timeout_s=100)
        machine.write("/etc/fstab", "")
        machine.do("systemctl", "daemon-reload")


ASK = """
import http.client, json, socket, sys
connection = http.client.HTTPConnection("docker")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect("/run/docker/plugins/fsd.sock")
connection.request("POST", f"/{sys.argv[1]}", sys.argv[2])
print(connection.getresponse().read().decode())
"""


def ask_plugin(machine: Machine, call: str, **body: str) -> dict:
    return json.loads(machine.do("/opt/fsd/bin/python", "-c", ASK, call, json.dumps(body)))


def test_the_plugin_is_started_by_its_socket_and_its_mounts_outlive_it(machine):
    machine.do("systemctl", "start", "fsd-plugin.socket")
    assert machine.show("fsd-plugin.service", "ActiveState") == "inactive"
    assert ask_plugin(machine, "Plugin.Activate") == {"Implements": ["VolumeDriver"]}
    machine.await_state("fsd-plugin.service")
    assert ask_plugin(machine, "VolumeDriver.Create", Name="vol")["Err"] == ""
    where = ask_plugin(machine, "VolumeDriver.Mount", Name="vol", ID="1")["Mountpoint"]
    machine.shell(f"echo of a container >{where}/file")
    machine.do("systemctl", "restart", "fsd-plugin.service", timeout_s=100)
    assert machine.do("cat", f"{where}/file") == "of a container"
    assert ask_plugin(machine, "VolumeDriver.Unmount", Name="vol", ID="1")["Err"] == ""
    eventually(lambda: not machine.mounted(where), 30)  # 3 s after the last container's end
    machine.do("systemctl", "stop", "fsd-plugin.socket", "fsd-plugin.service", timeout_s=100)


def test_a_running_installation_is_not_uninstalled(machine):
    done = machine.run("fsd", "uninstall")
    assert done.returncode == 4
    assert "fsd-metadata.service" in done.stderr


def test_the_end_unmounts_first_and_nothing_has_failed(machine):
    machine.do("systemctl", "enable", "--now", "fsd-mount@data", timeout_s=100)
    machine.shell("echo last >/srv/data/last")
    stop_all(machine)
    for unit in ("fsd-mount@data", *SERVERS):
        machine.await_state(unit, "inactive")
    assert not machine.mounted("/srv/data")
    assert machine.do("systemctl", "--failed", "--plain", "--no-legend", "--state=failed", "list-units", "fsd*") == ""
    assert not re.search(r"Traceback|internal error|lost", machine.journal("-u", "fsd-*"))
    machine.do("systemctl", "start", "fsd.target", timeout_s=150)
    assert machine.do("cat", "/srv/data/last") == "last"
    stop_all(machine)
    machine.do("fsd", "uninstall")
    assert machine.run("systemctl", "cat", "fsd-metadata").returncode != 0
    assert machine.do("cat", "/etc/fsd/fsd.toml") == SETTINGS.strip()
