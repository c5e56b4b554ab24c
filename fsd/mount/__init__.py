"""The FUSE edge: the only package that imports pyfuse3, and before that its companion (which must be loaded first)."""

from fsd.mount.companion import loading

loading.preload()
