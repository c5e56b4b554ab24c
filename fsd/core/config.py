"""Settings from flags, environment and a TOML file, in this order of precedence; every value is checked. Pure.

An option has one name in all three places: `--lease-s`, `FSD_LEASE_S` and `lease_s` in the section of its command (or at
the top of the file, for all commands). All faults of all sources are reported at once, one line each.
"""

import os.path
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fsd.core.errors import ConfigurationError
from fsd.core.units import parse_size

ENVIRONMENT_PREFIX = "FSD_"
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SERVICE = re.compile(r"_[A-Za-z0-9-]{1,62}\._tcp(\.[A-Za-z0-9_-]{1,63}){1,30}\.?")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")


@dataclass(frozen=True, slots=True)
class Option:
    """One setting. `parse` turns text into the value or raises ValueError with one line that names the text.

    `switch`: a flag without a value. `hidden`: not in the help, not in the environment or the file.
    """

    name: str  # as in TOML: lower case, underscores
    parse: Callable[[str], Any]
    help: str
    default: Any = None
    required: bool = False
    metavar: str = "VALUE"
    switch: bool = False
    hidden: bool = False
    short: str = ""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()


def resolve(
    options: Sequence[Option],
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    table: Mapping[str, object],
) -> dict[str, Any]:
    """The value of every option by name. Raises ConfigurationError with all faults, one line each."""
    faults: list[str] = []
    values: dict[str, Any] = {}
    for option in options:
        text, source = _find(option, flags, environment, table)
        values[option.name] = option.default
        if text is None:
            if option.required:
                faults.append(f"{option.flag} is missing (or {option.variable}, or {option.name} in the file)")
            continue
        try:
            values[option.name] = option.parse(text)
        except ValueError as error:
            faults.append(f"{source}: {error}")
    faults += _unknown(options, table)
    if faults:
        raise ConfigurationError("\n".join(faults))
    return values


def _find(
    option: Option, flags: Mapping[str, str], environment: Mapping[str, str], table: Mapping[str, object]
) -> tuple[str | None, str]:
    """(text, where it was found) by precedence."""
    if option.name in flags:
        return flags[option.name], option.flag
    if not option.hidden:
        if option.variable in environment:
            return environment[option.variable], option.variable
        if option.name in table:
            return _as_text(table[option.name]), f"{option.name} in the configuration file"
    return None, ""


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(_as_text(item) for item in cast("Sequence[object]", value))
    return str(value)


def _unknown(options: Sequence[Option], table: Mapping[str, object]) -> list[str]:
    known = {option.name for option in options if not option.hidden}
    return [f"{name} in the configuration file: no such option" for name in sorted(table) if name not in known]


def section(document: Mapping[str, object], command: str, commands: Sequence[str]) -> dict[str, object]:
    """What a configuration file says for one command: its section. Raises ConfigurationError for unknown sections."""
    faults = [
        f"[{name}] in the configuration file: no such section; there are {', '.join(commands)}"
        if isinstance(document[name], dict)
        else f"{name} in the configuration file: write it into the section of a command, such as [{command}]"
        for name in sorted(document)
        if name not in commands or not isinstance(document[name], dict)
    ]
    if faults:
        raise ConfigurationError("\n".join(faults))
    found = document.get(command, {})
    assert isinstance(found, dict)
    return dict(found)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


# --- kinds of value ---------------------------------------------------------------------------------------------------


def text(value: str) -> str:
    return value


def switch(value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise ValueError(f"{value!r} is neither yes nor no")


def size(value: str) -> int:
    return parse_size(value)


def seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < 1e9:
        raise ValueError(f"{value!r} is not a number of seconds above 0")
    return number


def integer(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"-?\d{1,18}", value.strip()) or not lowest <= int(value) <= highest:
            raise ValueError(f"{value!r} is not a whole number from {lowest} to {highest}")
        return int(value)

    return parse


def power_of_two(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        number = integer(lowest, highest)(value)
        if number & (number - 1):
            raise ValueError(f"{value!r} is not a power of two")
        return number

    return parse


def chunk_size(value: str) -> int:
    number = parse_size(value)
    if number & (number - 1) or not 64 * 1024 <= number <= 4 * 1024 * 1024:
        raise ValueError(f"{value!r} is not a power of two from 64K to 4M")
    return number


def choice(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")
        return value

    return parse


def address(value: str) -> str:
    match = _ADDRESS.fullmatch(value.strip())
    if not match or int(match[2]) > 65535:
        raise ValueError(f"{value!r} is not an address; write HOST:PORT, such as 127.0.0.1:7400")
    return value.strip()


def http_address(value: str) -> str:
    return value if value in ("auto", "off") else address(value)


def http_of_mount(value: str) -> str:
    return value if value == "off" else address(value)


def addresses(value: str) -> tuple[str, ...]:
    """HOST:PORT, a name of a service (SRV record), or several of these."""
    return tuple(_server(part.strip()) for part in value.split(","))


def _server(value: str) -> str:
    """A service's name is kept without `srv:` before it."""
    if value.startswith(("_", "srv:")):
        name = value.removeprefix("srv:")
        if not _SERVICE.fullmatch(name):
            raise ValueError(f"{value!r} is not the name of a service; write _fsd._tcp.DOMAIN")
        return name
    return address(value)


def zone(value: str) -> str:
    if not _VOLUME.fullmatch(value):
        raise ValueError(f"{value!r} is not a name of letters, digits, '.', '_' and '-'")
    return value


def volume_name(value: str) -> str:
    if not _VOLUME.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a volume name: 1 to 128 letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    return value


def path(value: str) -> str:
    if not value:
        raise ValueError("an empty path")
    return os.path.abspath(os.path.expanduser(value))


def mount_source(value: str) -> tuple[tuple[str, ...], str]:
    """(metadata addresses, volume) of "HOST:PORT[,HOST:PORT]:/VOLUME"."""
    hosts, colon, volume = value.rpartition(":/")
    if not colon:
        raise ValueError(f"{value!r} is not HOST:PORT[,HOST:PORT]:/VOLUME, such as 127.0.0.1:7400:/default")
    return addresses(hosts), volume_name(volume)
