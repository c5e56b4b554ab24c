"""setuptools' build_ext for the extension: asks pkg-config where libfuse is; without a compiler or libfuse it is left out.

Loaded by setuptools through `tool.setuptools.cmdclass` in pyproject.toml, so it imports nothing of fsd. That the extension
is optional (a failed build is a warning) is said there.
"""

import shlex
import subprocess

from setuptools import Extension
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wno-unused-parameter", "-fvisibility=hidden", "-D_FILE_OFFSET_BITS=64"]


def pkg_config(what: str) -> list[str]:
    """Words of `pkg-config WHAT fuse3`. Raises OSError, CalledProcessError."""
    asked = subprocess.run(["pkg-config", what, "fuse3"], capture_output=True, text=True, check=True)
    return shlex.split(asked.stdout)


class BuildCompanion(build_ext):
    """build_ext with libfuse's flags; Debian's paths if there is no pkg-config."""

    def build_extension(self, ext: Extension) -> None:
        try:
            compile_flags, link_flags = pkg_config("--cflags"), pkg_config("--libs")
        except (OSError, subprocess.CalledProcessError):
            compile_flags, link_flags = ["-I/usr/include/fuse3"], ["-lfuse3"]
        ext.extra_compile_args = [*FLAGS, *compile_flags]
        # libfuse must stay a dependency even if no symbol seems to need it: RTLD_NEXT looks for it behind us
        ext.extra_link_args = ["-Wl,--no-as-needed", *link_flags, "-Wl,--as-needed", "-ldl"]
        super().build_extension(ext)  # pyright: ignore[reportUnknownMemberType]
