"""The HTTP server: what it answers, what it refuses, and its bounds."""

import errno
import os
import random

import pytest
import trio
import trio.testing

from fsd.core.errors import Busy, ConfigurationError
from fsd.http.server import Limits, Request, Response, serve_connection, serve_http
from fsd.runtime.listening import inherited_listeners, unix_listener

SMALL = Limits(head_bytes=1000, body_bytes=50, idle_s=30, request_s=5, connections=2)


async def echo(request: Request) -> Response:
    if request.path == "/bug":
        raise ValueError("planted")
    return Response(200, f"{request.method} {request.path} {request.query} {request.body.decode()}".encode())


async def exchange(sent: bytes, limits: Limits = SMALL, *, end: bool = True) -> bytes:
    """All that is answered to `sent`; `end`: the client then says that nothing more comes."""
    client, server = trio.testing.memory_stream_pair()
    received = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_connection, server, echo, limits)
        await client.send_all(sent)
        if end:
            await client.send_eof()
        while piece := await client.receive_some(65536):
            received += piece
        await client.aclose()
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_requests_of_one_connection_are_answered_in_turn():
    answer = await exchange(
        b"POST /a?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: h\r\n\r\n"
    )
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"POST /a x=1 abc" in answer
    assert answer.endswith(b"GET /b  ")


async def test_a_chunked_body_is_put_together():
    answer = await exchange(
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    )
    assert answer.endswith(b"POST /a  abc")


async def test_head_has_the_length_and_no_body():
    answer = await exchange(b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n")
    assert status(answer) == 200
    assert b"content-length: 9" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")


async def test_an_old_client_gets_its_answer_and_the_end_of_the_connection():
    assert (await exchange(b"GET /a HTTP/1.0\r\n\r\n", end=False)).endswith(b"GET /a  ")


async def test_who_waits_for_100_is_told_to_continue():
    answer = await exchange(
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n" + b"abc"
    )
    assert answer.endswith(b"POST /a  abc")


async def test_a_bug_of_the_handler_is_a_500_and_the_connection_goes_on(caplog):
    answer = await exchange(b"GET /bug HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n")
    assert status(answer) == 500
    assert b"planted" not in answer
    assert answer.endswith(b"GET /b  ")
    assert "planted" in caplog.text


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 70_000, 431),
        (b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 51\r\n\r\n" + b"x" * 51, 413),
        (b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
async def test_what_is_malformed_or_too_large_is_refused_and_the_connection_ends(sent, code):
    answer = await exchange(sent + b"GET /after HTTP/1.1\r\nHost: h\r\n\r\n")
    assert status(answer) == code
    assert b"/after" not in answer
    assert b"connection: close" in answer.lower()


async def test_a_request_that_does_not_end_is_refused_in_time(autojump_clock):
    started = trio.current_time()
    answer = await exchange(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nab", end=False)
    assert status(answer) == 408
    assert trio.current_time() - started <= SMALL.request_s + 2


async def test_a_silent_client_is_left_in_time(autojump_clock):
    started = trio.current_time()
    assert await exchange(b"", end=False) == b""
    assert trio.current_time() - started == pytest.approx(SMALL.idle_s)


async def test_a_client_that_goes_in_the_middle_ends_only_its_connection():
    assert status(await exchange(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nab")) == 400


async def test_random_bytes_are_answered_or_refused():
    chance = random.Random(7)
    good = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
    for _ in range(300):
        sent = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            sent[chance.randrange(len(sent))] = chance.randrange(256)
        answer = await exchange(bytes(sent))
        assert not answer or status(answer) in (200, 400, 405, 413, 431, 500, 501, 505)


async def test_no_more_connections_than_the_limit_are_served_at_once(tmp_path):
    path = str(tmp_path / "s")
    most = running = 0

    async def slow(request: Request) -> Response:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await trio.testing.wait_all_tasks_blocked()
        running -= 1
        return Response(200)

    async def ask() -> None:
        stream = await trio.open_unix_socket(path)
        async with stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert status(await stream.receive_some(65536)) == 200

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_http, [unix_listener(path)], slow, SMALL)
        async with trio.open_nursery() as askers:
            for _ in range(6):
                askers.start_soon(ask)
        nursery.cancel_scope.cancel()
    assert 1 <= most <= SMALL.connections


class Exhausted(trio.abc.Listener):
    """Has no descriptor for the first connection."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.client, self.server = trio.testing.memory_stream_pair()
        self.asked = 0

    async def accept(self):
        self.asked += 1
        if self.asked == 1:
            raise OSError(self.number, os.strerror(self.number))
        if self.asked == 2:
            return self.server
        return await trio.sleep_forever()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_out_of_descriptors_is_a_pause(autojump_clock):
    listener = Exhausted(errno.EMFILE)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_http, [listener], echo, SMALL)
        await listener.client.send_all(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
        assert status(await listener.client.receive_some(65536)) == 200
        nursery.cancel_scope.cancel()


async def test_a_socket_has_its_mode_and_a_dead_one_is_replaced_but_not_a_living_one(tmp_path):
    path = str(tmp_path / "d" / "s")
    async with unix_listener(path, 0o600):
        assert os.stat(path).st_mode & 0o777 == 0o600
        with pytest.raises(Busy, match="already"):
            unix_listener(path)
    async with unix_listener(path):  # closed without being removed
        pass


async def test_a_file_in_the_sockets_place_is_not_removed(tmp_path):
    (tmp_path / "s").write_text("mine")
    with pytest.raises(ConfigurationError, match="something else"):
        unix_listener(str(tmp_path / "s"))
    assert (tmp_path / "s").read_text() == "mine"


def test_sockets_of_another_process_are_not_taken(monkeypatch):
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")
    assert inherited_listeners() == []
    assert "LISTEN_FDS" not in os.environ
