"""What every daemon shows: paths, methods, readiness with reasons; and metrics as Prometheus reads them."""

import random
import re

import trio
import trio.testing

from fsd.core.errors import NotFound
from fsd.core.histogram import BOUNDS_S, Histogram
from fsd.http import exposition
from fsd.http.exposition import COUNTER, GAUGE, HISTOGRAM, Family
from fsd.http.face import Check, Face, request_families
from fsd.http.server import Limits, Request, Response, serve_connection
from fsd.rpc.measured import Measured, RequestFigures
from fsd.runtime.local import SystemClock

ASKED = ("/livez", "/readyz", "/metrics", "/version")


def face(*checks: Check) -> Face:
    async def hello(request: Request) -> Response:
        return Response(200, b"hello")

    return Face("test", lambda: checks, pages={"/hello": hello})


async def get(face: Face, path: str, query: str = "", method: str = "GET") -> Response:
    return await face.handle(Request(method, path, query, {}))


async def test_life_does_not_depend_on_readiness():
    sick = face(Check("lease", False, "run out"), Check("map", True, "epoch 3"))
    assert (await get(sick, "/livez")).status == 200
    answer = await get(sick, "/readyz")
    assert answer.status == 503
    assert answer.body == b"[-] lease: run out\n[+] map: epoch 3\nnot ready\n"


async def test_readiness_is_short_unless_asked_for_reasons():
    well = face(Check("map", True, "epoch 3"))
    assert (await get(well, "/readyz")).body == b"ready\n"
    assert (await get(well, "/readyz", "verbose")).body == b"[+] map: epoch 3\nready\n"


async def test_unknown_paths_are_404_and_name_the_known_ones():
    answer = await get(face(), "/nothing")
    assert answer.status == 404
    assert all(path.encode() in answer.body for path in (*ASKED, "/hello"))


async def test_nothing_but_get_and_head_is_allowed():
    for path in (*ASKED, "/hello"):
        for method in ("POST", "PUT", "DELETE", "BREW"):
            answer = await get(face(), path, method=method)
            assert answer.status == 405
            assert ("allow", "GET, HEAD") in answer.headers
        assert (await get(face(), path, method="HEAD")).status == 200


async def test_metrics_have_help_type_and_process_figures():
    answer = await get(face(), "/metrics")
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    text = answer.body.decode()
    assert "# TYPE process_resident_memory_bytes gauge" in text
    resident = re.search(r"^process_resident_memory_bytes (\d+)$", text, re.MULTILINE)
    assert resident is not None
    assert int(resident[1]) > 1_000_000


def test_labels_and_help_are_escaped():
    family = Family("x", GAUGE, "two\nlines \\").add(1, {"name": 'a"b\\c\nd'})
    assert (
        exposition.render([family]).decode()
        == '# HELP x two\\nlines \\\\\n# TYPE x gauge\nx{name="a\\"b\\\\c\\nd"} 1\n'
    )


def test_a_histogram_is_cumulative():
    histogram = Histogram()
    for seconds in (0.0, BOUNDS_S[0], 0.0002, 99.0):
        histogram.add(seconds)
    lines = Family("t_seconds", HISTOGRAM, "h").observe(histogram, {"k": "v"}).lines
    assert lines[0] == 't_seconds_bucket{k="v",le="0.0001"} 2'
    assert lines[1] == 't_seconds_bucket{k="v",le="0.00025"} 3'
    assert lines[-3] == 't_seconds_bucket{k="v",le="+Inf"} 4'
    assert lines[-1] == 't_seconds_count{k="v"} 4'
    assert histogram.count == 4
    assert abs(histogram.sum_s - 99.0003) < 1e-9


class Answers:
    def arrived(self, peer, message) -> None: ...

    def disconnected(self, peer) -> None: ...

    async def handle(self, peer, message, payload):
        await trio.sleep(message if isinstance(message, int) else 0)
        if isinstance(message, str):
            raise NotFound(message)
        return "answer"


async def test_requests_are_counted_timed_and_their_errors_named(autojump_clock):
    class Clock(SystemClock):
        def monotonic(self) -> float:
            return trio.current_time()

    figures = RequestFigures()
    service = Measured(Answers(), figures, Clock())
    assert await service.handle(None, 2, b"") == "answer"
    for _ in range(3):
        try:
            await service.handle(None, "x", b"")
        except NotFound:
            continue
    with trio.move_on_after(1):
        await service.handle(None, 5, b"")
    assert figures.under_way == 0
    assert figures.durations["int"].count == 2
    assert figures.durations["int"].sum_s == 3.0
    assert figures.errors == {("str", "NotFound"): 3, ("int", "Cancelled"): 1}
    shown = exposition.render(request_families(figures)).decode()
    assert 'fsd_request_errors_total{kind="str",error="NotFound"} 3' in shown
    assert f"# TYPE fsd_request_errors_total {COUNTER}" in shown


async def test_random_bytes_get_an_answer_or_an_end_and_never_an_exception(caplog):
    chance = random.Random(17)
    good = b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n"
    for _ in range(300):
        sent = bytearray(good * chance.randint(1, 3))
        for _ in range(chance.randint(1, 8)):
            sent[chance.randrange(len(sent))] = chance.randrange(256)
        client, server = trio.testing.memory_stream_pair()
        received = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_connection, server, face().handle, Limits(head_bytes=2000, body_bytes=0))
            await client.send_all(bytes(sent))
            await client.send_eof()
            while piece := await client.receive_some(65536):
                received += piece
        assert received == b"" or received.startswith(b"HTTP/1.1 ")
    assert "bug" not in caplog.text
