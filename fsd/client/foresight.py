"""When to read a piece of a directory instead of asking for one name, or for one small file's bytes, after the other.

Who asks for a few names of a directory mostly asks for the rest (git, grep, cp, a loop of stat). A page costs about as much
as a dozen single requests and brings a thousand names with their attributes, or a megabyte of small files. After each page
that was of little use the next one takes more misses. Pure.
"""

from dataclasses import dataclass

from fsd.core.ids import Ino
from fsd.namespace.keys import FIRST_COOKIE

Cookie = int

FIRST = 3  # misses before the first page
NEXT = 2  # before one that follows a page of use
USEFUL = 8  # hits that a page must have brought
STEP = 4  # misses more after each page that did not
AGAIN = 32  # misses after which a directory is taken to have been forgotten
MAX_DIRECTORIES = 1024


@dataclass(slots=True)
class _Watched:
    misses: int = 0
    hits: int = 0
    useless: int = 0  # pages
    pages: int = 0
    reading: bool = False
    begin: Cookie = 0
    cursor: Cookie = 0
    wrapped: bool = False
    whole: bool = False  # nothing is left to be read


class Foresight:
    """What is asked for in which directory, and how far it was read ahead: once around, from the first miss on."""

    def __init__(self) -> None:
        self._watched: dict[Ino, _Watched] = {}

    def missed(self, parent: Ino, cookie: Cookie) -> Cookie | None:
        """Something of the directory must be asked for: where to read a page, if one should be read. Then call `read`."""
        watched = self._watched.get(parent)
        if watched is None:
            if len(self._watched) >= MAX_DIRECTORIES:
                self._watched.clear()
            watched = self._watched[parent] = _Watched()
        watched.misses += 1
        if watched.whole and watched.misses >= AGAIN:
            watched.whole, watched.wrapped, watched.pages = False, False, 0
        if watched.reading or watched.whole or watched.misses < self._enough(watched):
            return None
        if not watched.pages:
            watched.begin = watched.cursor = cookie
        elif watched.hits < USEFUL:
            watched.useless += 1
        watched.misses = watched.hits = 0
        watched.pages += 1
        watched.reading = True
        return watched.cursor

    def _enough(self, watched: _Watched) -> int:
        if not watched.pages:
            return FIRST
        return NEXT if watched.hits >= USEFUL else FIRST + STEP * (watched.useless + 1)

    def read(self, parent: Ino, last: Cookie | None, end: bool) -> None:
        """The page ended behind the cookie `last`, or (`end`) with the directory's last name; None if it could not be read."""
        watched = self._watched.get(parent)
        if watched is None:
            return
        watched.reading = False
        if end:
            watched.whole = watched.wrapped or watched.begin <= FIRST_COOKIE
            watched.wrapped, watched.cursor = True, FIRST_COOKIE
        elif last is not None:
            watched.cursor = last + 1
            watched.whole = watched.wrapped and watched.cursor >= watched.begin

    def hit(self, parent: Ino) -> None:
        """Something of the directory did not have to be asked for."""
        watched = self._watched.get(parent)
        if watched is not None:
            watched.hits += 1
