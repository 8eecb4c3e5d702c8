"""The kernel's reply structures, packed from pyfuse3's values."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Final

from nfsfuse.fuse.binding import abi
from nfsfuse.fuse.binding.libraries import pyfuse3
from nfsfuse.protocol.record import record


@record(frozen=True, slots=True)
class DirectoryEntry:
    """``fuse_dirent``: *cookie* is where the listing goes on after this name, *mode* has the type bits."""

    name: bytes
    ino: int
    mode: int
    cookie: int


@record(frozen=True, slots=True)
class StatxReply:
    """*attributes* as for getattr, with the birth time if *btime_ns* is not None."""

    attributes: pyfuse3.EntryAttributes
    btime_ns: int | None


def pack_attributes(entry: pyfuse3.EntryAttributes) -> bytes:
    """struct fuse_attr."""
    seconds, nanoseconds = zip(
        *(divmod(ns, 1_000_000_000) for ns in (entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns)),
        strict=True,
    )
    return abi.ATTR.pack(
        entry.st_ino,
        entry.st_size,
        entry.st_blocks,
        *seconds,
        *nanoseconds,
        entry.st_mode,
        entry.st_nlink,
        entry.st_uid,
        entry.st_gid,
        entry.st_rdev,
        entry.st_blksize,
        0,
    )


def pack_entry(entry: pyfuse3.EntryAttributes) -> bytes:
    """struct fuse_entry_out."""
    entry_valid, entry_valid_ns = abi.split_seconds(entry.entry_timeout)
    attr_valid, attr_valid_ns = abi.split_seconds(entry.attr_timeout)
    head = abi.ENTRY_OUT.pack(
        entry.st_ino, entry.generation, entry_valid, attr_valid, entry_valid_ns, attr_valid_ns
    )
    return head + pack_attributes(entry)


def pack_getattr(entry: pyfuse3.EntryAttributes) -> bytes:
    """struct fuse_attr_out."""
    return abi.ATTR_OUT.pack(*abi.split_seconds(entry.attr_timeout), 0) + pack_attributes(entry)


def pack_xattr(value: bytes, size: int) -> bytes | int:
    """The answer to a GETXATTR or LISTXATTR for at most *size* bytes: how many there are, if that is 0."""
    if size == 0:
        return abi.GETXATTR_OUT.pack(len(value), 0)
    return value if len(value) <= size else errno.ERANGE


def pack_open(info: pyfuse3.FileInfo) -> bytes:
    """struct fuse_open_out."""
    flags = abi.FOPEN_DIRECT_IO if info.direct_io else 0
    flags |= abi.FOPEN_KEEP_CACHE if info.keep_cache else 0
    flags |= abi.FOPEN_NONSEEKABLE if info.nonseekable else 0
    return abi.OPEN_OUT.pack(info.fh, flags, 0)


@record(frozen=True, slots=True)
class OpenDirectory:
    """``fuse_open_out`` of a directory. *cache*: its listing may be put into the kernel's page cache, *keep*:
    what is there already is good."""

    fh: int
    cache: bool
    keep: bool


def pack_open_directory(opened: OpenDirectory) -> bytes:
    """struct fuse_open_out."""
    flags = abi.FOPEN_CACHE_DIR if opened.cache else 0
    flags |= abi.FOPEN_KEEP_CACHE if opened.keep else 0
    return abi.OPEN_OUT.pack(opened.fh, flags, 0)


_STATX_BASIC_STATS: Final = 0x7FF
_STATX_BTIME: Final = 0x800


def pack_statx(reply: StatxReply) -> bytes:
    """struct fuse_statx_out."""
    entry = reply.attributes
    mask = _STATX_BASIC_STATS | (_STATX_BTIME if reply.btime_ns is not None else 0)
    times: list[int] = []
    for ns in (entry.st_atime_ns, reply.btime_ns or 0, entry.st_ctime_ns, entry.st_mtime_ns):
        times += [*divmod(ns, 1_000_000_000), 0]
    valid, valid_ns = abi.split_seconds(entry.attr_timeout)
    return abi.STATX_OUT.pack(valid, valid_ns, 0) + abi.STATX.pack(
        mask,
        entry.st_blksize,
        0,
        entry.st_nlink,
        entry.st_uid,
        entry.st_gid,
        entry.st_mode,
        0,
        entry.st_ino,
        entry.st_size,
        entry.st_blocks,
        0,
        *times,
        os.major(entry.st_rdev),
        os.minor(entry.st_rdev),
        0,
        0,
    )


def pack_directory(entries: Iterable[DirectoryEntry], size: int) -> bytes:
    """As many ``struct fuse_dirent`` as fit into *size* bytes."""
    packed = bytearray()
    for entry in entries:
        record = abi.DIRENT.pack(entry.ino, entry.cookie, len(entry.name), entry.mode >> 12) + entry.name
        record += bytes(-len(record) % 8)
        if len(packed) + len(record) > size:
            break
        packed += record
    return bytes(packed)
