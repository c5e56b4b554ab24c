"""Print the versions of fsd and of what it stands on."""

import argparse
import platform
from importlib import metadata
from typing import Any

from fsd import __version__
from fsd.core.config import Option

OPTIONS: tuple[Option, ...] = ()


def arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(settings: dict[str, Any]) -> int:
    print(f"fsd {__version__}")
    print(f"python {platform.python_version()}, linux {platform.release()}")
    for package in ("pyfuse3", "trio", "msgpack", "rocksdict", "psutil"):
        try:
            print(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package} is not installed")
    return 0
