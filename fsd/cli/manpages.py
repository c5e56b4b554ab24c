"""Manual pages in roff (man(7)), written from the command line's own tree. Pure."""

from collections.abc import Sequence

from fsd.cli.tree import Command, Flag, Positional

_EXITS = (
    ("0", "done"),
    ("1", "refused or failed"),
    ("2", "options, arguments or configuration are wrong"),
    ("3", "a server cannot be reached, or did not answer in time"),
    ("4", "in use"),
    ("5", "a data directory or a server of another cluster, format or version"),
    ("6", "this machine lacks something"),
    ("70", "a bug of fsd"),
)
_HELPER = """is called by
.BR mount (8)
for file systems of type
.BR fsd ,
also from
.IR /etc/fstab ,
and returns when the volume can be used.
.BR umount (8)
calls it under its other name and returns when everything is written back."""
_FSTAB = """meta.example.org:7400:/default  /data  fsd  _netdev,nofail,x-systemd.automount  0 0"""


def page(command: Command, version: str) -> str:
    """fsd-COMMAND(1)."""
    name = f"fsd-{command.name}"
    synopsis = " ".join([*(_usage(item) for item in command.positionals), "[\\fIoptions\\fR]"])
    first, _, rest = command.description.partition("\n\n")
    parts = [
        _head(name, 1, version),
        _section("NAME", f"{_text(name)} \\- {_text(command.summary)}"),
        _section("SYNOPSIS", f".B fsd {_text(command.name)}\n{synopsis}"),
        _section("DESCRIPTION", "\n.PP\n".join(_text(part) for part in [first, *rest.split("\n\n")] if part)),
        _section("ARGUMENTS", "\n".join(_item(item.metavar, _described(item)) for item in command.positionals)),
        _section("OPTIONS", "\n".join(_flag(flag) for flag in command.flags)),
        _section("SETTINGS", _settings(command.name)),
        _exit_status(),
        _see_also("fsd(1)"),
    ]
    return "".join(parts)


def overview(commands: Sequence[Command], version: str) -> str:
    """fsd(1)."""
    parts = [
        _head("fsd", 1, version),
        _section("NAME", "fsd \\- replicated file system for containers"),
        _section("SYNOPSIS", ".B fsd\n\\fICOMMAND\\fR [\\fIoptions\\fR]"),
        _section(
            "DESCRIPTION",
            "A volume of fsd is mounted on many hosts at once, behaves like a local file system, and outlives the loss of\n"
            "any one server.  To try it:\n.PP\n.B fsd up\n.I MOUNTPOINT",
        ),
        _section("COMMANDS", "\n".join(_item(f"fsd-{c.name}(1)", c.summary) for c in commands)),
        _exit_status(),
        _see_also(*(f"fsd-{command.name}(1)" for command in commands), "mount.fsd(8)"),
    ]
    return "".join(parts)


def helper(version: str) -> str:
    """mount.fsd(8)."""
    parts = [
        _head("mount.fsd", 8, version),
        _section("NAME", "mount.fsd, umount.fuse.fsd \\- mount and unmount volumes of fsd"),
        _section(
            "SYNOPSIS",
            ".B mount \\-t fsd\n\\fIHOST\\fR:\\fIPORT\\fR[,\\fIHOST\\fR:\\fIPORT\\fR]:/\\fIVOLUME\\fR \\fIDIRECTORY\\fR"
            " [\\fB\\-o\\fR \\fIoptions\\fR]",
        ),
        _section("DESCRIPTION", f".B mount.fsd\n{_HELPER}"),
        _section("OPTIONS", "As\n.BR fsd-mount (1)\ntakes after\n.BR \\-o ."),
        _section("EXAMPLES", f".nf\n{_text(_FSTAB)}\n.fi"),
        _section("EXIT STATUS", "As told in\n.BR mount (8)."),
        _see_also("fsd-mount(1)", "mount(8)", "systemd.mount(5)"),
    ]
    return "".join(parts)


def _head(name: str, section: int, version: str) -> str:
    return f'.TH {_text(name.upper())} {section} "" "fsd {_text(version)}" "fsd"\n'


def _section(title: str, body: str) -> str:
    return f".SH {title}\n{body}\n" if body else ""


def _item(term: str, text: str) -> str:
    return f".TP\n.B {_text(term)}\n{_text(text) or '.br'}"


def _flag(flag: Flag) -> str:
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in flag.names)
    value = f" \\fI{_text(flag.metavar)}\\fR" if flag.metavar else ""
    return f".TP\n{names}{value}\n{_text(flag.help) or '.br'}"


def _usage(item: Positional) -> str:
    shown = f"\\fI{_text(item.metavar)}\\fR" + (" ..." if item.many else "")
    return f"[{shown}]" if item.optional else shown


def _described(item: Positional) -> str:
    return item.help or (f"one of {', '.join(item.choices)}" if item.choices else "")


def _settings(name: str) -> str:
    where = f"[{_text(name)}]"
    return (
        f"Each option is also an environment variable (\\-\\-log\\-level: FSD_LOG_LEVEL) and a line in section\n{where} of"
        " a TOML file (\\-\\-config).  An option wins over the environment, the environment over the file."
    )


def _exit_status() -> str:
    return _section("EXIT STATUS", "\n".join(_item(code, meaning) for code, meaning in _EXITS))


def _see_also(*pages: str) -> str:
    lines = [f".BR {_text(name)} ({number[:-1]})" for name, _, number in (page.partition("(") for page in pages)]
    return _section("SEE ALSO", " ,\n".join(lines))


def _text(text: str) -> str:
    """Escaped: backslashes, hyphens that are typed, and lines that would be requests."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.split("\n"))
