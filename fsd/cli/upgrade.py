"""Hand a mount over to a new daemon of the fsd that is installed now. Nobody on the mount sees more than a short pause."""

import argparse
from typing import Any

from fsd.cli import exits
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import ConfigurationError, DeadlineExceeded

OPTIONS: tuple[Option, ...] = (
    Option("timeout_s", config.seconds, "how long to wait for the new daemon", default=90.0, metavar="S"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")


def run(settings: dict[str, Any]) -> int:
    from fsd.mount import control, mountinfo, serving
    from fsd.mount.control import Kind, Word

    mountpoint = mountinfo.normalize(settings["mountpoint"])
    mount = mountinfo.mounted_at(mountpoint)
    if mount is None or not mount.is_fsd:
        raise ConfigurationError(f"no fsd volume is mounted on {mountpoint}")
    told = serving.of(mount)
    if told is None or not told.supervisor.alive:
        raise ConfigurationError(f"the mount on {mountpoint} has no supervisor of this user")
    try:
        answer = control.ask(told.control, Word(Kind.UPGRADE), settings["timeout_s"])
    except TimeoutError:
        raise DeadlineExceeded(
            f"{mountpoint}: no new daemon within {settings['timeout_s']:g} s; its log tells"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot ask the supervisor of {mountpoint}: {error.strerror or error}") from None
    if answer.kind is not Kind.DONE:
        raise ConfigurationError(f"{mountpoint}: {answer.text}")
    print(f"{mountpoint}: daemon {answer.text} serves; requests waited {answer.seconds:.2f} s")
    return exits.OK
