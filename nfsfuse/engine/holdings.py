"""Where tokens arrive: grants out of replies are put into the machines, unwanted ones go back."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable

from nfsfuse.engine.cached_directory import CachedDirectory
from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.machines.inodes import Inode, InodeTable
from nfsfuse.machines.opens_ahead import OpensAhead
from nfsfuse.machines.page_cache import PageCache
from nfsfuse.machines.tellings import Age, Tellings
from nfsfuse.ports.remote import Remote
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import Attributes, InodeHandle, Node


class Holdings:
    """All that this client holds. Everything here is synchronous: it runs in the hooks that apply replies in
    the order received. *distrust* has the kernel ask for an inode's attributes again."""

    def __init__(
        self, remote: Remote, inodes: InodeTable, cache: PageCache, distrust: Callable[[Inode], None]
    ) -> None:
        self._remote = remote
        self._inodes = inodes
        self._cache = cache
        self._distrust = distrust
        self._files: dict[InodeHandle, CachedFile] = {}
        self._directories: dict[InodeHandle, CachedDirectory] = {}
        self.opens_ahead = OpensAhead()
        self._tellings = Tellings()

    def file(self, inode: Inode) -> CachedFile:
        """The state of a regular file; made when it is first asked for."""
        file = self._files.get(inode.handle)
        if file is None:
            file = self._files[inode.handle] = CachedFile(inode, self._cache.file())
        file.now_known_as(inode)
        return file

    def existing_file(self, handle: InodeHandle) -> CachedFile | None:
        """The state of a regular file that has been used."""
        return self._files.get(handle)

    def directory(self, inode: Inode) -> CachedDirectory:
        """The state of a directory; made when it is first asked for."""
        directory = self._directories.get(inode.handle)
        if directory is None:
            directory = self._directories[inode.handle] = CachedDirectory(inode)
        return directory

    def existing_directory(self, handle: InodeHandle) -> CachedDirectory | None:
        """The state of a directory that has been used."""
        return self._directories.get(handle)

    def files(self) -> list[CachedFile]:
        """Every file that has been used."""
        return list(self._files.values())

    def directories(self) -> list[CachedDirectory]:
        """Every directory that has been used."""
        return list(self._directories.values())

    def apply(self, tokens: Iterable[Token]) -> None:
        """Grants have arrived. Those for an inode that the kernel has forgotten meanwhile go back. SHARED data
        while open for writing are ignored: they cost a recall, if ever, that is acknowledged at once."""
        unwanted = []
        for token in tokens:
            inode = self._inodes.by_handle(token.handle)
            if inode is None:
                unwanted.append(Token(token.handle, token.resource, token.start, token.end, TokenMode.NONE))
                continue
            match token.resource:
                case Resource.ATTR:
                    inode.attributes.granted(token.mode)
                case Resource.DATA:
                    self.file(inode).tokens.granted(token.start, token.end, token.mode)
                case Resource.DIR:
                    self.directory(inode).cache.granted(token.start, token.end)
        if unwanted:
            self._remote.return_tokens(tuple(unwanted))

    def age(self, handle: InodeHandle, attributes: Attributes) -> Age:
        """Whether the answer that is being applied tells of an inode what is to be believed."""
        return self._tellings.tells(handle, attributes, self._remote.answering)

    def learn(self, inode: Inode, attributes: Attributes, *, bare: bool = False) -> Age:
        """The server told attributes, *bare* as in `Node`. Whether nothing newer is known."""
        age = self.age(inode.handle, attributes)
        if age is Age.NEWEST:
            if bare:
                inode.attributes.learned_no_xattrs()
            if inode.attributes.learned(attributes) and inode.attributes.kernel_trusts:
                self._distrust(inode)
        elif age is Age.UNCLEAR:
            inode.attributes.forget_value()
            self.distrust(inode)
        return age

    def told(
        self, inode: Inode, attributes: Attributes, tokens: Iterable[Token], *, bare: bool = False
    ) -> None:
        """A reply granted *tokens*, and told attributes of *inode*, which may be kept under these."""
        self.apply(tokens)
        self.learn(inode, attributes, bare=bare)

    def distrust(self, inode: Inode) -> None:
        """The kernel is not to believe what it was told of the attributes."""
        if inode.attributes.kernel_trusts:
            self._distrust(inode)

    def learn_changed(self, node: Node) -> None:
        """The server told attributes of an inode that the kernel may know, as an operation of the kernel's has
        changed them."""
        inode = self._inodes.by_handle(node.handle)
        if inode is None:
            self.age(node.handle, node.attributes)  # it may be in an older answer that is on its way
            return
        if stat.S_ISDIR(node.attributes.mode):
            inode.attributes.changed_by_kernel()
        self.learn(inode, node.attributes)

    def found(self, node: Node, tokens: Iterable[Token], affected: Iterable[Node] = ()) -> Inode:
        """A reply told of *node* and of others that were changed with it."""
        inode = self._inodes.known(node)
        self.apply(tokens)
        self.learn(inode, node.attributes, bare=node.bare)
        for other in affected:
            self.learn_changed(other)
        return inode

    def listed(self, node: Node) -> None:
        """A listing told of *node*, with the token for its attributes."""
        inode = self._inodes.known(node)
        self.apply((Token(node.handle, Resource.ATTR, 0, RANGE_END, TokenMode.SHARED),))
        self.learn(inode, node.attributes, bare=node.bare)

    def content_came_ahead(self, inode: Inode, content: bytes | bytearray) -> None:
        """The answer to a lookup told all that is in a file."""
        file = self.file(inode)
        file.has_content(content)
        file.came_ahead = True
        self.opens_ahead.asked()

    def distrust_listings(self) -> list[CachedDirectory]:
        """No listing may be believed that was told before: the directories whose listing the kernel has."""
        return [each for each in self._directories.values() if each.kernel_listing.changed_elsewhere()]

    def never_told(self, handles: Iterable[InodeHandle]) -> None:
        """These were listed, and the kernel will not be told of them (by who listed them): what it does not
        know is not kept."""
        returned = []
        for handle in handles:
            inode = self._inodes.by_handle(handle)
            if inode is None or inode.lookups or handle in self._files or handle in self._directories:
                continue
            self._inodes.drop(inode)
            if inode.attributes.mode is not TokenMode.NONE:
                returned.append(Token(handle, Resource.ATTR, 0, RANGE_END, TokenMode.NONE))
        if returned:
            self._remote.return_tokens(tuple(returned))

    def forget(self, node_id: int, count: int) -> None:
        """The kernel forgets *count* of its lookups of an inode; or was not told of as many after all."""
        inode = self._inodes.forget(node_id, count)
        if inode is not None:
            self._forgotten(inode)

    def evicted(self, node_id: int, count: int) -> None:
        """The kernel has dropped an inode, and forgets *count* lookups of it. If it was told of it more often,
        it makes it anew of an answer that a program has yet to take in. Had the kernel been told meanwhile not
        to believe that any more, this has met the inode that it dropped: so it is told again.

        It guards against that itself (evict_ctr), but not for inodes that it drops because they have no links;
        and a removal of the only name it knows leaves none, also if another client has made a second
        (`fuse_evict_inode` in fs/fuse/inode.c, `fuse_entry_unlinked` in dir.c)."""
        self.forget(node_id, count)
        left = self._inodes.get(node_id)
        if left is not None and not left.attributes.has_to_be_told():
            self._distrust(left)

    def _forgotten(self, inode: Inode) -> None:
        """The kernel knows *inode* no more, and has dropped its pages: nothing of it is needed here."""
        held = [Token(inode.handle, Resource.ATTR, 0, RANGE_END, TokenMode.NONE)]
        directory = self._directories.pop(inode.handle, None)
        if directory is not None:
            held.append(Token(inode.handle, Resource.DIR, 0, RANGE_END, TokenMode.NONE))
        file = self._files.pop(inode.handle, None)
        if file is not None:
            assert file.open_count == 0, "the kernel forgot an open file"
            if file.pages.dirty:
                self._files[inode.handle] = file  # its write-back goes on under the tokens
                return
            file.tokens.in_kernel.clear()
            file.pages.drop(0, RANGE_END)
            held += [
                Token(inode.handle, Resource.DATA, start, end, TokenMode.NONE)
                for start, end, _ in file.tokens.everything()
            ]
        if inode.attributes.mode is not TokenMode.NONE or len(held) > 1:
            self._remote.return_tokens(tuple(held))

    def check(self) -> None:
        """Assert every invariant of the client."""
        self._tellings.check()
        self._inodes.check()
        for file in self._files.values():
            file.check()
        for directory in self._directories.values():
            directory.cache.check()
