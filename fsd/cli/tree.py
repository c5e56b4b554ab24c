"""What the command line offers, as data: for man pages and completions. Taken from the parsers themselves."""

import argparse
import inspect
from dataclasses import dataclass
from importlib import import_module

from fsd.cli.main import COMMANDS, parser_of


@dataclass(frozen=True, slots=True)
class Flag:
    names: tuple[str, ...]  # "-o", "--options"
    metavar: str  # empty: it takes no value
    help: str
    choices: tuple[str, ...] = ()

    @property
    def long(self) -> str:
        return self.names[-1]


@dataclass(frozen=True, slots=True)
class Positional:
    metavar: str
    help: str
    choices: tuple[str, ...]
    optional: bool
    many: bool


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    summary: str
    description: str
    flags: tuple[Flag, ...]
    positionals: tuple[Positional, ...]


def commands() -> list[Command]:
    """Every command, in the order of `fsd --help`."""
    return [_command(name, summary) for name, summary in COMMANDS.items()]


def _command(name: str, summary: str) -> Command:
    module = import_module(f"fsd.cli.{name}")
    parser, _ = parser_of(module, name)
    shown = [action for action in parser.actions if action.help != argparse.SUPPRESS]
    return Command(
        name,
        summary,
        inspect.cleandoc(module.__doc__ or summary),
        tuple(_flag(action) for action in shown if action.option_strings),
        tuple(_positional(action) for action in shown if not action.option_strings),
    )


def _flag(action: argparse.Action) -> Flag:
    metavar = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    return Flag(tuple(action.option_strings), metavar, _help(action), _choices(action))


def _positional(action: argparse.Action) -> Positional:
    choices = _choices(action)
    metavar = str(action.metavar or ("|".join(choices) if choices else action.dest.upper()))
    return Positional(metavar, _help(action), choices, action.nargs in ("?", "*"), action.nargs in ("*", "+"))


def _choices(action: argparse.Action) -> tuple[str, ...]:
    return tuple(str(choice) for choice in action.choices or ())


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%")
