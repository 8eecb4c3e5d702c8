"""What a client knows of one directory's entries, under its DIR tokens: a pure machine.

DIR is a range over the points of names (`nfsfuse.protocol.tokens.name_point`). What is held is believed, here
and by the kernel (K4): entries that are there, entries that are not, and, if all points are held, the listing.
Points are *complete* if it is known that no names are there but those in the entries. Another client that
changes a name recalls its one point; the rest stays.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right, insort
from enum import Enum

from nfsfuse.machines.point_index import PointIndex
from nfsfuse.protocol.intervals import Interval, IntervalSet
from nfsfuse.protocol.record import record
from nfsfuse.protocol.tokens import RANGE_END, name_point
from nfsfuse.protocol.types import NAME_SIZE_MAX, InodeHandle


class Unknown(Enum):
    """The kernel may believe something of this name, and the daemon does not remember what."""

    UNKNOWN = "unknown"


UNKNOWN = Unknown.UNKNOWN

Listed = tuple[bytes, int, InodeHandle]
"""One name of a listing, the cookie after it, and what it stands for."""

Entry = InodeHandle | Unknown | None
"""What a name stands for: an inode, nothing (None), or `UNKNOWN`."""


@record(frozen=True, slots=True)
class _Piece:
    """What follows one cookie. What the names stand for is in the entries: a million names are to be cheap."""

    names: tuple[bytes, ...]
    cookies: array[int]
    end: bool

    def after(self, cookie: int) -> int | None:
        """The index of what follows *cookie*, if that is here and a name of the piece has it."""
        try:
            index = self.cookies.index(cookie) + 1  # a piece has as many names as the server lists at once
        except ValueError:
            return None
        return index if index < len(self.names) or self.end else None


class DirectoryCache:
    """The entries of one directory. *pending* counts the kernel's unanswered operations in it: each may hold
    the directory's lock, which an invalidation of an entry would wait for."""

    __slots__ = (
        "_changes", "_complete", "_entries", "_index", "_listing", "_pieces", "_revoking", "held", "pending",
    )  # fmt: skip

    def __init__(self) -> None:
        self.held = IntervalSet()
        self.pending = 0
        self._entries: dict[bytes, Entry] = {}
        self._index = PointIndex()  # of the entries' names
        self._complete = IntervalSet()
        self._revoking: list[Interval] = []
        self._listing: dict[int, _Piece] = {}  # disjoint
        self._pieces: list[int] = []  # their cookies, sorted
        self._changes = 0

    # --- names ---

    def holds(self, name: bytes) -> bool:
        """Whether what is learned of *name* now may be believed."""
        point = name_point(name)
        return self.held.covers(point, point + 1) and not self._is_revoked(point)

    def _is_revoked(self, point: int) -> bool:
        return any(start <= point < end for start, end in self._revoking)

    def find(self, name: bytes) -> Entry:
        """What *name* stands for; `UNKNOWN` if only the server can tell. The kernel may be told: that a name is
        not there is remembered from then on."""
        if not self.holds(name):
            return UNKNOWN
        if name not in self._entries and self._is_complete(name):
            self._put(name, None)
        return self._entries.get(name, UNKNOWN)

    def _is_complete(self, name: bytes) -> bool:
        point = name_point(name)
        # Of a name that is too long the server has to say that (ENAMETOOLONG).
        return len(name) <= NAME_SIZE_MAX and self._complete.covers(point, point + 1)

    def stood_for(self, name: bytes) -> Entry:
        """What *name* stands for as far as the kernel may believe it, also while it is being recalled."""
        return self._entries.get(name, UNKNOWN)

    def believed(self) -> dict[bytes, Entry]:
        """All that the kernel may believe."""
        return dict(self._entries)

    def learned(self, name: bytes, entry: Entry) -> bool:
        """The server told what *name* stands for; whether the kernel may believe it until told otherwise."""
        if not self.holds(name):
            return False
        self._put(name, entry)
        return True

    def _put(self, name: bytes, entry: Entry) -> None:
        if name not in self._entries:
            self._index.add(name)
        self._entries[name] = entry

    def _drop(self, name: bytes) -> None:
        if name in self._entries:
            del self._entries[name]
            self._index.discard(name)

    def changed(self, name: bytes, entry: Entry) -> None:
        """This client has changed *name*."""
        self._forget_listing()
        self._changes += 1
        if not self.learned(name, entry):
            self._drop(name)

    # --- the listing ---

    @property
    def changes(self) -> int:
        """Counts what makes a listing that was asked for earlier out of date."""
        return self._changes

    def listed(self, cookie: int, entries: tuple[Listed, ...], end: bool, changes: int) -> None:
        """The server listed what follows *cookie*, asked for when `changes` was *changes*."""
        if self.holds_all() and changes == self._changes:
            for name, _, handle in entries:
                self._put(name, handle)
            self._keep(cookie, entries, end)

    def _keep(self, cookie: int, entries: tuple[Listed, ...], end: bool) -> None:
        """Remember what follows *cookie*, as far as it is not known. No name is to be in two pieces: a program
        that goes where no listing has led would have the same names remembered again."""
        if cookie not in self._listing:
            if entries and self._place(entries[0][1]) is not None:
                return
            insort(self._pieces, cookie)
        above = bisect_right(self._pieces, cookie)
        ascending = len(entries) > 1 and entries[0][1] < entries[1][1]
        following = self._pieces[above] if ascending and above < len(self._pieces) else None
        for index, (_, after, _) in enumerate(entries, start=1):
            if after in self._listing or (following is not None and following < after):
                entries, end = entries[:index], False
                break
        cookies = array("q", [after for _, after, _ in entries])
        self._listing[cookie] = _Piece(tuple(name for name, _, _ in entries), cookies, end)

    def knows_all(self) -> None:
        """All names that are there are in what has just been learned."""
        if self.holds_all():
            self._complete.add(0, RANGE_END)

    def listing(self, cookie: int, limit: int) -> tuple[tuple[Listed, ...], bool] | None:
        """What follows *cookie*, at most *limit* names of it, and whether nothing follows them; None if that is
        not known."""
        found = self._place(cookie) if self.holds_all() else None
        if found is None:
            return None
        piece, low = found
        high = low + limit
        listed: list[Listed] = []
        for name, after in zip(piece.names[low:high], piece.cookies[low:high], strict=True):
            handle = self._entries.get(name)
            assert isinstance(handle, bytes), "what has changed since it was listed drops the listing"
            listed.append((name, after, handle))
        return tuple(listed), piece.end and high >= len(piece.names)

    def _place(self, cookie: int) -> tuple[_Piece, int] | None:
        """Where what follows *cookie* is."""
        piece = self._listing.get(cookie)
        if piece is not None:
            return piece, 0
        # Filesystems number names in ascending order, or in descending; a listing begins with 0 always.
        above = bisect_right(self._pieces, cookie)
        for number in (*self._pieces[max(above - 1, 0) : above + 1], 0):
            piece = self._listing.get(number)
            index = None if piece is None else piece.after(cookie)
            if piece is not None and index is not None:
                return piece, index
        return None

    def _forget_listing(self) -> None:
        self._listing.clear()
        self._pieces.clear()

    def holds_all(self) -> bool:
        """Whether no name can be added or removed without this client being asked."""
        return not self._revoking and self.held.covers(0, RANGE_END)

    # --- tokens ---

    def granted(self, start: int, end: int) -> None:
        """A token has arrived."""
        self.held.add(start, end)

    def revoke(self, start: int, end: int) -> list[bytes]:
        """A recall has arrived: nothing new of it is believed from now on. The names that the kernel may
        believe something of."""
        self._revoking.append((start, end))
        self._complete.delete(start, end)
        self._forget_listing()
        self._changes += 1
        if end == start + 1:  # somebody changes one name
            return self._index.at(start)
        points = map(name_point, self._entries)
        return [name for name, point in zip(self._entries, points, strict=True) if start <= point < end]

    def revoked(self, start: int, end: int, names: list[bytes]) -> None:
        """The kernel has dropped *names*: the recall may be acknowledged."""
        for name in names:
            self._drop(name)
        self._revoking.remove((start, end))
        self.held.delete(start, end)

    def forget(self) -> None:
        """What was learned may not be so any more; the tokens stay."""
        self._entries.clear()
        self._index.replace(())
        self._complete.clear()
        self._forget_listing()
        self._changes += 1

    def lost(self) -> None:
        """The session is over: nothing is held any more."""
        self.held.clear()
        self.forget()

    def check(self) -> None:
        """Assert the invariants."""
        self.held.check()
        self._complete.check()
        assert self.pending >= 0
        for start, end in self._complete.intervals():
            assert self.held.covers(start, end), f"K4: [{start}, {end}) is complete without a token"
            assert not any(low < end and start < high for low, high in self._revoking), "complete and revoked"
        for name in self._entries:
            point = name_point(name)
            assert self.held.covers(point, point + 1), f"K4: {name!r} is believed without a token"
            assert name in self._index.at(point)
        assert len(self._index) == len(self._entries)
        assert sorted(self._listing) == self._pieces
