"""Mount options: the list after `-o`, some for the kernel, some for the client, some for others and ignored. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fsd.client.options import ClientOptions
from fsd.core import config
from fsd.core.errors import ConfigurationError
from fsd.core.units import MIB

_KERNEL = (
    "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "async", "sync", "dirsync", "atime", "noatime",
)  # fmt: skip
_IGNORED = ("defaults", "_netdev", "nofail", "noauto", "auto", "user", "nouser", "users", "owner", "group", "relatime")
_CLIENT: dict[str, tuple[str, Callable[[str], Any]]] = {
    "timeout": ("timeout_s", config.seconds),
    "cache": ("cache_bytes", config.size),
    "cache_policy": ("cache_policy", config.choice("lru", "lfu")),
    "write_back": ("write_back_bytes", config.size),
    "write_back_age": ("write_back_age_s", config.seconds),
    "read_ahead": ("read_ahead_bytes", config.size),
}
_SESSION = {  # what is asked of the kernel; for measuring, each can be left out
    "parallel_dirops": ("parallel_dirops", True),
    "noparallel_dirops": ("parallel_dirops", False),
    "killpriv": ("kill_privileges", True),
    "nokillpriv": ("kill_privileges", False),
    "explicit_inval": ("explicit_invalidation", True),
    "noexplicit_inval": ("explicit_invalidation", False),
    "companion": ("companion", True),
    "nocompanion": ("companion", False),
}
DEFAULT_READ_AHEAD_KIB = 1024
DEFAULT_MAX_BACKGROUND = 64
MAX_BACKGROUND = 65535


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How the FUSE session is asked for (docs/companion.md)."""

    companion: bool = True
    parallel_dirops: bool = True
    kill_privileges: bool = True
    explicit_invalidation: bool = True
    max_background: int = DEFAULT_MAX_BACKGROUND


@dataclass(frozen=True, slots=True)
class MountOptions:
    kernel: tuple[str, ...] = ()
    allow_other: bool | None = None  # None: if we are root
    read_only: bool = False
    fail_closed: bool = True  # the mount point refuses writes while nothing is mounted
    kernel_read_ahead_kib: int = DEFAULT_READ_AHEAD_KIB
    session: SessionOptions = SessionOptions()
    client: ClientOptions = ClientOptions()


def parse(text: str, client_name: str) -> MountOptions:
    """The options of `-o`. Raises ConfigurationError that names every unknown option and bad value."""
    faults: list[str] = []
    kernel: list[str] = []
    client: dict[str, Any] = {"name": client_name}
    session: dict[str, Any] = {}
    allow_other: bool | None = None
    fail_closed = True
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        try:
            if name in _CLIENT and equals:
                field, kind = _CLIENT[name]
                client[field] = kind(value)
            elif name == "max_background" and equals:
                session["max_background"] = config.integer(1, MAX_BACKGROUND)(value)
            elif item in _SESSION:
                session[_SESSION[item][0]] = _SESSION[item][1]
            elif equals and not name.startswith(("x-", "comment")):
                faults.append(f"unknown mount option {name}=" if name not in _KERNEL else f"{name} takes no value")
            elif item in ("hard", "soft"):
                client["hard"] = item == "hard"
            elif item in ("closed", "noclosed"):
                fail_closed = item == "closed"
            elif item in ("allow_other", "noallow_other"):
                allow_other = item == "allow_other"
            elif item in _KERNEL:
                kernel.append(item)
            elif item not in _IGNORED and not name.startswith(("x-", "comment")):
                faults.append(f"{name} needs a value" if name in _CLIENT else f"unknown mount option {name}")
        except ValueError as error:
            faults.append(f"mount option {name}: {error}")
    if client.get("write_back_bytes", MIB) < MIB:
        faults.append("mount option write_back: at least 1M")
    if faults:
        raise ConfigurationError("\n".join(faults))
    return MountOptions(
        tuple(kernel),
        allow_other,
        "ro" in kernel,
        fail_closed,
        session=SessionOptions(**session),
        client=ClientOptions(**client),
    )
