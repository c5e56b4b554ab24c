"""Which node a data directory is: the small file `identity`, written before the first message of every life (R1).

A JSON object: format (1), role ("chunkserver"), file_system ("" until the first registration), node (0 until then),
incarnation, segment_size, has_store (whether a store was made in it). A directory of another role, file system or a newer
format is refused by name.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from fsd.core.errors import ForeignFileSystem, FormatError
from fsd.core.ids import Incarnation, Member, NodeId
from fsd.runtime.storage import DataDirectory

FILE_NAME = "identity"
FORMAT = 1
ROLE = "chunkserver"


@dataclass(frozen=True, slots=True)
class Identity:
    format: int = FORMAT
    role: str = ROLE
    file_system: str = ""
    node: int = 0
    incarnation: int = 0
    segment_size: int = 0
    has_store: bool = False
    authority: int = 0  # the highest epoch of a metadata server that was followed (R14)

    @property
    def member(self) -> Member:
        return Member(NodeId(self.node), Incarnation(self.incarnation))


def parse_identity(data: bytes, where: str) -> Identity:
    """Raises FormatError."""
    try:
        fields: Any = json.loads(data)
    except ValueError:
        raise FormatError(f"{where}: the file {FILE_NAME!r} is damaged") from None
    if not isinstance(fields, dict):
        raise FormatError(f"{where}: the file {FILE_NAME!r} is damaged")
    known = cast("dict[str, Any]", fields)
    if known.get("role", ROLE) != ROLE:
        raise FormatError(f"{where} is the data directory of a {known['role']} server, not of a chunkserver")
    if known.get("format") != FORMAT:
        raise FormatError(f"{where} has format {known.get('format')}, this version knows format {FORMAT}")
    default = Identity()
    known.setdefault("authority", 0)  # came later
    for name in default.__slots__:
        if type(known.get(name)) is not type(getattr(default, name)):
            raise FormatError(f"{where}: the file {FILE_NAME!r} has no valid {name!r}")
    return Identity(**{name: known[name] for name in default.__slots__})


async def begin_life(directory: DataDirectory, segment_size: int) -> Identity:
    """The identity of this life: the incarnation one higher than ever before, durably."""
    data = directory.read_file(FILE_NAME)
    old = Identity(segment_size=segment_size) if data is None else parse_identity(data, directory.name)
    return await save(directory, replace(old, incarnation=old.incarnation + 1))


async def save(directory: DataDirectory, identity: Identity) -> Identity:
    await directory.write_file(FILE_NAME, json.dumps(asdict(identity), indent=1).encode() + b"\n")
    return identity


def check_file_system(identity: Identity, file_system: str, where: str) -> None:
    """Raises ForeignFileSystem."""
    if identity.file_system and identity.file_system != file_system:
        raise ForeignFileSystem(
            f"{where} belongs to file system {identity.file_system}, the metadata server serves {file_system}"
        )
