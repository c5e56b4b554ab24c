"""Talking to a cluster from the command line: which cluster, one deadline, one error."""

import platform
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import trio

from fsd import __version__
from fsd.cli import embedded
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import ConfigurationError, ConnectionRefused, DeadlineExceeded, FsError, Unreachable
from fsd.rpc.client import ChannelPool
from fsd.runtime.local import real_runtime
from fsd.wire.handshake import Hello

T = TypeVar("T")

CLUSTER_OPTIONS: tuple[Option, ...] = (
    Option("metadata", config.addresses, "the cluster's metadata server", metavar="HOST:PORT[,HOST:PORT]"),
    Option("data", config.path, "or the directory of a cluster that `fsd up --data DIR` made", metavar="DIR"),
    Option("timeout_s", config.seconds, "give up after this many seconds", default=15.0, metavar="S"),
)
JSON = Option("json", config.switch, "print JSON (docs/cli.md)", default=False, switch=True)


class Cluster:
    """Answers of the metadata server and of any node, by address."""

    def __init__(self, pool: ChannelPool, addresses: Sequence[str]) -> None:
        self._pool = pool
        self._addresses = addresses

    async def ask(self, message: object) -> Any:
        """The metadata server's answer; of several addresses the first one that is reachable."""
        failure: FsError | None = None
        for address in self._addresses:
            try:
                return (await self._pool.to(address).call(message)).message
            except Unreachable as error:
                failure = error
        assert failure is not None
        raise _plain(failure, self._addresses)

    async def ask_node(self, address: str, message: object) -> Any:
        return (await self._pool.to(address).call(message)).message


def _plain(error: FsError, addresses: Sequence[str]) -> FsError:
    where = ", ".join(addresses)
    if isinstance(error, ConnectionRefused):
        return ConnectionRefused(f"cannot reach the metadata server at {where}: nobody listens there")
    return Unreachable(f"cannot reach the metadata server at {where}: {error}")


def addresses_of(settings: dict[str, Any]) -> tuple[str, ...]:
    """Of --metadata, else of the embedded cluster in --data or in the default directory."""
    if settings.get("metadata"):
        return settings["metadata"]
    directory = settings.get("data") or embedded.default_directory()
    address = embedded.metadata_address(directory)
    if address is None:
        raise ConfigurationError(f"there is no cluster in {directory}; name one by --metadata HOST:PORT or --data DIR")
    return (address,)


def run_with_cluster(settings: dict[str, Any], job: Callable[[Cluster], Awaitable[T]]) -> T:
    """Run `job` under the command's deadline. Raises FsError."""
    return trio.run(_run, addresses_of(settings), settings["timeout_s"], job)


async def _run(addresses: Sequence[str], timeout_s: float, job: Callable[[Cluster], Awaitable[T]]) -> T:
    def hello() -> Hello:
        return Hello(role="cli", name=platform.node(), version=__version__)

    result: list[T] = []
    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            pool = ChannelPool(real_runtime(), nursery, hello)
            result.append(await job(Cluster(pool, addresses)))
            pool.close()
            nursery.cancel_scope.cancel()
    if not result:
        raise DeadlineExceeded(f"no answer from {', '.join(addresses)} within {timeout_s:g} s")
    return result[0]
