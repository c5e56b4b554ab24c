"""Which of this client's own requests overlapped. Pure.

Answers may overtake each other on the way, so of two requests that were under way together nobody knows whose answer is
newer. What an answer says about a *token* (an inode, or a name in a directory) is cached only if no change of that token
was under way at any moment between asking and answering.
"""

from collections.abc import Iterable

from fsd.core.ids import Ino

Token = Ino | tuple[Ino, bytes]


class Ticket:
    """One request under way. `stamps`: the lease generations of its inodes when it was sent."""

    __slots__ = ("change", "spoiled", "stamps", "tokens")

    def __init__(self, tokens: tuple[Token, ...], change: bool) -> None:
        self.tokens = tokens
        self.change = change
        self.spoiled: set[Token] = set()
        self.stamps: dict[Ino, int] = {}

    def clean(self, token: Token) -> bool:
        """Whether what the answer says about `token` is the newest; unknown tokens never are."""
        return token in self.tokens and token not in self.spoiled


class Overlaps:
    """All requests under way, by token."""

    def __init__(self) -> None:
        self._active: dict[Token, list[Ticket]] = {}

    def begin(self, tokens: Iterable[Token], *, change: bool) -> Ticket:
        """A request is about to be sent."""
        ticket = Ticket(tuple(dict.fromkeys(tokens)), change)
        for token in ticket.tokens:
            others = self._active.setdefault(token, [])
            for other in others:
                if change:
                    other.spoiled.add(token)
                if other.change:
                    ticket.spoiled.add(token)
            others.append(ticket)
        return ticket

    def end(self, ticket: Ticket) -> None:
        """The answer was used, or there is none."""
        for token in ticket.tokens:
            others = self._active[token]
            others.remove(ticket)
            if not others:
                del self._active[token]

    def is_changing(self, token: Token) -> bool:
        """Whether a change of `token` is under way."""
        return any(ticket.change for ticket in self._active.get(token, ()))
