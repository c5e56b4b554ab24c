"""Exit codes of `fsd`; told in docs/cli.md. Scripts rely on them."""

from fsd.core import errors

OK = 0
FAILED = 1  # it was refused or could not be done; fsck: faults were found
USAGE = 2  # options, arguments, configuration
UNREACHABLE = 3  # a server cannot be reached, or did not answer in time
BUSY = 4  # in use: mount point, data directory, volume
FOREIGN = 5  # a data directory or server of another cluster, or of an unknown format
MISSING = 6  # this machine lacks something: /dev/fuse, a permission, a program
INTERNAL = 70  # a bug of fsd
INTERRUPTED = 130

_CODES: tuple[tuple[type[errors.FsError], int], ...] = (
    (errors.ConfigurationError, USAGE),
    (errors.Unreachable, UNREACHABLE),
    (errors.DeadlineExceeded, UNREACHABLE),
    (errors.Busy, BUSY),
    (errors.DirectoryInUse, BUSY),
    (errors.ForeignFileSystem, FOREIGN),
    (errors.FormatError, FOREIGN),
    (errors.VersionMismatch, FOREIGN),
    (errors.MissingOnHost, MISSING),
    (errors.InternalError, INTERNAL),
)


def code_of(error: errors.FsError) -> int:
    """The exit code for an error that ends a command."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return FAILED
