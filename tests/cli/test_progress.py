"""Progress of long commands: a bar on a terminal, lines elsewhere, nothing if nobody wants it."""

import io

from fsd.cli.progress import LINE_EVERY_S, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def test_a_terminal_gets_a_bar_that_is_wiped_away_at_the_end(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    screen, clock = Terminal(), Clock()
    with Progress("scrub", stream=screen, now=clock) as progress:
        progress.show(1, 2, "half")
        assert screen.getvalue() == f"\r\x1b[Kscrub [{'#' * 15}{'.' * 15}]  50%  half"
        progress.show(2, 2)  # too soon
        clock.at += 1
        progress.show(5, 2)
        assert screen.getvalue().endswith("100%")
    assert screen.getvalue().endswith("\r\x1b[K")


def test_a_narrow_terminal_is_not_overrun(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    screen = Terminal()
    Progress("scrub", stream=screen, now=Clock()).show(1, 2, "x" * 100)
    assert len(screen.getvalue().removeprefix("\r\x1b[K")) == 19


def test_a_file_gets_a_line_now_and_then_and_no_control_characters():
    file, clock = io.StringIO(), Clock()
    with Progress("drain", stream=file, now=clock) as progress:
        progress.show(0, 0, "begins")
        assert file.getvalue() == ""
        for done in range(100):
            clock.at += LINE_EVERY_S / 10
            progress.show(done, 100, "groups")
    lines = file.getvalue().splitlines()
    assert lines[0] == "drain: 9%  groups"
    assert len(lines) == 10
    assert "\r" not in file.getvalue()


def test_json_is_not_disturbed():
    screen = Terminal()
    with Progress("fsck", quiet=True, stream=screen, now=Clock()) as progress:
        progress.show(1, 2)
    assert screen.getvalue() == ""
