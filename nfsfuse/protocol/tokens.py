"""Tokens: what a client may cache, as tables.

A token covers a half-open range of one resource of one inode. All three resources use the same machinery;
only the unit of the range differs:

========  ================================  ==========================================
resource  unit of the range                 whole
========  ================================  ==========================================
DATA      bytes of the file, page-aligned   ``[0, RANGE_END)``
ATTR      one point                         ``[0, RANGE_END)``
DIR       hash of a name (`name_point`)     ``[0, RANGE_END)``: all names, the listing
========  ================================  ==========================================

With names as points, "tell the other holders which name changed" is the recall of one point of DIR: they
keep the rest, exactly as the holder of a file keeps the pages nobody asked for.
"""

from __future__ import annotations

import zlib
from enum import IntEnum
from typing import Final

from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import InodeHandle

RANGE_END: Final = 2**63
"""One past the last offset; the end of a range that covers everything."""


class TokenMode(IntEnum):
    """What its holder may do, weakest first: a mode includes all below it."""

    NONE = 0
    SHARED = 1
    EXCLUSIVE = 2


class Resource(IntEnum):
    """What of an inode a token covers; the order is the order in which several are acquired."""

    DIR = 0
    DATA = 1
    ATTR = 2


COMPATIBLE: Final = {
    # may one client hold the first while another holds the second?  (invariant K0)
    (TokenMode.NONE, TokenMode.NONE): True,
    (TokenMode.NONE, TokenMode.SHARED): True,
    (TokenMode.NONE, TokenMode.EXCLUSIVE): True,
    (TokenMode.SHARED, TokenMode.NONE): True,
    (TokenMode.SHARED, TokenMode.SHARED): True,
    (TokenMode.SHARED, TokenMode.EXCLUSIVE): False,
    (TokenMode.EXCLUSIVE, TokenMode.NONE): True,
    (TokenMode.EXCLUSIVE, TokenMode.SHARED): False,
    (TokenMode.EXCLUSIVE, TokenMode.EXCLUSIVE): False,
}

STRONGEST_BESIDE: Final = {
    # what another client may keep when one is granted this: the answer to "recall down to which mode?"
    TokenMode.NONE: TokenMode.EXCLUSIVE,
    TokenMode.SHARED: TokenMode.SHARED,
    TokenMode.EXCLUSIVE: TokenMode.NONE,
}


@record(frozen=True, slots=True)
class Token:
    """A token on the wire: granted, recalled down to *mode*, or given back down to *mode*."""

    handle: InodeHandle
    resource: Resource
    start: int
    end: int
    mode: TokenMode


def name_point(name: bytes) -> int:
    """The point of DIR that stands for *name*: 32 bits. Two names on one point are recalled together,
    which costs a lookup and never coherence; hence a checksum is enough and both sides agree on it."""
    return zlib.crc32(name)
