"""Docker's calls on one host and on two, in any order and again."""

from pathlib import Path

import pytest
import trio

from fsd.core.errors import (
    AlreadyExists,
    Busy,
    ConfigurationError,
    InvalidArgument,
    MissingOnHost,
    NotFound,
    Unreachable,
)
from fsd.core.ids import LayerId, PoolId
from fsd.namespace.records import Volume
from fsd.plugin import driver as driver_module
from fsd.plugin import uses as uses_module
from fsd.plugin.driver import LINGER_S, LOST_AFTER_S, Driver
from fsd.plugin.uses import Uses
from tests.plugin.fakes import FakeCluster, FakeMounts


class Host:
    def __init__(self, nursery: trio.Nursery, cluster: FakeCluster, directory: Path, name: str = "one") -> None:
        self.nursery = nursery
        self.cluster = cluster
        self.path = str(directory / f"{name}.json")
        self.mounts = FakeMounts(cluster, name)
        self.start()

    def start(self) -> None:
        """Also again: what a restarted plugin knows."""
        self.uses = Uses(self.path)
        self.driver = Driver(self.nursery, self.cluster, self.mounts, self.uses)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def host(nursery: trio.Nursery, cluster: FakeCluster, tmp_path: Path) -> Host:
    return Host(nursery, cluster, tmp_path)


async def lingered() -> None:
    await trio.sleep(LINGER_S + 2)


async def test_a_volume_is_made_mounted_unmounted_and_deleted(autojump_clock, host, cluster):
    await host.driver.create("v", {"uid": "7", "mode": "0700"})
    assert (await host.driver.known("v")).mountpoint == ""
    assert await host.driver.mount("v", "a") == "/volumes/v"
    assert host.mounts.roots["v"] == (7, None, 0o700)
    assert (await host.driver.known("v")).mountpoint == "/volumes/v"
    await host.driver.unmount("v", "a")
    await lingered()
    assert host.mounts.log == ["mount v", "umount v"]
    await host.driver.remove("v")
    assert cluster.volumes == {}


async def test_docker_mounts_twice_for_one_container_and_that_is_one_mount(autojump_clock, host):
    await host.driver.create("v", {})
    await host.driver.mount("v", "copy")
    await host.driver.unmount("v", "copy")
    await host.driver.mount("v", "run")
    await lingered()
    assert host.mounts.log == ["mount v"]
    await host.driver.unmount("v", "run")
    await lingered()
    assert host.mounts.log == ["mount v", "umount v"]


async def test_it_stays_mounted_until_the_last_one_goes(autojump_clock, host):
    await host.driver.create("v", {})
    for user in ("a", "b", "a"):
        await host.driver.mount("v", user)
    await host.driver.unmount("v", "a")
    await lingered()
    assert host.mounts.log == ["mount v"]
    await host.driver.unmount("v", "a")  # again: harmless
    await host.driver.unmount("v", "b")
    await lingered()
    assert host.mounts.log == ["mount v", "umount v"]


async def test_calls_of_one_volume_take_turns_and_those_of_others_do_not_wait(autojump_clock, host):
    for name in ("v", "w"):
        await host.driver.create(name, {})
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for user in ("a", "b"):
            for name in ("v", "w"):
                nursery.start_soon(host.driver.mount, name, user)
    assert trio.current_time() - started == pytest.approx(1.0)
    assert sorted(host.mounts.log) == ["mount v", "mount w"]


async def test_a_volume_that_a_container_has_is_neither_unmounted_nor_deleted(autojump_clock, host):
    await host.driver.create("v", {})
    await host.driver.mount("v", "a")
    host.mounts.containers.add("v")
    await host.driver.unmount("v", "a")
    await lingered()
    assert host.mounts.log == ["mount v"]
    with pytest.raises(Busy, match="in use by a container on this host"):
        await host.driver.remove("v")


async def test_a_volume_made_on_one_host_is_there_on_the_other_and_is_not_deleted_under_it(
    autojump_clock, host, nursery, cluster, tmp_path
):
    other = Host(nursery, cluster, tmp_path, "two")
    await host.driver.create("v", {})
    assert [known.volume.name for known in await other.driver.all()] == ["v"]
    await other.driver.mount("v", "a")
    with pytest.raises(Busy, match="mounted by two"):
        await host.driver.remove("v")
    assert "v" in cluster.volumes
    await other.driver.unmount("v", "a")
    await host.driver.remove("v")  # waits while it lingers there
    assert cluster.volumes == {}


async def test_creating_it_again_is_nothing_and_with_other_options_an_error(autojump_clock, host):
    await host.driver.create("v", {"size": "1G"})
    await host.driver.create("v", {"size": "1G"})
    await host.driver.create("v", {})
    with pytest.raises(AlreadyExists, match="another size, uid"):
        await host.driver.create("v", {"size": "2G", "uid": "1"})


async def test_two_hosts_that_create_at_once_both_succeed(autojump_clock, host, cluster):
    await host.driver.create("v", {})
    cluster.hides.add("v")
    await host.driver.create("v", {})
    cluster.hides.add("v")
    with pytest.raises(AlreadyExists, match="another size"):
        await host.driver.create("v", {"size": "2G"})


async def test_what_docker_did_not_make_it_does_not_delete(autojump_clock, host, cluster):
    cluster.volumes["default"] = Volume("default", LayerId(1), PoolId(1), 2, 1)
    assert await host.driver.mount("default", "a") == "/volumes/default"
    with pytest.raises(InvalidArgument, match="fsd volume delete default"):
        await host.driver.remove("default")
    assert "default" in cluster.volumes


async def test_an_unknown_volume_is_an_error_everywhere(autojump_clock, host):
    for call in (host.driver.known("w"), host.driver.remove("w"), host.driver.mount("w", "a")):
        with pytest.raises(NotFound, match="no volume w"):
            await call
    await host.driver.unmount("w", "a")


async def test_a_bad_name_never_becomes_a_path(autojump_clock, host):
    for name in ("../etc", "a/b", ".", "", "x" * 129):
        for call in (host.driver.create(name, {}), host.driver.mount(name, "a"), host.driver.unmount(name, "a")):
            with pytest.raises(ConfigurationError):
                await call


async def test_an_anonymous_volumes_name_is_allowed(autojump_clock, host):
    await host.driver.create("f" * 64, {})
    assert await host.driver.mount("f" * 64, "a")


async def test_a_mount_that_fails_leaves_no_use_behind(autojump_clock, host):
    await host.driver.create("v", {})
    host.mounts.broken = True
    with pytest.raises(MissingOnHost):
        await host.driver.mount("v", "a")
    assert host.uses.of("v") == ()
    host.mounts.broken = False
    assert await host.driver.mount("v", "a")


async def test_a_cluster_out_of_reach_is_an_error_and_unmounting_works_all_the_same(autojump_clock, host, cluster):
    await host.driver.create("v", {})
    await host.driver.mount("v", "a")
    cluster.reachable = False
    with pytest.raises(Unreachable):
        await host.driver.all()
    await host.driver.unmount("v", "a")
    await lingered()
    assert host.mounts.log == ["mount v", "umount v"]


async def test_a_restarted_plugin_knows_who_uses_what(autojump_clock, host):
    await host.driver.create("v", {})
    await host.driver.mount("v", "a")
    await host.driver.mount("v", "b")
    host.start()
    await host.driver.unmount("v", "a")
    await lingered()
    assert host.mounts.log == ["mount v"]
    await host.driver.unmount("v", "b")
    await lingered()
    assert host.mounts.log == ["mount v", "umount v"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"v": 1}', '{"v": {"a": "x"}}'])
async def test_without_its_file_it_goes_by_the_containers(autojump_clock, host, damage):
    await host.driver.create("v", {})
    await host.driver.mount("v", "a")
    host.mounts.containers.add("v")
    Path(host.path).write_text(damage)
    host.start()
    await host.driver.unmount("v", "b")
    await lingered()
    assert host.mounts.log == ["mount v"]
    host.mounts.containers.clear()
    await host.driver.unmount("v", "a")
    await lingered()
    assert host.mounts.log == ["mount v", "umount v"]


async def test_an_unmount_that_was_lost_is_made_up_for_at_the_next_start(autojump_clock, host, monkeypatch):
    for name in ("lost", "held", "young", "left"):
        await host.driver.create(name, {})
        await host.driver.mount(name, "a")
    host.mounts.containers.add("held")
    host.uses.forget("left")  # as after a Mount that failed half-way
    later = uses_module.boot_time_s() + LOST_AFTER_S + 1
    monkeypatch.setattr(uses_module, "boot_time_s", lambda: later)
    await host.driver.mount("young", "b")
    host.start()
    await host.driver.sweep()
    assert [line for line in host.mounts.log if line.startswith("umount")] == ["umount left", "umount lost"]


async def test_deleting_makes_up_for_a_lost_unmount_too(autojump_clock, host, cluster):
    await host.driver.create("v", {})
    await host.driver.mount("v", "a")
    await host.driver.remove("v")
    assert cluster.volumes == {}
    assert host.uses.of("v") == ()


async def test_a_call_that_hangs_ends_in_time(autojump_clock, host, monkeypatch):
    await host.driver.create("v", {})

    async def hang(volume: str) -> str:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(host.mounts, "mount", hang)
    with pytest.raises(driver_module.DeadlineExceeded):
        await host.driver.mount("v", "a")
    assert host.uses.of("v") == ()
