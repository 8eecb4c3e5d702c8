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
  (``retry_estale``).
* The second time round a program would be told of the error. A rename does not come so far: it has asked for
  what it wants. So everybody is told what there is then.

(An error for the look itself would not do: of names that are to be made ``filename_create`` tells it to
programs.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeVar

from nfsfuse.protocol.types import InodeHandle

THREADS_MAX: Final = 256
"""Threads remembered that make a call once more, and stand-ins that were told."""

REPEAT_SECONDS_MAX: Final = 1.0
"""They do at once; on a busy machine one may have to wait for a processor."""

LOOKS_MAX: Final = 4
"""How often a call asks for one name: to believe it again, and as that is not so; and once more each, if
another program was faster with the second."""

Place = tuple[InodeHandle, bytes]
"""A directory and a name in it."""


class Verdict(Enum):
    """What to answer to a look-up that has found an inode."""

    FOUND = "found"
    AGAIN = "again"  # a stand-in


@dataclass(slots=True, eq=False)
class Doubt:
    """The kernel may go on from *place* having led to *leads_to*."""

    place: Place
    leads_to: InodeHandle


@dataclass(slots=True, eq=False)
class _Again:
    """A thread makes a call once more since *began*, because of what it was told at *place*. It has *looked*
    at these since, and been told *found* times what is there."""

    place: Place
    began: float
    looked: set[Place] = field(default_factory=set)
    found: int = 0


class Doubts:
    """Those of a mount."""

    __slots__ = ("_again", "_doubts", "_stand_ins")

    def __init__(self) -> None:
        self._doubts: dict[Doubt, None] = {}
        self._stand_ins: dict[int, tuple[int, Place]] = {}  # by node id: who was told of it, and where
        self._again: dict[int, _Again] = {}  # by thread, in the order begun

    def __bool__(self) -> bool:
        """Whether an answer may be any other than FOUND, or a look has to be remembered."""
        return bool(self._doubts or self._again)

    def begin(self, place: Place, leads_to: InodeHandle) -> Doubt:
        """A name that the kernel may believe is given up, and not known to be dropped."""
        doubt = Doubt(place, leads_to)
        self._doubts[doubt] = None
        return doubt

    def over(self, doubt: Doubt) -> None:
        """Whoever had its directory locked has let it go."""
        del self._doubts[doubt]

    def looks(self, thread: int, place: Place, found: InodeHandle | None, now: float) -> Verdict:
        """*thread* of some program looks *place* up, which leads to *found*."""
        again = self._again.get(thread)
        if again is not None and now - again.began > REPEAT_SECONDS_MAX:
            del self._again[thread]
            again = None
        doubt = self._about(place, found)
        if again is None:
            return Verdict.FOUND if doubt is None else Verdict.AGAIN
        if doubt is not None and (doubt.place in again.looked or (again.found and place != again.place)):
            return Verdict.AGAIN  # it is another call
        again.looked.add(place)
        again.found += place == again.place
        if found is None or again.found == LOOKS_MAX:
            del self._again[thread]
        return Verdict.FOUND

    def told(self, stand_in: int, thread: int, place: Place) -> None:
        """*thread* is told that *place* leads to an inode of this node id."""
        _put(self._stand_ins, stand_in, (thread, place))

    def wanted(self, stand_in: int, now: float) -> None:
        """Something is wanted of a stand-in: who was told of it makes its call once more."""
        told = self._stand_ins.pop(stand_in, None)
        if told is not None:
            thread, place = told
            _put(self._again, thread, _Again(place, now))

    def acts(self, thread: int) -> None:
        """*thread* has found its names, and asks for what it wants to do with them."""
        self._again.pop(thread, None)

    def is_again(self, thread: int) -> bool:
        """Whether *thread* may be making a call once more, in which it believes no name."""
        return thread in self._again

    def _about(self, place: Place, found: InodeHandle | None) -> Doubt | None:
        if found is not None:
            for doubt in self._doubts:
                if doubt.leads_to == found and doubt.place != place:
                    return doubt
        return None


K = TypeVar("K")
V = TypeVar("V")


def _put(into: dict[K, V], key: K, value: V) -> None:
    into.pop(key, None)
    into[key] = value
    if len(into) > THREADS_MAX:
        del into[next(iter(into))]
