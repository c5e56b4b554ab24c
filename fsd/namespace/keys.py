"""Where each record lies. The one table of keys; numbers are big-endian, so that a scan is in order.

family   key                                             value
inode    layer u32, ino u64                              Inode
dentry   layer u32, parent u64, cookie u64, name         Dentry
xattr    layer u32, ino u64, name                        the value's bytes
volume   layer u32                                       Volume
orphan   layer u32, ino u64                              nothing
session  see metadata.store
cluster  see metadata.store
collect  data id u64, start u64                          DeadData
log      sequence u64                                    operations, until the standbys have them
"""

import hashlib
import struct

from fsd.core.ids import DataId, Ino, LayerId

FAMILIES = ("inode", "dentry", "xattr", "volume", "orphan", "session", "cluster", "collect", "log")

_LAYER_INO = struct.Struct(">IQ")
_DENTRY = struct.Struct(">IQQ")
_LAYER = struct.Struct(">I")
_PAIR = struct.Struct(">QQ")

FIRST_COOKIE = 3  # 0 is the start of a directory, 1 and 2 are "." and ".."


def cookie_of(name: bytes) -> int:
    """hash63 of a name: its place in its directory's order, FIRST_COOKIE <= cookie < 2**63."""
    value = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
    return max(FIRST_COOKIE, value)


def inode_key(layer: LayerId, ino: Ino) -> bytes:
    return _LAYER_INO.pack(layer, ino)


def dentry_key(layer: LayerId, parent: Ino, name: bytes) -> bytes:
    return _DENTRY.pack(layer, parent, cookie_of(name)) + name


def directory_range(layer: LayerId, parent: Ino, cookie: int = 0) -> tuple[bytes, bytes]:
    """[start, end) of the dentries of a directory whose cookie is at least `cookie`."""
    return _DENTRY.pack(layer, parent, cookie), _LAYER_INO.pack(layer, parent + 1)


def split_dentry_key(key: bytes) -> tuple[LayerId, Ino, int, bytes]:
    """(layer, parent, cookie, name)."""
    layer, parent, cookie = _DENTRY.unpack_from(key)
    return LayerId(layer), Ino(parent), cookie, key[_DENTRY.size :]


def xattr_key(layer: LayerId, ino: Ino, name: bytes) -> bytes:
    return _LAYER_INO.pack(layer, ino) + name


def xattr_range(layer: LayerId, ino: Ino) -> tuple[bytes, bytes]:
    return _LAYER_INO.pack(layer, ino), _LAYER_INO.pack(layer, ino + 1)


def split_layer_ino(key: bytes) -> tuple[LayerId, Ino, bytes]:
    """(layer, ino, what follows)."""
    layer, ino = _LAYER_INO.unpack_from(key)
    return LayerId(layer), Ino(ino), key[_LAYER_INO.size :]


def layer_range(layer: LayerId) -> tuple[bytes, bytes]:
    """[start, end) of everything of a layer in any family whose key begins with it."""
    return _LAYER.pack(layer), _LAYER.pack(layer + 1)


def volume_key(layer: LayerId) -> bytes:
    return _LAYER.pack(layer)


def orphan_key(layer: LayerId, ino: Ino) -> bytes:
    return _LAYER_INO.pack(layer, ino)


def collect_key(data: DataId, start: int) -> bytes:
    return _PAIR.pack(data, start)
