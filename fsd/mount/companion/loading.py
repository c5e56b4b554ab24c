"""Getting the extension in front of pyfuse3.

The dynamic linker binds pyfuse3's calls when pyfuse3 is imported, to the first library in the global scope that has the name.
So the extension is loaded globally, and before; `fsd.mount` does it as its first act.
"""

import importlib
import os
import sys
from types import ModuleType

NAME = "fsd.mount.companion._companion"

_reason: str | None = None


def preload() -> None:
    """Load the extension if pyfuse3 is not there yet. Never raises: `extension` says what came of it."""
    global _reason
    if sys.modules.get(NAME) is not None and _reason is None:
        return
    if "pyfuse3" in sys.modules:
        _reason = "pyfuse3 was imported before it"
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        importlib.import_module(NAME)
        _reason = None
    except ImportError as error:
        _reason = str(error)
    finally:
        sys.setdlopenflags(flags)


def extension() -> ModuleType | str:
    """The loaded extension, or why there is none."""
    return _reason if _reason is not None else sys.modules[NAME]
