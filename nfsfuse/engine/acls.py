"""ACLs, for a kernel that obeys them (FUSE_POSIX_ACL).

It asks for an inode's ACL before anybody but the owner may use the inode, and keeps it beside the attributes:
until it is told to forget those, asks for them itself, or changes either. So an ACL is covered by ATTR as the
attributes are, with two differences. No answer says how long it may be kept: where it must not be kept the
kernel is told so first. (It then keeps nothing of what it had asked for before: it marks the place with the
question, and puts the answer there only if the mark still is, `__get_acl` in fs/posix_acl.c.) And it may be
kept where the attributes are not believed: that is remembered apart (`AttributeCache.kernel_keeps_acls`).
"""

from __future__ import annotations

import errno
import stat

from nfsfuse.engine.names import Names
from nfsfuse.engine.xattrs import Xattrs
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.ports.kernel import Kernel
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import ACLS


class Acls:
    """What the kernel of a mount is told of ACLs; *name* is one of `ACLS`. Raises FsError."""

    def __init__(
        self, remote: Remote, inodes: InodeTable, names: Names, xattrs: Xattrs, kernel: Kernel
    ) -> None:
        self._remote = remote
        self._inodes = inodes
        self._names = names
        self._xattrs = xattrs
        self._kernel = kernel
        self._unknown_there = False
        """The server's filesystem has no ACLs, as it was told of some file or directory."""
        self.refused = False
        """There are none on this mount: EOPNOTSUPP (``noacl``)."""

    def check(self, name: bytes) -> None:
        """EOPNOTSUPP for an extended attribute *name* that is an ACL, where these are refused."""
        if self.refused and name in ACLS:
            raise FsError(errno.EOPNOTSUPP, "mounted with noacl")

    def at_once(self, node_id: int, name: bytes) -> bytes | None:
        """An ACL as it is known here, which the kernel keeps; ENODATA if it is known that there is none, where
        the kernel goes by the mode. None if that takes a round trip, or waiting."""
        self.check(name)
        if self._unknown_there:
            raise FsError(errno.ENODATA)
        attributes = self._inodes[node_id].attributes
        if not self._remote.leased():
            return None
        none = attributes.lacks_xattr(name)
        value = attributes.xattrs.get(name)
        if (value is None and not none) or not attributes.acl_told():
            return None
        if none:
            raise FsError(errno.ENODATA)
        return value

    async def get(self, node_id: int, name: bytes) -> bytes:
        """As `at_once`, asked for where it is not known. The kernel keeps nothing that changes meanwhile."""
        await self._remote.until_leased()
        known = self.at_once(node_id, name)
        if known is not None:
            return known
        inode = self._inodes[node_id]
        attributes = inode.attributes
        if attributes.mode is TokenMode.NONE or attributes.revoking:
            await self._names.getattr(node_id)  # for the token, with which it is mostly told that there is none
            known = self.at_once(node_id, name)
            if known is not None:
                return known
        changes = attributes.xattr_changes
        try:
            return await self._xattrs.get(node_id, name)
        except FsError as exc:
            raise FsError(self._absent(inode, exc)) from exc
        finally:
            if changes != attributes.xattr_changes or not attributes.acl_told():
                await self._kernel.invalidate_attributes(inode.node_id)

    def _absent(self, inode: Inode, failure: FsError) -> int:
        """The kernel lets nobody in whose ACL it cannot get, but for ENODATA (`check_acl` in fs/namei.c)."""
        if failure.errno != errno.EOPNOTSUPP:
            return failure.errno
        known = inode.attributes.known
        if known is not None and (stat.S_ISREG(known.mode) or stat.S_ISDIR(known.mode)):
            self._unknown_there = True
        return errno.ENODATA
