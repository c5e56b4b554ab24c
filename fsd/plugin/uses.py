"""For whom a volume is mounted here: the ids that Docker gave with Mount and has not given back with Unmount.

Kept in a file under /run, so that it outlives this process and does not outlive the mounts (a boot clears both). Docker
forgets an Unmount that failed: an id whose containers are gone is such a one.
"""

import json
import logging
import os
import time
from typing import Any, cast

from fsd.core.errors import ConfigurationError

log = logging.getLogger(__name__)


def boot_time_s() -> float:
    """Seconds since boot, the same clock in all processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Uses:
    """`ids[volume][id]` is when it was asked for, in seconds since boot."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._ids: dict[str, dict[str, float]] = _read(path)

    def of(self, volume: str) -> tuple[str, ...]:
        return tuple(self._ids.get(volume, ()))

    def volumes(self) -> tuple[str, ...]:
        return tuple(self._ids)

    def youngest_s(self, volume: str) -> float:
        """How long ago the last id came."""
        return boot_time_s() - max(self._ids[volume].values())

    def add(self, volume: str, user: str) -> None:
        """Raises ConfigurationError if it cannot be kept."""
        self._ids.setdefault(volume, {})[user] = boot_time_s()
        self._write()

    def remove(self, volume: str, user: str) -> None:
        if self._ids.get(volume, {}).pop(user, None) is None:
            return
        if not self._ids[volume]:
            del self._ids[volume]
        self._write()

    def forget(self, volume: str) -> None:
        if self._ids.pop(volume, None) is not None:
            self._write()

    def _write(self) -> None:
        try:
            with open(self.path + ".new", "w", encoding="utf-8") as file:
                json.dump(self._ids, file)
            os.rename(self.path + ".new", self.path)
        except OSError as error:
            raise ConfigurationError(f"cannot write {self.path}: {error.strerror}") from None


def _read(path: str) -> dict[str, dict[str, float]]:
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, encoding="utf-8") as file:
            return _checked(json.load(file))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"cannot use {path}: {error.strerror}") from None
    except ValueError as error:
        log.warning("%s is damaged (%s): who uses a volume is told from the containers' mounts alone", path, error)
        return {}


def _checked(document: Any) -> dict[str, dict[str, float]]:
    if not isinstance(document, dict):
        raise ValueError("no object")
    found: dict[str, dict[str, float]] = {}
    for volume, ids in cast("dict[str, Any]", document).items():
        if not isinstance(ids, dict):
            raise ValueError(f"{volume}: no object")
        found[volume] = {user: float(at) for user, at in cast("dict[str, Any]", ids).items()}
    return found
