"""A cluster's health and metrics by HTTP, its dashboard, and the files of docs/examples/monitoring, on real processes."""

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest

from fsd.cli.health import CODES
from fsd.mount.metrics import families
from tests.cli.test_commands import REPOSITORY

EXAMPLES = REPOSITORY / "docs/examples/monitoring"
WAIT_S = 60.0


def promtool(*words: str, sent: str = "") -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing (Debian: prometheus)")
    done = subprocess.run(["promtool", *words], input=sent, capture_output=True, text=True, cwd=EXAMPLES, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class Daemon:
    """`fsd WORDS`, with its HTTP port."""

    def __init__(self, port: int, *words: str) -> None:
        self.port = port
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fsd.cli", *words, "--http", f"127.0.0.1:{port}"],
            cwd=REPOSITORY, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def get(self, path: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
        finally:
            connection.close()

    def becomes(self, path: str, status: int) -> str:
        deadline = time.monotonic() + WAIT_S
        told: object = "nothing"
        while time.monotonic() < deadline:
            try:
                code, _, told = self.get(path)
                if code == status:
                    return str(told)
            except OSError as error:
                told = error
            time.sleep(0.1)
        raise AssertionError(f"{path} did not become {status}, the last was: {told}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(metadata server, chunkservers)."""
    data = tmp_path_factory.mktemp("monitored")
    listen, web, *others = free_ports(6)
    meta = Daemon(
        web, "metadata", "--data", str(data / "m"), "--listen", f"127.0.0.1:{listen}",
        "--lease-s", "2", "--grace-s", "3", "--pg-count", "64",
    )  # fmt: skip
    nodes = [
        Daemon(
            others[number], "chunkserver", "--data", str(data / f"c{number}"), "--listen", "127.0.0.1:0",
            "--metadata", f"127.0.0.1:{listen}", "--zone", f"z{number}",
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        for daemon in (meta, *nodes):
            daemon.becomes("/readyz", 200)
        yield meta, nodes
    finally:
        for daemon in (*nodes, meta):
            daemon.stop()


def names_of(text: str) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))


def used_in(expressions: list[str]) -> set[str]:
    """Names of metrics; a histogram's series by the histogram's name."""
    found = {name for text in expressions for name in re.findall(r"\b(?:fsd|process)_[a-z_]+", text)}
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in found}


def test_every_daemon_lives_is_ready_and_tells_its_version(cluster):
    meta, nodes = cluster
    for daemon in (meta, *nodes):
        assert daemon.get("/livez")[0] == 200
        assert "[-]" not in daemon.becomes("/readyz?verbose", 200)
        assert json.loads(daemon.get("/version")[2])["version"]
    assert "lease: held" in nodes[0].get("/readyz?verbose")[2]


def test_promtool_finds_no_fault_in_the_metrics(cluster):
    meta, nodes = cluster
    for daemon in (meta, nodes[0]):
        promtool("check", "metrics", sent=daemon.get("/metrics")[2])


def test_every_metric_of_the_dashboard_and_of_the_alerts_exists(cluster):
    meta, nodes = cluster
    shown = names_of(meta.get("/metrics")[2]) | names_of(nodes[0].get("/metrics")[2])
    shown |= {family.name for family in families({}, {})}
    dashboard = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
    wanted = used_in([target["expr"] for panel in dashboard["panels"] for target in panel["targets"]])
    assert len(wanted) > 30
    assert wanted <= shown
    alerts = used_in(re.findall(r"expr: (?:>-\n\s+)?(.*)", (EXAMPLES / "alerts.yaml").read_text()))
    assert len(alerts) > 12
    assert alerts <= shown


def test_the_alert_rules_pass_their_unit_tests():
    promtool("test", "rules", "alerts-test.yaml")
    promtool("check", "config", "prometheus.yaml")


def test_each_alert_has_a_unit_test():
    alerts = set(re.findall(r"alert: (\w+)", (EXAMPLES / "alerts.yaml").read_text()))
    tests = (EXAMPLES / "alerts-test.yaml").read_text()
    assert alerts == set(re.findall(r"name: (\w+) fires", tests)) == set(re.findall(r"alertname: (\w+), exp", tests))


class Outline(HTMLParser):
    """What a page is made of."""

    VOID = ("meta", "link", "rect", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def test_the_dashboard_is_whole_without_scripts_and_asks_nobody_else(cluster):
    meta, _ = cluster
    code, headers, text = meta.get("/")
    assert code == 200
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    page = Outline()
    page.feed(text)
    assert page.open == []
    asked = [value for _, attrs in page.elements for name, value in attrs.items() if name in ("src", "href")]
    assert asked
    assert all(value and value.startswith("/") and not value.startswith("//") for value in asked)
    assert not [tag for tag, attrs in page.elements if tag == "style" or "style" in attrs]
    assert [attrs for tag, attrs in page.elements if tag == "script"] == [{"src": "/dashboard.js", "defer": None}]
    for path in asked:
        assert meta.get(str(path))[0] == 200
    assert all(title in text for title in ("Placement groups", "Traffic", "Nodes", "Volumes", "Sessions"))


def test_the_api_is_what_fsd_status_tells(cluster):
    meta, _ = cluster
    status = json.loads(meta.get("/api/status")[2])
    assert status["health"] == "ok"
    assert len(status["nodes"]) == 2


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is missing")
def test_a_browser_runs_the_script_under_the_policy(cluster, tmp_path):
    meta, _ = cluster
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--enable-logging=stderr",
         "--virtual-time-budget=7000", "--dump-dom", f"http://127.0.0.1:{meta.port}/"],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert 'id="health"' in done.stdout
    assert 'class="old"' not in done.stdout
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr


def test_losses_are_told_life_goes_on(cluster):
    """Last: it takes the cluster apart. First a node, then the metadata server goes."""
    meta, nodes = cluster
    nodes[1].stop()
    deadline = time.monotonic() + WAIT_S
    while "fsd_health 1" not in meta.get("/metrics")[2]:
        assert time.monotonic() < deadline, "the loss of a node is not told"
        time.sleep(0.1)
    page = meta.get("/")[2]
    code = next(code for code in ("FSD-N1", "FSD-N2") if code in page)
    assert CODES[code].remedy.split(";")[0] in page
    assert meta.get("/readyz")[0] == 200  # it serves; what is missing is the cluster's health
    meta.stop()
    told = nodes[0].becomes("/readyz", 503)
    assert "[-] lease: run out" in told
    assert nodes[0].get("/livez")[0] == 200
    assert "fsd_lease_left_seconds 0.0" in nodes[0].get("/metrics")[2]
