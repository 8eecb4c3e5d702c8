"""Which of several answers tells the newest attributes: a pure machine.

The server answers requests of one client side by side. One that lists a directory, or finds the disk busy, has
read the attributes of an inode in a thread, and is answered after another that has changed them since: an
unlink, or a write. Under a token others are kept from changing anything meanwhile, the client itself is not.

So the answer to a request is compared with what was told of the same inode *since it was asked*, also while no
token was held and nothing of it was believed. Requests are numbered in the order in which they are asked. What
was told is needed for as long as a request is unanswered that was asked before: of most mounts at most times
that is nothing. Linux's FUSE does this with one counter, the attr_version, and does not ask for the ctime.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Final, NamedTuple

from nfsfuse.protocol.types import Attributes, InodeHandle, RequestId
from nfsfuse.rpc.exchange import Answering

TELLINGS_MAX: Final = 4096
"""Inodes remembered. A request may stay unanswered for long (a lock that somebody else has), and be the oldest
all the time."""


class Age(Enum):
    """What an answer tells, beside what others have."""

    NEWEST = "nothing newer has been told"
    OLDER = "something newer has been told"
    UNCLEAR = "what has been told since the request was asked may be newer or older"


class _Told(NamedTuple):
    newest: RequestId  # asked by then
    attributes: Attributes
    clear: bool  # whether they are the newest that were told; else there were others with their ctime


class Tellings:
    """What the answers have told. *tellings_max* is for tests."""

    def __init__(self, tellings_max: int = TELLINGS_MAX) -> None:
        self._tellings_max = tellings_max
        self._told: dict[InodeHandle, _Told] = {}  # in the order of `_Told.newest`
        self._forgotten = RequestId(0)  # what was told when this was the newest request is not remembered

    def __len__(self) -> int:
        return len(self._told)

    def tells(self, handle: InodeHandle, attributes: Attributes, answering: Answering) -> Age:
        """An answer tells *attributes* of an inode. To be called for every one that tells any, in the order
        in which they arrive."""
        request, oldest, newest = answering
        told = self._told
        if told:
            self._drop_older(oldest)
        last = told.pop(handle, None)
        if request <= self._forgotten:
            age, clear = Age.UNCLEAR, False
        elif last is not None and request <= last.newest:
            age = _age(attributes, last)
            clear = last.clear if age is Age.OLDER else age is Age.NEWEST
        elif oldest == newest:
            return Age.NEWEST  # as mostly: no other request is under way, which could tell something older
        else:
            age, clear = Age.NEWEST, True
        if last is not None and age is not Age.NEWEST and attributes.ctime_ns < last.attributes.ctime_ns:
            attributes = last.attributes
        told[handle] = _Told(newest, attributes, clear)
        if len(told) > self._tellings_max:
            self._forgotten = told.pop(next(iter(told))).newest
        return age

    def _drop_older(self, oldest: RequestId) -> None:
        """Forget what was told before any of the unanswered requests was asked."""
        told = self._told
        while told:
            first = next(iter(told))
            if told[first].newest >= oldest:
                break
            del told[first]

    def check(self) -> None:
        """Assert the invariants."""
        asked = [each.newest for each in self._told.values()]
        assert asked == sorted(asked)
        assert len(asked) <= self._tellings_max


def _age(attributes: Attributes, last: _Told) -> Age:
    """Of *attributes* that were read before or after what was told *last*. Every change sets the ctime, to the
    server's clock; where that is coarse, two may have the same. Only the atime changes by itself."""
    other = last.attributes
    if attributes.ctime_ns != other.ctime_ns:
        return Age.NEWEST if attributes.ctime_ns > other.ctime_ns else Age.OLDER
    same = last.clear and replace(attributes, atime_ns=other.atime_ns) == other
    return Age.NEWEST if same else Age.UNCLEAR
