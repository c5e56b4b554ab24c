"""Explain a code that `fsd status` or `fsd doctor` told; without a code: list all."""

import argparse
import json
from typing import Any

from fsd.cli import exits
from fsd.cli.administration import JSON
from fsd.cli.health import CODES
from fsd.core.config import Option
from fsd.core.errors import NotFound

OPTIONS: tuple[Option, ...] = (JSON,)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", nargs="?", help="such as FSD-N1")


def run(settings: dict[str, Any]) -> int:
    code = settings["code"]
    if code is not None and code.upper() not in CODES:
        raise NotFound(f"there is no code {code}; fsd explain lists all")
    chosen = {code.upper(): CODES[code.upper()]} if code else CODES
    if settings["json"]:
        print(json.dumps({"codes": [{"code": key, **entry._asdict()} for key, entry in chosen.items()]}, indent=1))
    elif code:
        entry = chosen[code.upper()]
        print(f"{code.upper()} ({entry.severity}): {entry.title}\n\n{entry.meaning}\n\nWhat to do: {entry.remedy}")
    else:
        print("\n".join(f"{key}  {entry.severity:<9} {entry.title}" for key, entry in chosen.items()))
    return exits.OK
