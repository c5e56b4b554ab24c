"""Every disk call of the metadata server fails in turn: what was answered is there after a restart, the server ends (R12)."""

import pytest
import trio

from fsd.core.errors import DiskFailed, FsError, NoSpace
from fsd.core.ids import ROOT_INO
from fsd.runtime.storage import Space
from metadata.space import RESERVE_BYTES
from tests.chunkserver.disks import Failing, FailingDirectory
from tests.fakes import MemoryNetwork
from tests.metadata.cluster import OPTIONS, FakeClient, Server, client, running

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


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("name", ["apply", "durable", "get", "scan", "write_file"])
async def test_every_call_fails(autojump_clock, name, for_ever):
    counting = Failing((name,))
    await scenario(counting)
    assert counting.count, f"{name} is never called"
    for at in range(1, counting.count + 1, 1 + counting.count // 60):
        await scenario(Failing((name,), at, for_ever=for_ever))


async def test_a_full_disk_refuses_what_is_new_and_serves_the_rest_until_there_is_room_again(autojump_clock, caplog):
    async with running() as server:
        one = await client(server, "one")
        kept = await one.create(b"kept")
        await one.create(b"gone")
        server.directory.room = Space(1 << 40, RESERVE_BYTES - 1)
        for _ in range(3):
            with pytest.raises(NoSpace, match="metadata server's disk is full"):
                await one.create(b"new")
        assert (await one.lookup(b"kept")).inode.ino == kept
        await one.write(kept, b"bytes that a client has taken")
        await one.unlink(b"gone")
        assert (await one.lookup(b"gone")).inode is None
        server.directory.room = Space(1 << 40, RESERVE_BYTES)
        await one.create(b"new")
        told = [record.message for record in caplog.records if "the metadata server's disk" in record.message]
        assert len(told) == 2
        assert "is full" in told[0]
        assert "has room again" in told[1]
