"""Batches of a client's journal: one step, once, in order; quotas that came too late; leases that were lost."""

import dataclasses

import trio

from fsd.core.errors import AlreadyExists
from fsd.core.ids import ROOT_INO, Ino, RequestNumber
from fsd.namespace.operations import Create, Mkdir, Rename, Unlink, WriteInline
from fsd.protocol import cluster as c
from fsd.protocol import metadata as m
from tests.metadata.cluster import FakeClient, client, running

EXCLUSIVE, SHARED, NONE = m.LeaseMode.EXCLUSIVE, m.LeaseMode.SHARED, m.LeaseMode.NONE


async def own_root(one: FakeClient) -> None:
    """Get the exclusive lease on the root directory."""
    await one.get(ROOT_INO, EXCLUSIVE)


async def ship(one: FakeClient, *items: m.BatchItem, number: int = 0, floor: int = 1) -> m.BatchExecuted:
    if not number:
        number = one.number + 1
        one.number += len(items)
    return await one.ask(m.ExecuteBatch(one.id, RequestNumber(number), RequestNumber(floor), items))


def create(one: FakeClient, name: bytes, parent: Ino = ROOT_INO) -> tuple[Ino, m.BatchItem]:
    ino = one.new_id()
    return ino, m.BatchItem(Create(*one.base(), parent, name, ino, 0o644))


async def test_a_batch_is_carried_out_in_order_and_new_inodes_come_with_exclusive_leases(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        await own_root(one)
        directory = one.new_id()
        file, made = create(one, b"file", directory)
        reply = await ship(
            one,
            m.BatchItem(Mkdir(*one.base(), ROOT_INO, b"dir", directory, 0o755)),
            made,
            m.BatchItem(WriteInline(*one.base(), file, b"bytes")),
            m.BatchItem(Rename(*one.base(), directory, b"file", ROOT_INO, b"moved")),
        )
        assert reply.errors == ()
        assert {grant.ino: grant.mode for grant in reply.grants} == {directory: EXCLUSIVE, file: EXCLUSIVE}
        assert (await one.get(file)).inode.inline == b"bytes"
        assert (await one.lookup(b"moved")).inode.ino == file


async def test_a_batch_sent_again_is_carried_out_once(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        await own_root(one)
        _, made = create(one, b"file")
        items = (made, m.BatchItem(Unlink(*one.base(), ROOT_INO, b"file")))
        first = await ship(one, *items, number=1)
        assert first.errors == ()
        assert (await ship(one, *items, number=1)).errors == ()
        again = await ship(one, made, number=3)
        assert again.errors == ()
        assert [grant.ino for grant in (await ship(one, made, number=3)).grants] == [made.operation.ino]


async def test_a_batch_sent_again_after_a_restart_is_carried_out_once(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        await own_root(one)
        items = tuple(create(one, b"file %d" % number)[1] for number in range(5))
        await ship(one, *items, number=1)
        await server.restart()
        await one.resume()
        assert (await ship(one, *items, number=1)).errors == ()


async def test_what_cannot_be_done_is_refused_and_the_rest_is_done(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        await own_root(one)
        _, made = create(one, b"a")
        _, twice = create(one, b"a")
        _, other = create(one, b"b")
        reply = await ship(one, made, twice, other, number=1)
        assert [(error.index, error.error) for error in reply.errors] == [(1, AlreadyExists.number)]
        assert (await one.lookup(b"b")).inode is not None
        assert (await ship(one, made, twice, other, number=1)).errors == reply.errors


async def test_an_item_without_its_lease_goes_the_way_of_every_request(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        _, made = create(one, b"a")
        await two.lookup(b"a")
        reply = await ship(one, made)
        assert reply.errors == ()
        assert two.mode(ROOT_INO) is NONE
        assert (await two.lookup(b"a")).inode is not None


async def test_a_batch_passes_by_whoever_waits_for_its_leases(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        await own_root(one)
        _, made = create(one, b"late")

        async def ship_first(recall):
            await trio.sleep(0.5)
            assert (await ship(one, made)).errors == ()

        one.on_recall = ship_first
        assert (await two.lookup(b"late")).inode is not None


async def test_a_quota_that_is_newer_than_the_promise_refuses_nothing_and_stays(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        assert one.session.may_promise
        await own_root(one)
        await server.ask(c.SetVolume("default", quota_inodes=1))
        assert not (await one.ask(m.KeepAlive(one.id))).may_promise
        _, made = create(one, b"a")
        assert (await ship(one, made)).errors == ()
        (volume,) = (await server.ask(c.ListVolumes())).volumes
        assert (volume.quota_inodes, volume.used_inodes) == (1, 2)


async def test_a_file_that_is_unlinked_while_open_lives_and_one_that_is_not_goes(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        await own_root(one)
        kept, made = create(one, b"kept")
        gone, also = create(one, b"gone")
        unlink = m.BatchItem(Unlink(*one.base(), ROOT_INO, b"kept"), keep_open=True)
        reply = await ship(one, made, also, unlink, m.BatchItem(Unlink(*one.base(), ROOT_INO, b"gone")))
        assert [grant.ino for grant in reply.grants] == [kept]
        assert (await one.get(kept)).inode.nlink == 0
        grant = one.held[kept]
        await one.ask(m.ReleaseLeases(one.id, (m.Release(kept, grant.serial, NONE, False),)))
        assert gone not in one.held


async def test_others_are_granted_only_where_nobody_had_to_give_anything_up(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")

        async def make(name: bytes) -> None:
            one.number += 1
            operation = Create(*one.base(), ROOT_INO, name, one.new_id(), 0o644)
            await one.ask(
                m.Execute(one.id, RequestNumber(one.number), RequestNumber(1), operation, EXCLUSIVE, others=EXCLUSIVE)
            )

        await two.lookup(b"x")
        await make(b"first")
        assert one.mode(ROOT_INO) is SHARED
        await make(b"second")
        assert one.mode(ROOT_INO) is EXCLUSIVE


async def test_a_page_asks_each_exclusive_holder_once(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        await own_root(one)
        made = [create(one, b"file %d" % number) for number in range(20)]
        await ship(one, *(item for _, item in made))
        page = await two.ask(m.ReadDirectory(two.id, ROOT_INO, 0, 100, True))
        assert all(entry.inode is not None for entry in page.entries)
        assert len(one.recalls) == 21
        assert dataclasses.replace(page.entries[0].inode, inline=None).nlink == 1


async def test_exclusive_leases_come_with_a_page_where_nobody_else_has_any(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        shared, alone = await two.create(b"shared"), await one.create(b"alone")
        await two.get(shared)
        await one.ask(m.ReadDirectory(one.id, ROOT_INO, 0, 100, True, EXCLUSIVE))
        assert one.mode(shared) is SHARED
        assert one.mode(alone) is EXCLUSIVE
