"""The metadata server as a whole: opens its directory, puts the parts together, serves.

identity    JSON: {"format": 1, "role": "metadata", "file_system": hex id}
tree        the key-value store of metadata.store
"""

import json
import logging
from dataclasses import dataclass
from typing import Any, cast

import trio

from fsd import __version__
from fsd.core.errors import ConfigurationError, ForeignFileSystem, FormatError, FsError
from fsd.core.ids import FIRST_FREE_ID, LayerId, SessionId
from fsd.core.units import BLOCK_SIZE, DEFAULT_CHUNK_SIZE, DEFAULT_INLINE_LIMIT, DEFAULT_PG_COUNT, MAX_CHUNK_SIZE
from fsd.namespace.keys import FAMILIES
from fsd.protocol.cluster import CreateVolume
from fsd.rpc.client import ChannelPool
from fsd.rpc.connection import only_error
from fsd.rpc.measured import Measured, RequestFigures
from fsd.rpc.server import serve
from fsd.runtime import Runtime
from fsd.runtime.storage import DataDirectory
from fsd.wire.handshake import Hello, Welcome
from metadata.administration import AdministrationService
from metadata.authority import Audience, Authority
from metadata.batches import BatchService
from metadata.clients import ClientService
from metadata.collector import Collector
from metadata.flushes import FlushService
from metadata.live import Sessions
from metadata.locks import LockService
from metadata.metrics import Insight
from metadata.nodes import NodeService
from metadata.recalls import Recaller
from metadata.records import Counters, FileSystemRecord
from metadata.service import MetadataService, before_telling
from metadata.space import Space
from metadata.status import StatusService
from metadata.store import COUNTERS_KEY, FILE_SYSTEM_KEY, Store, put
from metadata.tree import TreeService
from metadata.volumes import VolumeService, check_name, check_replicas

log = logging.getLogger(__name__)

FORMAT = 1
IDENTITY = "identity"
FIRST_LAYER = LayerId(1)
MAX_PG_COUNT = 2048  # times MAX_POOLS rows of some 60 bytes fit into one message


@dataclass(frozen=True, slots=True)
class MetadataOptions:
    """`chunk_size`, `pg_count`, `inline_limit` and the first volume count only when the file system is made. Times: a
    node's lease, the grace before its silence is death (R2), a client's session, how long a missing member's place is
    kept, and how long nodes must not have come or gone before groups are moved to even them out."""

    listen: str
    lease_s: float = 6.0
    grace_s: float = 8.0
    session_ttl_s: float = 10.0
    chunk_size: int = DEFAULT_CHUNK_SIZE
    pg_count: int = DEFAULT_PG_COUNT
    replicas: int = 2
    min_replicas: int = 1
    inline_limit: int = DEFAULT_INLINE_LIMIT
    first_volume: str = "default"
    rebuild_after_s: float = 600.0
    rebalance_after_s: float = 60.0


def check_options(options: MetadataOptions) -> None:
    """Raises ConfigurationError with one line for each fault."""
    faults: list[str] = []
    if options.grace_s <= options.lease_s * 1.1 or options.lease_s <= 0:
        faults.append(f"grace ({options.grace_s:g} s) must be more than 1.1 leases ({options.lease_s:g} s)")
    if options.session_ttl_s <= 0:
        faults.append(f"session ttl must be positive, not {options.session_ttl_s:g} s")
    if options.chunk_size % BLOCK_SIZE or not BLOCK_SIZE <= options.chunk_size <= MAX_CHUNK_SIZE:
        faults.append(f"chunk size {options.chunk_size} must be a multiple of {BLOCK_SIZE} up to {MAX_CHUNK_SIZE}")
    if options.pg_count.bit_count() != 1 or options.pg_count > MAX_PG_COUNT:
        faults.append(f"the number of placement groups must be a power of two up to {MAX_PG_COUNT}")
    if not 0 <= options.inline_limit <= BLOCK_SIZE:
        faults.append(f"inline limit {options.inline_limit} must be from 0 to {BLOCK_SIZE}")
    try:
        check_replicas(options.replicas, options.min_replicas)
        check_name(options.first_volume)
    except FsError as error:
        faults.append(str(error))
    if faults:
        raise ConfigurationError("\n".join(faults))


class MetadataServer:
    """One life of a metadata server on an opened (locked) directory."""

    def __init__(self, runtime: Runtime, directory: DataDirectory, options: MetadataOptions) -> None:
        check_options(options)
        self._runtime = runtime
        self._directory = directory
        self._options = options
        self._failure: FsError | None = None
        self._failed = trio.Event()
        self._epoch = 0
        self._insight: Insight | None = None
        self.requests = RequestFigures()

    @property
    def insight(self) -> Insight | None:
        """What it shows of itself; None before it serves."""
        return self._insight

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `started` gets the address. Raises FormatError, ForeignFileSystem, ConfigurationError,
        CorruptData, DiskFailed."""
        identity = read_identity(self._directory)
        keyvalue = await self._directory.open_keyvalue("tree", FAMILIES)
        try:
            await self._serve(Store(keyvalue), identity, task_status)
        except BaseExceptionGroup as group:
            error = only_error(group)
            if error is None:
                raise
            raise error from None
        finally:
            with trio.move_on_after(10) as scope:
                scope.shield = True
                await keyvalue.aclose()

    async def _serve(self, store: Store, identity: str | None, task_status: trio.TaskStatus[str]) -> None:
        record = await self._file_system(store, identity)
        self._epoch = await store.begin_authority()
        options, runtime = self._options, self._runtime
        async with trio.open_nursery() as nursery:
            audience = Audience(nursery)
            authority = Authority(
                runtime,
                store,
                record,
                audience,
                lease_s=options.lease_s,
                grace_s=options.grace_s,
                rebuild_after_s=options.rebuild_after_s,
                quiet_s=options.rebalance_after_s,
            )
            sessions = Sessions(runtime, nursery, store, authority, options.session_ttl_s)
            recaller = Recaller(sessions, runtime.clock)
            channels = ChannelPool(runtime, nursery, lambda: self._hello(record))
            collector = Collector(runtime.clock, store, authority, channels)
            space = Space(authority, lambda: self._directory.space().free_bytes)
            volumes = VolumeService(
                runtime.clock, store, authority, sessions, record.inline_limit, record.chunk_size, collector.wake
            )
            tree = TreeService(runtime.clock, store, sessions, recaller, space, collector.wake)
            locks = LockService(
                runtime.clock,
                nursery,
                store,
                sessions,
                recaller,
                tree.guards,
                lambda peer: before_telling(store, audience, peer),
            )
            status = StatusService(runtime.clock, store, authority, sessions, collector, space, locks)
            service = MetadataService(
                store=store,
                sessions=sessions,
                recaller=recaller,
                audience=audience,
                tree=tree,
                batches=BatchService(store, tree),
                clients=ClientService(runtime, store, authority, audience, sessions, space, locks),
                locks=locks,
                nodes=NodeService(runtime.clock, nursery, authority, audience, record, options.lease_s),
                volumes=volumes,
                flushes=FlushService(store, sessions),
                status=status,
                administration=AdministrationService(runtime.clock, store, authority, sessions, collector.wake),
                failed=self._fail,
            )
            nursery.start_soon(authority.run)
            sessions.collect = collector.wake
            sessions.load()
            if is_new(store):
                await volumes.create(CreateVolume(options.first_volume, options.replicas, options.min_replicas))
            nursery.start_soon(self._stop_on_failure)
            nursery.start_soon(sessions.run)
            nursery.start_soon(collector.run)
            nursery.start_soon(volumes.run)
            listener = await runtime.network.listen(options.listen)
            log.info("metadata server of file system %s listens on %s", record.file_system, listener.address)
            try:
                task_status.started(listener.address)
                measured = Measured(service, self.requests, runtime.clock)
                self._insight = Insight(status, authority, sessions, recaller)
                await serve(listener, measured, lambda hello: self._welcome(record, hello))
            finally:
                listener.close()
                channels.close()

    # --- what it is ---------------------------------------------------------------------------------------------------

    async def _file_system(self, store: Store, identity: str | None) -> FileSystemRecord:
        """The file system of this directory, made at its first start."""
        record = store.file_system()
        if record is None:
            record = await self._make(store, identity)
        elif identity is None:
            await self._write_identity(record.file_system)
        elif identity != record.file_system:
            raise FormatError(
                f"{self._directory.name} says file system {identity}, its store says {record.file_system}"
            )
        options = self._options
        if (record.chunk_size, record.pg_count) != (options.chunk_size, options.pg_count):
            log.warning("chunk size %d and %d placement groups stay as made", record.chunk_size, record.pg_count)
        return record

    async def _make(self, store: Store, identity: str | None) -> FileSystemRecord:
        options = self._options
        file_system = identity or f"{self._runtime.random.getrandbits(64):016x}"
        if identity is None:
            await self._write_identity(file_system)
        record = FileSystemRecord(file_system, options.chunk_size, options.pg_count, options.inline_limit)
        counters = Counters(FIRST_FREE_ID, SessionId(1), FIRST_LAYER)
        sequence = store.apply([put("cluster", FILE_SYSTEM_KEY, record), put("cluster", COUNTERS_KEY, counters)])
        await store.durable(sequence)
        log.info("file system %s is made in %s", file_system, self._directory.name)
        return record

    async def _write_identity(self, file_system: str) -> None:
        text = json.dumps({"format": FORMAT, "role": "metadata", "file_system": file_system})
        await self._directory.write_file(IDENTITY, text.encode() + b"\n")

    def _hello(self, record: FileSystemRecord) -> Hello:
        return Hello("metadata", "metadata", __version__, record.file_system)

    def _welcome(self, record: FileSystemRecord, hello: Hello) -> Welcome:
        check_same_file_system(hello, record.file_system)
        return Welcome("metadata", __version__, record.file_system, incarnation=self._epoch)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _fail(self, error: FsError) -> None:
        """R12: the store failed; nothing may be answered from it any more."""
        self._failure = error
        self._failed.set()

    async def _stop_on_failure(self) -> None:
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure


def is_new(store: Store) -> bool:
    """Whether no volume was ever made (one that was deleted does not come back)."""
    counters = store.counters()
    return counters is not None and counters.next_layer == FIRST_LAYER


def check_same_file_system(hello: Hello, file_system: str) -> None:
    if hello.file_system not in ("", file_system):
        raise ForeignFileSystem(
            f"{hello.role} {hello.name} belongs to file system {hello.file_system}, this one is {file_system}"
        )


def read_identity(directory: DataDirectory) -> str | None:
    """The file system that the directory belongs to; None if it is new. Raises FormatError."""
    data = directory.read_file(IDENTITY)
    if data is None:
        return None
    try:
        parsed: Any = json.loads(data)
    except ValueError:
        raise FormatError(f"{directory.name}/{IDENTITY} is damaged: it is no JSON") from None
    fields = cast(dict[str, Any], parsed) if isinstance(parsed, dict) else {}
    if fields.get("role") != "metadata":
        raise FormatError(f"{directory.name} is no metadata server's directory but that of a {fields.get('role')}")
    version, file_system = fields.get("format"), fields.get("file_system")
    if not isinstance(version, int) or not isinstance(file_system, str):
        raise FormatError(f"{directory.name}/{IDENTITY} is damaged: it names no format or no file system")
    if version > FORMAT:
        raise FormatError(f"{directory.name} has format {version}; this version of fsd knows formats up to {FORMAT}")
    return file_system
