"""Names and attributes on the client: FUSE's operations on them, without FUSE."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterable
from functools import partial
from typing import Final

import trio

from nfsfuse.engine.cached_directory import CachedDirectory
from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.name_changes import NameChanges
from nfsfuse.engine.name_drops import NameDrops
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.machines.directory_cache import UNKNOWN, Entry
from nfsfuse.machines.doubts import Verdict
from nfsfuse.machines.inodes import ROOT, Inode, InodeTable
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message, Request
from nfsfuse.protocol.record import record
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import (
    RENAME_EXCHANGE,
    RENAME_WHITEOUT,
    Attributes,
    Credentials,
    FilesystemStatistics,
    Node,
)

log = logging.getLogger(__name__)

STATISTICS_SECONDS: Final = 5.0
"""How long what statfs(2) tells is told again. Nothing keeps it coherent: any program on the server's machine
changes it."""


def is_directory(node: Node) -> bool:
    """Whether *node* is one: it has one name, whatever its links are."""
    return stat.S_ISDIR(node.attributes.mode)


@record(frozen=True, slots=True)
class Found:
    """An inode as the kernel is told of it. *lasting*: its name may be believed until told otherwise."""

    inode: Inode
    attributes: Attributes
    lasting: bool
    made: bool = False
    """A create made it, and did not find it."""


@record(frozen=True, slots=True)
class Absent:
    """There is no such name. *lasting* as in `Found`."""

    lasting: bool


class Names:
    """Everything that is about names, attributes and links. Raises FsError."""

    def __init__(
        self,
        remote: Remote,
        inodes: InodeTable,
        holdings: Holdings,
        write_back: WriteBack,
        changes: NameChanges,
        name_drops: NameDrops,
    ) -> None:
        self._remote = remote
        self._changes = changes
        self._name_drops = name_drops
        self._inodes = inodes
        self._holdings = holdings
        self._write_back = write_back
        self._statistics: tuple[float, FilesystemStatistics] | None = None  # and when it was asked for

    def directory(self, node_id: int) -> CachedDirectory:
        """The directory with this node id."""
        return self._holdings.directory(self._inodes[node_id])

    # --- finding ---

    def told(self, inode: Inode, attributes: Attributes, *, lasting: bool) -> Found:
        """The kernel is told of *inode*: from now on it counts as looked up once more."""
        inode.lookups += 1
        return Found(inode, inode.attributes.known or attributes, lasting)

    def lookup_at_once(self, parent: int, name: bytes, thread: int = 0) -> Found | Absent | None:
        """Find a name that is known here, for *thread*; None if that takes a round trip, or waiting."""
        directory = self.directory(parent)
        entry = directory.cache.find(name)
        if entry is UNKNOWN or not self._remote.leased():
            return None
        inode = None if entry is None else self._inodes.by_handle(entry)
        if entry is not None and (inode is None or inode.attributes.known is None):
            return None
        if self._verdict(thread, directory, name, inode) is Verdict.AGAIN:
            assert inode is not None
            assert inode.attributes.known is not None
            return self._stand_in(thread, directory, name, inode, inode.attributes.known)
        if inode is None:
            return Absent(lasting=True)
        assert inode.attributes.known is not None
        lasting = self._name_drops.may_be_believed((directory.inode.handle, name), inode.handle, thread)
        return self.told(inode, inode.attributes.known, lasting=lasting)

    async def lookup(self, parent: int, name: bytes, thread: int = 0) -> Found | Absent:
        """Find a name, for *thread*; without a round trip if it is known here."""
        directory = self.directory(parent)
        with directory.pending() as cache:
            await self._remote.until_leased()
            known = self.lookup_at_once(parent, name, thread)
            if known is not None:
                return known

            def answered(reply: Message, content: bytes | bytearray) -> None:
                assert isinstance(reply, m.Entry)
                if reply.node is None:
                    self._holdings.apply(reply.tokens)
                else:
                    inode = self._holdings.found(reply.node, reply.tokens)
                    if reply.content:
                        self._holdings.content_came_ahead(inode, content)
                cache.learned(name, None if reply.node is None else reply.node.handle)

            message = m.Lookup(directory.inode.handle, name, self._holdings.opens_ahead.expected())
            reply, _ = await self._remote.call(message, b"", answered)
            inode = None if reply.node is None else self._inodes.still(reply.node)
            if self._verdict(thread, directory, name, inode) is Verdict.AGAIN:
                assert inode is not None
                assert reply.node is not None
                return self._stand_in(thread, directory, name, inode, reply.node.attributes)
            if inode is None:
                return Absent(lasting=cache.find(name) is None)
            assert reply.node is not None
            inode.found_as = (directory.inode, name)
            lasting = cache.find(name) == reply.node.handle
            if not lasting:
                self._name_drops.told(directory, name, inode)
            lasting &= self._name_drops.may_be_believed((directory.inode.handle, name), inode.handle, thread)
            return self.told(inode, reply.node.attributes, lasting=lasting)

    def _verdict(
        self, thread: int, directory: CachedDirectory, name: bytes, inode: Inode | None
    ) -> Verdict:
        """What *thread* may be told of what was found."""
        doubts = self._name_drops.doubts
        if not doubts:
            return Verdict.FOUND
        found = None if inode is None else inode.handle
        return doubts.looks(thread, (directory.inode.handle, name), found, trio.current_time())

    def _stand_in(
        self, thread: int, directory: CachedDirectory, name: bytes, inode: Inode, attributes: Attributes
    ) -> Found:
        """What is told in place of *inode*, which is in doubt: see `nfsfuse.machines.doubts`."""
        self._holdings.never_told([inode.handle])
        stand_in = self._inodes.stand_in(inode)
        self._name_drops.doubts.told(stand_in.node_id, thread, (directory.inode.handle, name))
        return Found(stand_in, attributes, lasting=False)

    def acts(self, thread: int, on: int = ROOT) -> None:
        """*thread* has looked its names up, and asks for what it wants to do with them and with the inode *on*.
        Raises FsError (ESTALE) if that stands in for another: then it makes its call once more."""
        _ = self._inodes[on]
        if self._name_drops.doubts:
            self._name_drops.doubts.acts(thread)

    def forget(self, node_id: int, count: int) -> None:
        self._holdings.evicted(node_id, count)

    # --- making and removing ---

    async def _made(self, parent: int, name: bytes, message: Request[m.Entry]) -> Found:
        directory = self.directory(parent)
        with directory.pending() as cache:

            def made(reply: Message, _: bytes | bytearray) -> None:
                assert isinstance(reply, m.Entry)
                assert reply.node is not None
                self._holdings.found(reply.node, reply.tokens, reply.affected)
                cache.changed(name, reply.node.handle)
                if reply.empty:
                    self._holdings.directory(self._inodes.known(reply.node)).cache.knows_all()

            reply = await self._changes.ask(message, made, (directory, name))
            assert reply.node is not None
            inode = self._inodes.still(reply.node)
            inode.found_as = (directory.inode, name)
            return self.told(inode, reply.node.attributes, lasting=cache.find(name) == reply.node.handle)

    async def symlink(self, parent: int, name: bytes, target: bytes, creds: Credentials) -> Found:
        return await self._made(parent, name, m.SymLink(self._inodes[parent].handle, name, target, creds))

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, creds: Credentials) -> Found:
        return await self._made(parent, name, m.MkNod(self._inodes[parent].handle, name, mode, rdev, creds))

    async def mkdir(self, parent: int, name: bytes, mode: int, creds: Credentials) -> Found:
        return await self._made(parent, name, m.MkDir(self._inodes[parent].handle, name, mode, creds))

    async def link(self, node_id: int, parent: int, name: bytes) -> Found:
        message = m.Link(self._inodes[node_id].handle, self._inodes[parent].handle, name)
        return await self._made(parent, name, message)

    async def unlink(self, parent: int, name: bytes) -> None:
        await self._removed(parent, name, m.Unlink(self._inodes[parent].handle, name))

    async def rmdir(self, parent: int, name: bytes) -> None:
        await self._removed(parent, name, m.RmDir(self._inodes[parent].handle, name))

    async def _removed(self, parent: int, name: bytes, message: Request[m.Done]) -> None:
        directory = self.directory(parent)
        with directory.pending() as cache:

            def removed(reply: Message, _: bytes | bytearray) -> None:
                assert isinstance(reply, m.Done)
                led_to = self._name_drops.led_to(directory, name)
                self._done(reply)
                self._counts_one_less(led_to, reply.affected[:1])
                cache.changed(name, None)

            await self._changes.ask(message, removed, (directory, name))

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        old, new = self.directory(parent), self.directory(new_parent)
        believed: list[Entry] = []

        def renamed(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Done)
            believed.extend((old.cache.stood_for(name), new.cache.stood_for(new_name)))
            led_to = self._name_drops.led_to(new, new_name)
            self._done(reply)
            if not flags & RENAME_EXCHANGE:
                self._counts_one_less(led_to, reply.affected[1:])
            for node in reply.affected:
                inode = self._inodes.by_handle(node.handle)
                if inode is not None:
                    inode.attributes.above = None
            moved = reply.affected[0]
            if flags & RENAME_EXCHANGE:
                old.cache.changed(name, reply.affected[1].handle)
            else:
                # The kernel believes nothing of it any more. Two names of one inode are left as they were:
                # then it is to be asked for. So is a whiteout.
                gone = moved.attributes.nlink == 1 or is_directory(moved)
                old.cache.changed(name, None if gone and not flags & RENAME_WHITEOUT else UNKNOWN)
            new.cache.changed(new_name, moved.handle)

        with old.pending(), new.pending():
            message = m.Rename(old.inode.handle, name, new.inode.handle, new_name, flags)
            await self._changes.ask(message, renamed, (old, name), (new, new_name))
            if not (old.cache.holds(name) and new.cache.holds(new_name)):
                # Somebody else wants one of them already, so it was not left to us. But the kernel is about to
                # move what it believes of the one to the other: it must not believe it there (K4). It does that
                # before it lets the locks go, for which a notification would wait.
                await self._name_drops.expire_at_once(old, name, believed[0])
                if flags & RENAME_EXCHANGE:
                    await self._name_drops.expire_at_once(new, new_name, believed[1])

    def _counts_one_less(self, led_to: Entry, removed: Iterable[Node]) -> None:
        """The kernel is about to count one link less of what it has found by a name, and believes that
        (fuse_entry_unlinked() in fs/fuse/dir.c): also if the server has *removed* another inode, as the name
        led there by then; and if it has been told the new count meanwhile."""
        handles = {node.handle for node in removed if not is_directory(node)}
        if isinstance(led_to, bytes):
            handles.add(led_to)
        for handle in handles:
            inode = self._inodes.by_handle(handle)
            if inode is not None and not inode.is_directory:
                inode.attributes.changed_by_kernel()
                self._holdings.distrust(inode)

    def _done(self, reply: m.Done) -> None:
        self._holdings.apply(reply.tokens)
        for node in reply.affected:
            self._holdings.learn_changed(node)

    # --- attributes ---

    def getattr_at_once(self, node_id: int, *, size_only: bool = False) -> Attributes | None:
        """The attributes, if there is a token for them, and nothing was written since the server told the
        times; None if that takes a round trip, or waiting. *size_only*: times do not matter."""
        attributes = self._inodes[node_id].attributes
        if attributes.revoking or attributes.purging or not self._remote.leased():
            return None
        return attributes.known if size_only or attributes.times_are_known() else None

    async def getattr(self, node_id: int, *, size_only: bool = False) -> Attributes:
        """The attributes; without a round trip under a token for them, if nothing is dirty or times do not
        matter (*size_only*).

        What is dirty is written back first, and the server's times are told, as Linux's NFS does
        (`nfs_getattr`): what stat(2) has once told of a write, mtime and ctime, it tells ever after and
        everywhere. Who writes, asks and closes makes no more round trips by that: the close finds nothing to
        be written back."""
        await self._remote.until_leased()
        await self._name_drops.until_purged(self._inodes[node_id])
        known = self.getattr_at_once(node_id, size_only=size_only)
        if known is not None:
            return known
        inode = self._inodes[node_id]
        file = self._holdings.existing_file(inode.handle)
        if file is not None and file.pages.dirty:
            if file.pages.refused and (known := self.getattr_at_once(node_id, size_only=True)) is not None:
                return known  # nobody can say what the times will be; the size is ours
            try:
                with file.times_wanted():
                    await self._write_back.write_back(file)
            except FsError as exc:
                # stat(2) is not the one to tell it: fsync and close are. It gets what is known.
                log.debug("%s: its attributes are asked for without its data: %s", inode, exc)
                known = self.getattr_at_once(node_id, size_only=True)
            else:
                known = self.getattr_at_once(node_id)
            if known is not None:
                return known

        if file is not None and inode.attributes.wrote_beside_others and not size_only:
            return await self._getattr_alone(file)
        reply, _ = await self._remote.call(m.GetAttr(inode.handle), b"", partial(self._stat, inode))
        return inode.attributes.known or reply.attributes

    async def _getattr_alone(self, file: CachedFile) -> Attributes:
        """The attributes, when no other client believes any: a program here must not be told new times while
        one elsewhere is told the old ones. The reply's own are as good, if they are recalled at once."""
        inode = file.inode

        def told(reply: Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.TokenGrant)
            assert reply.attributes is not None
            self._holdings.apply(reply.tokens)
            inode.attributes.wrote_beside_others = bool(file.pages.dirty)
            self._holdings.learn(inode, reply.attributes)

        message = m.GetToken(inode.handle, TokenMode.NONE, 0, 0, TokenMode.EXCLUSIVE)
        reply, _ = await self._remote.call(message, b"", told)
        assert reply.attributes is not None
        return inode.attributes.known or reply.attributes

    async def readlink(self, node_id: int) -> bytes:
        reply, _ = await self._remote.call(m.ReadLink(self._inodes[node_id].handle))
        return reply.target

    async def statfs(self) -> FilesystemStatistics:
        """How full the server's filesystem is; as it was up to `STATISTICS_SECONDS` ago. find(1), du(1) and
        whatever else walks a tree by fts(3) ask once for each filesystem, for its type."""
        await self._remote.until_leased()
        now = trio.current_time()
        told = self._statistics
        if told is None or now - told[0] > STATISTICS_SECONDS:
            reply, _ = await self._remote.call(m.StatFs())
            told = self._statistics = (now, reply.statistics)
        return told[1]

    def _stat(self, inode: Inode, reply: Message, _: bytes | bytearray) -> None:
        assert isinstance(reply, m.Stat)
        self._holdings.told(inode, reply.attributes, reply.tokens, bare=reply.bare)
