"""Names that the kernel may still be deciding by, although they were recalled: a pure machine.

Who renames, exchanges or links looks its names up one after the other, under the locks of their directories,
and the kernel decides some things from what it has found by then, without asking: a rename of two names of one
inode does nothing and succeeds (``vfs_rename`` in fs/namei.c). If another client has moved the inode from the
one name to the other between the two looks, it is found at both. The token for the first name is given up
meanwhile, as that must not wait for the lock (deadlock 6): but the notification that expires the name does
wait for it. So until that is through, the first name is in *doubt*, and an answer that would lead to its inode
by another name is not given:

* It is ESTALE: the kernel ends the call, and with it the lock, and makes it once more with LOOKUP_REVAL,
  believing nothing (``retry_estale``). A look at a name that it has believed does not hear of the error, and
  asks once more (``fuse_dentry_revalidate``): it is told again. Nobody else can have begun to look anything up
  under that lock meanwhile; only in another directory somebody else can, so who asks there twice waits for a
  while.
* The second time round a program would be told of it. It is only in danger if it has just looked up the very
  name that is in doubt now, again; it found it, and found the other later. At the first of these moments the
  inode was at the first name, and so not at the other: that is *absent*, and the server decides what to do
  with the two names. So it is for the second name of a call, if waiting has not ended the doubt. Anybody else
  is told what there is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from nfsfuse.protocol.types import InodeHandle

THREADS_MAX: Final = 256
"""Threads remembered that were told ESTALE."""

REPEAT_SECONDS_MAX: Final = 1.0
"""Each does its call once more at once; on a busy machine it may have to wait for a processor."""

TOLD_MAX: Final = 2
"""How often one call may be told of one doubt: by the look at a name it believed, and by the look without."""

Place = tuple[InodeHandle, bytes]
"""A directory and a name in it."""


class Verdict(Enum):
    """What to answer to a look-up that has found an inode."""

    FOUND = "found"
    AGAIN = "again"  # ESTALE
    WAIT = "wait"  # until the doubt is over, or for a while, and then ask once more
    ABSENT = "absent"


@dataclass(slots=True, eq=False)
class Doubt:
    """The kernel may go on from *place* having led to *leads_to*."""

    place: Place
    leads_to: InodeHandle


@dataclass(slots=True, eq=False)
class _Told:
    """A thread was told ESTALE at *place*, at the time *at*, *times*. It has *looked* at these since, and was
    told of some that they are *absent*."""

    place: Place
    at: float
    times: int = 1
    looked: set[Place] = field(default_factory=set)
    absent: set[Place] = field(default_factory=set)
    found: bool = False
    """It knows what is at *place*."""

    def is_over(self, place: Place, asked: float) -> bool:
        """Whether the look at *place*, *asked* for at that time, belongs to another call."""
        return asked - self.at > REPEAT_SECONDS_MAX or (self.found and place == self.place)


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
        if told is not None and told.is_over(place, asked):
            del self._told[thread]
            told = None
        doubt = self._about(place, found)
        if told is None:
            if doubt is None:
                return Verdict.FOUND
            self._tell(thread, _Told(place, now))
            return Verdict.AGAIN
        if doubt is None:
            self._went_on(thread, told, place, found)
            return Verdict.FOUND
        if self._is_still_the_first(told, place):
            if doubt.place[0] != place[0] and not waited:
                return Verdict.WAIT
            told.times += 1
            return Verdict.AGAIN
        if doubt.place in told.looked or place in told.absent:
            return Verdict.ABSENT
        if told.found:
            if not waited:
                return Verdict.WAIT
            told.absent.add(place)
            return Verdict.ABSENT
        told.looked.add(place)
        self._went_on(thread, told, place, found)
        return Verdict.FOUND

    def acts(self, thread: int) -> None:
        """*thread* has found its names, and asks for what it wants to do with them."""
        self._told.pop(thread, None)

    def was_told(self, thread: int) -> bool:
        """Whether *thread* may be making a call once more, in which it believes no name."""
        return thread in self._told

    def _went_on(self, thread: int, told: _Told, place: Place, found: InodeHandle | None) -> None:
        """*thread* was told what there is. If that is nothing its call fails. The name at which it was stopped
        may be the first of two that it looks up."""
        told.looked.add(place)
        if found is None:
            del self._told[thread]
        elif place == told.place:
            told.found = True

    @staticmethod
    def _is_still_the_first(told: _Told, place: Place) -> bool:
        """Whether the call has not been made again yet: then it would have begun with the first name of its
        path, as it believes none. It asks for one that it has expired twice."""
        return place == told.place and told.times < TOLD_MAX and not told.looked

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
