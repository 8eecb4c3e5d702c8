"""Taking back, from a server that was started anew, what this client holds.

The server has forgotten all tokens, open files and locks; their holders have not. Until every client that it
knows of has come back, it grants nothing (grace), so what is held here is still nobody else's.

Two things are given up rather than reclaimed. Attributes of regular files that are held SHARED: another
client's write-back changes a file's times without waiting for others to be told, and the server may have died
in between (sizes never change so). And, if the server's machine was rebooted, everything that is cached clean:
what had not been synced may be gone from its disk.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from itertools import islice

from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.locks import Locks
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.limits import CLAIMS_MAX
from nfsfuse.protocol.locks import OwnedLock
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import OpenFile

log = logging.getLogger(__name__)

Claim = Token | OpenFile | OwnedLock


def give_up_times(inodes: InodeTable, holdings: Holdings) -> None:
    """Believe no attributes that another client's write-back may have changed unnoticed."""
    for inode in inodes:
        attributes = inode.attributes
        known = attributes.known
        if attributes.mode is TokenMode.SHARED and known is not None and stat.S_ISREG(known.mode):
            holdings.distrust(inode)
            attributes.lost()
            inode.kernel_size.behind = True


def claims(inodes: InodeTable, holdings: Holdings, locks: Locks) -> Iterator[m.Reclaim]:
    """All that is held, in messages of bounded size."""
    everything = _everything(inodes, holdings, locks)
    while some := list(islice(everything, CLAIMS_MAX)):
        yield m.Reclaim(
            tuple(claim for claim in some if isinstance(claim, Token)),
            tuple(claim for claim in some if isinstance(claim, OpenFile)),
            tuple(claim for claim in some if isinstance(claim, OwnedLock)),
        )


def _everything(inodes: InodeTable, holdings: Holdings, locks: Locks) -> Iterator[Claim]:
    known: dict[Inode, None] = dict.fromkeys(inodes)
    # A file that the kernel has forgotten may still be written back.
    known.update(dict.fromkeys(file.inode for file in holdings.files()))
    for inode in known:
        if inode.attributes.mode is not TokenMode.NONE:
            yield Token(inode.handle, Resource.ATTR, 0, RANGE_END, inode.attributes.mode)
    for file in holdings.files():
        for start, end, mode in file.tokens.everything():
            yield Token(file.inode.handle, Resource.DATA, start, end, mode)
        for open_id in file.open_ids:
            yield OpenFile(open_id, file.inode.handle)
    for directory in holdings.directories():
        for start, end in directory.cache.held.intervals():
            yield Token(directory.inode.handle, Resource.DIR, start, end, TokenMode.SHARED)
    yield from locks.owned()
