"""FUSE_INIT: what we ask of the kernel, and what came of it.

The flags are put into libfuse's reply as it is written (`_supplement.c`), so that neither libfuse's version
nor its defaults matter.
"""

from __future__ import annotations

from typing import Final

from nfsfuse.fuse.binding import abi
from nfsfuse.fuse.binding.abi import InitFlag
from nfsfuse.protocol.record import record

WRITE_BYTES_MAX: Final = 1 << 20
"""The largest FUSE_WRITE and FUSE_READ: 256 pages, all that libfuse 3.14 has buffers for."""

ON: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.EXPORT_SUPPORT  # file handles outlive the kernel's inodes: see `nfsfuse.engine.numbers`
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.DO_READDIRPLUS
    | InitFlag.MAX_PAGES
    | InitFlag.EXPLICIT_INVAL_DATA  # a changed size or mtime in an answer drops no page: we say which ones
    | InitFlag.HANDLE_KILLPRIV_V2  # sets SB_NOSEC: no GETXATTR of security.capability before every write(2)
    | InitFlag.HAS_EXPIRE_ONLY
    | InitFlag.DIRECT_IO_ALLOW_MMAP
    | InitFlag.DONT_MASK  # the umask comes beside the mode: a default ACL takes its place
    | InitFlag.SETXATTR_EXT  # tells whether setting an ACL is to take S_ISGID away
)
OFF: Final = (
    InitFlag.AUTO_INVAL_DATA  # drops our own valid pages after our own writes
    | InitFlag.WRITEBACK_CACHE  # ignores the server's size and mtime for ever
    | InitFlag.HANDLE_KILLPRIV
    | InitFlag.SPLICE_READ
    | InitFlag.SPLICE_WRITE
    | InitFlag.SPLICE_MOVE
    | InitFlag.PASSTHROUGH
    | InitFlag.OVER_IO_URING
)
LOCKS: Final = InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS
DECIDED: Final = ON | OFF | LOCKS | InitFlag.READDIRPLUS_AUTO | InitFlag.CACHE_SYMLINKS | InitFlag.POSIX_ACL
"""Flags that are ours to decide; the others stay as libfuse has them."""


@record(frozen=True, slots=True)
class InitOptions:
    """What FUSE_INIT settles. Sizes are bytes."""

    locks: bool = True
    """False (``nolock``): the kernel grants locks locally. Anything else needs getlk and setlk."""
    readdirplus_auto: bool = False
    """The kernel asks for names only where it expects no stat: needs `ExtraOperations.readdir`."""
    cache_symlinks: bool = False
    posix_acl: bool = False
    """The kernel obeys ACLs, which it asks for by getxattr and keeps (see `nfsfuse.engine.acls`). It then
    checks permissions in any case, as with ``default_permissions``. Without, ACLs are data to it."""
    max_write: int = WRITE_BYTES_MAX
    max_readahead: int = WRITE_BYTES_MAX
    """Granted at most what the kernel offers, the bdi's 128 KiB: see `set_read_ahead`."""
    max_background: int = 64
    """Read-ahead and write-back requests in flight."""
    congestion_threshold: int = 48

    def __post_init__(self) -> None:
        if not 4096 <= self.max_write <= WRITE_BYTES_MAX:
            raise ValueError(f"max_write must be 4096 to {WRITE_BYTES_MAX}, not {self.max_write}")
        if not 0 <= self.max_readahead < 2**32:
            raise ValueError(f"max_readahead must be 0 to 2**32 - 1, not {self.max_readahead}")
        if not 1 <= self.congestion_threshold <= self.max_background <= 0xFFFF:
            raise ValueError("needed: 1 <= congestion_threshold <= max_background <= 65535")

    def flags(self) -> InitFlag:
        wanted = ON
        if self.locks:
            wanted |= LOCKS
        if self.readdirplus_auto:
            wanted |= InitFlag.READDIRPLUS_AUTO
        if self.cache_symlinks:
            wanted |= InitFlag.CACHE_SYMLINKS
        if self.posix_acl:
            wanted |= InitFlag.POSIX_ACL
        return wanted

    def required(self) -> InitFlag:
        """Without these no mount; above all, never one whose locks the kernel grants by itself."""
        return InitFlag.DO_READDIRPLUS | (LOCKS if self.locks else InitFlag(0))


@record(frozen=True, slots=True)
class Negotiated:
    """The outcome of FUSE_INIT; *granted* is what we answered, which is what the kernel does."""

    protocol: tuple[int, int]  # the kernel's version
    offered: InitFlag
    asked: InitFlag
    granted: InitFlag
    max_write: int
    max_pages: int
    max_readahead_offered: int
    max_readahead: int
    max_background: int
    congestion_threshold: int

    def __str__(self) -> str:
        """One line for the log: what matters to whoever looks into a problem."""
        missing = self.asked & ~self.granted
        return (
            f"FUSE {self.protocol[0]}.{self.protocol[1]}; on: {_names(self.granted & DECIDED)}; "
            f"not offered: {_names(missing) or 'nothing that was asked for'}; max_write={self.max_write} "
            f"max_readahead={self.max_readahead} max_background={self.max_background}"
        )


def _names(flags: InitFlag) -> str:
    return " ".join(flag.name.lower() for flag in InitFlag if flag in flags and flag.name is not None)


def decode(options: InitOptions, offered: bytes, granted: bytes) -> Negotiated:
    """What came of FUSE_INIT, from the kernel's message and our answer to it."""
    major, minor, readahead_offered, flags, flags2 = abi.INIT_IN.unpack(offered)
    _, _, readahead, out_flags, background, congestion, write, _, pages, _, out_flags2 = abi.INIT_OUT.unpack(
        granted
    )
    return Negotiated(
        protocol=(major, minor),
        offered=InitFlag(flags | (flags2 << 32 if flags & InitFlag.INIT_EXT else 0)),
        asked=options.flags(),
        granted=InitFlag(out_flags | out_flags2 << 32),
        max_write=write,
        max_pages=pages,
        max_readahead_offered=readahead_offered,
        max_readahead=readahead,
        max_background=background,
        congestion_threshold=congestion,
    )
