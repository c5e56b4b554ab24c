"""What each of Docker's volume calls does. Calls come in parallel and again: those of one volume one after the other, and
every one may be repeated.

States of a volume on this host, and what moves it:

    nowhere --Mount--> mounted, ids {a} --Mount--> ids {a, b} --Unmount--> ids {b} --Unmount--> mounted, no ids
                          ^ Mount with the same id: nothing changes                                  |
    nowhere <------------------ after LINGER_S, unless a container has the mount all the same -------+

Docker mounts twice for one container (to copy what the image has there, then to run it): lingering spares the second mount.
"""

import logging
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import trio

from fsd.core.config import volume_name
from fsd.core.errors import (
    AlreadyExists,
    Busy,
    ConfigurationError,
    DeadlineExceeded,
    FsError,
    InvalidArgument,
    NotFound,
)
from fsd.core.units import NS
from fsd.mount.mountinfo import Mount
from fsd.namespace.records import Volume
from fsd.plugin import options
from fsd.plugin.uses import Uses
from fsd.protocol.cluster import CreateVolume

log = logging.getLogger(__name__)

SHORT_S = 25.0  # for what only asks; dockerd waits a minute
LONG_S = 110.0  # for what mounts, unmounts, makes, deletes; dockerd waits two
LINGER_S = 3.0  # mounted for nobody
BUSY_PATIENCE_S = (
    15.0  # before a delete is refused: it may linger on another host, or a client died (its session: 10 s)
)
BUSY_PAUSE_S = 0.25
LOST_AFTER_S = 60.0  # an id without a container is an Unmount that was lost, after this long


class HasVolumes(Protocol):
    """fsd.plugin.volumes.Volumes."""

    async def all(self) -> tuple[Volume, ...]: ...
    async def find(self, name: str) -> Volume | None: ...
    async def create(self, request: CreateVolume) -> Volume: ...
    async def delete(self, name: str) -> None: ...


class HasMounts(Protocol):
    """fsd.plugin.mounts.Mounts."""

    def path(self, volume: str) -> str: ...
    def mounted(self, volume: str) -> Mount | None: ...
    def all_mounted(self) -> list[str]: ...
    async def mount(self, volume: str) -> str: ...
    async def set_root(self, volume: str, uid: int | None, gid: int | None, mode: int | None) -> None: ...
    async def unmount(self, volume: str) -> None: ...
    async def held(self, volume: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Known:
    """A volume as Docker asks for it. `mountpoint`: "" if it is not mounted here."""

    volume: Volume
    mountpoint: str

    @property
    def created_at(self) -> str:
        """RFC 3339."""
        return datetime.fromtimestamp(self.volume.created_ns // NS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True)
class _Turn:
    lock: trio.Lock = field(default_factory=trio.Lock)
    wanted: int = 0


class Driver:
    """`nursery` is for mounts that linger."""

    def __init__(self, nursery: trio.Nursery, volumes: HasVolumes, mounts: HasMounts, uses: Uses) -> None:
        self._nursery = nursery
        self._lingering: set[str] = set()
        self._volumes = volumes
        self._mounts = mounts
        self._uses = uses
        self._turns: dict[str, _Turn] = {}

    async def create(self, name: str, given: Mapping[str, str]) -> None:
        """Nothing is done if it is there and what is asked for agrees with it. Raises AlreadyExists otherwise."""
        asked = options.parse(given)
        async with self._turn(_checked(name), LONG_S):
            volume = await self._volumes.find(name)
            if volume is None:
                try:
                    await self._volumes.create(options.request(name, asked))
                    log.info("volume %s is made", name)
                    return
                except AlreadyExists:  # another host was faster
                    volume = await self._known(name)
            if other := options.differences(volume, asked):
                raise AlreadyExists(f"volume {name} exists with another {', '.join(other)}")

    async def remove(self, name: str) -> None:
        """With its data. Raises Busy while a container here or a mount anywhere uses it."""
        async with self._turn(name, LONG_S):
            volume = await self._known(name)
            if not options.made_by_docker(volume):
                raise InvalidArgument(f"volume {name} was not made by docker: fsd volume delete {name} removes it")
            if await self._mounts.held(name):
                raise Busy(f"volume {name} is in use by a container on this host")
            self._uses.forget(name)  # dockerd asks only when none of its containers has it: unmounts were lost
            await self._mounts.unmount(name)
            await self._delete(name)
            log.info("volume %s is deleted", name)

    async def _delete(self, name: str) -> None:
        deadline = trio.current_time() + BUSY_PATIENCE_S
        while True:
            try:
                return await self._volumes.delete(name)
            except Busy:
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(BUSY_PAUSE_S)

    async def mount(self, name: str, user: str) -> str:
        """The path, for one more `user` (Docker's id); the same one may come again."""
        async with self._turn(_checked(name), LONG_S):
            volume = await self._known(name)
            self._uses.add(name, user)
            try:
                path = await self._mounts.mount(name)
                asked = options.options_of(volume)
                await self._mounts.set_root(name, asked.uid, asked.gid, asked.mode)
            except BaseException:
                self._uses.remove(name, user)
                raise
            return path

    async def unmount(self, name: str, user: str) -> None:
        async with self._turn(_checked(name), LONG_S):
            self._uses.remove(name, user)
        if not self._uses.of(name) and name not in self._lingering:
            self._lingering.add(name)
            self._nursery.start_soon(self._linger, name)

    async def _linger(self, name: str) -> None:
        await trio.sleep(LINGER_S)
        self._lingering.discard(name)
        try:
            async with self._turn(name, LONG_S):
                await self._unmount_unless_used(name)
        except FsError as error:
            log.warning("volume %s stays mounted: %s", name, error)

    async def known(self, name: str) -> Known:
        """Raises NotFound."""
        with _deadline(SHORT_S):
            return self._as_known(await self._known(name))

    async def all(self) -> list[Known]:
        with _deadline(SHORT_S):
            return [self._as_known(volume) for volume in await self._volumes.all()]

    async def sweep(self) -> None:
        """After a start: end what an Unmount asked for that nobody heard, or a Mount left that failed."""
        for name in sorted({*self._uses.volumes(), *self._mounts.all_mounted()}):
            if self._uses.of(name) and self._uses.youngest_s(name) < LOST_AFTER_S:
                continue
            try:
                async with self._turn(name, LONG_S):
                    if not await self._mounts.held(name):
                        log.info("volume %s is mounted for nobody: an unmount was lost", name)
                        self._uses.forget(name)
                        await self._unmount_unless_used(name)
            except FsError as error:
                log.warning("volume %s stays mounted: %s", name, error)

    async def _unmount_unless_used(self, name: str) -> None:
        if self._uses.of(name):
            return
        if await self._mounts.held(name):
            log.info("volume %s stays mounted: a container has it, though Docker named none", name)
            return
        await self._mounts.unmount(name)

    async def _known(self, name: str) -> Volume:
        volume = await self._volumes.find(name)
        if volume is None:
            raise NotFound(f"there is no volume {name}")
        return volume

    def _as_known(self, volume: Volume) -> Known:
        try:
            mounted = self._mounts.mounted(volume.name) is not None
        except Busy:  # by something else; Mount will say so
            mounted = False
        return Known(volume, self._mounts.path(volume.name) if mounted else "")

    @asynccontextmanager
    async def _turn(self, name: str, deadline_s: float) -> AsyncGenerator[None]:
        """Calls of one volume come one after the other. Raises DeadlineExceeded."""
        turn = self._turns.setdefault(name, _Turn())
        turn.wanted += 1
        try:
            with _deadline(deadline_s):
                async with turn.lock:
                    yield
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[name]


@contextmanager
def _deadline(seconds: float) -> Generator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise DeadlineExceeded(f"not done within {seconds:g} s")


def _checked(name: str) -> str:
    try:
        return volume_name(name)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
