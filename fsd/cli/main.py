"""`fsd COMMAND`: find the command, import it alone, resolve its settings, run it, turn errors into one line each.

Commands are modules with `OPTIONS`, `arguments(parser)` and `run(settings) -> int`. `fsd --help` imports none of them.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Never

from fsd.cli import exits

COMMANDS: dict[str, str] = {
    "up": "start a whole cluster on this machine and mount it",
    "down": "stop it cleanly",
    "ps": "list its processes",
    "metadata": "run a metadata server",
    "chunkserver": "run a chunkserver",
    "mount": "mount a volume",
    "plugin": "run Docker's volume plugin",
    "umount": "unmount it, everything written back",
    "upgrade": "hand a mount over to a daemon of the fsd installed now",
    "heal": "put a new mount into running containers that have a dead one",
    "status": "health, nodes, placement groups, sessions, volumes",
    "top": "the cluster at a glance, again and again",
    "doctor": "what would happen if a node died; disks, clocks, latencies, versions",
    "explain": "what a code of status or doctor means, and what to do",
    "sessions": "the clients of a cluster, and what each has",
    "leases": "who may cache or change a file, and since when",
    "locks": "who holds locks of a file, who waits for one, and since when",
    "evict": "end a client's session by force",
    "volume": "create, list, set, delete volumes",
    "node": "list, drain, weigh and remove chunkservers",
    "rebalance": "what moves between nodes; pause and resume it",
    "scrub": "look for rot now and repair it",
    "info": "where the bytes of a file are",
    "fsck": "check the tree and the copies of every chunk",
    "install": "put fsd's units, mount helper, man pages and completions into the system",
    "uninstall": "take them away again",
    "version": "print versions",
}


class Parser(argparse.ArgumentParser):
    """argparse that says what is wrong in one line."""

    def error(self, message: str) -> Never:
        message = message.replace("unrecognized arguments", "unknown option or argument")
        message = message.replace("the following arguments are required", "missing")
        sys.stderr.write(f"fsd: {message}; see {self.prog} --help\n")
        raise SystemExit(exits.USAGE)

    @property
    def actions(self) -> list[argparse.Action]:
        """What it takes, in the order in which it was told; argparse has no public name for it."""
        return self._actions


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words) if argv is not None else _dispatch_by_name(os.path.basename(sys.argv[0]), words)
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes stdout once more when it ends
        return exits.OK


def _dispatch_by_name(program: str, words: list[str]) -> int:
    """`fsd` under the names that mount(8) and umount(8) look for is their helper."""
    if program.startswith(("mount.", "umount.")):
        from fsd.cli import helper

        return helper.mount(words) if program.startswith("mount.") else helper.unmount(words)
    return _dispatch(words)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return exits.OK if words else exits.USAGE
    if words[0] == "--version":
        words[0] = "version"
    if words[0] not in COMMANDS:
        kind = "option" if words[0].startswith("-") else "command"
        sys.stderr.write(f"fsd: unknown {kind} {words[0]}; see fsd --help\n")
        return exits.USAGE
    return run_command(words[0], words[1:], os.environ)


def run_command(name: str, words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Settings of all sources, then the command, then its errors."""
    module = import_module(f"fsd.cli.{name}")
    settings: dict[str, Any] = {}
    try:
        settings = _settings(module, name, words, environment)
        settings["read_again"] = lambda: _settings(module, name, words, environment)
        return module.run(settings)
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except Exception as error:
        from fsd.cli.failure import report

        return report(error, settings.get("ready_fd"))


def _settings(module: Any, name: str, words: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    from fsd.core.config import Option, resolve

    options: tuple[Option, ...] = module.OPTIONS
    parser, config = parser_of(module, name)
    parsed = vars(parser.parse_args(list(words)))
    names = {option.name for option in options}
    flags = {key: value for key, value in parsed.items() if key in names}
    file = parsed.get("config") or environment.get(config.variable)
    settings = {key: value for key, value in parsed.items() if key not in names}
    return settings | resolve(options, flags, environment, _file_section(file, name))


def parser_of(module: Any, name: str) -> tuple[Parser, Any]:
    """The parser of one command, and the option that names the settings file."""
    from fsd.core.config import Option, text

    parser = Parser(prog=f"fsd {name}", description=module.__doc__, allow_abbrev=False)
    module.arguments(parser)
    for option in module.OPTIONS:
        _add(parser, option)
    config = Option("config", text, "TOML file with a section for each command", metavar="FILE")
    _add(parser, config)
    return parser, config


def _add(parser: argparse.ArgumentParser, option: Any) -> None:
    shown = argparse.SUPPRESS if option.hidden else _described(option)
    names = [option.short, option.flag] if option.short else [option.flag]
    if option.switch:
        parser.add_argument(
            *names, dest=option.name, action="store_const", const="yes", default=argparse.SUPPRESS, help=shown
        )
    else:
        parser.add_argument(*names, dest=option.name, metavar=option.metavar, default=argparse.SUPPRESS, help=shown)


def _described(option: Any) -> str:
    shown = f" (default {option.default})" if option.default not in (None, False, "", ()) else ""
    return (option.help + shown).replace("%", "%%")


def _file_section(file: str | None, name: str) -> dict[str, object]:
    if not file:
        return {}
    import tomllib

    from fsd.core.config import section
    from fsd.core.errors import ConfigurationError

    try:
        with open(file, "rb") as stream:
            document = tomllib.load(stream)
    except OSError as error:
        raise ConfigurationError(f"cannot read the configuration file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not TOML: {error}") from None
    return section(document, name, tuple(COMMANDS))


def usage() -> str:
    """The help of `fsd` itself."""
    lines = [f"  {name:<12} {summary}" for name, summary in COMMANDS.items()]
    return (
        "usage: fsd COMMAND [options]\n\n"
        "A replicated file system for containers. To try it: fsd up MOUNTPOINT\n\n"
        + "\n".join(lines)
        + "\n\nfsd COMMAND --help tells the options. Each is also an environment variable (--lease-s: FSD_LEASE_S)\n"
        "and a line in the command's section of a TOML file (--config FILE). Exit codes: docs/cli.md\n"
    )
