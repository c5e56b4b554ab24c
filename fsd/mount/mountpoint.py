"""The directory to mount on: whether it is free, and what to do with a dead mount."""

import errno
import os
import subprocess

from fsd.core.errors import Busy, ConfigurationError
from fsd.mount import mountinfo, serving

PROBE_S = 2.0


def prepare(mountpoint: str) -> None:
    """Make the directory if there is none, and take away a dead mount of ours. Raises ConfigurationError."""
    if is_dead(mountpoint):
        mountinfo.detach(mountpoint)
    if mountinfo.mounted_at(mountpoint) is None:
        try:
            os.makedirs(mountpoint, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot make the mount point {mountpoint}: {error.strerror}") from None


def check_free(mountpoint: str) -> None:
    """Raises ConfigurationError or Busy unless one can mount there; takes away a dead mount of ours."""
    if is_dead(mountpoint):
        mountinfo.detach(mountpoint)
    mount = mountinfo.mounted_at(mountpoint)
    if mount is not None and mount.kind != mountinfo.AUTOFS:
        raise Busy(f"the mount point {mountpoint} is busy: {mount.source} ({mount.kind}) is mounted there")
    try:
        is_directory = os.path.isdir(mountpoint)
    except OSError as error:
        raise ConfigurationError(f"cannot use the mount point {mountpoint}: {error.strerror}") from None
    if not is_directory:
        what = "is not a directory" if os.path.lexists(mountpoint) else "does not exist"
        raise ConfigurationError(f"the mount point {mountpoint} {what}")


def is_dead(mountpoint: str) -> bool:
    """Whether an fsd mount is there whose daemon has gone. A mount that only hangs (no server runs) is not dead."""
    mount = mountinfo.mounted_at(mountpoint)
    if mount is None or not mount.is_fsd:
        return False
    told = serving.of(mount)
    if told is not None:
        return not told.alive
    return answers_not_connected(mountpoint)


def answers_not_connected(mountpoint: str) -> bool:
    """Ask by a process of its own, which may hang with the mount; nobody waits for it longer than PROBE_S."""
    probe = subprocess.Popen(
        ["stat", "-f", "--", mountpoint], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, said = probe.communicate(timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        probe.kill()
        return False
    return os.strerror(errno.ENOTCONN).encode() in said or os.strerror(errno.ECONNABORTED).encode() in said
