"""A client's journal: operations that were done under exclusive leases already, carried out here in their order (I15).

    items   | run: one RocksDB batch, one remembered result | one alone, as any request | run ...

A *run* is of items that change only what nobody else has a lease on: nobody can be concerned, so no guard is taken and
nothing is recalled, and somebody who waits for such a lease is let in the sooner. For an item whose lease was lost meanwhile
the others are recalled, but no guard is waited for here either: the request that holds it may be waiting for this journal
(two mounts hung so, until one was evicted). Item n of a batch has number `number` + n; a run is
remembered under its first item's number with its length, so that a batch that is sent again is carried out once (I11), also
if it was broken off between two runs.
"""

import dataclasses
from collections.abc import Iterable

import trio

from fsd.core.errors import PosixError
from fsd.core.ids import Ino, RequestNumber
from fsd.namespace.overlay import Overlay
from fsd.namespace.records import Volume
from fsd.namespace.touched import born, touched
from fsd.namespace.view import Change, PutVolume
from fsd.protocol.metadata import BatchError, BatchExecuted, BatchItem, ExecuteBatch, Grant, LeaseMode
from metadata.live import LiveSession
from metadata.records import ResultRecord
from metadata.store import Store
from metadata.tree import TreeService


class BatchService:
    """See the module."""

    def __init__(self, store: Store, tree: TreeService) -> None:
        self._store = store
        self._tree = tree

    async def execute(self, live: LiveSession, request: ExecuteBatch) -> BatchExecuted:
        """All items, each once."""
        live.state.advance(RequestNumber(min(request.floor, request.number)))
        while (twin := live.running.get(request.number)) is not None:
            await twin.wait()
        done = live.running[request.number] = trio.Event()
        try:
            return await self._execute(live, request)
        finally:
            del live.running[request.number]
            done.set()

    async def _execute(self, live: LiveSession, request: ExecuteBatch) -> BatchExecuted:
        errors: list[BatchError] = []
        grants: list[Grant] = []
        at = 0
        while at < len(request.items):
            live.check()
            number = RequestNumber(request.number + at)
            record = live.state.remembered(number)
            if record is None:
                live.state.check_number(number)
                record = self._run(live, number, request.items[at:], grants)
            else:
                grants += self._granted_again(live, request.items[at : at + max(1, record.item_count)])
            if record is None:
                record = await self._alone(live, number, request.items[at], grants)
            errors += [dataclasses.replace(error, index=at + error.index) for error in refused_of(record)]
            at += max(1, record.item_count)
        return BatchExecuted(tuple(errors), tuple(grants))

    # --- a run --------------------------------------------------------------------------------------------------------

    def _run(
        self, live: LiveSession, number: RequestNumber, items: tuple[BatchItem, ...], grants: list[Grant]
    ) -> ResultRecord | None:
        """Carry out as many items as the session has leases for, in one synchronous step and one batch. None if the first
        is not among them."""
        tree = self._tree
        view = Promised(self._store.view(live.state.layer))
        new: dict[Ino, None] = {}
        reaped: list[Ino] = []
        refused: list[BatchError] = []
        count = 0
        for item in items:
            if not all(ino in new or tree.is_its_own(live, ino) for ino in touched(view, item.operation)):
                break
            try:
                operation = tree.admitted(live, item.operation)
                applied, dead, _ = tree.apply(live, view, operation, keep_open=item.keep_open)
            except PosixError as error:
                refused.append(BatchError(count, error.number, str(error)))
            else:
                view.stage(applied.changes)
                reaped += dead
                made = born(operation)
                if made is not None:
                    new[made] = None
            count += 1
        if not count:
            return None
        record = ResultRecord(0, "", (), count, tuple(refused))
        tree.store(live, view.changes(), reaped, number, record)
        grants += self._new_leases(live, new)
        return record

    def _new_leases(self, live: LiveSession, new: Iterable[Ino]) -> list[Grant]:
        """Nobody else has seen these inodes yet."""
        view = self._store.view(live.state.layer)
        there = [ino for ino in new if self._tree.may_cache(live, view.inode(ino))]
        return [grant for ino in there for grant in self._tree.free_grant(live, ino, LeaseMode.EXCLUSIVE)]

    # --- the rest -----------------------------------------------------------------------------------------------------

    async def _alone(
        self, live: LiveSession, number: RequestNumber, item: BatchItem, grants: list[Grant]
    ) -> ResultRecord:
        """An item for which a lease was lost: who has it now gives it back first."""
        while True:
            await self._tree.make_its_own(live, touched(self._store.view(live.state.layer), item.operation))
            record = self._run(live, number, (item,), grants)
            if record is not None:
                return record

    def _granted_again(self, live: LiveSession, items: Iterable[BatchItem]) -> list[Grant]:
        """The leases that went with an answer that was lost, as far as they are free now."""
        return self._new_leases(live, dict.fromkeys(ino for item in items if (ino := born(item.operation)) is not None))


def refused_of(record: ResultRecord) -> tuple[BatchError, ...]:
    """What was refused of a run, or of an item alone, counted from its beginning."""
    return (BatchError(0, record.error, record.text),) if record.error else record.refused


class Promised(Overlay):
    """Several operations of a journal on top of the store. No quota counts: the client has answered already, and a quota
    that is new since then does not undo it."""

    def volume(self) -> Volume:
        volume = super().volume()
        if not volume.quota_bytes and not volume.quota_inodes:
            return volume
        return dataclasses.replace(volume, quota_bytes=0, quota_inodes=0)

    def stage(self, changes: Iterable[Change]) -> None:
        """The quotas stay as they are stored."""
        now = super().volume()
        super().stage(with_quotas(change, now) for change in changes)


def with_quotas(change: Change, volume: Volume) -> Change:
    """The change, with the quotas of `volume` if it is one of the volume."""
    if not isinstance(change, PutVolume) or not (volume.quota_bytes or volume.quota_inodes):
        return change
    return PutVolume(
        dataclasses.replace(change.volume, quota_bytes=volume.quota_bytes, quota_inodes=volume.quota_inodes)
    )
