"""The first exchange on every connection, and the answer that reports an error."""

from dataclasses import dataclass

from fsd.core.ids import NodeId
from fsd.wire.codec import wire


@wire(1)
@dataclass(frozen=True, slots=True)
class Hello:
    """Who connects. `file_system` is the id that the caller belongs to, "" if it does not know yet (a first contact)."""

    role: str  # "client", "chunkserver", "metadata", "cli"
    name: str
    version: str
    file_system: str = ""
    node: NodeId = NodeId(0)
    incarnation: int = 0


@wire(2)
@dataclass(frozen=True, slots=True)
class Welcome:
    """Who answers. A caller that belongs to another file system gets ForeignFileSystem instead. `incarnation`: of a node; of a
    metadata server its epoch as the authority, which grows with every start (R14)."""

    role: str
    version: str
    file_system: str
    node: NodeId = NodeId(0)
    incarnation: int = 0


@wire(3)
@dataclass(frozen=True, slots=True)
class ErrorReply:
    """`number` is of fsd.core.errors; `text` is one line for people."""

    number: int
    text: str


@wire(4)
@dataclass(frozen=True, slots=True)
class Done:
    """An answer with nothing to say but that it was done."""
