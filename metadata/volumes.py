"""Administration of volumes, and the removal of a deleted one's tree, page by page, across restarts."""

import dataclasses
import logging
import re
import stat
from collections.abc import Callable

import trio

from fsd.core.errors import AlreadyExists, Busy, InvalidArgument, NotEmpty, NotFound
from fsd.core.ids import ROOT_INO, Ino, LayerId, PoolId
from fsd.namespace import keys
from fsd.namespace.records import NO_DATA, DeadData, Inode, Volume
from fsd.namespace.view import PutInode, PutVolume
from fsd.protocol.cluster import CreateVolume, DeleteVolume, ListVolumes, SetVolume, VolumeReply, VolumesReply
from fsd.runtime import Clock
from fsd.runtime.storage import KeyChange
from fsd.wire.codec import decode
from fsd.wire.handshake import Done
from metadata.authority import Authority
from metadata.live import Sessions
from metadata.records import Counters, PurgeRecord
from metadata.store import COUNTERS_KEY, Store, drop, purge_key, put

log = logging.getLogger(__name__)

MAX_REPLICAS = 8
PURGE_PAGE = 256
MAX_OWNER = 0xFFFF_FFFE  # one more means "leave it" to chown(2)
ROOT_MODE = stat.S_IFDIR | 0o755
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
MAX_LABELS = 16
MAX_LABEL = 256  # characters of a name or a value


class VolumeService:
    """Volumes are made, changed and deleted here; each change is durable when it is answered."""

    def __init__(
        self,
        clock: Clock,
        store: Store,
        authority: Authority,
        sessions: Sessions,
        inline_limit: int,
        chunk_size: int,
        collect: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._store = store
        self._authority = authority
        self._sessions = sessions
        self._inline_limit = inline_limit
        self._chunk_size = chunk_size
        self._collect = collect
        self._purge_wanted = trio.Event()

    async def create(self, request: CreateVolume) -> VolumeReply:
        check_name(request.name)
        check_replicas(request.replicas, request.min_replicas)
        check_quota(request.quota_bytes, request.quota_inodes)
        check_labels(request.labels)
        check_root(request)
        pool = await self._authority.pool_for(request.replicas, request.min_replicas)
        if self._store.volume_named(request.name) is not None:
            raise AlreadyExists(f"volume {request.name} exists")
        volume = self._make(request, pool)
        if (
            self._authority.has_nodes()
        ):  # else when it is opened: a first placement wants more than one node to choose from
            await self._authority.use_pool(pool)
        await self._store.durable()
        return VolumeReply(volume)

    def _make(self, request: CreateVolume, pool: PoolId) -> Volume:
        counters = self._store.counters()
        assert counters is not None, "the file system has been made"
        layer, now_ns = counters.next_layer, self._clock.time_ns()
        volume = Volume(
            request.name,
            layer,
            pool,
            request.replicas,
            request.min_replicas,
            request.quota_bytes,
            request.quota_inodes,
            used_inodes=1,
            inline_limit=self._inline_limit,
            created_ns=now_ns,
            labels=request.labels,
        )
        following = Counters(counters.next_id, counters.next_session, LayerId(layer + 1))
        mode = stat.S_IFDIR | request.root_mode
        root = dataclasses.replace(root_inode(now_ns), mode=mode, uid=request.root_uid, gid=request.root_gid)
        self._store.commit(layer, (PutVolume(volume), PutInode(root)), [put("cluster", COUNTERS_KEY, following)])
        log.info("volume %s is made: layer %d, %d replicas", volume.name, layer, volume.replicas)
        return volume

    async def set(self, request: SetVolume) -> VolumeReply:
        volume = self._named(request.name)
        replicas = volume.replicas if request.replicas is None else request.replicas
        min_replicas = volume.min_replicas if request.min_replicas is None else request.min_replicas
        check_replicas(replicas, min_replicas)
        check_quota(request.quota_bytes or 0, request.quota_inodes or 0)
        pool = volume.pool
        if (replicas, min_replicas) != (volume.replicas, volume.min_replicas):
            pool = await self._authority.pool_for(replicas, min_replicas)
        volume = self._named(request.name)
        if pool != volume.pool:
            self._check_unused(volume)
        changed = dataclasses.replace(
            volume,
            pool=pool,
            replicas=replicas,
            min_replicas=min_replicas,
            quota_bytes=volume.quota_bytes if request.quota_bytes is None else request.quota_bytes,
            quota_inodes=volume.quota_inodes if request.quota_inodes is None else request.quota_inodes,
        )
        await self._store.durable(self._store.commit(volume.layer, (PutVolume(changed),)))
        if changed.quota_bytes or changed.quota_inodes:
            await self._sessions.promise_nothing(volume.layer)
        return VolumeReply(changed)

    def _check_unused(self, volume: Volume) -> None:
        """Chunks lie in the groups of their pool; until data can move, only an empty volume can change it."""
        if volume.used_inodes > 1:
            raise InvalidArgument(f"volume {volume.name} is not empty: its number of replicas cannot change any more")
        if self._sessions.table.of_layer(volume.layer):
            raise InvalidArgument(f"volume {volume.name} is mounted: unmount it before its number of replicas changes")

    async def delete(self, request: DeleteVolume) -> Done:
        volume = self._named(request.name)
        users = self._sessions.table.of_layer(volume.layer)
        if users:
            raise Busy(f"volume {volume.name} is mounted by {users[0].record.client} at {users[0].address}")
        if volume.used_inodes > 1 and not request.force:
            raise NotEmpty(
                f"volume {volume.name} holds {volume.used_inodes - 1} inodes; delete it by force or empty it"
            )
        purge = PurgeRecord(volume.layer, volume.pool)
        self._store.forget_volume(volume.layer)
        self._store.apply(
            [
                drop("volume", keys.volume_key(volume.layer)),
                put("cluster", purge_key(volume.layer), purge),
            ]
        )
        log.info("volume %s is deleted", volume.name)
        self._purge_wanted.set()
        await self._store.durable()
        return Done()

    async def list(self, request: ListVolumes) -> VolumesReply:
        await self._store.durable()
        return VolumesReply(tuple(self._store.volumes()))

    def _named(self, name: str) -> Volume:
        volume = self._store.volume_named(name)
        if volume is None:
            raise NotFound(f"there is no volume {name}")
        return volume

    # --- what is left of a deleted volume -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Remove the trees of deleted volumes, until cancelled."""
        while True:
            for purge in self._store.purges():
                await self._purge(purge)
            await self._purge_wanted.wait()
            self._purge_wanted = trio.Event()

    async def _purge(self, purge: PurgeRecord) -> None:
        start, end = keys.layer_range(purge.layer)
        for family in ("dentry", "xattr", "orphan", "inode"):
            while page := self._store.page(family, start, end, PURGE_PAGE):
                batch = [drop(family, key) for key, _ in page]
                if family == "inode":
                    batch.extend(self._dead(decode(Inode, value), purge.pool) for _, value in page if _has_data(value))
                await self._store.durable(self._store.apply(batch))
                self._collect()
        await self._store.durable(self._store.apply([drop("cluster", purge_key(purge.layer))]))

    def _dead(self, inode: Inode, pool: PoolId) -> KeyChange:
        dead = DeadData(inode.data, pool, 0, max(inode.size, inode.trim_end))
        return put("collect", keys.collect_key(dead.data, dead.start), dead)


def _has_data(value: bytes) -> bool:
    return decode(Inode, value).data != NO_DATA


def root_inode(now_ns: int) -> Inode:
    """A new volume's root directory."""
    return Inode(ROOT_INO, ROOT_MODE, 0, 0, 2, 0, now_ns, now_ns, now_ns, parent=Ino(ROOT_INO))


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is no volume name: letters, digits, '_', '.', '-', beginning with a letter or digit, at most 128"
        )


def check_replicas(replicas: int, min_replicas: int) -> None:
    if not 1 <= replicas <= MAX_REPLICAS:
        raise InvalidArgument(f"{replicas} replicas are asked for, 1 to {MAX_REPLICAS} are possible")
    if not 1 <= min_replicas <= replicas:
        raise InvalidArgument(f"min replicas must be from 1 to the {replicas} replicas, not {min_replicas}")


def check_labels(labels: tuple[tuple[str, str], ...]) -> None:
    names = [name for name, _ in labels]
    if len(labels) > MAX_LABELS or len(set(names)) != len(names) or not all(names):
        raise InvalidArgument(f"labels need names of their own, and there can be at most {MAX_LABELS}")
    if any(len(text) > MAX_LABEL for label in labels for text in label):
        raise InvalidArgument(f"a label's name and value have at most {MAX_LABEL} characters each")


def check_root(request: CreateVolume) -> None:
    if not 0 <= request.root_mode <= 0o7777:
        raise InvalidArgument(f"{request.root_mode:#o} is no mode of a directory")
    if not (0 <= request.root_uid <= MAX_OWNER and 0 <= request.root_gid <= MAX_OWNER):
        raise InvalidArgument(f"an owner's number is from 0 to {MAX_OWNER}")


def check_quota(quota_bytes: int, quota_inodes: int) -> None:
    if quota_bytes < 0 or quota_inodes < 0:
        raise InvalidArgument("a quota cannot be negative; 0 is none")
