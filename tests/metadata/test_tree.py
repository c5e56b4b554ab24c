"""Requests about the tree: coherence between two sessions, once-only execution, orphans, quotas."""

import pytest
import trio

from fsd.core.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
    SessionEvicted,
    StaleHandle,
)
from fsd.core.ids import Ino
from fsd.namespace.operations import (
    Create,
    Link,
    Mkdir,
    Rename,
    SetAttributes,
    SetXattr,
    Symlink,
    WriteInline,
)
from fsd.protocol import cluster as c
from fsd.protocol import metadata as m
from tests.metadata.cluster import FakeClient, client, running

EXCLUSIVE, SHARED, NONE = m.LeaseMode.EXCLUSIVE, m.LeaseMode.SHARED, m.LeaseMode.NONE


async def test_what_one_session_created_another_looks_up(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        ino = await one.create(b"file")
        entry = await two.lookup(b"file")
        assert entry.inode.ino == ino
        assert {grant.ino for grant in entry.grants} == {Ino(1), ino}
        assert (await two.lookup(b"other")).inode is None


async def test_a_change_recalls_the_readers_leases(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        await two.lookup(b"file")
        assert two.mode(Ino(1)) is SHARED
        await one.create(b"file")
        assert two.mode(Ino(1)) is NONE
        assert [item.keep for item in two.recalls] == [NONE]


async def test_an_exclusive_holder_writes_back_before_a_reader_is_answered(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        ino = await one.create(b"file", lease=EXCLUSIVE)
        assert one.mode(ino) is EXCLUSIVE

        async def write_back(recall):
            await trio.sleep(0.5)
            await one.write(ino, b"written under recall")

        one.on_recall = write_back
        entry = await two.get(ino)
        assert entry.inode.inline == b"written under recall"
        assert one.mode(ino) is SHARED
        assert two.mode(ino) is SHARED


async def test_an_exclusive_lease_takes_all_others(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        ino = await one.create(b"file")
        await two.get(ino)
        await one.get(ino, EXCLUSIVE)
        assert (one.mode(ino), two.mode(ino)) == (EXCLUSIVE, NONE)
        await two.get(ino, EXCLUSIVE)
        assert (one.mode(ino), two.mode(ino)) == (NONE, EXCLUSIVE)


async def test_two_writers_of_one_directory_both_succeed(autojump_clock):
    async with running() as server:
        clients = [await client(server, f"client {n}") for n in range(3)]

        async def work(who: FakeClient):
            for n in range(10):
                await who.create(f"{who.name} {n}".encode())

        async with trio.open_nursery() as nursery:
            for who in clients:
                nursery.start_soon(work, who)
        page = await clients[0].ask(m.ReadDirectory(clients[0].id, Ino(1), 0, 100, True))
        assert len(page.entries) == 30
        assert page.end


async def test_a_directory_is_read_in_pages_and_all_attributes_come_along(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        for n in range(7):
            await one.create(b"file %d" % n)
        busy = await one.create(b"busy", lease=EXCLUSIVE)
        seen, cookie, end = [], 0, False
        while not end:
            page = await two.ask(m.ReadDirectory(two.id, Ino(1), cookie, 3, True))
            seen.extend(page.entries)
            end = page.end
            cookie = page.entries[-1].cookie + 1
        assert sorted(entry.name for entry in seen) == sorted([b"busy", *(b"file %d" % n for n in range(7))])
        assert all(entry.inode is not None for entry in seen)
        assert one.mode(busy) is SHARED


async def test_a_page_of_long_links_is_cut_before_it_is_too_long_for_a_message(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        for n in range(400):
            target = b"%d" % n + b"x" * 4000
            await one.execute(Symlink(*one.base(), Ino(1), b"link %d" % n, one.new_id(), target))
        names, cookie, pages, end = [], 0, 0, False
        while not end:
            page = await one.ask(m.ReadDirectory(one.id, Ino(1), cookie, 1000, True))
            names += [entry.name for entry in page.entries]
            end, cookie, pages = page.end, page.entries[-1].cookie + 1, pages + 1
        assert (len(names), len(set(names)), pages) == (400, 400, 2)


async def test_a_release_that_crossed_a_grant_is_ignored(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        ino = await one.create(b"file")
        old = one.held[ino].serial
        await one.get(ino, EXCLUSIVE)
        await one.ask(m.ReleaseLeases(one.id, (m.Release(ino, old, NONE, False),)))
        await two.get(ino)
        assert [item.ino for item in one.recalls] == [ino]


async def test_a_repeated_number_is_executed_once(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        operation = Create(*one.base(), Ino(1), b"file", one.new_id(), 0o644)
        first = await one.execute(operation, number=7)
        again = await one.execute(operation, number=7)
        assert [inode.ino for inode in again.inodes] == [inode.ino for inode in first.inodes]
        with pytest.raises(AlreadyExists):
            await one.execute(operation, number=8)


async def test_a_repeated_number_gets_its_error_again(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        with pytest.raises(NotFound):
            await one.execute(Rename(*one.base(), Ino(1), b"a", Ino(1), b"b"), number=3)
        await one.create(b"a")
        with pytest.raises(NotFound):
            await one.execute(Rename(*one.base(), Ino(1), b"a", Ino(1), b"b"), number=3)


async def test_a_number_is_executed_once_over_a_new_connection_and_a_restart(autojump_clock):
    async with running() as server:
        one = await client(server, "one", alive=False)
        operation = Mkdir(*one.base(), Ino(1), b"directory", one.new_id(), 0o755)
        await one.execute(operation, number=5)
        server.network.cut("metadata:9000")
        await one.resume()
        await one.execute(operation, number=5)
        await server.restart()
        await one.resume()
        await one.execute(operation, number=5)
        root = (await one.get(Ino(1))).inode
        assert (root.nlink, root.size) == (3, 1)


async def test_a_session_may_only_use_its_own_ids_and_layer(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        with pytest.raises(InvalidArgument):
            await one.execute(Create(*one.base(), Ino(1), b"file", Ino(10**9), 0o644))
        with pytest.raises(InvalidArgument):
            await one.execute(Create(9, 0, 0, 0, Ino(1), b"file", one.new_id(), 0o644))
        more = await one.ask(m.AllocateIds(one.id))
        await one.execute(Create(*one.base(), Ino(1), b"file", Ino(more.first_id), 0o644))


async def test_times_from_the_future_are_the_servers(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        ino = one.new_id()
        layer, now, _, _ = one.base()
        await one.execute(Create(layer, now + 10**15, 0, 0, Ino(1), b"file", ino, 0o644))
        assert (await one.get(ino)).inode.mtime_ns < now + 10**9


async def test_an_unlinked_file_that_nobody_has_open_is_gone_at_once(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        ino = await one.create(b"file")
        await two.get(ino)
        await one.unlink(b"file")
        with pytest.raises(StaleHandle):
            await two.get(ino)


async def test_an_unlinked_file_lives_until_its_last_opener_says_so(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        ino = await one.create(b"file")
        await two.get(ino)
        two.open.add(ino)
        await one.unlink(b"file")
        assert (await two.get(ino)).inode.nlink == 0
        two.open.clear()
        await two.ask(m.ReleaseLeases(two.id, (two.release(ino),)))
        with pytest.raises(StaleHandle):
            await two.get(ino)


async def test_the_unlinker_may_keep_its_own_handles(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        ino = await one.create(b"file")
        one.open.add(ino)
        executed = await one.unlink(b"file", keep_open=True)
        assert [inode.nlink for inode in executed.inodes if inode.ino == ino] == [0]
        await one.write(ino, b"still here")
        one.open.clear()
        await one.ask(m.ReleaseLeases(one.id, (one.release(ino),)))
        assert (await server.ask(m.InspectInode(one.layer, ino))).inode is None


async def test_an_open_orphan_survives_a_restart_and_goes_with_its_session(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one", alive=False), await client(server, "two", alive=False)
        ino = await one.create(b"file")
        await two.get(ino)
        two.open.add(ino)
        await one.unlink(b"file")
        await server.restart()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.resume)
            nursery.start_soon(two.resume)
        assert (await two.get(ino)).inode.nlink == 0
        server.nursery.start_soon(one.keep_alive)
        await trio.sleep(30)
        assert (await server.ask(m.InspectInode(one.layer, ino))).inode is None
        with pytest.raises(SessionEvicted):
            await two.lookup(b"file")


async def test_quotas_are_exact(autojump_clock):
    async with running() as server:
        await server.ask(c.CreateVolume("small", 1, 1, quota_bytes=100, quota_inodes=3))
        one = await FakeClient(server, "one").connect("small")
        ino = await one.create(b"a")
        await one.write(ino, b"x" * 100)
        with pytest.raises(QuotaExceeded):
            await one.write(ino, b"x" * 101)
        await one.create(b"b")
        with pytest.raises(QuotaExceeded):
            await one.create(b"c")
        space = await one.ask(m.StatVolume(one.id))
        assert (space.free_bytes, space.free_inodes) == (0, 0)


async def test_extended_attributes_travel_between_sessions(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        ino = await one.create(b"file")
        await one.execute(SetXattr(*one.base(), ino, b"user.a", b"value"))
        assert (await two.ask(m.GetXattr(two.id, ino, b"user.a"))).value == b"value"
        assert (await two.ask(m.ListXattrs(two.id, ino))).names == (b"user.a",)


async def test_attributes_set_by_the_exclusive_holder_do_not_wait(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        ino = await one.create(b"file", lease=EXCLUSIVE)
        executed = await one.execute(SetAttributes(*one.base(), ino, mode=0o600))
        assert executed.inodes[0].mode & 0o7777 == 0o600
        assert executed.grants == ()


async def test_an_answer_tells_which_names_changed_and_what_is_gone(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        first, second = await one.create(b"a"), await one.create(b"b")
        renamed = await one.execute(Rename(*one.base(), Ino(1), b"a", Ino(1), b"b"), number=70)
        assert {(change.name, change.ino) for change in renamed.names} == {(b"a", 0), (b"b", first)}
        assert renamed.gone == (second,)
        again = await one.execute(Rename(*one.base(), Ino(1), b"a", Ino(1), b"b"), number=70)
        assert (again.names, again.gone) == ((), (second,))


async def test_who_unlinks_what_it_has_open_keeps_its_lease(autojump_clock):
    async with running() as server:
        one = await client(server, "one")
        ino = await one.create(b"file", lease=EXCLUSIVE)
        one.open.add(ino)
        executed = await one.unlink(b"file", keep_open=True)
        assert executed.gone == ()
        await one.execute(WriteInline(*one.base(), ino, b"late"), write_back=True)
        one.open.clear()
        await one.ask(m.ReleaseLeases(one.id, (one.release(ino),)))


async def test_a_write_back_never_waits_whatever_its_sender_believes_to_hold(autojump_clock):
    """A request that waits for one's recall has the guard of the file that one writes back: once one was evicted for it."""
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        directory = await one.mkdir(b"d")
        ino = await one.create(b"file", lease=EXCLUSIVE)
        await one.get(directory, EXCLUSIVE)
        await two.get(ino)
        two.open.add(ino)
        await one.get(ino, EXCLUSIVE)
        written: list[str] = []

        async def write_back_first(recall: m.Recall) -> None:
            with pytest.raises(StaleHandle):
                await one.execute(WriteInline(*one.base(), ino, b"late"), write_back=True)
            written.append("refused at once")

        one.on_recall = write_back_first
        await one.ask(
            m.ReleaseLeases(one.id, (one.release(ino),))
        )  # as when the last name goes: the server has taken it
        await two.execute(Link(*two.base(), ino, directory, b"name"))
        assert written == ["refused at once"]
        assert not one.evicted


async def test_who_gets_an_exclusive_lease_hears_that_others_have_the_inode_open(autojump_clock):
    async with running() as server:
        one, two = await client(server, "one"), await client(server, "two")
        ino = await one.create(b"file")
        assert not (await one.get(ino, EXCLUSIVE)).grants[0].open_elsewhere
        await two.get(ino)
        two.open.add(ino)
        assert (await one.get(ino, EXCLUSIVE)).grants[0].open_elsewhere
        assert not (await two.get(ino, EXCLUSIVE)).grants[0].open_elsewhere
