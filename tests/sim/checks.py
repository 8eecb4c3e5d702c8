"""The invariants of DESIGN section 3, across the clients' engines and the kernels in front of them."""

from __future__ import annotations

from itertools import combinations

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.machines.data_tokens import Phase
from nfsfuse.protocol.tokens import COMPATIBLE, TokenMode
from nfsfuse.protocol.types import PAGE_SIZE, InodeHandle
from tests.helpers.kernel_model import KernelModel
from tests.helpers.kernel_pages import KernelInode


def check_client(fs: Filesystem, kernel: KernelModel) -> None:
    """What a client asserts of itself, and K1, K2 and K3 of its kernel."""
    opening = any(inode.opens_under_way for inode in kernel.inodes.values())
    if opening:
        # K2 is about to be made true by an open that is under way.
        for file in fs.holdings.files():
            file.pages.check()
    else:
        fs.check()
    for file in fs.holdings.files():
        inode = kernel.inodes.get(file.inode.node_id)
        if inode is not None and not file.purging:  # then its pages are of a session that is over
            _check_kernel(file, inode)


def _check_kernel(file: CachedFile, inode: KernelInode) -> None:
    for index, folio in inode.folios.items():
        start = index * PAGE_SIZE
        end = start + PAGE_SIZE
        if folio.uptodate and not folio.writes_pending:
            assert file.tokens.holds(start, end, TokenMode.SHARED), (
                f"K1: page {index} is up to date in the kernel and not held"
            )
            assert file.tokens.in_kernel.overlaps(start, end) or any(
                revocation.phase is Phase.INVALIDATING and revocation.start < end and start < revocation.end
                for revocation in file.tokens.revocations
            ), f"K1: page {index} is up to date in the kernel, and the daemon does not know: {inode}"
        if (folio.dirty or folio.under_write_back) and not folio.writes_pending:
            assert file.tokens.holds(start, end, TokenMode.EXCLUSIVE), (
                f"K3: page {index} is dirty in the kernel and not held exclusively"
            )


def check_clients_together(clients: list[tuple[str, Filesystem]]) -> None:
    """K0, of what the clients believe to hold."""
    held: dict[InodeHandle, list[tuple[str, CachedFile]]] = {}
    for name, fs in clients:
        for file in fs.holdings.files():
            held.setdefault(file.inode.handle, []).append((name, file))
    for holders in held.values():
        for (one, first), (other, second) in combinations(holders, 2):
            for start, end, mode in first.tokens.held:
                for low, high, beside in second.tokens.held.overlapping(start, end):
                    assert COMPATIBLE[mode, beside], (
                        f"K0: [{low}, {high}) is held {mode.name} by {one} and {beside.name} by {other}"
                    )
            modes = first.attributes.mode, second.attributes.mode
            assert COMPATIBLE[modes], f"K0: attributes are held {modes} by {one} and {other}"


def check_nothing_is_believed(name: str, kernel: KernelModel) -> None:
    """Promise 8, of a client whose session the server has ended: whatever its kernel shows without asking may
    be out of date by now. (What waits in the daemon is not shown: it asks `Remote.leased`.)"""
    for inode in kernel.inodes.values():
        assert not inode.attributes_valid, f"P8: {name} believes attributes past its lease: {inode}"
        for folio in inode.folios.values():
            assert not folio.uptodate or folio.writes_pending, (
                f"P8: {name} has page {folio.index} up to date in its kernel past its lease: {inode}"
            )
