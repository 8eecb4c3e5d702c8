"""What concerns ranges of files and is done at the server: allocating, punching, seeking, copying.

All of it follows one order: what is dirty here goes to the server first, the server does it while it keeps
the other clients away, and in the hook of the reply, before anything else runs, what is not true any more is
dropped here. The kernel sees to its own pages (fuse_file_fallocate and fuse_copy_file_range of
fs/fuse/file.c write back before and truncate after, under the inode's locks).
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from typing import Final

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message
from nfsfuse.protocol.types import (
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    FALLOC_SHIFTS,
    AttributeChanges,
    Attributes,
)

COPY_SIZE_MAX: Final = 128 << 20
"""Bytes of one copy: the server keeps others away from both files while it copies (0.1 s where the disk does
1 GB/s), and copy_file_range(2) may always do less than it was asked for."""

_CHANGES_DATA: Final = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_SHIFTS


class Ranges:
    """Operations on ranges of a mount's files. Raises FsError."""

    def __init__(self, remote: Remote, holdings: Holdings, write_back: WriteBack) -> None:
        self._remote = remote
        self._holdings = holdings
        self._write_back = write_back

    async def fallocate(self, file: CachedFile, mode: int, offset: int, length: int) -> None:
        """fallocate(2). EOPNOTSUPP for a mode that the server's filesystem does not have (or Linux's FUSE,
        which passes on KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE only)."""
        await self._write_back.write_back(file)

        def allocated(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Stat)
            if mode & _CHANGES_DATA:
                end = 2**63 if mode & FALLOC_SHIFTS else offset + length
                _changed(file, offset, end)
            file.attributes.forget_value()
            file.attributes.forget_xattr_values()
            self._holdings.told(file.inode, reply.attributes, reply.tokens)

        with file.inode.kernel_size.changed_here():
            await self._remote.call(m.Fallocate(file.inode.handle, mode, offset, length), b"", allocated)

    async def copy(
        self, source: CachedFile, source_offset: int, target: CachedFile, target_offset: int, length: int
    ) -> int:
        """copy_file_range(2), the bytes copied. The data do not come here."""
        await self._write_back.write_back(source, source_offset, min(source_offset + length, 2**63))
        await self._write_back.write_back(target)

        def copied(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Position)
            end = target_offset + reply.offset
            _changed(target, target_offset, end)
            target.attributes.forget_value()
            target.attributes.forget_xattr_values()
            known = target.attributes.known
            if known is not None:  # it has changed here as well, and only the size is not up to date
                target.attributes.known = replace(known, size=max(known.size, end))

        length = min(length, COPY_SIZE_MAX)
        message = m.CopyRange(source.inode.handle, source_offset, target.inode.handle, target_offset, length)
        with target.inode.kernel_size.changed_here():
            reply, _ = await self._remote.call(message, b"", copied)
        return reply.offset

    async def seek(self, file: CachedFile, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE; ENXIO. What a program may have stored through a mapping, and
        only the kernel knows, counts as data. Before the beginning there is nothing either: ENXIO, as ext4 and
        XFS have it (iomap_seek_data in fs/iomap/seek.c)."""
        if offset < 0:
            raise FsError(errno.ENXIO)
        await self._write_back.write_back(file)
        at = offset
        while True:
            try:
                found = await self._ask(file, at, whence)
            except FsError as exc:
                if exc.errno != errno.ENXIO:
                    raise
                found = None
            size = file.size()
            if size is None:
                size = await self._size(file)
            if offset >= size:
                raise FsError(errno.ENXIO)
            mapped = file.tokens.in_kernel.intervals(at, size) if file.tokens.writers else []
            if whence == os.SEEK_DATA:
                places = [start for start, _ in mapped[:1]] + ([] if found is None else [found])
                if not places:
                    raise FsError(errno.ENXIO)
                return min(places)
            at = size if found is None else found
            over = [end for start, end in mapped if start <= at < end]
            if at >= size or not over:
                return min(at, size)
            at = over[0]
            if at >= size:
                return size

    async def _ask(self, file: CachedFile, offset: int, whence: int) -> int:
        reply, _ = await self._remote.call(m.Seek(file.inode.handle, offset, whence))
        return reply.offset

    async def _size(self, file: CachedFile) -> int:
        return (await self.attributes(file)).size

    async def attributes(self, file: CachedFile) -> Attributes:
        """As the server has them; for what this client's own writes do not change, or have written back."""

        def told(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Stat)
            self._holdings.told(file.inode, reply.attributes, reply.tokens, bare=reply.bare)

        reply, _ = await self._remote.call(m.GetAttr(file.inode.handle), b"", told)
        return reply.attributes

    async def drop_privileges(self, file: CachedFile, gid: int) -> None:
        """The file was, or is about to be, written by a program of the group *gid* that may not leave it
        set-user-ID (write(2), fallocate(2), copy_file_range(2); FUSE_HANDLE_KILLPRIV_V2 makes it our duty).
        Costs nothing while the attributes are known."""
        known = file.attributes.known or await self.attributes(file)
        mode = without_privileges(known, gid)
        if mode is None:
            return

        def dropped(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Stat)
            self._holdings.apply(reply.tokens)
            if file.attributes.changed_here and file.attributes.known is not None:
                file.attributes.known = replace(file.attributes.known, mode=reply.attributes.mode)
            self._holdings.learn(file.inode, reply.attributes)
            self._holdings.distrust(file.inode)  # execve(2) goes by the mode that the kernel has

        await self._remote.call(m.SetAttr(file.inode.handle, AttributeChanges(mode=mode)), b"", dropped)


def without_privileges(attributes: Attributes, gid: int) -> int | None:
    """The permission bits of a file without set-user-ID and set-group-ID; None if it has neither. Who writes it
    and belongs to its group leaves set-group-ID where the group may not execute
    (`setattr_should_drop_suidgid` in fs/attr.c). Of the groups of whoever asks only *gid* is known: FUSE tells
    no others, and the daemon must not look into the program that waits for it."""
    mode = attributes.mode
    drop = stat.S_ISUID
    if mode & stat.S_IXGRP or gid != attributes.gid:
        drop |= stat.S_ISGID
    if not stat.S_ISREG(mode) or not mode & drop:
        return None
    return stat.S_IMODE(mode) & ~drop


def _changed(file: CachedFile, start: int, end: int) -> None:
    """The server has changed ``[start, end)`` itself: what is here of it is old. Not what is dirty: that was
    written while the server did it, and may well come after it."""
    file.changes(start, end)
    for low, high in file.pages.dirty.gaps(start, end):
        file.pages.drop(low, high)
