"""The check of the whole tree reads one moment of it while everybody else goes on working."""

import trio

from fsd.protocol import cluster as c
from metadata import status
from tests.metadata.cluster import client, running

NAMES = 100


async def test_names_are_made_and_removed_while_the_tree_is_checked(autojump_clock, monkeypatch):
    monkeypatch.setattr(status, "TURN", 2)
    async with running() as server:
        one = await client(server, "one")
        for number in range(NAMES):
            await one.create(b"%d" % number)
        replies: list[c.FsckReply] = []
        changed_meanwhile = 0
        async with trio.open_nursery() as nursery:

            async def check() -> None:
                replies.append(await server.ask(c.RunFsck()))

            nursery.start_soon(check)
            while not replies:
                await one.create(b"new%d" % changed_meanwhile)
                await one.unlink(b"%d" % changed_meanwhile)
                changed_meanwhile += 1
        assert changed_meanwhile > 2
        assert replies[0].faults == ()
        assert replies[0].inodes == replies[0].dentries + 1 in range(NAMES, NAMES + 4)
        assert (await server.ask(c.RunFsck())).faults == ()
