"""A regular file as this client holds it: tokens, pages, attributes, and those who wait for them to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from nfsfuse.machines.data_tokens import DataTokens, Revocation
from nfsfuse.machines.inodes import Inode
from nfsfuse.machines.page_cache import FilePages
from nfsfuse.machines.turns import Turns
from nfsfuse.machines.write_errors import WriteErrors
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.intervals import IntervalSet
from nfsfuse.protocol.pages import page_end, pages_around
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import PAGE_SIZE, OpenId


@dataclass(slots=True, eq=False)
class Fetch:
    """A read from the server under way. What changes here in the meantime is *stale* in its reply."""

    start: int
    end: int
    stale: IntervalSet = field(default_factory=IntervalSet)
    data: memoryview = field(default_factory=lambda: memoryview(b""))
    valid: bool = False  # it came, under a token that is held


class CachedFile:
    """One file. State lives in the machines; this ties them together and wakes whoever waits."""

    def __init__(self, inode: Inode, pages: FilePages) -> None:
        self.inode = inode
        self.tokens = DataTokens()
        self.pages = pages
        self.attributes = inode.attributes
        self.attr_entitled: set[int] = set()
        self.fetches: list[Fetch] = []
        self.turns = Turns()
        self.open_count = 0
        self.open_ids: list[OpenId] = []  # on the server; they pin the inode there
        self.errors = WriteErrors()
        self.made_here = False
        """This client has made it, and not closed it since."""
        self.came_ahead = False
        """Its content came when its name was looked up, and it was not opened since."""
        self.purging = 0
        """The kernel may still have pages of a session that is over: what it writes back is refused."""
        self.telling_times = 0
        """Programs that wait to be told the times: see `Names.getattr`."""
        self._waiting = trio.lowlevel.ParkingLot()

    def now_known_as(self, inode: Inode) -> None:
        """The kernel has forgotten the inode and learned of it anew, while data were still written back."""
        self.inode = inode
        self.attributes = inode.attributes

    async def changed(self) -> None:
        """Wait until something of this file's state has changed."""
        await self._waiting.park()

    async def begun(self, revocation: Revocation) -> None:
        """Wait until *revocation*, which this client has made for itself, may begin. Cancelled, it is gone."""
        try:
            while not self.tokens.may_begin(revocation):
                await self.changed()
        except BaseException:
            self.tokens.revoked(revocation)
            self.wake()
            raise

    def wake(self) -> None:
        """Something has changed."""
        if self._waiting:
            self._waiting.unpark_all()

    @contextmanager
    def times_wanted(self) -> Iterator[None]:
        """While what is dirty is written back to learn the times, write(2) waits: they are to be those of all
        that was written before they were told, and somebody who writes on and on must not put that off."""
        self.telling_times += 1
        try:
            yield
        finally:
            self.telling_times -= 1
            self.wake()

    def size(self) -> int | None:
        """The file's size, if this client may know it."""
        return self.attributes.size()

    def entitle(self, start: int, end: int, *, attr: bool) -> int:
        """See `DataTokens.entitle`; with *attr* recalls of the attributes wait for the operation, too."""
        number = self.tokens.entitle(start, end)
        if attr:
            self.attr_entitled.add(number)
        return number

    def used(self, number: int | None) -> None:
        """The operation entitled as *number* has run or given up."""
        if number is not None:
            self.tokens.used(number)
            self.attr_entitled.discard(number)
            self.wake()

    def has_content(self, content: bytes | bytearray) -> None:
        """The server told all that is in it. It counts if all of it is held: else it may have changed since."""
        if self.tokens.holds(0, page_end(len(content)), TokenMode.SHARED):
            self.pages.fill(0, content, IntervalSet())

    def changes(self, start: int, end: int) -> None:
        """Data of ``[start, end)`` change here: fetches under way bring something older."""
        for fetch in self.fetches:
            fetch.stale.add(max(start, fetch.start), min(end, fetch.end))

    def truncated(self, size: int) -> None:
        """The file was cut (or grown) to *size* on the server: nothing beyond is valid."""
        self.changes(size, RANGE_END)
        self.pages.cut(size)
        self.attributes.changed_here = False  # the server's are the true ones now, size and times
        self.attributes.forget_xattr_values()

    def share(self) -> tuple[Token, ...]:
        """Nobody here has it open any more: keep SHARED of what is held EXCLUSIVE, if all is. What is given up
        by that; nothing if something is still to be written back, or is being recalled, or is seen here and by
        nobody else."""
        attributes = self.attributes
        if self.pages.dirty or attributes.changed_here or attributes.revoking or self.tokens.revocations:
            return ()
        if self.tokens.untaken:
            return ()
        exclusive = attributes.mode is TokenMode.EXCLUSIVE
        if not exclusive or not self.tokens.holds(0, RANGE_END, TokenMode.EXCLUSIVE):
            return ()
        self.tokens.reduce(0, RANGE_END, TokenMode.SHARED)
        attributes.reduced(TokenMode.SHARED)
        return tuple(
            Token(self.inode.handle, resource, 0, RANGE_END, TokenMode.SHARED)
            for resource in (Resource.DATA, Resource.ATTR)
        )

    def refusal(self) -> FsError | None:
        """Why the server does not take what is dirty here; None if nothing was refused."""
        refusal = self.errors.refusal
        return refusal.alone() if refusal is not None and self.pages.refused else None

    def nothing_refused(self) -> None:
        """Something was dropped: if that was all that was refused, the next refusal is news."""
        if not self.pages.refused:
            self.errors.settled()

    def lost(self, error: FsError) -> None:
        """Data that were written here are lost, after they were dropped. Every open file is told, and the size
        is asked for again, as it may have been these data's."""
        self.errors.lost(error)
        self.nothing_refused()
        # What is left does not make it the holder of the size again, if a recall has just taken that.
        self.attributes.changed_here &= bool(self.pages.dirty)
        self.attributes.forget_value()
        self.wake()

    def forget_everything(self) -> None:
        """The session is over: no token is held, and nothing here may be believed."""
        self.changes(0, RANGE_END)
        self.pages.cut(0)
        self.nothing_refused()
        self.tokens.lost()
        self.attr_entitled.clear()
        self.open_ids.clear()
        self.wake()

    def check(self) -> None:
        """Assert the invariants."""
        self.tokens.check()
        self.pages.check()
        for start, end in self.pages.dirty.intervals():
            low, high = pages_around(start, end)
            for at in (low, high - PAGE_SIZE):
                assert (self.tokens.held.at(at) or 0) == 2, (
                    f"K3: dirty [{start}, {end}) is not held exclusively"
                )
