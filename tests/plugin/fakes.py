"""A cluster's volumes and a host's mounts, without either."""

import dataclasses

import trio

from fsd.core.errors import AlreadyExists, Busy, MissingOnHost, NotFound, Unreachable
from fsd.core.ids import LayerId, PoolId
from fsd.mount.mountinfo import Mount
from fsd.namespace.records import Volume
from fsd.protocol.cluster import CreateVolume


class FakeCluster:
    """What all hosts share: volumes, and which host has which mounted."""

    def __init__(self) -> None:
        self.volumes: dict[str, Volume] = {}
        self.mounted_by: dict[str, set[str]] = {}
        self.reachable = True
        self.hides: set[str] = set()  # names that the next `find` does not see, as if they were made right after it

    async def all(self) -> tuple[Volume, ...]:
        await trio.lowlevel.checkpoint()
        if not self.reachable:
            raise Unreachable("cannot reach the metadata server at here")
        return tuple(self.volumes.values())

    async def find(self, name: str) -> Volume | None:
        volumes = await self.all()
        if name in self.hides:
            self.hides.discard(name)
            return None
        return next((volume for volume in volumes if volume.name == name), None)

    async def create(self, request: CreateVolume) -> Volume:
        await self.all()
        if request.name in self.volumes:
            raise AlreadyExists(f"volume {request.name} exists")
        volume = Volume(request.name, LayerId(1), PoolId(1), request.replicas, request.min_replicas)
        volume = dataclasses.replace(
            volume, labels=request.labels, quota_bytes=request.quota_bytes, created_ns=1_700_000_000_000_000_000
        )
        self.volumes[request.name] = volume
        return volume

    async def delete(self, name: str) -> None:
        await self.all()
        if self.mounted_by.get(name):
            raise Busy(f"volume {name} is mounted by {sorted(self.mounted_by[name])[0]}")
        if self.volumes.pop(name, None) is None:
            raise NotFound(f"there is no volume {name}")


class FakeMounts:
    """One host."""

    def __init__(self, cluster: FakeCluster, host: str) -> None:
        self.cluster = cluster
        self.host = host
        self.broken = False
        self.containers: set[str] = set()  # volumes that some container holds
        self.roots: dict[str, tuple[int | None, int | None, int | None]] = {}
        self.log: list[str] = []
        self.at_work: set[str] = set()

    def path(self, volume: str) -> str:
        return f"/volumes/{volume}"

    def mounted(self, volume: str) -> Mount | None:
        if self.host not in self.cluster.mounted_by.get(volume, ()):
            return None
        return Mount("0:1", self.path(volume), "fuse.fsd", f"here:/{volume}")

    def all_mounted(self) -> list[str]:
        return [name for name, hosts in sorted(self.cluster.mounted_by.items()) if self.host in hosts]

    async def mount(self, volume: str) -> str:
        assert volume not in self.at_work, "two calls for one volume at once"
        self.at_work.add(volume)
        await trio.sleep(0.5)
        self.at_work.discard(volume)
        if self.broken:
            raise MissingOnHost("cannot mount")
        if self.mounted(volume) is None:
            self.log.append(f"mount {volume}")
            self.cluster.mounted_by.setdefault(volume, set()).add(self.host)
        return self.path(volume)

    async def set_root(self, volume: str, uid: int | None, gid: int | None, mode: int | None) -> None:
        await trio.lowlevel.checkpoint()
        self.roots[volume] = (uid, gid, mode)

    async def unmount(self, volume: str) -> None:
        await trio.sleep(0.5)
        if self.mounted(volume) is not None:
            self.log.append(f"umount {volume}")
            self.cluster.mounted_by[volume].discard(self.host)

    async def held(self, volume: str) -> bool:
        await trio.lowlevel.checkpoint()
        return volume in self.containers
