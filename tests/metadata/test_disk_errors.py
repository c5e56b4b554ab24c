"""Every disk call of the metadata server fails in turn: what was answered is there after a restart, the server ends (R12)."""

import pytest
import trio

from fsd.core.errors import DiskFailed, FsError
from fsd.core.ids import ROOT_INO
from tests.chunkserver.disks import Failing, FailingDirectory
from tests.fakes import MemoryNetwork
from tests.metadata.cluster import OPTIONS, FakeClient, Server

NAMES = [b"a", b"b", b"c", b"d", b"e"]


class Failed(Server):
    """Ends by itself when its disk fails; `ended_by` tells."""

    def __init__(self, nursery: trio.Nursery, failing: Failing) -> None:
        super().__init__(nursery, MemoryNetwork(), OPTIONS)
        self.directory = FailingDirectory(failing)
        self.ended_by: list[str] = []

    async def _run(self, *, task_status) -> None:
        try:
            await super()._run(task_status=task_status)
        except DiskFailed as error:
            self.ended_by.append(str(error))
            self.network.kill(self.options.listen)
            self.directory.crash()
            self.ended.set()


async def work(server: Server, answered: list[bytes]) -> None:
    """A session that creates, until the server is gone."""
    client = await FakeClient(server, "c").connect()
    for name in NAMES:
        await client.create(name)
        answered.append(name)


async def scenario(failing: Failing) -> None:
    async with trio.open_nursery() as nursery:
        server = Failed(nursery, failing)
        answered: list[bytes] = []
        try:
            await server.start()
            with trio.move_on_after(60):
                await work(server, answered)
                await trio.sleep(2)
        except (FsError, RuntimeError) as error:  # RuntimeError: it ended before it listened
            with trio.move_on_after(5):
                await server.ended.wait()
            assert server.ended_by, repr(error)
        if failing.struck:
            assert server.ended_by, f"{failing.struck} failed and the server went on"
            assert "\n" not in server.ended_by[0]
        failing.heal()
        if server.ended_by:
            await server.start()
        else:
            await server.restart()
        await trio.sleep(OPTIONS.session_ttl_s + 2)
        reader = await FakeClient(server, "r").connect()
        for name in answered:
            assert (await reader.lookup(name, parent=ROOT_INO)).inode is not None, f"{name} was answered and is lost"
        await server.check()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["apply", "durable", "get", "scan", "write_file"])
async def test_every_call_fails_once(autojump_clock, name):
    counting = Failing((name,))
    await scenario(counting)
    assert counting.count, f"{name} is never called"
    for at in range(1, counting.count + 1, 1 + counting.count // 60):
        await scenario(Failing((name,), at))
