"""ACLs as extended attributes, by their text as setfacl(1) takes it; and programs of other users."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Final

ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"

_VERSION: Final = 2
_NOBODY: Final = 2**32 - 1  # ACL_UNDEFINED_ID
_HEAD: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")  # tag, permissions, id: <linux/posix_acl_xattr.h>
_TAGS: Final = {"u": (0x01, 0x02), "g": (0x04, 0x08), "m": (0x10, 0x10), "o": (0x20, 0x20)}
"""The tags of an entry without an id, and with one."""


def packed(text: str) -> bytes:
    """As in ``u::rw-,u:1:r--,g::r--,m::r--,o::---``, in this order."""
    result = _HEAD.pack(_VERSION)
    for entry in text.split(","):
        kind, number, letters = entry.split(":")
        permissions = sum(bit for letter, bit in zip("rwx", (4, 2, 1), strict=True) if letter in letters)
        result += _ENTRY.pack(_TAGS[kind][bool(number)], permissions, int(number or _NOBODY))
    return result


def unpacked(value: bytes) -> str:
    """The text of an ACL."""
    entries = []
    kinds = {tag: kind for kind, tags in _TAGS.items() for tag in tags}
    for tag, permissions, number in _ENTRY.iter_unpack(value[_HEAD.size :]):
        letters = "".join(
            letter if permissions & bit else "-" for letter, bit in zip("rwx", (4, 2, 1), strict=True)
        )
        entries.append(f"{kinds[tag]}:{'' if number == _NOBODY else number}:{letters}")
    return ",".join(entries)


def as_user(uid: int, gid: int, act: Callable[[], object], *, groups: tuple[int, ...] = ()) -> int:
    """Do it as a process of somebody else, without privileges: 0, or the errno it fails with. What else fails
    is told on stderr, and AssertionError."""
    child = os.fork()
    if child == 0:
        status = 254
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            act()
            status = 0
        except OSError as exc:
            status = exc.errno or 254
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    result = os.waitstatus_to_exitcode(status)
    assert 0 <= result < 254, f"uid {uid}: {result}"
    return result
