"""Names that the kernel may still be deciding by, although they were recalled: a pure machine.

Who renames, exchanges or links looks its names up one after the other, under the locks of their directories,
and the kernel decides some things from what it has found by then, without asking: a rename of two names of one
inode does nothing and succeeds (``vfs_rename`` in fs/namei.c). If another client has moved the inode from the
one name to the other between the two looks, it is found at both. The token for the first name is given up
meanwhile, as that must not wait for the lock (deadlock 6): but the notification that expires the name does
wait for it. So until that is through, the first name is in *doubt*, and an answer that would lead to its inode
by another name is not given:

* It leads to a *stand-in*, an inode that the kernel does not know yet. A rename then finds two inodes, and
  asks the server, which decides. Who makes a name finds that it is there. Whoever wants anything of that inode
  is told ESTALE, and the kernel makes the call once more with LOOKUP_REVAL, believing no name
  (``retry_estale``). A name that it has believed it finds to lead elsewhere, and asks once more
  (``fuse_dentry_revalidate``): it is told the same. (In another directory than that of the doubt it may be a
  call made again, so that waits for a while first.)
* The second time round a program would be told of the error. A rename does not come so far: it has asked for
  what it wants. So everybody is told what there is then.

(An error for the look itself would not do: of names that are to be made ``filename_create`` tells it to
programs.)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from nfsfuse.protocol.types import InodeHandle

THREADS_MAX: Final = 256
"""Threads remembered that were told of a stand-in."""

REPEAT_SECONDS_MAX: Final = 1.0
"""Each does its call once more at once; on a busy machine it may have to wait for a processor."""

TOLD_MAX: Final = 2
"""How often a call asks for one name: to believe it again, and if that is not so."""

Place = tuple[InodeHandle, bytes]
"""A directory and a name in it."""


class Verdict(Enum):
    """What to answer to a look-up that has found an inode."""

    FOUND = "found"
    AGAIN = "again"  # a stand-in
    WAIT = "wait"  # until the doubt is over, or for a while, and then ask once more


@dataclass(slots=True, eq=False)
class Doubt:
    """The kernel may go on from *place* having led to *leads_to*."""

    place: Place
    leads_to: InodeHandle


@dataclass(slots=True, eq=False)
class _Told:
    """A thread was told of a stand-in at *place*, at the time *at*, *times*. It has looked *elsewhere* since,
    and has been told *found* times what is there."""

    place: Place
    at: float
    times: int = 1
    elsewhere: bool = False
    found: int = 0

    def is_over(self, asked: float) -> bool:
        """Whether what was *asked* at that time belongs to another call."""
        return asked - self.at > REPEAT_SECONDS_MAX


class Doubts:
    """Those of a mount."""

    __slots__ = ("_doubts", "_told")

    def __init__(self) -> None:
        self._doubts: dict[Doubt, None] = {}
        self._told: dict[int, _Told] = {}  # by thread, in the order told

    def __bool__(self) -> bool:
        """Whether an answer may be any other than FOUND, or a look has to be remembered."""
        return bool(self._doubts or self._told)

    def begin(self, place: Place, leads_to: InodeHandle) -> Doubt:
        """A name that the kernel may believe is given up, and not known to be dropped."""
        doubt = Doubt(place, leads_to)
        self._doubts[doubt] = None
        return doubt

    def over(self, doubt: Doubt) -> None:
        """Whoever had its directory locked has let it go."""
        del self._doubts[doubt]

    def looks(
        self, thread: int, place: Place, found: InodeHandle | None, asked: float, now: float,
        *, waited: bool = False,
    ) -> Verdict:  # fmt: skip
        """*thread* of some program *asked* at that time what *place* leads to; *now* it is known to be *found*.
        *waited*: it was to wait."""
        told = self._told.get(thread)
        if told is not None and told.is_over(asked):
            del self._told[thread]
            told = None
        doubt = self._about(place, found)
        if told is None:
            if doubt is None:
                return Verdict.FOUND
            self._tell(thread, _Told(place, now))
            return Verdict.AGAIN
        if place != told.place:
            return self._looks_elsewhere(thread, told, doubt, found)
        if doubt is not None and self._is_still_the_first(told):
            if doubt.place[0] != place[0] and not waited:
                return Verdict.WAIT
            told.times += 1
            return Verdict.AGAIN
        told.found += 1
        if found is None or told.found == TOLD_MAX:
            del self._told[thread]
        return Verdict.FOUND

    def _looks_elsewhere(
        self, thread: int, told: _Told, doubt: Doubt | None, found: InodeHandle | None
    ) -> Verdict:
        """On the way there, or in another call."""
        told.elsewhere = True
        if found is None:
            del self._told[thread]
        return Verdict.AGAIN if doubt is not None and told.found else Verdict.FOUND

    def acts(self, thread: int) -> None:
        """*thread* has found its names, and asks for what it wants to do with them."""
        self._told.pop(thread, None)

    def was_told(self, thread: int) -> bool:
        """Whether *thread* may be making a call once more, in which it believes no name."""
        return thread in self._told

    @staticmethod
    def _is_still_the_first(told: _Told) -> bool:
        """Whether the call has not been made again yet: then it would have begun with the first name of its
        path, as it believes none. It asks for one that it has expired twice."""
        return told.times < TOLD_MAX and not told.elsewhere and not told.found

    def _about(self, place: Place, found: InodeHandle | None) -> Doubt | None:
        if found is not None:
            for doubt in self._doubts:
                if doubt.leads_to == found and doubt.place != place:
                    return doubt
        return None

    def is_in_doubt(self, place: Place, found: InodeHandle) -> bool:
        """Whether the kernel may go on from another name that led to *found*."""
        return self._about(place, found) is not None

    def _tell(self, thread: int, told: _Told) -> None:
        self._told.pop(thread, None)
        self._told[thread] = told
        if len(self._told) > THREADS_MAX:
            del self._told[next(iter(self._told))]
