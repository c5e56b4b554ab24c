"""Asking the cluster for its volumes. Reconnects by itself; each call has the deadline of its caller."""

import platform
from collections.abc import Sequence
from typing import Any

import trio

from fsd import __version__
from fsd.core.errors import FsError, Unreachable
from fsd.namespace.records import Volume
from fsd.protocol.cluster import CreateVolume, DeleteVolume, ListVolumes
from fsd.rpc.client import ChannelPool
from fsd.runtime import Runtime
from fsd.wire.handshake import Hello


class Volumes:
    """The volumes of one cluster."""

    def __init__(self, runtime: Runtime, nursery: trio.Nursery, addresses: Sequence[str]) -> None:
        self.addresses = tuple(addresses)
        self._pool = ChannelPool(runtime, nursery, _hello)

    async def all(self) -> tuple[Volume, ...]:
        return (await self._ask(ListVolumes())).volumes

    async def find(self, name: str) -> Volume | None:
        return next((volume for volume in await self.all() if volume.name == name), None)

    async def create(self, request: CreateVolume) -> Volume:
        """Raises AlreadyExists, InvalidArgument."""
        return (await self._ask(request)).volume

    async def delete(self, name: str) -> None:
        """With all that is in it. Raises Busy (some host has it mounted), NotFound."""
        await self._ask(DeleteVolume(name, force=True))

    async def _ask(self, message: object) -> Any:
        """Of several addresses the first one that is reachable."""
        failure: FsError | None = None
        for address in self.addresses:
            try:
                return (await self._pool.to(address).call(message)).message
            except Unreachable as error:
                failure = error
        where = ", ".join(self.addresses)
        raise Unreachable(f"cannot reach the metadata server at {where}: {failure}")


def _hello() -> Hello:
    return Hello(role="cli", name=f"{platform.node()} docker plugin", version=__version__)
