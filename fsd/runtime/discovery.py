"""From the address that a user wrote to the addresses to connect to. Asked anew at every connection, so that names may move.

HOST:PORT                   every A and AAAA answer, in the system's order
_fsd._tcp.example.org       the SRV record (RFC 2782): its targets by priority, then by weight, the highest first
                            (not by lot: all targets are one cluster, and the first that answers will do)
"""

import socket
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import trio

from fsd.core.errors import ConfigurationError, Unreachable

LOOKUP_S = 2.0  # below the time in which a connection must stand
MAX_TARGETS = 16


class Target(NamedTuple):
    """What a socket connects to."""

    family: int
    kind: int
    protocol: int
    address: Any


class Service(NamedTuple):
    """One line of an SRV record."""

    priority: int
    weight: int
    host: str
    port: int


Lookup = Callable[[str], Awaitable[list[Service]]]


async def targets(address: str, lookup: Lookup) -> list[Target]:
    """At least one. Raises ConfigurationError, Unreachable if nothing is known of the name now."""
    if not is_service(address):
        return await _hosts(*split_address(address))
    try:
        services = sorted(await lookup(address), key=lambda service: (service.priority, -service.weight))
    except OSError as error:
        raise Unreachable(f"cannot resolve {address}: {error}") from None
    found: list[Target] = []
    failure = Unreachable(f"cannot resolve {address}: its SRV record is empty")
    for service in services[:MAX_TARGETS]:
        try:
            found += await _hosts(service.host, service.port)
        except Unreachable as error:
            failure = error
    if not found:
        raise failure
    return found[:MAX_TARGETS]


def is_service(address: str) -> bool:
    return address.startswith("_")


def split_address(address: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port". Raises ConfigurationError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"{address!r} is not an address; write HOST:PORT, such as 127.0.0.1:7400")
    return host, int(port)


async def _hosts(host: str, port: int) -> list[Target]:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unreachable(f"cannot resolve {host}: {error.strerror or error}") from None
    return [Target(family, kind, protocol, target) for family, kind, protocol, _, target in found[:MAX_TARGETS]]


async def ask_dns(name: str) -> list[Service]:
    """The SRV record of `name` from the servers of /etc/resolv.conf. Raises OSError."""
    from dns.asyncresolver import Resolver  # 60 ms: only for those who name a service
    from dns.exception import DNSException

    try:
        return await ask(Resolver(), name)
    except DNSException as error:
        raise OSError(str(error)) from None


async def ask(resolver: Any, name: str) -> list[Service]:
    """The same of a resolver of dnspython. Raises OSError."""
    from dns.exception import DNSException

    try:
        answer = await resolver.resolve(name, "SRV", lifetime=LOOKUP_S)
    except DNSException as error:
        raise OSError(str(error)) from None
    return [Service(line.priority, line.weight, str(line.target).rstrip("."), line.port) for line in answer]
