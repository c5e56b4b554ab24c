"""The protocol: what dockerd sends and wants to hear."""

import json

import pytest
import trio
import trio.testing

from fsd.http.server import Request
from fsd.plugin.docker import DockerPlugin
from fsd.plugin.driver import Driver
from fsd.plugin.uses import Uses
from tests.plugin.fakes import FakeCluster, FakeMounts


@pytest.fixture
def plugin(nursery: trio.Nursery, tmp_path) -> DockerPlugin:
    cluster = FakeCluster()
    return DockerPlugin(Driver(nursery, cluster, FakeMounts(cluster, "one"), Uses(str(tmp_path / "uses.json"))))


async def call(plugin: DockerPlugin, path: str, body: object = None, *, method: str = "POST") -> tuple[int, dict]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await plugin.handle(Request(method, path, "", {}, raw))
    assert response.content_type.startswith("application/vnd.docker.plugins.")
    return response.status, json.loads(response.body)


async def test_a_life_of_a_volume_as_dockerd_asks_for_it(autojump_clock, plugin):
    assert await call(plugin, "/Plugin.Activate", b"") == (200, {"Implements": ["VolumeDriver"]})
    assert await call(plugin, "/VolumeDriver.Capabilities", {}) == (200, {"Capabilities": {"Scope": "global"}})
    assert await call(plugin, "/VolumeDriver.Create", {"Name": "v", "Opts": {"size": "1G"}}) == (200, {"Err": ""})
    assert await call(plugin, "/VolumeDriver.Create", {"Name": "w", "Opts": None}) == (200, {"Err": ""})
    mounted = {"Mountpoint": "/volumes/v", "Err": ""}
    assert await call(plugin, "/VolumeDriver.Mount", {"Name": "v", "ID": "a"}) == (200, mounted)
    assert await call(plugin, "/VolumeDriver.Path", {"Name": "v"}) == (200, mounted)
    code, answer = await call(plugin, "/VolumeDriver.Get", {"Name": "v"})
    assert code == 200
    assert answer["Volume"] == {
        "Name": "v",
        "Mountpoint": "/volumes/v",
        "CreatedAt": "2023-11-14T22:13:20Z",
        "Status": {"size": "1.0 GiB", "used": "0 B", "inodes": 0, "replicas": 2, "min_replicas": 1},
    }
    code, answer = await call(plugin, "/VolumeDriver.List", {})
    assert [(volume["Name"], volume["Mountpoint"]) for volume in answer["Volumes"]] == [("v", "/volumes/v"), ("w", "")]
    assert await call(plugin, "/VolumeDriver.Unmount", {"Name": "v", "ID": "a"}) == (200, {"Err": ""})
    assert await call(plugin, "/VolumeDriver.Remove", {"Name": "v"}) == (200, {"Err": ""})
    code, answer = await call(plugin, "/VolumeDriver.Get", {"Name": "v"})
    assert (code, answer) == (500, {"Err": "fsd: there is no volume v"})


@pytest.mark.parametrize(
    ("path", "body", "code", "text"),
    [
        ("/VolumeDriver.Nonsense", {}, 404, "no call /VolumeDriver.Nonsense"),
        ("/VolumeDriver.Get", b"{", 500, "not JSON"),
        ("/VolumeDriver.Get", b"\xff", 500, "not JSON"),
        ("/VolumeDriver.Get", [], 500, "not a JSON object"),
        ("/VolumeDriver.Get", {}, 500, "has no Name"),
        ("/VolumeDriver.Get", {"Name": 7}, 500, "has no Name"),
        ("/VolumeDriver.Mount", {"Name": "v"}, 500, "has no ID"),
        ("/VolumeDriver.Create", {"Name": "v", "Opts": [1]}, 500, "Opts is not"),
        ("/VolumeDriver.Create", {"Name": "v", "Opts": {"a": 1, "size": "?"}}, 500, "unknown option 'a'; known are"),
        ("/VolumeDriver.Create", {"Name": "../v"}, 500, "not a volume name"),
    ],
)
async def test_what_is_wrong_is_told_in_one_line(autojump_clock, plugin, path, body, code, text):
    answer = await call(plugin, path, body)
    assert answer[0] == code
    assert text in answer[1]["Err"]
    assert "\n" not in answer[1]["Err"]


async def test_only_post_is_a_call(autojump_clock, plugin):
    assert (await call(plugin, "/VolumeDriver.List", {}, method="GET"))[0] == 405


async def test_idle_waits_for_the_calls_under_way(autojump_clock, plugin, nursery):
    await call(plugin, "/VolumeDriver.Create", {"Name": "v"})
    nursery.start_soon(call, plugin, "/VolumeDriver.Mount", {"Name": "v", "ID": "a"})
    await trio.testing.wait_all_tasks_blocked()
    started = trio.current_time()
    await plugin.idle()
    assert trio.current_time() - started == pytest.approx(0.5)
