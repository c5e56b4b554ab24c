"""Names become addresses: several answers, SRV records from a DNS server of our own, asked anew at every connection."""

import socket

import dns.asyncresolver
import dns.message
import dns.rrset
import pytest
import trio

from fsd.core import config
from fsd.core.errors import ConfigurationError, ConnectionRefused, Unreachable
from fsd.runtime import tcp
from fsd.runtime.discovery import Service, ask
from fsd.runtime.tcp import TcpNetwork

NAME = "_fsd._tcp.example.org"


class Names:
    """A DNS server for SRV records, on a free port."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.asked = 0
        self.resolver = dns.asyncresolver.Resolver(configure=False)

    async def run(self, *, task_status) -> None:
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        await sock.bind(("127.0.0.1", 0))
        self.resolver.nameservers = ["127.0.0.1"]
        self.resolver.port = sock.getsockname()[1]
        task_status.started()
        while True:
            data, sender = await sock.recvfrom(4096)
            self.asked += 1
            answer = dns.message.make_response(dns.message.from_wire(data))
            name = answer.question[0].name
            lines = self.records.get(str(name).rstrip("."), [])
            if lines:
                answer.answer.append(dns.rrset.from_text_list(name, 0, "IN", "SRV", lines))
            else:
                answer.set_rcode(3)
            await sock.sendto(answer.to_wire(), sender)

    async def lookup(self, name: str) -> list[Service]:
        return await ask(self.resolver, name)


@pytest.fixture
async def names(nursery):
    server = Names()
    await nursery.start(server.run)
    return server


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def refusing_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


async def serves(listener) -> bool:
    """Whether somebody connects."""
    with trio.move_on_after(5):
        (await listener.accept()).close()
        return True
    return False


async def test_the_targets_of_a_service_are_tried_by_priority_then_weight(names):
    network = TcpNetwork(names.lookup)
    wanted, other = await network.listen("127.0.0.1:0"), await network.listen("127.0.0.1:0")
    names.records[NAME] = [
        f"20 9 {port_of(other.address)} 127.0.0.1.",
        f"10 1 {port_of(other.address)} 127.0.0.1.",
        f"10 7 {port_of(wanted.address)} 127.0.0.1.",
        f"1 0 {refusing_port()} 127.0.0.1.",
    ]
    connection = await network.connect(NAME)
    assert await serves(wanted)
    for part in (connection, wanted, other):
        part.close()


async def test_a_service_that_moves_is_found_at_the_next_connection(names):
    network = TcpNetwork(names.lookup)
    for _ in range(2):
        listener = await network.listen("127.0.0.1:0")
        names.records[NAME] = [f"1 1 {port_of(listener.address)} localhost."]
        connection = await network.connect(NAME)
        assert await serves(listener)
        connection.close()
        listener.close()
    assert names.asked == 2


async def test_a_service_without_a_record_is_unreachable_in_one_line(names):
    with pytest.raises(Unreachable, match=f"cannot resolve {NAME}") as raised:
        await TcpNetwork(names.lookup).connect(NAME)
    assert "\n" not in str(raised.value)


async def test_a_service_where_nobody_listens_refuses(names):
    names.records[NAME] = [f"1 1 {refusing_port()} 127.0.0.1."]
    with pytest.raises(ConnectionRefused):
        await TcpNetwork(names.lookup).connect(NAME)


class Answers(trio.abc.HostnameResolver):
    """A name with several addresses."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in self.hosts]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


async def test_every_address_of_a_name_is_tried():
    network = TcpNetwork()
    listener = await network.listen("127.0.0.1:0")
    before = trio.socket.set_custom_hostname_resolver(Answers("127.0.0.2", "127.0.0.3", "127.0.0.1"))
    try:
        connection = await network.connect(f"many.example.org:{port_of(listener.address)}")
    finally:
        trio.socket.set_custom_hostname_resolver(before)
    assert await serves(listener)
    connection.close()
    listener.close()


async def test_a_silent_address_leaves_time_for_the_next(monkeypatch):
    """A full backlog drops what comes: as silent as a host that is off."""
    monkeypatch.setattr(tcp, "_ATTEMPT_S", 0.05)
    network = TcpNetwork()
    silent = socket.socket()
    silent.bind(("127.0.0.2", 0))
    silent.listen(0)
    port = silent.getsockname()[1]
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.2", port))
    listener = await network.listen(f"127.0.0.1:{port}")
    before = trio.socket.set_custom_hostname_resolver(Answers("127.0.0.2", "127.0.0.1"))
    try:
        with trio.fail_after(10):
            connection = await network.connect(f"half.example.org:{port}")
    finally:
        trio.socket.set_custom_hostname_resolver(before)
    assert await serves(listener)
    for part in (connection, listener, silent, *fillers):
        part.close()


def test_services_are_written_with_or_without_srv():
    assert config.addresses(f"srv:{NAME},a:1") == (NAME, "a:1")
    assert config.mount_source(f"{NAME}:/vol") == ((NAME,), "vol")
    for bad in ("_fsd.example.org", "srv:a:1", "_fsd._tcp", "_fsd._tcp..x"):
        with pytest.raises(ValueError, match="name of a service"):
            config.addresses(bad)


def test_a_chunkserver_does_not_tell_others_to_come_to_every_address(tmp_path):
    from chunkserver.server import ChunkServer, ChunkServerOptions
    from fsd.runtime.local import LocalDirectory, real_runtime

    directory = LocalDirectory(str(tmp_path))
    for listen in ("0.0.0.0:0", "[::]:7401"):
        with pytest.raises(ConfigurationError, match="--advertise"):
            ChunkServer(real_runtime(), directory, ChunkServerOptions(listen, ("a:1",)))
    ChunkServer(real_runtime(), directory, ChunkServerOptions("0.0.0.0:0", ("a:1",), advertise="b:2"))
