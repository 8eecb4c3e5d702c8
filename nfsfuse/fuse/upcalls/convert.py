"""Between pyfuse3's types and ours."""

from __future__ import annotations

import os

from nfsfuse.fuse.binding import abi
from nfsfuse.fuse.binding.libraries import pyfuse3
from nfsfuse.machines.inodes import Inode
from nfsfuse.protocol.types import (
    AttributeChanges,
    Attributes,
    Credentials,
    FilesystemStatistics,
    Sync,
    nearest_time,
)

BLOCK_SIZE = 128 * 1024
"""Bytes: st_blksize, what cp(1) and stdio use as their buffer. Large, as every write is an upcall."""


def entry(
    inode: Inode, attributes: Attributes, entry_seconds: float, attr_seconds: float
) -> pyfuse3.EntryAttributes:
    """What the kernel is told of an inode, and for how long it may believe name and attributes."""
    result = pyfuse3.EntryAttributes()
    result.st_ino = pyfuse3.InodeT(inode.node_id)
    result.generation = inode.generation
    result.entry_timeout = entry_seconds
    result.attr_timeout = attr_seconds
    result.st_mode = pyfuse3.ModeT(attributes.mode)
    result.st_nlink = attributes.nlink
    result.st_uid = attributes.uid
    result.st_gid = attributes.gid
    result.st_rdev = attributes.rdev
    result.st_size = attributes.size
    result.st_blksize = BLOCK_SIZE
    result.st_blocks = attributes.blocks
    result.st_atime_ns = attributes.atime_ns
    result.st_mtime_ns = attributes.mtime_ns
    result.st_ctime_ns = attributes.ctime_ns
    return result


def dot_entry(node_id: int) -> pyfuse3.EntryAttributes:
    """The entry of "." and "..": the kernel takes only the type and a number, and counts no lookup."""
    result = pyfuse3.EntryAttributes()
    result.st_ino = pyfuse3.InodeT(node_id)
    result.st_mode = pyfuse3.ModeT(0o040755)
    result.entry_timeout = result.attr_timeout = 0
    return result


def absent(seconds: float) -> pyfuse3.EntryAttributes:
    """There is no such name, and the kernel may believe that for so long: an entry with inode number 0."""
    result = pyfuse3.EntryAttributes()
    result.st_ino = pyfuse3.InodeT(0)
    result.entry_timeout = seconds
    result.attr_timeout = 0
    return result


def sync(flags: int) -> Sync:
    """What a FUSE_WRITE with these *flags*, which are open(2)'s with those of pwritev2(2) added, is to have on
    the disk when it returns (`fuse_write_flags` in fs/fuse/file.c). O_SYNC has the bit of O_DSYNC in it."""
    if not flags & os.O_DSYNC:
        return Sync.NONE
    return Sync.ALL if flags & os.O_SYNC == os.O_SYNC else Sync.DATA


def changes(
    attributes: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, valid: int
) -> AttributeChanges:
    """What setattr asks for; *valid* as the kernel sent it. For UTIME_NOW pyfuse3 has a time of this machine's
    clock: it is the server's that counts, as for what is written."""
    atime_now, mtime_now = bool(valid & abi.FATTR_ATIME_NOW), bool(valid & abi.FATTR_MTIME_NOW)
    return AttributeChanges(
        mode=attributes.st_mode & 0o7777 if fields.update_mode else None,
        uid=attributes.st_uid if fields.update_uid else None,
        gid=attributes.st_gid if fields.update_gid else None,
        size=attributes.st_size if fields.update_size else None,
        atime_ns=nearest_time(attributes.st_atime_ns) if fields.update_atime and not atime_now else None,
        mtime_ns=nearest_time(attributes.st_mtime_ns) if fields.update_mtime and not mtime_now else None,
        atime_now=atime_now,
        mtime_now=mtime_now,
    )


def credentials(context: pyfuse3.RequestContext) -> Credentials:
    """Whom a new inode belongs to, and what the umask takes from its mode (FUSE_DONT_MASK)."""
    return Credentials(context.uid, context.gid, context.umask & 0o777)


def statistics(of: FilesystemStatistics) -> pyfuse3.StatvfsData:
    """What statfs answers."""
    result = pyfuse3.StatvfsData()
    result.f_bsize = of.block_size
    result.f_frsize = of.fragment_size
    result.f_blocks = of.blocks
    result.f_bfree = of.blocks_free
    result.f_bavail = of.blocks_available
    result.f_files = of.files
    result.f_ffree = of.files_free
    result.f_favail = of.files_available
    result.f_namemax = of.name_size_max
    return result
