"""Requests and answers over connections in memory and over TCP."""

import logging
import random

import pytest
import trio

from fsd.core.errors import (
    ConnectionRefused,
    ForeignFileSystem,
    InternalError,
    NotFound,
    NotServing,
    Overloaded,
    Unreachable,
)
from fsd.core.ids import SessionId
from fsd.protocol.metadata import GetXattr, KeepAlive, XattrValue
from fsd.rpc import connection as rpc_connection
from fsd.rpc.client import Channel, ChannelPool
from fsd.rpc.connection import NoService, Peer, Reply
from fsd.rpc.retry import pause_s, retry
from fsd.rpc.server import serve
from fsd.runtime import Runtime
from fsd.runtime.tcp import TcpNetwork
from fsd.wire.handshake import Done, Hello, Welcome
from tests.fakes import MemoryNetwork, TrioClock

HELLO = Hello("cli", "test", "0")


class EchoService(NoService):
    def __init__(self):
        self.seen = []
        self.gone = 0
        self.cancelled = trio.Event()
        self.hold = trio.Event()

    def arrived(self, peer, message):
        self.seen.append(message)

    def disconnected(self, peer):
        self.gone += 1

    async def handle(self, peer, message, payload):
        match message:
            case GetXattr(_, 1, name):
                return Reply(XattrValue(name), bytes(payload)[::-1])
            case GetXattr(_, 2, _):
                raise NotFound("no such thing")
            case GetXattr(_, 3, _):
                return 1 / 0
            case GetXattr(_, 4, _):
                try:
                    await self.hold.wait()
                except trio.Cancelled:
                    self.cancelled.set()
                    raise
                return None
            case GetXattr(_, 5, name):  # ask back over the same connection
                answer = await peer.call(GetXattr(SessionId(1), 1, name), payload)
                return Reply(XattrValue(b"back"), answer.payload)
            case GetXattr(_, 6, _):
                async with trio.open_nursery():
                    raise NotFound("out of a nursery")
            case _:
                return None


def ask(what: int, name: bytes = b"n") -> GetXattr:
    return GetXattr(SessionId(1), what, name)


@pytest.fixture(params=["memory", "tcp"])
def runtime(request):
    network = MemoryNetwork() if request.param == "memory" else TcpNetwork()
    return Runtime(network, TrioClock(), random.Random(1))


class Pair:
    """A service that listens and a channel to it."""

    def __init__(self, runtime, nursery, service, client_service=None):
        self.runtime, self.nursery, self.service, self.client_service = runtime, nursery, service, client_service

    async def start(self):
        self.listener = await self.runtime.network.listen("127.0.0.1:0")
        self.nursery.start_soon(serve, self.listener, self.service, lambda hello: Welcome("metadata", "0", "fs"))
        return Channel(self.runtime, self.nursery, self.listener.address, lambda: HELLO, self.client_service)


async def test_an_answer_brings_message_and_payload(runtime, nursery):
    channel = await Pair(runtime, nursery, EchoService()).start()
    reply = await channel.call(ask(1, b"name"), b"x" * 300_000 + b"y")
    assert reply.message == XattrValue(b"name")
    assert bytes(reply.payload) == b"y" + b"x" * 300_000
    assert (await channel.peer()).remote == Welcome("metadata", "0", "fs")


async def test_errors_keep_their_class_and_text(runtime, nursery):
    channel = await Pair(runtime, nursery, EchoService()).start()
    with pytest.raises(NotFound, match="no such thing"):
        await channel.call(ask(2))
    with pytest.raises(NotFound, match="out of a nursery"):
        await channel.call(ask(6))


async def test_a_bug_is_logged_and_ends_only_its_request(runtime, nursery, caplog):
    channel = await Pair(runtime, nursery, EchoService()).start()
    with caplog.at_level(logging.ERROR), pytest.raises(InternalError):
        await channel.call(ask(3))
    assert "ZeroDivisionError" in caplog.text
    assert (await channel.call(ask(1))).message == XattrValue(b"n")


async def test_many_requests_are_under_way_at_once(runtime, nursery):
    channel = await Pair(runtime, nursery, EchoService()).start()
    results = {}

    async def one(i):
        results[i] = bytes((await channel.call(ask(1, b"%d" % i), b"%d" % i)).payload)

    async with trio.open_nursery() as inner:
        for i in range(200):
            inner.start_soon(one, i)
    assert results == {i: (b"%d" % i)[::-1] for i in range(200)}


async def test_both_ends_may_ask(runtime, nursery):
    channel = await Pair(runtime, nursery, EchoService(), EchoService()).start()
    assert bytes((await channel.call(ask(5), b"abc")).payload) == b"cba"


async def test_cancelling_a_call_cancels_the_work_for_it(runtime, nursery):
    service = EchoService()
    channel = await Pair(runtime, nursery, service).start()
    with trio.move_on_after(0.05):
        await channel.call(ask(4))
    with trio.fail_after(5):
        await service.cancelled.wait()
    assert (await channel.call(ask(1))).message == XattrValue(b"n")


async def test_a_begun_request_is_answered_later_or_given_up(runtime, nursery):
    service = EchoService()
    channel = await Pair(runtime, nursery, service).start()
    assert channel.begin(ask(1)) is None  # there is no connection yet
    await channel.call(ask(0))
    assert channel.begin(ask(1), b"x" * (rpc_connection.MAX_BEGUN_BYTES + 1)) is None
    first, second = channel.begin(ask(1, b"a"), b"12"), channel.begin(ask(2))
    held = channel.begin(ask(4))
    assert (await first.reply()).message == XattrValue(b"a")
    with pytest.raises(NotFound):
        await second.reply()
    held.give_up()
    with trio.fail_after(5):
        await service.cancelled.wait()
    first.give_up()
    assert (await channel.call(ask(1))).message == XattrValue(b"n")


async def test_what_is_left_of_a_begun_request_leaves_by_itself(runtime, nursery):
    channel = await Pair(runtime, nursery, EchoService()).start()
    await channel.call(ask(0))
    data = bytes(rpc_connection.MAX_BEGUN_BYTES)
    calls = []
    while (call := channel.begin(ask(1), data)) is not None and len(calls) < 300:
        calls.append(call)  # more than the sockets or the window take at once
    assert len(calls) > 60
    with trio.fail_after(20):
        for call in calls:
            assert len((await call.reply()).payload) == len(data)


async def test_a_begun_request_on_a_broken_connection_is_unknown(runtime, nursery):
    channel = await Pair(runtime, nursery, EchoService()).start()
    peer = await channel.peer()
    call = channel.begin(ask(4))
    peer.close()
    with pytest.raises(Unreachable):
        await call.reply()
    with pytest.raises(Unreachable):
        peer.begin(ask(1))


async def test_a_broken_connection_fails_what_waits_and_the_next_call_connects_again(runtime, nursery):
    service = EchoService()
    channel = await Pair(runtime, nursery, service).start()
    errors = []

    async def waits():
        try:
            await channel.call(ask(4))
        except Unreachable as error:
            errors.append(error)

    async with trio.open_nursery() as inner:
        inner.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked(0.02)
        (await channel.peer()).close()
    assert len(errors) == 1
    assert (await channel.call(ask(1))).message == XattrValue(b"n")
    with trio.fail_after(5):
        await service.cancelled.wait()
    assert service.gone == 1


async def test_arrived_sees_requests_and_answers_in_order(runtime, nursery):
    service, client = EchoService(), EchoService()
    channel = await Pair(runtime, nursery, service, client).start()
    for i in range(5):
        await channel.call(ask(1, b"%d" % i))
    assert service.seen == [ask(1, b"%d" % i) for i in range(5)]
    assert client.seen == [XattrValue(b"%d" % i) for i in range(5)]


async def test_nobody_there_is_refused(runtime, nursery):
    channel = Channel(runtime, nursery, "127.0.0.1:1", lambda: HELLO)
    with pytest.raises(ConnectionRefused):
        await channel.call(ask(1))


async def test_a_handshake_can_be_refused_with_a_reason(runtime, nursery):
    def welcome(hello):
        raise ForeignFileSystem(f"{hello.name} belongs elsewhere")

    listener = await runtime.network.listen("127.0.0.1:0")
    nursery.start_soon(serve, listener, EchoService(), welcome)
    channel = Channel(runtime, nursery, listener.address, lambda: HELLO)
    with pytest.raises(ForeignFileSystem, match="test belongs elsewhere"):
        await channel.call(ask(1))


async def test_too_many_running_requests_are_pushed_back(runtime, nursery, monkeypatch):
    monkeypatch.setattr(rpc_connection, "MAX_RUNNING", 2)
    service = EchoService()
    channel = await Pair(runtime, nursery, service).start()
    async with trio.open_nursery() as inner:
        inner.start_soon(channel.call, ask(4))
        inner.start_soon(channel.call, ask(4))
        await trio.testing.wait_all_tasks_blocked(0.02)
        with pytest.raises(Overloaded):
            await channel.call(ask(1))
        service.hold.set()
    assert (await channel.call(ask(1))).message == XattrValue(b"n")


async def test_a_notice_is_delivered_and_not_answered(runtime, nursery):
    service = EchoService()
    channel = await Pair(runtime, nursery, service).start()
    await (await channel.peer()).notify(KeepAlive(SessionId(9)))
    await channel.call(ask(1))
    assert service.seen[0] == KeepAlive(SessionId(9))


async def test_a_pool_makes_one_channel_for_each_address(runtime, nursery):
    pool = ChannelPool(runtime, nursery, lambda: HELLO)
    assert pool.to("127.0.0.1:1") is pool.to("127.0.0.1:1")
    assert pool.to("127.0.0.1:1") is not pool.to("127.0.0.1:2")
    pool.close()
    with pytest.raises(Unreachable, match="closed"):
        await pool.to("127.0.0.1:1").call(Done())


async def test_retry_repeats_only_what_can_be_helped(autojump_clock):
    errors = [NotServing("a"), NotServing("b")]

    async def call():
        if errors:
            raise errors.pop()
        return "done"

    assert await retry(call, random=random.Random(0)) == "done"
    errors.append(NotFound("for good"))
    with pytest.raises(NotFound):
        await retry(call, random=random.Random(0))


def test_pauses_grow_to_their_bound():
    chance = random.Random(0)
    pauses = [pause_s(attempt, chance, 0.02, 1.0) for attempt in range(40)]
    assert all(0.01 <= pause <= 1.0 for pause in pauses)
    assert min(pauses[10:]) >= 0.5


def test_peer_is_what_the_docs_say():
    assert {"call", "notify", "close", "run"} <= set(vars(Peer))
