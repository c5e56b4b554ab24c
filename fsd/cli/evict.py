"""End a client's session by force: it is fenced, and what it has goes to others. Asks before, unless --yes is given."""

import argparse
import json
import sys
from typing import Any

from fsd.cli import exits
from fsd.cli.administration import CLUSTER_OPTIONS, JSON, Cluster, run_with_cluster
from fsd.cli.status import period
from fsd.core import config
from fsd.core.config import Option
from fsd.core.errors import ConfigurationError, NotFound
from fsd.core.ids import SessionId
from fsd.protocol.cluster import GetStatus, SessionStatus, StatusReply
from fsd.protocol.locks import EvictSession

OPTIONS: tuple[Option, ...] = (
    *CLUSTER_OPTIONS,
    Option("yes", config.switch, "do not ask", default=False, switch=True),
    JSON,
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", metavar="SESSION", help="its number, as fsd sessions tells it")


def run(settings: dict[str, Any]) -> int:
    session = parsed(settings["session"])

    async def look(cluster: Cluster) -> SessionStatus:
        status: StatusReply = await cluster.ask(GetStatus())
        found = next((s for s in status.sessions if s.session == session), None)
        if found is None:
            raise NotFound(f"there is no session {session}; fsd sessions lists them")
        return found

    async def evict(cluster: Cluster) -> None:
        await cluster.ask(EvictSession(session))

    found = run_with_cluster(settings, look)
    evicted = settings["yes"] or confirmed(found)
    if evicted:
        run_with_cluster(settings, evict)
    if settings["json"]:
        print(json.dumps({"session": session, "client": found.client, "evicted": evicted}, indent=1))
    else:
        print(f"session {session} of {found.client} is {'evicted' if evicted else 'left as it is'}")
    return exits.OK if evicted else exits.FAILED


def parsed(text: str) -> SessionId:
    """Raises ConfigurationError."""
    if not text.isascii() or not text.isdigit():
        raise ConfigurationError(f"{text!r} is no session: a number is wanted, as fsd sessions tells it")
    return SessionId(int(text))


def confirmed(session: SessionStatus) -> bool:
    """Whether whoever sits there says yes. Raises ConfigurationError if nobody does."""
    print(warning(session), file=sys.stderr)
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody is there to confirm this; add --yes")
    print('Evict it? Type "yes": ', end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == "yes"


def warning(session: SessionStatus) -> str:
    """What will be lost."""
    return (
        f"session {session.session} of {session.client} at {session.address}, volume {session.volume}, "
        f"open for {period(session.age_s)}, last heard of {period(session.idle_s)} ago, "
        f"{session.leases} leases, {session.locks} locks\n"
        "What this client has written and not synced is lost: its programs get EIO once for each such file. Its changes of\n"
        "names and attributes of the last moments are lost too. Its locks go to others, and files that it had locked answer\n"
        "EIO until they are opened again. Its mount stays and goes on with a new session, if the client lives."
    )
