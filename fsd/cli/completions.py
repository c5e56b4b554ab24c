"""Completion scripts for bash, zsh and fish, written from the command line's own tree. Pure.

They hold the words themselves: completing starts no Python.
"""

from collections.abc import Sequence

from fsd.cli.tree import Command, Flag

PATHS = ("FILE", "DIR", "MOUNTPOINT", "PATH")  # metavars whose values are paths


def bash(commands: Sequence[Command]) -> str:
    cases = "\n".join(_bash_case(command) for command in commands)
    names = " ".join(command.name for command in commands)
    return f"""# bash completion of fsd
_fsd() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} words=
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{names} --help --version" -- "$word"))
        return
    fi
    case ${{COMP_WORDS[1]}} in
{cases}
    *) return ;;
    esac
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    fi
}}
complete -o bashdefault -o default -F _fsd fsd
"""


def _bash_case(command: Command) -> str:
    valued = [flag for flag in command.flags if flag.metavar]
    lines = [f"    {command.name})", "        case $before in"]
    free = "|".join(name for flag in valued if not flag.choices for name in flag.names)
    lines += [f'        {"|".join(flag.names)}) words="{" ".join(flag.choices)}" ;;' for flag in valued if flag.choices]
    if free:
        lines.append(f"        {free}) return ;;")
    flags = " ".join(name for flag in command.flags for name in flag.names)
    choices = " ".join(choice for item in command.positionals for choice in item.choices)
    lines.append(f'        *) case $word in -*) words="{flags}" ;; *) words="{choices}" ;; esac ;;')
    return "\n".join([*lines, "        esac", "        ;;"])


def zsh(commands: Sequence[Command]) -> str:
    described = "\n".join(f"        {_quoted(f'{c.name}:{_zsh(c.summary)}')}" for c in commands)
    cases = "\n".join(_zsh_case(command) for command in commands)
    return f"""#compdef fsd
_fsd() {{
    local -a commands
    commands=(
{described}
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
{cases}
    esac
}}
_fsd "$@"
"""


def _zsh_case(command: Command) -> str:
    specifications = [_quoted(_zsh_flag(flag, name)) for flag in command.flags for name in flag.names]
    for item in command.positionals:
        action = f"({' '.join(item.choices)})" if item.choices else _zsh_action(item.metavar)
        count = "*" if item.many else ""
        specifications.append(
            _quoted(f"{count}{':' if item.optional and not item.many else ''}:{_zsh(item.metavar)}:{action}")
        )
    lines = " \\\n".join(f"            {specification}" for specification in specifications)
    return f"    {command.name})\n        _arguments \\\n{lines}\n        ;;"


def _zsh_flag(flag: Flag, name: str) -> str:
    value = ""
    if flag.metavar:
        action = f"({' '.join(flag.choices)})" if flag.choices else _zsh_action(flag.metavar)
        value = f":{_zsh(flag.metavar)}:{action}"
    return f"{name}[{_zsh(flag.help)}]{value}"


def _zsh_action(metavar: str) -> str:
    return "_files" if metavar in PATHS else " "


def _zsh(text: str) -> str:
    for special in ("\\", "[", "]", ":"):
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())


def fish(commands: Sequence[Command]) -> str:
    lines = ["# fish completion of fsd", "complete -c fsd -f"]
    for command in commands:
        summary = _quoted(command.summary)
        lines.append(f"complete -c fsd -n __fish_use_subcommand -a {command.name} -d {summary}")
        seen = f"-n '__fish_seen_subcommand_from {command.name}'"
        for choice in (choice for item in command.positionals for choice in item.choices):
            lines.append(f"complete -c fsd {seen} -a {choice}")
        if any(item.metavar in PATHS for item in command.positionals):
            lines.append(f"complete -c fsd {seen} -F")
        lines += [_fish_flag(seen, flag) for flag in command.flags]
    return "\n".join(lines) + "\n"


def _fish_flag(seen: str, flag: Flag) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
    value = ""
    if flag.choices:
        value = f" -x -a {_quoted(' '.join(flag.choices))}"
    elif flag.metavar:
        value = " -r -F" if flag.metavar in PATHS else " -x"
    return f"complete -c fsd {seen} {names}{value} -d {_quoted(' '.join(flag.help.split()))}"


def _quoted(text: str) -> str:
    """In single quotes; the three shells agree on leaving them, escaping one and going on."""
    return "'" + text.replace("'", "'\\''") + "'"
