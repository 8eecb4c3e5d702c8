"""What a client knows of one inode's attributes, under its ATTR token: a pure machine.

SHARED: they are as on the server. EXCLUSIVE: this client's are the true ones; writes change the size here,
and the server learns of it by the write-back. Times are the server's, always: what a write has made of them is
known with the answer to its write-back, and told to nobody before. Told by this client's clock they would
change once more although nothing was written, and a ctime cannot be set at all. Without a token nothing is
known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from nfsfuse.machines.access_times import AccessTimes, after_access
from nfsfuse.machines.tellings import Age
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import Attributes

UNSETTLED_TELLINGS: Final = 4
"""How often the kernel is told a directory's attributes, after a change of its own there, before it may believe
them. For a change it asks two or three times, to check permissions. Likewise a file's that has lost a name."""

XATTRS_MAX: Final = 8
"""Extended attributes kept of one inode: those that programs probe for are few."""

_NONE_KNOWN: Final[Mapping[bytes, bytes | None]] = MappingProxyType({})

_NONE_THERE: Final[Mapping[bytes, bytes | None]] = MappingProxyType({})
"""In place of those that are known: see `AttributeCache.has_no_xattrs`."""

_NAMESPACES: Final = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")
"""Of extended attributes, xattr(7): in others the answer may be EOPNOTSUPP where there is none."""


class AttributeCache:
    """The attributes of one inode. There is one for every inode that the kernel knows: small when idle."""

    __slots__ = (
        "_told_meanwhile",
        "_written_back",
        "_xattrs",
        "above",
        "changed_here",
        "distrusting",
        "doubted",
        "kernel_forgets",
        "kernel_keeps_acls",
        "kernel_trusts",
        "known",
        "mode",
        "purging",
        "recalls",
        "unsettled",
        "watched",
        "wrote_beside_others",
        "xattr_changes",
    )

    def __init__(self) -> None:
        self.mode = TokenMode.NONE
        self.known: Attributes | None = None
        self.changed_here = False
        """Data are still to be written back: the size may differ from the server's, and the times are not
        known."""
        self.wrote_beside_others = False
        """Data were written here under no EXCLUSIVE token, and the times were not told since. The server asks
        the others to forget them when it has the data, without waiting: so they may still believe the older
        ones, until this client has that token."""
        self.recalls = 0
        """Recalls in progress. There may be two: one client wants to read them, the next to change them."""
        self.doubted = 0
        """Looks under way for which the kernel has to ask for them: see `Kernel.expire_entry_at_once`."""
        self.purging = 0
        """Names in this directory are being expired. The kernel asks for the attributes before it uses one,
        and is answered when that is done: see `NameDrops.purge`."""
        self.watched = False
        """Held EXCLUSIVE: others may have the file open, and are told when it becomes longer."""
        self._xattrs: Mapping[bytes, bytes | None] | None = None
        self.xattr_changes = 0
        self.above: int | None = None
        """Of a directory: the number of the one it is in, on the server. Its renames change the attributes."""
        self.distrusting = 0
        """Invalidations of them in the kernel that are under way."""
        self.kernel_trusts = False
        """The kernel was told that it may believe them until it is told otherwise."""
        self.kernel_forgets = False
        """It will not, by itself: see `written_by_kernel`."""
        self.kernel_keeps_acls = False
        """The kernel was told an ACL, or that there is none: it keeps that until it is told to forget the
        attributes, or asks for them itself (`forget_all_cached_acls` in fs/posix_acl.c)."""
        self.unsettled = 0
        """Tellings left until the kernel may believe them: see `changed_by_kernel`."""
        self._written_back: Attributes | None = None  # the newest in the replies to write-backs
        self._told_meanwhile = False  # the server, of another change than those that are being written back

    @property
    def revoking(self) -> bool:
        """A recall is in progress: no change may be made here any more, and nothing be believed for good."""
        return self.recalls > 0

    def granted(self, mode: TokenMode) -> None:
        """A token has arrived."""
        if mode is TokenMode.EXCLUSIVE and self.mode is not mode:
            self.watched = True  # until the server says otherwise
        self.mode = max(self.mode, mode)

    def told_others(self, *, watched: bool) -> None:
        """The server says whether others have the file open. If not that stays so: who opens it takes a
        token."""
        if self.mode is TokenMode.EXCLUSIVE:
            self.watched = watched

    def learned(self, attributes: Attributes) -> bool:
        """The server told them, and nothing newer (`nfsfuse.machines.tellings`). Whether they are kept, and
        differ from what was known. While data are to be written back, this client knows the size better,
        and times are the business of that."""
        if self.mode is TokenMode.NONE:
            return False
        was = self.known
        if self.changed_here:
            self._told_meanwhile = True
            if was is None:
                return False
            attributes = replace(
                attributes, size=was.size, blocks=was.blocks, mtime_ns=was.mtime_ns,
                ctime_ns=max(was.ctime_ns, attributes.ctime_ns),
            )  # fmt: skip
        self.known = attributes
        return was is not None and attributes != was

    def may_change_here(self) -> bool:
        """Whether the size may be changed without telling the server."""
        return self.mode is TokenMode.EXCLUSIVE and not self.revoking and self.known is not None

    def may_be_trusted(self, attributes: Attributes) -> bool:
        """Whether the kernel may believe *attributes* until it is told otherwise: not while they change here,
        as the write-back brings the times."""
        return self.known is attributes and self.times_are_known() and not (self.revoking or self.doubted)

    def told(self, attributes: Attributes) -> bool:
        """The kernel is told *attributes*; whether it may believe them until it is told otherwise."""
        if not self.may_be_trusted(attributes):
            return False
        if self.unsettled:
            self.unsettled -= 1
            return False
        self.kernel_trusts, self.kernel_forgets = True, False
        return True

    def has_to_be_told(self) -> bool:
        """Whether the kernel would go on believing attributes that have changed, if it were not told."""
        return self.kernel_trusts and not self.kernel_forgets

    @property
    def kernel_believes(self) -> bool:
        """There is something that it would go on believing: attributes, or an ACL."""
        return self.kernel_trusts or self.kernel_keeps_acls

    def kernel_is_told(self) -> None:
        """It is about to be told to believe nothing any more."""
        self.kernel_trusts = self.kernel_keeps_acls = False

    def written_by_kernel(self) -> None:
        """A write(2) that the kernel waits for is about to be answered. Before it returns the kernel forgets
        size and times by itself, and takes in no answer that is older (fuse_write_update_attr, which raises
        the attr_version): so it need not be told when they change by that write or its write-back. A recall
        tells it all the same, as it cannot know whether the answer has been taken in yet."""
        self.kernel_forgets = self.kernel_trusts

    def accessed(self, kept: AccessTimes, now_ns: int) -> bool:
        """The file is read; whether that changes the time of the last access. What the server has made of that
        is told with the next attributes."""
        known = self.known
        if known is None or not self.times_are_known():
            return False  # whoever has written it has a later mtime in a moment
        atime_ns = after_access(kept, known, now_ns)
        if atime_ns is None:
            return False
        self.known = replace(known, atime_ns=atime_ns)
        return True

    def changed_by_kernel(self) -> None:
        """The kernel has changed something in this directory. It forgets the attributes by itself, but may take
        in an older answer after that, so it has to be told if it believes any: which takes longer than to be
        asked some more. While it goes on changing the directory it is given none to believe. Or it is about to
        change the number of a file's links by itself, whatever it is told of that meanwhile."""
        self.unsettled = UNSETTLED_TELLINGS

    def times_are_known(self) -> bool:
        """Whether what is `known` has the times in it that what was written here has been given."""
        return self.known is not None and not (self.changed_here or self.wrote_beside_others)

    def size(self) -> int | None:
        """The file's size, None if it is not known."""
        return None if self.known is None else self.known.size

    def written(self, end: int) -> None:
        """Data were written up to *end*, under EXCLUSIVE."""
        assert self.may_change_here()
        assert self.known is not None
        size = max(self.known.size, end)
        blocks = max(self.known.blocks, (size + 511) // 512 if end == size else self.known.blocks)
        self.known = replace(self.known, size=size, blocks=blocks)
        self.changed_here = True

    def written_beside_others(self) -> None:
        """Data were written within the file, under no EXCLUSIVE token for its attributes."""
        self.forget_value()
        self.wrote_beside_others = True

    def written_back(self, attributes: Attributes, age: Age, *, all_of_it: bool) -> bool:
        """The server has data that were written here (*all_of_it*: nothing is left); whether what was known
        has changed by that. It is not known any more if the answer was overtaken by one about something else
        than such data: it may lack that."""
        # Replies of parallel write-backs may overtake one another. The file only grows by them.
        newest = self._written_back
        if newest is None or (newest.size, newest.ctime_ns) < (attributes.size, attributes.ctime_ns):
            newest = attributes
        self._written_back = newest
        if not all_of_it:
            return False
        self._written_back = None
        was_changed, self.changed_here = self.changed_here, False
        told_meanwhile, self._told_meanwhile = self._told_meanwhile, False
        if self.mode is TokenMode.NONE:
            return False
        # Of this answer the age is known. An earlier one may have been overtaken since; it is believed for what
        # was written here, if nothing else has been told meanwhile.
        overtaken = age is not Age.NEWEST if newest is attributes else told_meanwhile or not was_changed
        differs = overtaken or self.known != newest  # it has the times
        self.known = None if overtaken else newest
        return differs

    def reduced(self, mode: TokenMode) -> None:
        """Hold no more than *mode*."""
        assert not self.changed_here or mode is TokenMode.EXCLUSIVE, "changes were not written back"
        self.mode = min(self.mode, mode)
        if self.mode is TokenMode.NONE:
            self.known = self.above = None
            self.forget_xattrs()
            self.kernel_is_told()

    @property
    def xattrs(self) -> Mapping[bytes, bytes | None]:
        """Extended attributes that were asked for, None for one that is not there. They are covered by ATTR;
        kept because the kernel asks for security.capability whenever it forgets that there is none."""
        return _NONE_KNOWN if self._xattrs is None else self._xattrs

    @property
    def has_no_xattrs(self) -> bool:
        """It has no extended attributes at all: told with its attributes, as the kernel asks for an ACL before
        anybody but the owner may use it, ls(1) for each name it lists, and each write for capabilities."""
        return self._xattrs is _NONE_THERE

    def lacks_xattr(self, name: bytes) -> bool:
        """Whether there is certainly no extended attribute *name*."""
        if self.has_no_xattrs and name.startswith(_NAMESPACES):
            return True
        return self.xattrs.get(name, b"") is None

    def forget_xattrs(self) -> None:
        """Extended attributes may be about to change."""
        self._xattrs = None
        self.xattr_changes += 1

    def forget_xattr_values(self) -> None:
        """What there is of extended attributes may have changed, or gone: a chmod changes an ACL, a write takes
        capabilities away. Where there are none, none come by that."""
        if not self.has_no_xattrs:
            self.forget_xattrs()

    def learned_no_xattrs(self) -> None:
        """The server told that there are none."""
        if self.mode is not TokenMode.NONE and not self.revoking:
            self._xattrs = _NONE_THERE

    def acl_told(self) -> bool:
        """The kernel is about to be told an ACL as it is known here, and to keep it; whether it may. If not it
        is to be told first that it may not believe what it asks for."""
        if self.mode is TokenMode.NONE or self.revoking:
            return False
        self.kernel_keeps_acls = True
        return True

    def learned_xattr(self, name: bytes, value: bytes | None) -> None:
        """The server told an extended attribute. Where there are none it is of no namespace that has any: that
        is not kept."""
        if self.mode is TokenMode.NONE or self.revoking or self.has_no_xattrs:
            return
        if len(self.xattrs) < XATTRS_MAX:
            self._xattrs = {**self.xattrs, name: value}

    def lost(self) -> None:
        """The session is over: no token is held."""
        self.changed_here = self.wrote_beside_others = self._told_meanwhile = False
        self.reduced(TokenMode.NONE)

    def forget_value(self) -> None:
        """What was known may be out of date by an operation of this client; the token stays."""
        if not self.changed_here:
            self.known = None
