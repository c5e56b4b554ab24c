"""What `fsd install` puts where, and how it knows later what is its own.

A manifest remembers the digest of every file that was put in place. A file that is there but not in it, or that somebody
has changed, is foreign: never overwritten, never removed. Settings are put in place once and then belong to their owner.
"""

import contextlib
import glob
import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import fsd
from fsd.cli import completions, manpages
from fsd.cli.processes import write_json
from fsd.cli.tree import commands
from fsd.core.errors import Busy, ConfigurationError, MissingOnHost

MANIFEST = "/usr/local/share/fsd/manifest.json"
FORMAT = 1
UNITS = "/usr/local/lib/systemd/system"
UNIT_PROGRAM = "/usr/bin/fsd"  # in the unit files as they are shipped
HELPERS = ("mount.fsd", "umount.fuse.fsd")  # what mount(8) and umount(8) look for
_HIDDEN_FROM_SERVICES = ("/home", "/root", "/tmp", "/var/tmp", "/run/user")  # ProtectHome=, PrivateTmp=
_UNIT_GROUPS = {
    "systemd": ("fsd.target", "fsd-servers.target", "fsd-metadata.service", "fsd-chunkserver@.service", "fsd-mount@.service"),
    "plugin": ("fsd-plugin.service", "fsd-plugin.socket"),
}  # fmt: skip
_ELSEWHERE = {  # shipped beside the units; where they belong
    "fsd.sysusers.conf": "/usr/local/lib/sysusers.d/fsd.conf",
    "fsd.tmpfiles.conf": "/usr/local/lib/tmpfiles.d/fsd.conf",
}
_SETTINGS = {"fsd.toml": "/etc/fsd/fsd.toml"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A file, or a symbolic link if `link` is set, at an absolute path below the prefix."""

    path: str
    content: bytes = b""
    link: str = ""
    settings: bool = False

    @property
    def digest(self) -> str:
        return f"link {self.link}" if self.link else hashlib.sha256(self.content).hexdigest()


@dataclass(slots=True)
class Manifest:
    files: dict[str, str] = field(default_factory=dict[str, str])  # path -> digest
    directories: list[str] = field(default_factory=list[str])  # that were made for them


# --- what there is ----------------------------------------------------------------------------------------------------


def pieces(groups: Iterable[str], program: str, prefix: str) -> list[Piece]:
    """Everything for `groups` ("systemd", "helper", "plugin"), with what every installation gets. Raises MissingOnHost."""
    found = [*_shell(program)]
    for group in groups:
        if group == "helper":
            found += [Piece(f"{_sbin(prefix)}/{name}", link=program) for name in HELPERS]
            found.append(Piece("/usr/local/share/man/man8/mount.fsd.8", manpages.helper(fsd.__version__).encode()))
        else:
            found += _units(group, program)
    return found


def _shell(program: str) -> list[Piece]:
    """The command itself, its completions and man pages."""
    offered, version = commands(), fsd.__version__
    share = "/usr/local/share"
    found = [
        Piece("/usr/local/bin/fsd", link=program),
        Piece(f"{share}/bash-completion/completions/fsd", completions.bash(offered).encode()),
        Piece(f"{share}/zsh/site-functions/_fsd", completions.zsh(offered).encode()),
        Piece(f"{share}/fish/vendor_completions.d/fsd.fish", completions.fish(offered).encode()),
        Piece(f"{share}/man/man1/fsd.1", manpages.overview(offered, version).encode()),
    ]
    found += [Piece(f"{share}/man/man1/fsd-{c.name}.1", manpages.page(c, version).encode()) for c in offered]
    return [piece for piece in found if piece.path != program]


def _units(group: str, program: str) -> list[Piece]:
    source = shipped_units()
    names = [name for pattern in _UNIT_GROUPS[group] for name in sorted(glob.glob(pattern, root_dir=source))]
    if not names:
        raise MissingOnHost(f"this fsd came without its files for --{group}")
    found = [
        Piece(f"{UNITS}/{name}", _read(source, name).replace(UNIT_PROGRAM.encode(), program.encode())) for name in names
    ]
    found += [Piece(path, _read(source, name)) for name, path in _ELSEWHERE.items()]
    found += [Piece(path, _read(source, name), settings=True) for name, path in _SETTINGS.items()]
    return found


def shipped_units() -> str:
    """The directory of the unit files: in the source tree, or where pip put them."""
    tree = os.path.dirname(os.path.dirname(os.path.abspath(fsd.__file__)))
    places = [os.path.join(tree, "systemd"), *(os.path.join(p, "share/fsd/systemd") for p in _data_directories())]
    for place in places:
        if os.path.isfile(os.path.join(place, "fsd.target")):
            return place
    raise MissingOnHost(f"the unit files are missing: looked in {', '.join(places)}")


def _data_directories() -> list[str]:
    return list(dict.fromkeys((sys.prefix, sysconfig.get_path("data"))))


def _read(directory: str, name: str) -> bytes:
    with open(os.path.join(directory, name), "rb") as file:
        return file.read()


def _sbin(prefix: str) -> str:
    """/sbin where that is a directory of its own, else /usr/sbin, which it is a link to."""
    own = os.path.join(prefix, "sbin")
    return "/sbin" if os.path.isdir(own) and not os.path.islink(own) else "/usr/sbin"


def own_program() -> str:
    """The `fsd` that runs now. Raises ConfigurationError."""
    for candidate in (os.path.join(os.path.dirname(sys.executable), "fsd"), os.path.abspath(sys.argv[0])):
        if os.path.basename(candidate) == "fsd" and os.access(candidate, os.X_OK):
            return candidate
    raise ConfigurationError("cannot tell where the program fsd is; say it by --program PATH")


def check_services_see(program: str) -> None:
    """Raises ConfigurationError if the hardened services, or their user, could not read this installation."""
    for path in dict.fromkeys(map(os.path.realpath, (program, sys.base_prefix, sys.prefix, fsd.__file__))):
        if path.startswith(tuple(f"{hidden}/" for hidden in _HIDDEN_FROM_SERVICES)):
            raise ConfigurationError(
                f"{path} is out of the services' sight (ProtectHome, PrivateTmp): put fsd under /opt"
            )
        closed = [str(parent) for parent in Path(path).parents if not parent.stat().st_mode & 0o001]
        if closed:
            raise ConfigurationError(f"{closed[-1]} is closed to other users: the services' user could not read fsd")


# --- putting it there, taking it away ---------------------------------------------------------------------------------


def install(wanted: list[Piece], prefix: str, *, dry_run: bool) -> list[str]:
    """One line for each file with what was done. Raises Busy, with nothing done, if a foreign file is in the way."""
    manifest = read_manifest(prefix)
    plans = [(piece, _plan(piece, prefix, manifest)) for piece in wanted]
    foreign = [f"{_at(prefix, piece.path)} is there and is not what fsd installed" for piece, plan in plans if not plan]
    if foreign:
        raise Busy("\n".join([*foreign, "nothing was installed; move these files away first"]))
    if not dry_run:
        for piece, plan in plans:
            if plan in ("install", "update"):
                _put(piece, prefix, manifest)
            if plan != "keep":
                manifest.files[piece.path] = piece.digest
        _write_manifest(prefix, manifest)
    return [f"{plan:<9} {_at(prefix, piece.path)}" for piece, plan in plans]


def _plan(piece: Piece, prefix: str, manifest: Manifest) -> str:
    """ "install", "update", "unchanged", "keep" (somebody's settings), or empty: foreign."""
    there = _digest(_at(prefix, piece.path))
    if there is None:
        return "install"
    if there == piece.digest:
        return "unchanged"
    if there == manifest.files.get(piece.path):
        return "update"
    return "keep" if piece.settings else ""


def _put(piece: Piece, prefix: str, manifest: Manifest) -> None:
    path = _at(prefix, piece.path)
    _make_directories(os.path.dirname(piece.path), prefix, manifest)
    new = f"{path}.fsd-new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # of an installation that was interrupted
    if piece.link:
        os.symlink(piece.link, new)
    else:
        with open(new, "xb") as file:
            file.write(piece.content)
            os.fchmod(file.fileno(), 0o644)
    os.rename(new, path)


def _make_directories(directory: str, prefix: str, manifest: Manifest) -> None:
    path = _at(prefix, directory)
    if os.path.isdir(path):
        return
    if directory == "/":
        os.makedirs(path)
        return
    _make_directories(os.path.dirname(directory), prefix, manifest)
    os.mkdir(path)
    os.chmod(path, 0o755)  # whatever the umask
    manifest.directories.append(directory)


def uninstall(prefix: str, *, dry_run: bool) -> list[str]:
    """One line for each file with what was done. Raises ConfigurationError if nothing is installed."""
    manifest = read_manifest(prefix)
    if not manifest.files:
        raise ConfigurationError(f"nothing of fsd is installed: there is no {_at(prefix, MANIFEST)}")
    lines: list[str] = []
    for path, digest in sorted(manifest.files.items()):
        there = _digest(_at(prefix, path))
        if there is None:
            continue
        if there != digest:
            lines.append(f"keep      {_at(prefix, path)} (it was changed)")
            continue
        lines.append(f"remove    {_at(prefix, path)}")
        if not dry_run:
            os.unlink(_at(prefix, path))
    if not dry_run:
        os.unlink(_at(prefix, MANIFEST))
        for directory in sorted(manifest.directories, reverse=True):
            with contextlib.suppress(OSError):  # others have put something there
                os.rmdir(_at(prefix, directory))
    return lines


def read_manifest(prefix: str) -> Manifest:
    """What was installed; empty if nothing. Raises ConfigurationError."""
    path = _at(prefix, MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            document = cast("dict[str, Any]", json.load(file))
        if document["format"] != FORMAT:
            raise ConfigurationError(f"{path} was written by another version of fsd (format {document['format']})")
        return Manifest(dict(document["files"]), list(document["directories"]))
    except FileNotFoundError:
        return Manifest()
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(f"{path} is damaged; remove it, and then the files that it names by hand") from None


def _write_manifest(prefix: str, manifest: Manifest) -> None:
    _make_directories(os.path.dirname(MANIFEST), prefix, manifest)
    document = {
        "format": FORMAT,
        "version": fsd.__version__,
        "files": dict(sorted(manifest.files.items())),
        "directories": sorted(manifest.directories),
    }
    write_json(_at(prefix, MANIFEST), document)
    os.chmod(_at(prefix, MANIFEST), 0o644)


def _digest(path: str) -> str | None:
    try:
        if os.path.islink(path):
            return f"link {os.readlink(path)}"
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        return "directory"


def _at(prefix: str, path: str) -> str:
    return os.path.join(prefix, path.lstrip("/"))
