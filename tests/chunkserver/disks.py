"""A directory of tests.fakes whose n-th disk call fails: once, or from then on for ever."""

from collections.abc import Sequence

from fsd.core.errors import DiskFailed, FsError
from tests.fakes import MemoryDirectory

CALLS = ("apply", "durable", "get", "scan", "grow", "read", "write", "write_file")


class Failing:
    """Counts calls of `names`; `at` is the one that fails with `error`, later ones too if `for_ever`."""

    def __init__(self, names: Sequence[str] = CALLS, at: int | None = None, *, for_ever: bool = False) -> None:
        self.names = names
        self.at = at
        self.for_ever = for_ever
        self.error: type[FsError] = DiskFailed
        self.count = 0
        self.struck: list[str] = []

    def call(self, name: str) -> None:
        if name not in self.names:
            return
        self.count += 1
        if self.at is not None and (self.count == self.at or (self.for_ever and self.count > self.at)):
            self.struck.append(name)
            raise self.error(f"injected fault in call {self.count}, {name}")

    def heal(self) -> None:
        self.at = None


class FailingDirectory(MemoryDirectory):
    def __init__(self, failing: Failing, name: str = "memory", *, segment_limit: int = 1000) -> None:
        super().__init__(name, segment_limit=segment_limit)
        self.failing = failing

    async def write_file(self, name, data):
        self.failing.call("write_file")
        await super().write_file(name, data)

    async def open_keyvalue(self, name, families):
        return _Guarded(await super().open_keyvalue(name, families), self.failing)

    async def open_segments(self, name, segment_size):
        return _Guarded(await super().open_segments(name, segment_size), self.failing)


class _Guarded:
    """As the real ones: after its first failure a handle fails for ever (a failed sync is never tried again)."""

    def __init__(self, inner, failing: Failing) -> None:
        self._inner = inner
        self._failing = failing
        self._broken: FsError | None = None

    def __getattr__(self, name):
        attribute = getattr(self._inner, name)
        if name not in CALLS:
            return attribute

        def check():
            if self._broken is not None:
                raise self._broken
            try:
                self._failing.call(name)
            except DiskFailed as error:
                self._broken = error
                raise

        if name in ("apply", "get", "scan"):

            def called(*arguments, **named):
                check()
                return attribute(*arguments, **named)

            return called

        async def awaited(*arguments, **named):
            check()
            return await attribute(*arguments, **named)

        return awaited

    async def aclose(self):
        if self._broken is None:
            await self._inner.aclose()
