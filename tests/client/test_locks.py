"""Locks of several clients: exclusion, fairness, deadlocks, what a delegation, a restart and an eviction do to them."""

import os

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fsd.core.errors import Deadlock, LockConflict, LockLost
from fsd.namespace.locks import RANGE_END, LockKind, LockSpace
from fsd.protocol.locks import EvictSession, InspectLocks
from fsd.protocol.metadata import HeldLock
from tests.client.cluster import METADATA, ROOT, cluster, put
from tests.fakes import MemoryState

READ, WRITE = LockKind.READ, LockKind.WRITE
POSIX, FLOCK = LockSpace.POSIX, LockSpace.FLOCK


def lock(ino, owner, kind=WRITE, start=0, end=RANGE_END, space=POSIX):
    return HeldLock(ino, space, owner, kind, start, end, 1000 + owner, owner)


async def shared(fs, name, data=b""):
    """A file that all know."""
    ino = await put(fs, name, data)
    await fs.sync()
    return ino


async def refused(fs, wanted):
    with pytest.raises(LockConflict):
        await fs.locks.acquire(wanted, wait=False)


@pytest.mark.parametrize("space", [POSIX, FLOCK])
async def test_one_client_keeps_another_out_until_it_unlocks(autojump_clock, space):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        ino = await shared(one, b"f")
        await one.locks.acquire(lock(ino, 1, space=space), wait=False)
        await refused(two, lock(ino, 1, space=space))
        await one.locks.release(space, ino, 1)
        await two.locks.acquire(lock(ino, 1, space=space), wait=False)
        await refused(one, lock(ino, 1, space=space))


async def test_readers_share_and_ranges_split(autojump_clock):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        ino = await shared(one, b"f")
        await one.locks.acquire(lock(ino, 1, READ), wait=False)
        await two.locks.acquire(lock(ino, 1, READ), wait=False)
        await refused(two, lock(ino, 1, WRITE, 5, 6))
        await one.locks.release(POSIX, ino, 1, 5, 10)
        await two.locks.acquire(lock(ino, 1, WRITE, 5, 10), wait=False)
        found = await one.locks.test(lock(ino, 7, WRITE, 0, 20))
        assert (found.owner, found.start, found.kind) == (1, 0, READ)
        assert await one.locks.test(lock(ino, 1, READ, 10, 20)) is None


async def test_what_only_one_client_locks_is_decided_there(autojump_clock):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        ino = await shared(one, b"f")
        for _ in range(10):
            await one.locks.acquire(lock(ino, 1), wait=False)
            await refused(one, lock(ino, 2))
            await one.locks.release(POSIX, ino, 1)
        told = one.statistics()
        assert told.get("SetLock", 0) <= 1
        assert told.get("Unlock", 0) == 0
        await one.locks.acquire(lock(ino, 1, WRITE, 3, 4), wait=False)
        await refused(two, lock(ino, 9, READ, 0, 4))  # the locks were handed over
        assert one.statistics()["locks handed over"] == 1
        await two.locks.acquire(lock(ino, 9, READ, 0, 3), wait=False)


async def test_waiters_of_all_clients_are_served_in_turn(autojump_clock):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        ino = await shared(one, b"f")
        order = []

        async def waiter(fs, owner):
            await fs.locks.acquire(lock(ino, owner), wait=True)
            order.append(owner)
            await fs.locks.release(POSIX, ino, owner)

        await one.locks.acquire(lock(ino, 1), wait=False)
        async with trio.open_nursery() as nursery:
            for number, fs in enumerate([two, one, two, one], 2):
                nursery.start_soon(waiter, fs, number)
                await trio.sleep(0.1)
            assert order == []
            await one.locks.release(POSIX, ino, 1)
        assert order == [2, 3, 4, 5]


async def test_a_deadlock_between_clients_is_seen(autojump_clock):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        x, y = await shared(one, b"x"), await shared(one, b"y")
        await one.locks.acquire(lock(x, 1), wait=False)
        await two.locks.acquire(lock(y, 1), wait=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: one.locks.acquire(lock(y, 1), wait=True))
            await trio.sleep(1)
            with pytest.raises(Deadlock):
                await two.locks.acquire(lock(x, 1), wait=True)
            await two.locks.release(POSIX, y, 1)


async def test_a_deadlock_through_waiters_of_one_client_is_seen(autojump_clock):
    """An edge between two processes of one client, which alone decides about that file, counts too."""
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        x, y, z = [await shared(one, name) for name in (b"x", b"y", b"z")]
        await one.locks.acquire(lock(x, 1), wait=False)
        await one.locks.acquire(lock(y, 2), wait=False)
        await two.locks.acquire(lock(z, 3), wait=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: one.locks.acquire(lock(x, 2), wait=True))
            nursery.start_soon(lambda: two.locks.acquire(lock(y, 3), wait=True))
            await trio.sleep(1)
            with pytest.raises(Deadlock):
                await one.locks.acquire(lock(z, 1), wait=True)
            nursery.cancel_scope.cancel()


async def test_a_cancelled_waiter_holds_nothing_and_keeps_what_it_had(autojump_clock):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        ino = await shared(one, b"f")
        await one.locks.acquire(lock(ino, 1, READ), wait=False)
        await two.locks.acquire(lock(ino, 2, READ), wait=False)
        with trio.move_on_after(1):
            await two.locks.acquire(lock(ino, 2, WRITE), wait=True)
        await one.locks.release(POSIX, ino, 1)
        await trio.sleep(1)
        await one.locks.acquire(lock(ino, 1, READ), wait=False)
        await refused(one, lock(ino, 1, WRITE))
        await two.locks.release(POSIX, ino, 2)
        await one.locks.acquire(lock(ino, 1, WRITE), wait=False)


async def test_a_waiter_that_is_cancelled_as_it_is_served_gives_it_back(autojump_clock):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        ino = await shared(one, b"f")
        for pause in (0, 1, 2, 3, 5, 8):
            await one.locks.acquire(lock(ino, 1), wait=False)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: two.locks.acquire(lock(ino, 2), wait=True))
                await trio.sleep(1)
                nursery.start_soon(one.locks.release, POSIX, ino, 1)
                for _ in range(pause):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            await two.locks.release(POSIX, ino, 2)  # if it was served before
            await wait_all_tasks_blocked()
            with trio.fail_after(5):
                await one.locks.acquire(lock(ino, 1), wait=True)
            await one.locks.release(POSIX, ino, 1)


async def test_closing_gives_locks_up(autojump_clock):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        ino = await shared(one, b"f")
        await one.locks.acquire(lock(ino, 1), wait=False)
        await one.locks.acquire(lock(ino, 5, space=FLOCK), wait=False)
        await one.locks.closed(ino, 1)
        await two.locks.acquire(lock(ino, 2), wait=False)
        await refused(two, lock(ino, 2, space=FLOCK))
        one.locks.released(5)
        with trio.fail_after(5):
            await two.locks.acquire(lock(ino, 2, space=FLOCK), wait=True)


async def test_a_client_that_ends_gives_everything_up(autojump_clock):
    async with cluster(0) as c, c.mount() as one:
        ino = await shared(one, b"f")
        async with c.mount() as two:
            await two.locks.acquire(lock(ino, 1), wait=False)
            await refused(one, lock(ino, 1))
        await one.locks.acquire(lock(ino, 1), wait=False)


async def test_locks_and_waiters_survive_a_restart_of_the_server(autojump_clock):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        ino, alone = await shared(one, b"f"), await shared(one, b"alone")
        await one.sync()
        await one.locks.acquire(lock(alone, 1), wait=False)  # decided there
        await one.locks.acquire(lock(ino, 1, WRITE, 0, 5), wait=False)
        await two.locks.acquire(lock(ino, 1, WRITE, 5, 9), wait=False)
        served = trio.Event()

        async def waiter():
            await two.locks.acquire(lock(ino, 2, WRITE, 0, 5), wait=True)
            served.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            await trio.sleep(1)
            await c.kill("metadata", METADATA)
            await c.start_metadata()
            await refused(two, lock(alone, 9))
            await refused(two, lock(ino, 3, WRITE, 0, 5))
            await refused(one, lock(ino, 3, WRITE, 5, 9))
            await trio.sleep(1)
            assert not served.is_set()
            await one.locks.release(POSIX, ino, 1)
            with trio.fail_after(5):
                await served.wait()


async def test_a_short_cut_of_the_network_costs_no_lock(autojump_clock):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        ino = await shared(one, b"f")
        await one.locks.acquire(lock(ino, 1), wait=False)
        await c.isolate(one, 3)
        await refused(two, lock(ino, 1))
        await one.locks.release(POSIX, ino, 1)
        await two.locks.acquire(lock(ino, 1), wait=False)


async def test_the_locks_of_an_evicted_client_go_and_its_handles_say_so(autojump_clock):
    async with cluster(3) as c, c.mount() as one, c.mount() as two:
        ino = await shared(one, b"f", b"0")
        handle = await one.open(ino, os.O_RDWR)
        await one.locks.acquire(lock(ino, 1), wait=False)
        await refused(two, lock(ino, 1))
        await c.ask(EvictSession(one.session_id))
        with trio.fail_after(30):
            await two.locks.acquire(lock(ino, 1), wait=True)
        with pytest.raises(LockLost):
            await one.write(handle, 0, b"1")
        with pytest.raises(LockLost):
            await one.read(handle, 0, 1)
        again = await one.open(ino, os.O_RDWR)
        await one.write(again, 0, b"2")
        await one.release(again)
        await one.release(handle)
        assert one.statistics()["lost locks"] == 1


async def test_a_waiter_of_an_evicted_client_goes_on_in_its_next_session(autojump_clock):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        ino = await shared(one, b"f")
        await one.locks.acquire(lock(ino, 1), wait=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: two.locks.acquire(lock(ino, 1), wait=True))
            await trio.sleep(1)
            await c.ask(EvictSession(two.session_id))
            await trio.sleep(1)
            await one.locks.release(POSIX, ino, 1)
        await refused(one, lock(ino, 1))


async def test_who_asks_sees_all_holders_and_waiters(autojump_clock):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        ino = await shared(one, b"f")
        await one.sync()
        await one.locks.acquire(lock(ino, 1), wait=False)
        await one.locks.acquire(lock(ino, 1, READ, 3, 7), wait=False)
        told = await c.ask(InspectLocks(one.volume.layer, ino))
        assert told.delegate == one.session_id
        assert [(row.lock.kind, row.lock.start, row.lock.end) for row in told.rows] == [
            (WRITE, 0, 3),
            (READ, 3, 7),
            (WRITE, 7, RANGE_END),
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: two.locks.acquire(lock(ino, 4, WRITE, 0, 1), wait=True))
            await trio.sleep(2)
            told = await c.ask(InspectLocks(one.volume.layer, ino))
            assert told.delegate == 0
            assert [(row.session, row.waiting) for row in told.rows] == [
                *[(one.session_id, False)] * 3,
                (two.session_id, True),
            ]
            assert told.rows[-1].age_s > 1
            nursery.cancel_scope.cancel()


async def test_locks_of_a_removed_file_leave_nothing_behind(autojump_clock):
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        for number in range(20):
            name = b"lock%d" % number
            inode, handle = await one.create(ROOT, 1, name, 0o600, os.O_RDWR)
            await one.locks.acquire(lock(inode.ino, 1, space=FLOCK), wait=False)
            await one.unlink(ROOT, 1, name)
            one.locks.released(1)
            await one.release(handle)
        await one.sync()
        await trio.sleep(3)
        assert one.statistics()["locks"] == 0
        assert (await two.statfs()).total_inodes


async def test_an_owner_number_that_comes_again_is_another_owner(autojump_clock):
    """The kernel names an open file by its address, which the next one may have before we hear that the first is closed."""
    async with cluster(0) as c, c.mount() as one, c.mount() as two:
        ino = await shared(one, b"f")
        await two.locks.acquire(lock(ino, 9, READ, 5, 6), wait=False)  # so that the server decides
        first, second = lock(ino, 1, WRITE, 0, 1), HeldLock(ino, POSIX, 1, WRITE, 0, 1, 1, 2)
        await one.locks.acquire(first, wait=False)
        one.locks.released(1)
        await one.locks.acquire(second, wait=False)
        await trio.sleep(1)
        await refused(two, lock(ino, 1, WRITE, 0, 1))
        await one.locks.acquire(HeldLock(ino, POSIX, 1, WRITE, 0, 1, 1, 3), wait=False)
        one.locks.released(2)  # heard of too late: the owner is that of handle 3 by now
        await trio.sleep(1)
        await refused(two, lock(ino, 1, WRITE, 0, 1))
        one.locks.released(3)
        await trio.sleep(1)
        await two.locks.acquire(lock(ino, 1, WRITE, 0, 1), wait=False)


async def test_locks_outlive_the_process_of_their_client(autojump_clock):
    """With a state directory: killed, and another process goes on with the session."""
    state = MemoryState()
    async with cluster(0) as c, c.mount() as other:
        async with c.process(state) as fs:
            ino = await shared(fs, b"f")
            await fs.locks.acquire(lock(ino, 1, WRITE, 0, 5), wait=False)
            await fs.locks.acquire(lock(ino, 2, READ, 7, 9), wait=False)
            assert fs.statistics()["locks decided here"] > 0
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: fs.locks.acquire(lock(ino, 3, WRITE, 0, 5), wait=True))
                await trio.sleep(1)
                nursery.cancel_scope.cancel()
        async with c.process(state) as fs:
            assert fs.resumed
            await refused(other, lock(ino, 1, WRITE, 4, 5))
            assert (await fs.locks.test(lock(ino, 9, WRITE, 7, 9))).pid == 1002
            fs.locks.released(2)
            await fs.locks.closed(ino, 1)
            await trio.sleep(1)
            await other.locks.acquire(lock(ino, 1), wait=False)


async def test_locks_outlive_both_the_process_of_their_client_and_the_server(autojump_clock):
    state = MemoryState()
    async with cluster(0) as c:
        async with c.process(state) as fs:
            ino = await shared(fs, b"f")
            await fs.locks.acquire(lock(ino, 1, WRITE, 0, 5), wait=False)
            await fs.locks.acquire(lock(ino, 1, WRITE, 2, 3), wait=False)
            await fs.locks.release(POSIX, ino, 1, 4, 5)
            await c.kill("metadata", METADATA)
        await c.start_metadata()
        async with c.process(state) as fs, c.mount() as other:
            assert fs.resumed
            await refused(other, lock(ino, 1, WRITE, 0, 1))
            await other.locks.acquire(lock(ino, 1, WRITE, 4, 5), wait=False)
