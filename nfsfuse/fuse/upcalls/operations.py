"""pyfuse3's operations: each translates, asks the engine, and translates back.

What never waits (release, opendir, releasedir) is in `nfsfuse.fuse.upcalls.quick` alone, what seldom waits
there too.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.engine.names import Absent, Found
from nfsfuse.engine.ranges import without_privileges
from nfsfuse.fuse.binding import abi
from nfsfuse.fuse.binding.libraries import Request, current_request, pyfuse3
from nfsfuse.fuse.notifications.looks import believed
from nfsfuse.fuse.notifications.own_mount import Look, OwnMount
from nfsfuse.fuse.upcalls import convert
from nfsfuse.fuse.upcalls.boundary import handler, translated
from nfsfuse.fuse.upcalls.interrupt import INTERRUPTS, waiting
from nfsfuse.machines.inodes import ROOT, Inode
from nfsfuse.protocol.types import ACLS, Attributes, LockOwner

Context = pyfuse3.RequestContext
Fh = pyfuse3.FileHandleT
Ino = pyfuse3.InodeT


FOR_GOOD = 365 * 86400.0
"""Seconds: until it is told otherwise."""


class Operations(pyfuse3.Operations):
    """The mount as pyfuse3 sees it; `quick.Quick` goes before it."""

    enable_writeback_cache = False  # it would ignore the server's size and mtime for ever
    supports_dot_lookup = True  # of inodes by their numbers: see `lookup`

    def __init__(self, filesystem: Filesystem, root: Attributes, own_mount: OwnMount) -> None:
        super().__init__()
        self._fs = filesystem
        self._own_mount = own_mount
        self._root = root
        self._for_good = 0.0

    def trust_names(self) -> None:
        """The kernel may believe names: it can be told to distrust them all at once. (Where it cannot, before
        Linux 6.16, an invalidation could wait for ever for an operation that waits for it: names are then
        looked up each time, which costs an upcall and no round trip.)"""
        self._for_good = FOR_GOOD

    def found(self, found: Found | Absent) -> pyfuse3.EntryAttributes:
        """The answer to a lookup."""
        if isinstance(found, Absent):
            return convert.absent(self._for_good if found.lasting else 0.0)
        return self.told(found.inode, found.attributes, self._for_good if found.lasting else 0.0)

    def made(self, found: Found) -> pyfuse3.EntryAttributes:
        """The answer to whatever makes an inode."""
        # create_new_entry and fuse_create_open give fuse_iget no attr_version. Of an inode that is new to the
        # kernel that does no harm: an invalidation waits until it is known (`nfsfuse.engine.distrust`).
        seconds = self._for_good if found.lasting else 0.0
        return self.told(found.inode, found.attributes, seconds, versioned=found.inode.lookups == 1)

    def told(
        self, inode: Inode, attributes: Attributes, entry_seconds: float, *, versioned: bool = True
    ) -> pyfuse3.EntryAttributes:
        """Tell the kernel attributes: for good while the token for them is held (K4), else for nothing. Not
        *versioned*: it would take them although it has been told meanwhile to believe none."""
        inode.kernel_size.told(attributes.size)
        held = versioned and inode.attributes.told(attributes)
        return convert.entry(inode, attributes, entry_seconds, FOR_GOOD if held else 0.0)

    # --- names ---

    @handler
    async def lookup(
        self, request: Request, parent_inode: Ino, name: bytes, ctx: Context
    ) -> pyfuse3.EntryAttributes:
        look = self._own_mount.looks.get(request.pid)
        if look is not None:
            return self._looked(look)
        if name in (b".", b".."):  # FUSE_EXPORT_SUPPORT: "parent" is the node id itself
            return self.found(await self._by_number(request, parent_inode, name))
        return self.found(await self._fs.names.lookup(parent_inode, name, request.pid))

    def _looked(self, look: Look) -> pyfuse3.EntryAttributes:
        """What a thread of ours is told of a name (`nfsfuse.fuse.notifications.looks`), to be believed for no
        time. Attributes that the kernel has are looked up here: had they been before it asked, a write might
        have come between, and the file be as short again (it numbers what it is told, attr_version, from when
        it asks)."""
        inode = None if look.child is None else self._fs.inodes.same(*look.child)
        if inode is None:
            return convert.absent(0.0)
        attributes = believed(look.descriptor) if look.attributes is None else look.attributes
        inode.lookups += 1
        return convert.entry(inode, attributes, 0.0, 0.0)

    async def _by_number(self, request: Request, node_id: int, name: bytes) -> Found:
        if request.pid in self._own_mount.threads:
            # The kernel has forgotten what a thread of ours wanted to open: then there is nothing to be done.
            raise pyfuse3.FUSEError(errno.ESTALE)
        numbers = self._fs.numbers
        return await (numbers.lookup(node_id) if name == b"." else numbers.parent(node_id))

    async def forget(self, inode_list: Sequence[tuple[Ino, int]]) -> None:
        for node_id, count in inode_list:
            self._fs.names.forget(node_id, count)

    @handler
    async def getattr(
        self, request: Request, inode: Ino, ctx: Context | None = None
    ) -> pyfuse3.EntryAttributes:
        known = self._fs.inodes[inode]
        if request.pid in self._own_mount.threads:
            look = self._own_mount.looks.get(request.pid)
            if look is not None and look.parent == inode:
                return self._told_looking(look, known)
            return self._told_at_once(known)
        size_only = bool(request.operation_flags & abi.GETATTR_FH)
        attributes = await self._fs.attributes_for_kernel(known, size_only=size_only)
        return self.told_attributes(known, attributes)

    def told_attributes(self, inode: Inode, attributes: Attributes) -> pyfuse3.EntryAttributes:
        """The answer to a getattr."""
        if inode.node_id == ROOT:
            self._root = attributes
        return self.told(inode, attributes, 0.0)

    def _told_looking(self, look: Look, parent: Inode) -> pyfuse3.EntryAttributes:
        """What a thread of ours is told of the directory that it looks into: ESTALE, and then what it knows."""
        if not look.told_stale:
            look.told_stale = True
            raise pyfuse3.FUSEError(errno.ESTALE)
        assert look.of_parent is not None
        look.asked_again = True
        return convert.entry(parent, look.of_parent, 0.0, 0.0)

    def _told_at_once(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """For a thread of ours, which must not wait for the server (`nfsfuse.fuse.notifications.own_mount`). Of
        the root it gets what was known once, to be believed by nobody else: without, it could open nothing
        below."""
        attributes = inode.attributes.known
        if attributes is None and inode.node_id == ROOT:
            attributes = self._root
        if attributes is None:
            raise pyfuse3.FUSEError(errno.EAGAIN)
        return self.told(inode, attributes, 0.0)

    @handler
    async def setattr(
        self,
        request: Request,
        inode: Ino,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: Fh | None,
        ctx: Context,
    ) -> pyfuse3.EntryAttributes:
        known = self._fs.inodes[inode]
        changes = convert.changes(attr, fields, request.valid)
        if request.kill_suidgid and changes.size is not None and changes.mode is None:
            mode = without_privileges(await self._fs.names.getattr(inode), request.gid)
            changes = replace(changes, mode=mode)
        attributes = await self._fs.inode_changes.setattr(known, changes)
        return self.told(known, attributes, 0.0, versioned=False)  # see fuse_do_setattr

    @handler
    async def readlink(self, request: Request, inode: Ino, ctx: Context) -> bytes:
        return await self._fs.names.readlink(inode)

    @handler
    async def symlink(
        self, request: Request, parent_inode: Ino, name: bytes, target: bytes, ctx: Context
    ) -> pyfuse3.EntryAttributes:
        self._fs.names.acts(request.pid)
        creds = convert.credentials(ctx)
        return self.made(await self._fs.names.symlink(parent_inode, name, target, creds))

    @handler
    async def mknod(
        self, request: Request, parent_inode: Ino, name: bytes, mode: pyfuse3.ModeT, rdev: int, ctx: Context
    ) -> pyfuse3.EntryAttributes:
        self._fs.names.acts(request.pid)
        creds = convert.credentials(ctx)
        return self.made(await self._fs.names.mknod(parent_inode, name, mode, rdev, creds))

    @handler
    async def mkdir(
        self, request: Request, parent_inode: Ino, name: bytes, mode: pyfuse3.ModeT, ctx: Context
    ) -> pyfuse3.EntryAttributes:
        self._fs.names.acts(request.pid)
        return self.made(await self._fs.names.mkdir(parent_inode, name, mode, convert.credentials(ctx)))

    @handler
    async def link(
        self, request: Request, inode: Ino, new_parent_inode: Ino, new_name: bytes, ctx: Context
    ) -> pyfuse3.EntryAttributes:
        self._fs.names.acts(request.pid, inode)
        return self.made(await self._fs.names.link(inode, new_parent_inode, new_name))

    @handler
    async def unlink(self, request: Request, parent_inode: Ino, name: bytes, ctx: Context) -> None:
        self._fs.names.acts(request.pid)
        await self._fs.names.unlink(parent_inode, name)

    @handler
    async def rmdir(self, request: Request, parent_inode: Ino, name: bytes, ctx: Context) -> None:
        self._fs.names.acts(request.pid)
        await self._fs.names.rmdir(parent_inode, name)

    @handler
    async def rename(
        self,
        request: Request,
        parent_inode_old: Ino,
        name_old: bytes,
        parent_inode_new: Ino,
        name_new: bytes,
        flags: pyfuse3.FlagT,
        ctx: Context,
    ) -> None:
        self._fs.names.acts(request.pid)
        await self._fs.names.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @handler
    async def statfs(self, request: Request, ctx: Context) -> pyfuse3.StatvfsData:
        return convert.statistics(await self._fs.names.statfs())

    @handler
    async def getxattr(self, request: Request, inode: Ino, name: bytes, ctx: Context) -> bytes:
        if name not in ACLS:
            return await self._fs.xattrs.get(inode, name)
        if request.pid in self._own_mount.threads:
            return self._acl_at_once(inode, name)
        return await self._fs.acls.get(inode, name)

    def _acl_at_once(self, inode: Ino, name: bytes) -> bytes:
        """For a thread of ours: the kernel looks whether it may open a file, or look into a directory. Of
        EAGAIN it keeps nothing (fs/posix_acl.c, get_inode_acl), and goes on by the mode (fs/namei.c,
        acl_permission_check); then by CAP_DAC_READ_SEARCH, which whoever opens by node ids has."""
        acl = self._fs.acls.at_once(inode, name)
        if acl is None:
            raise pyfuse3.FUSEError(errno.EAGAIN)
        return acl

    @handler
    async def listxattr(self, request: Request, inode: Ino, ctx: Context) -> Sequence[pyfuse3.XAttrNameT]:
        names = await self._fs.xattrs.names(inode)
        if request.uid != 0:
            # As local filesystems do for who has no CAP_SYS_ADMIN; FUSE tells the user, and no capabilities.
            names = tuple(each for each in names if not each.startswith(b"trusted."))
        if self._fs.acls.refused:
            names = tuple(each for each in names if each not in ACLS)
        return cast(Sequence[pyfuse3.XAttrNameT], names)

    @handler
    async def removexattr(self, request: Request, inode: Ino, name: bytes, ctx: Context) -> None:
        self._fs.acls.check(name)
        await self._fs.xattrs.remove(inode, name)

    # --- directories ---

    @handler
    async def readdir(self, request: Request, fh: Fh, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for item in await self._fs.directories.read(fh, start_id):
            if item.inode is None:
                told = convert.dot_entry(item.number)
            else:
                assert item.attributes is not None
                told = self.told(item.inode, item.attributes, self._for_good if item.lasting else 0.0)
            if not pyfuse3.readdir_reply(token, item.name, told, item.cookie):
                return
            if item.inode is not None:
                item.inode.lookups += 1

    @handler
    async def fsyncdir(self, request: Request, fh: Fh, datasync: bool) -> None:
        await self._fs.directories.fsyncdir(fh)

    # --- files ---

    @handler
    async def open(
        self, request: Request, inode: Ino, flags: pyfuse3.FlagT, ctx: Context
    ) -> pyfuse3.FileInfo:
        if request.pid in self._own_mount.threads:
            return self.opened(self._fs.files.open_for_write_back(inode))
        number = await self._fs.files.open(inode, flags)
        await self._drop_privileges(number, request)
        return self.opened(number)

    @handler
    async def create(
        self,
        request: Request,
        parent_inode: Ino,
        name: bytes,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: Context,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        self._fs.names.acts(request.pid)
        creds = convert.credentials(ctx)
        number, found = await self._fs.files.create(parent_inode, name, mode, flags, creds)
        if not found.made:
            await self._drop_privileges(number, request)
        return self.opened(number), self.made(found)

    async def _drop_privileges(self, number: int, request: Request) -> None:
        """O_TRUNC is a change by a program that may not leave the file set-user-ID."""
        if request.kill_suidgid:
            try:
                await self._fs.ranges.drop_privileges(self._fs.files[number].file, request.gid)
            except BaseException:
                self._fs.files.release(number)
                raise

    def opened(self, number: int) -> pyfuse3.FileInfo:
        """What the kernel is told of an open file."""
        # What the kernel has cached of the file is good: the tokens see to it.
        return pyfuse3.FileInfo(fh=Fh(number), keep_cache=True, direct_io=self._fs.files[number].direct)

    @translated
    async def read(self, fh: Fh, off: int, size: int) -> bytes:
        request = current_request()
        # Only a read past the page cache tells its owner (fuse_direct_io; FUSE_READ_LOCKOWNER).
        cached = request.lock_owner is None
        with waiting(request):
            # Any contiguous buffer will do; pyfuse3's annotation is narrower than its code.
            data = await self._fs.files.read(fh, off, size, cached=cached, thread=request.pid)
            return cast(bytes, data)

    @translated
    async def write(self, fh: Fh, off: int, buf: bytes) -> int:
        request = current_request()
        with waiting(request):
            if request.kill_suidgid:
                await self._fs.ranges.drop_privileges(self._fs.files[fh].file, request.gid)
            sync = convert.sync(request.flags)
            return await self._fs.files.write(fh, off, buf, page=request.is_write_back, sync=sync)

    @handler
    async def flush(self, request: Request, fh: Fh) -> None:
        # Of a killed program nobody hears, and its end must not wait for a server that is away.
        INTERRUPTS.flushes(request.unique)
        try:
            await self._fs.files.flush(fh)
        finally:
            if request.lock_owner is not None:
                await self._fs.locks.flush(request.nodeid, LockOwner(request.lock_owner))

    @handler
    async def fsync(self, request: Request, fh: Fh, datasync: bool) -> None:
        await self._fs.files.fsync(fh, datasync)
