"""How far a long command is: a bar that is redrawn on a terminal, elsewhere a plain line now and then. On stderr: what a
command finds is on stdout, with or without a bar."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

BAR = 30
LINE_EVERY_S = 10.0
REDRAW_S = 0.1


class Progress:
    """`with Progress("scrub") as progress: progress.show(done, whole, text)`. `quiet`: say nothing (--json)."""

    def __init__(
        self,
        what: str,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._now = now
        self._terminal = self._stream.isatty()
        self._next = 0.0 if self._terminal else now() + LINE_EVERY_S
        self._drawn = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            self._write("\r\x1b[K")

    def show(self, done: float, whole: float, text: str = "") -> None:
        """Both in the same unit; a whole that is not known yet is 0. Too often is as good as often enough."""
        now = self._now()
        if self._quiet or now < self._next:
            return
        self._next = now + (REDRAW_S if self._terminal else LINE_EVERY_S)
        share = min(1.0, max(0.0, done / whole)) if whole > 0 else 0.0
        tail = f"{share:4.0%}" + (f"  {text}" if text else "")
        if not self._terminal:
            self._write(f"{self._what}: {tail.strip()}\n")
            return
        full = int(share * BAR)
        line = f"{self._what} [{'#' * full}{'.' * (BAR - full)}] {tail}"
        self._drawn = True
        self._write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
