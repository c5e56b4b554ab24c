"""What mount(8) and umount(8) call for fsd: /sbin/mount.fsd SOURCE DIRECTORY [-sfnv] [-o OPTIONS], /sbin/umount.fuse.fsd.

Both are links to the program `fsd`, which looks at the name it was called by. Their exit codes are mount(8)'s.

Under an automount the kernel lets only the process group of this helper through to the directory below; everybody else who
looks at it waits until the helper has ended. So the process that mounts stays in our session until the mount is made, and
calls itself ready without having looked at the mount point.
"""

import getopt
import sys
from collections.abc import Sequence

from fsd.cli import exits

SUCCESS, USAGE, SYSTEM, BUG, INTERRUPTED, FAILURE = 0, 1, 2, 4, 8, 32  # mount(8)
_CODES = {
    exits.OK: SUCCESS,
    exits.USAGE: USAGE,
    exits.MISSING: SYSTEM,
    exits.INTERNAL: BUG,
    exits.INTERRUPTED: INTERRUPTED,
}
MOUNT_USAGE = "usage: mount.fsd HOST:PORT[,HOST:PORT]:/VOLUME DIRECTORY [-sfnvrw] [-o OPTIONS]"
UMOUNT_USAGE = "usage: umount.fuse.fsd DIRECTORY [-flnrv]"


def mount(words: Sequence[str]) -> int:
    """mount.fsd; returns when the mount can be used."""
    try:
        pairs, rest = getopt.gnu_getopt(list(words), "o:t:N:sfnvrwh")
    except getopt.GetoptError as error:
        return _say(f"mount.fsd: {error}\n{MOUNT_USAGE}", USAGE)
    flags = [flag for flag, _ in pairs]
    if len(rest) != 2 or "-h" in flags:
        return _say(MOUNT_USAGE, SUCCESS if "-h" in flags else USAGE)
    if "-N" in flags:
        return _say("mount.fsd: mounting in another namespace (-N) is not supported", USAGE)
    listed = [value for flag, value in pairs if flag == "-o"]
    listed += [word for flag, word in (("-r", "ro"), ("-w", "rw")) if flag in flags]
    listing = ",".join(listed)
    if "remount" in listing.split(","):
        return _say("mount.fsd: remount is not supported: unmount, and mount with the other options", USAGE)
    if "-f" in flags:
        return _check(rest[0], listing)
    from fsd.cli.main import run_command

    waits = ["--wait"] if "_netdev" in listing.split(",") else []  # at boot: the servers may boot, too
    code = run_command("mount", [*rest, "-o", listing, *waits], {})
    if code == exits.OK and "-v" in flags:
        print(f"mount.fsd: {rest[0]} mounted on {rest[1]}.")
    return _CODES.get(code, FAILURE)


def _check(source: str, listing: str) -> int:
    """What -f asks for: everything but the mount."""
    from fsd.cli.failure import report
    from fsd.core import config
    from fsd.core.errors import ConfigurationError
    from fsd.mount.options import parse

    try:
        config.mount_source(source)
        parse(listing, "")
    except (ConfigurationError, ValueError) as error:
        return _CODES.get(report(ConfigurationError(str(error))), FAILURE)
    return SUCCESS


def unmount(words: Sequence[str]) -> int:
    """umount.fuse.fsd; returns when everything is written back."""
    try:
        pairs, rest = getopt.gnu_getopt(list(words), "t:N:fflnrvh")
    except getopt.GetoptError as error:
        return _say(f"umount.fuse.fsd: {error}\n{UMOUNT_USAGE}", USAGE)
    flags = [flag for flag, _ in pairs]
    if len(rest) != 1 or "-h" in flags:
        return _say(UMOUNT_USAGE, SUCCESS if "-h" in flags else USAGE)
    from fsd.cli.main import run_command

    command = [rest[0], "--lazy"] if "-l" in flags else [rest[0]]
    code = run_command("umount", command, {})
    return _CODES.get(code, FAILURE)


def _say(text: str, code: int) -> int:
    (sys.stderr if code else sys.stdout).write(text + "\n")
    return code
