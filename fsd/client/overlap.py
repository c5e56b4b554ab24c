"""Which of this client's own requests overlapped. Pure.

Answers may overtake each other on the way, so of two requests that were under way together nobody knows whose answer is
newer. What an answer says about a *token* (an inode, or a name in a directory) is cached only if no change of that token
was under way at any moment between asking and answering.
"""

from collections import Counter
from collections.abc import Iterable

from fsd.core.ids import Ino

Token = Ino | tuple[Ino, bytes]


class Ticket:
    """One request under way. `here`: a change that was carried out here, and which the cache has already. `stamps`: the lease
    generations of its inodes when it was sent."""

    __slots__ = ("change", "here", "spoiled", "stamps", "tokens")

    def __init__(self, tokens: tuple[Token, ...], change: bool, here: bool = False) -> None:
        self.tokens = tokens
        self.change = change
        self.here = here
        self.spoiled: set[Token] = set()
        self.stamps: dict[Ino, int] = {}

    def clean(self, token: Token) -> bool:
        """Whether what the answer says about `token` is the newest; unknown tokens never are."""
        return token in self.tokens and token not in self.spoiled


class _UnderWay:
    """Of one token: requests at the server, and how many changes that were carried out here are on their way to it."""

    __slots__ = ("asked", "here")

    def __init__(self) -> None:
        self.asked: list[Ticket] = []
        self.here = 0


class Overlaps:
    """All requests under way, by token. Costs as much as there are requests at the server for the same token: changes that were
    carried out here, thousands of them in one directory, are only counted."""

    def __init__(self) -> None:
        self._active: dict[Token, _UnderWay] = {}
        self._announced: Counter[Token] = Counter()

    def announce(self, tokens: Iterable[Token]) -> tuple[Token, ...]:
        """A change will be sent to the server when all that was done here before is there."""
        announced = tuple(dict.fromkeys(tokens))
        self._announced.update(announced)
        return announced

    def withdraw(self, tokens: tuple[Token, ...]) -> None:
        """The end of `announce`."""
        for token in tokens:
            self._announced[token] -= 1
            if not self._announced[token]:
                del self._announced[token]

    def begin(self, tokens: Iterable[Token], *, change: bool, here: bool = False) -> Ticket:
        """A request is about to be sent, or (`here`) a change to be shipped some time."""
        ticket = Ticket(tuple(dict.fromkeys(tokens)), change, here)
        for token in ticket.tokens:
            under_way = self._active.get(token)
            if under_way is None:
                under_way = self._active[token] = _UnderWay()
            if change:
                for other in under_way.asked:
                    other.spoiled.add(token)
            if here:
                under_way.here += 1
            else:
                if under_way.here or any(other.change for other in under_way.asked):
                    ticket.spoiled.add(token)
                under_way.asked.append(ticket)
        return ticket

    def end(self, ticket: Ticket) -> None:
        """The answer was used, or there is none."""
        for token in ticket.tokens:
            under_way = self._active[token]
            if ticket.here:
                under_way.here -= 1
            else:
                under_way.asked.remove(ticket)
            if not under_way.here and not under_way.asked:
                del self._active[token]

    def is_changing(self, token: Token) -> bool:
        """Whether a change of `token` is under way whose outcome only the server knows."""
        return token in self._announced or self.is_sent(token)

    def is_sent(self, token: Token) -> bool:
        """Whether a change of `token` may have been carried out by the server already."""
        under_way = self._active.get(token)
        return under_way is not None and any(ticket.change for ticket in under_way.asked)

    def is_unsettled(self, token: Token) -> bool:
        """Whether any change of `token` is under way: what the server says may be older."""
        under_way = self._active.get(token)
        return self.is_changing(token) or (under_way is not None and under_way.here > 0)
