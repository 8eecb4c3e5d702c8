"""pyfuse3's operations: each translates, asks the engine, and translates back."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import cast

import pyfuse3

from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.engine.names import Found
from nfsfuse.fuse import convert
from nfsfuse.fuse.boundary import handler
from nfsfuse.protocol.types import Attributes

Context = pyfuse3.RequestContext
Fh = pyfuse3.FileHandleT
Ino = pyfuse3.InodeT


def _opened(number: int, flags: int) -> pyfuse3.FileInfo:
    # Through its page cache the kernel cuts a write(2) at the first page that is not up to date
    # (fuse_fill_write_pages), and other clients' records would come between the pieces of an appended one.
    # Direct I/O sends it whole. It forbids shared mappings, but a file open for writing only has none.
    whole = flags & os.O_APPEND != 0 and flags & os.O_ACCMODE == os.O_WRONLY
    return pyfuse3.FileInfo(fh=Fh(number), keep_cache=False, direct_io=whole)


class Operations(pyfuse3.Operations):
    """The mount as pyfuse3 sees it. *mounted* is called once the kernel has been greeted."""

    enable_writeback_cache = False  # it would ignore the server's size and mtime for ever
    supports_dot_lookup = False

    def __init__(self, filesystem: Filesystem, mounted: Callable[[], None]) -> None:
        super().__init__()
        self._fs = filesystem
        self._mounted = mounted

    def init(self) -> None:
        self._mounted()

    def _entry(self, found: Found) -> pyfuse3.EntryAttributes:
        return convert.entry(found.inode, found.attributes, 0.0, 0.0)

    def _attributes(self, node_id: int, attributes: Attributes) -> pyfuse3.EntryAttributes:
        result = convert.entry(None, attributes, 0.0, 0.0)
        result.st_ino = Ino(node_id)
        return result

    # --- names ---

    @handler
    async def lookup(self, parent_inode: Ino, name: bytes, ctx: Context) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.names.lookup(parent_inode, name))

    async def forget(self, inode_list: Sequence[tuple[Ino, int]]) -> None:
        for node_id, count in inode_list:
            self._fs.names.forget(node_id, count)

    @handler
    async def getattr(self, inode: Ino, ctx: Context | None = None) -> pyfuse3.EntryAttributes:
        return self._attributes(inode, await self._fs.names.getattr(inode))

    @handler
    async def setattr(
        self,
        inode: Ino,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: Fh | None,
        ctx: Context,
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(inode, await self._fs.names.setattr(inode, convert.changes(attr, fields)))

    @handler
    async def readlink(self, inode: Ino, ctx: Context) -> bytes:
        return await self._fs.names.readlink(inode)

    @handler
    async def symlink(
        self, parent_inode: Ino, name: bytes, target: bytes, ctx: Context
    ) -> pyfuse3.EntryAttributes:
        creds = convert.credentials(ctx)
        return self._entry(await self._fs.names.symlink(parent_inode, name, target, creds))

    @handler
    async def mknod(
        self, parent_inode: Ino, name: bytes, mode: pyfuse3.ModeT, rdev: int, ctx: Context
    ) -> pyfuse3.EntryAttributes:
        creds = convert.credentials(ctx)
        return self._entry(await self._fs.names.mknod(parent_inode, name, mode, rdev, creds))

    @handler
    async def mkdir(
        self, parent_inode: Ino, name: bytes, mode: pyfuse3.ModeT, ctx: Context
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.names.mkdir(parent_inode, name, mode, convert.credentials(ctx)))

    @handler
    async def link(
        self, inode: Ino, new_parent_inode: Ino, new_name: bytes, ctx: Context
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.names.link(inode, new_parent_inode, new_name))

    @handler
    async def unlink(self, parent_inode: Ino, name: bytes, ctx: Context) -> None:
        await self._fs.names.unlink(parent_inode, name)

    @handler
    async def rmdir(self, parent_inode: Ino, name: bytes, ctx: Context) -> None:
        await self._fs.names.rmdir(parent_inode, name)

    @handler
    async def rename(
        self,
        parent_inode_old: Ino,
        name_old: bytes,
        parent_inode_new: Ino,
        name_new: bytes,
        flags: pyfuse3.FlagT,
        ctx: Context,
    ) -> None:
        await self._fs.names.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @handler
    async def statfs(self, ctx: Context) -> pyfuse3.StatvfsData:
        return convert.statistics(await self._fs.names.statfs())

    @handler
    async def getxattr(self, inode: Ino, name: bytes, ctx: Context) -> bytes:
        return await self._fs.names.getxattr(inode, name)

    @handler
    async def setxattr(self, inode: Ino, name: bytes, value: bytes, ctx: Context) -> None:
        # pyfuse3 keeps XATTR_CREATE and XATTR_REPLACE to itself and probes with getxattr first.
        await self._fs.names.setxattr(inode, name, value, 0)

    @handler
    async def listxattr(self, inode: Ino, ctx: Context) -> Sequence[pyfuse3.XAttrNameT]:
        return cast(Sequence[pyfuse3.XAttrNameT], await self._fs.names.listxattr(inode))

    @handler
    async def removexattr(self, inode: Ino, name: bytes, ctx: Context) -> None:
        await self._fs.names.removexattr(inode, name)

    # --- directories ---

    @handler
    async def opendir(self, inode: Ino, ctx: Context) -> Fh:
        return Fh(self._fs.directories.opendir(inode))

    @handler
    async def readdir(self, fh: Fh, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        async for listed in self._fs.directories.read(fh, start_id):
            if listed.node is None:
                told = convert.dot_entry(listed, pyfuse3.ROOT_INODE)
                if not pyfuse3.readdir_reply(token, listed.name, told, listed.cookie):
                    return
                continue
            found = self._fs.names.found(listed.node)
            if not pyfuse3.readdir_reply(token, listed.name, self._entry(found), listed.cookie):
                # It did not fit, so the kernel was not told of it after all.
                self._fs.names.forget(found.inode.node_id, 1)
                return

    @handler
    async def releasedir(self, fh: Fh) -> None:
        self._fs.directories.releasedir(fh)

    @handler
    async def fsyncdir(self, fh: Fh, datasync: bool) -> None:
        await self._fs.directories.fsyncdir(fh)

    # --- files ---

    @handler
    async def open(self, inode: Ino, flags: pyfuse3.FlagT, ctx: Context) -> pyfuse3.FileInfo:
        return _opened(await self._fs.files.open(inode, flags), flags)

    @handler
    async def create(
        self, parent_inode: Ino, name: bytes, mode: pyfuse3.ModeT, flags: pyfuse3.FlagT, ctx: Context
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        creds = convert.credentials(ctx)
        number, found = await self._fs.files.create(parent_inode, name, mode, flags, creds)
        return _opened(number, flags), self._entry(found)

    @handler
    async def read(self, fh: Fh, off: int, size: int) -> bytes:
        # Any contiguous buffer will do; pyfuse3's annotation is narrower than its code.
        return cast(bytes, await self._fs.files.read(fh, off, size))

    @handler
    async def write(self, fh: Fh, off: int, buf: bytes) -> int:
        return await self._fs.files.write(fh, off, buf)

    @handler
    async def flush(self, fh: Fh) -> None:
        await self._fs.files.flush(fh)

    @handler
    async def release(self, fh: Fh) -> None:
        await self._fs.files.release(fh)

    @handler
    async def fsync(self, fh: Fh, datasync: bool) -> None:
        await self._fs.files.fsync(fh, datasync)
