"""What the file service is told of changes that other programs make directly in the exported directory.

Eventual, and not a promise: a change is told after it was made, when the kernel's queue has been read, and
some kinds of change are told by no kernel at all (a store through a mapping of another program). What the
server itself does is never told.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from nfsfuse.protocol.record import record
from nfsfuse.protocol.types import InodeHandle

PAUSE_SECONDS: Final = 0.01
"""Between two looks at the queue. A server at work makes most of the events itself: without a pause each of its
operations would wake it once more, to find its own doing. (3 ms were 3 % of a page's way from one client to
another.)"""


@record(frozen=True, slots=True)
class NameChanged:
    """*name* was made or removed in *directory*, or leads to another inode now; with it the directory's own
    attributes have changed."""

    directory: InodeHandle
    name: bytes


@record(frozen=True, slots=True)
class AttributesChanged:
    """Mode, owner, times, link count or extended attributes."""

    handle: InodeHandle


@record(frozen=True, slots=True)
class ContentChanged:
    """Data, and with it size and times; where in the file is not known."""

    handle: InodeHandle


@record(frozen=True, slots=True)
class Overflow:
    """Changes were more than could be queued: anything may have changed."""


Change = NameChanged | AttributesChanged | ContentChanged | Overflow


class WatchError(Exception):
    """Changes cannot be watched in this way; the text says why."""


class Watcher(ABC):
    """A queue of changes. Handles are those that the storage issues; also inodes outside the export may be
    told, which nobody holds."""

    @abstractmethod
    async def changes(self) -> list[Change]:
        """Waits until there are some; in the order they were made, each at most once."""

    @abstractmethod
    def close(self) -> None:
        """Stops watching. `changes` must not be running."""
