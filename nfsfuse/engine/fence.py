"""The end of a session: nothing that was held or cached in it may be believed any more.

The machines are emptied first, before anything of the next session is looked at, so that whatever is asked
from then on goes to the server; then the kernel is told to drop what it has. What was dirty is lost, and said
so: in the log, and by the next fsync or close of the file. What the kernel has dirty of it and writes back
meanwhile is refused: it must not overwrite what others have written since.
"""

from __future__ import annotations

import errno
import logging

import trio

from nfsfuse.engine.cached_directory import CachedDirectory
from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.distrust import distrust_when_known
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.name_drops import LostNames, NameDrops, lost_names
from nfsfuse.engine.pinning import open_on_server
from nfsfuse.machines.data_tokens import Phase, Revocation
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.kernel import Kernel
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.intervals import Interval
from nfsfuse.protocol.record import record
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import InodeHandle

log = logging.getLogger(__name__)


@record(frozen=True, slots=True)
class FencedFile:
    """A file of which the kernel may still have the pages *cached*, and those that were being invalidated."""

    file: CachedFile
    cached: tuple[Interval, ...]
    invalidating: tuple[Revocation, ...]


@record(frozen=True, slots=True)
class Fenced:
    """What the kernel may still have of a session that is over."""

    files: tuple[FencedFile, ...]
    attributes: tuple[Inode, ...]
    names: tuple[LostNames, ...]
    listings: tuple[CachedDirectory, ...]


def forget_everything(inodes: InodeTable, holdings: Holdings) -> Fenced:
    """Believe nothing any more."""
    return _forget(holdings.files(), list(inodes), holdings.directories())


def forget_refused(
    inodes: InodeTable, holdings: Holdings, remote: Remote, handles: frozenset[InodeHandle]
) -> Fenced:
    """The server has refused to let something of *handles* be reclaimed: believe nothing of these any more,
    and give back what it has not refused."""
    files = [file for file in holdings.files() if file.inode.handle in handles]
    for file in files:
        for open_id in file.open_ids:
            remote.release(open_id, ())
    known = [inode for inode in inodes if inode.handle in handles]
    for inode in known:
        log.error("%s: what was held here could not be reclaimed", inode)
    directories = [each for each in holdings.directories() if each.inode.handle in handles]
    fenced = _forget(files, known, directories)
    remote.return_tokens(
        tuple(
            Token(handle, resource, 0, RANGE_END, TokenMode.NONE)
            for handle in sorted(handles)
            for resource in Resource
        )
    )
    return fenced


def _forget(
    files: list[CachedFile], inodes: list[Inode], directories: list[CachedDirectory]
) -> Fenced:
    left: list[FencedFile] = []
    for file in files:
        if file.pages.dirty:
            lost = file.pages.dirty_bytes
            log.error("%s: %d bytes written here are lost with the session", file.inode, lost)
            file.errors.lost(FsError(errno.EIO, "the session with the server was lost"))
        cached = tuple(file.tokens.in_kernel.intervals())
        invalidating = tuple(r for r in file.tokens.revocations if r.phase is Phase.INVALIDATING)
        file.forget_everything()
        if cached or invalidating:
            file.purging += 1
            left.append(FencedFile(file, cached, invalidating))
    trusted = tuple(inode for inode in inodes if inode.attributes.kernel_believes)
    for inode in inodes:
        inode.attributes.lost()
        inode.kernel_size.behind = True
    names = lost_names(directories)
    for directory in directories:
        directory.cache.lost()
    listings = tuple(each for each in directories if each.kernel_listing.changed_elsewhere())
    return Fenced(tuple(left), trusted, names, listings)


async def purge(fenced: Fenced, kernel: Kernel, name_drops: NameDrops) -> None:
    """Have the kernel forget it too. Reads and writes are not kept waiting meanwhile: they may have the very
    page locked, and ask the server anew anyway."""
    await name_drops.purge(fenced.names)
    async with trio.open_nursery() as nursery:  # a file whose pages are slow to write must not keep the others
        for fenced_file in fenced.files:
            nursery.start_soon(_purge_pages, fenced_file, kernel)
    for inode in fenced.attributes:
        await distrust_when_known(kernel, inode)
    for directory in fenced.listings:
        await kernel.invalidate_pages(directory.inode.node_id, 0, RANGE_END)


async def _purge_pages(fenced: FencedFile, kernel: Kernel) -> None:
    file = fenced.file
    for start, end in fenced.cached:
        await kernel.invalidate_pages(file.inode.node_id, start, end)
    for revocation in fenced.invalidating:
        while revocation.phase is Phase.INVALIDATING and revocation in file.tokens.revocations:
            await file.changed()
    file.purging -= 1


async def open_again(holdings: Holdings, remote: Remote) -> None:
    """Files that are open here are opened in the new session, which keeps them when they are unlinked."""
    for file in holdings.files():
        await open_on_server(file, remote)
