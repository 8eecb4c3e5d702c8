"""Changes as inotify(7) tells them: for a server that fanotify(7) is not permitted.

A directory at a time: every one below the export is watched, found by a walk at the start and by its creation
later, and kept open, so that its handle stays what it is. Events name the directory and the name in it; the
inode is looked up. So some changes are not told that fanotify tells: of an inode's link count when another
of its links is removed; and of what another program renamed again before the event was read. Which events are
the server's own the `EventQueue` tells.
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Iterator, Mapping, Set
from typing import Final

import trio

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import InodeHandle
from nfsfuse_server.storage.interface import Listed
from nfsfuse_server.watch.interface import (
    PAUSE_SECONDS,
    AttributesChanged,
    Change,
    ContentChanged,
    NameChanged,
    Overflow,
    Watcher,
    WatchError,
)
from nfsfuse_server.watch.own import NotingStorage
from nfsfuse_server.watch.queue import Event, EventQueue, Key, Name

log = logging.getLogger(__name__)

# <linux/inotify.h>
IN_MODIFY: Final = 0x2
IN_ATTRIB: Final = 0x4
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
_ONLYDIR: Final = 0x01000000
IN_ISDIR: Final = 0x40000000

_APPEARS: Final = IN_CREATE | IN_MOVED_TO
_VANISHES: Final = IN_DELETE | IN_MOVED_FROM
_WATCHED: Final = IN_MODIFY | IN_ATTRIB | _APPEARS | _VANISHES | _ONLYDIR

_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE})
"""Removed while it was looked at."""

LISTED_AT_ONCE: Final = 1024
"""Entries of a directory in one step of the walk."""


class InotifyWatcher(Watcher):
    """Watches every directory of *storage*. `WatchError` if there are more than may be watched
    (fs.inotify.max_user_watches)."""

    def __init__(self, storage: NotingStorage, queue: EventQueue) -> None:
        self._storage = storage
        self._queue = queue
        self._directories: dict[int, InodeHandle] = {}  # by watch descriptor; each is pinned
        self._watches: dict[InodeHandle, int] = {}  # the reverse
        self._children: dict[Name, InodeHandle] = {}  # directories
        try:
            for _ in self._walk(storage.root().handle):
                pass
        except (FsError, OSError) as exc:
            raise WatchError(f"inotify: {exc}") from exc

    async def changes(self) -> list[Change]:
        while True:
            await self._queue.wait()
            found: dict[Change, None] = {}
            with self._queue.taking() as batches:
                for batch in batches:
                    own = batch.own()
                    for event in batch.events():
                        found.update(dict.fromkeys(self._changes_of(event, own, batch.led)))
            if found:
                return list(found)
            await trio.sleep(PAUSE_SECONDS)

    def close(self) -> None:
        for handle in self._watches:
            self._storage.unpin(handle)
        self._watches.clear()
        self._directories.clear()
        self._queue.close()

    def _changes_of(
        self, event: Event, own: Set[Key], led: Mapping[Name, InodeHandle | None]
    ) -> Iterator[Change]:
        """What *event* means if it is not about the server's *own* doing; new directories are watched from
        now on in any case. *led* tells where names led then, if they may have been led elsewhere since."""
        if event.mask & IN_Q_OVERFLOW:
            yield from self._overflowed()
            return
        directory = self._directories.get(event.watch)
        if directory is None or event.mask & IN_IGNORED:
            return
        name = (directory, event.name)
        if name in own and not event.mask & IN_ISDIR:
            return
        # In this order: where a name led is noted before it leads elsewhere.
        now = self._storage.leads_to(name) if event.name else directory
        handle = led.get(name, now)
        if event.mask & (_APPEARS | _VANISHES):
            if event.mask & IN_ISDIR:
                yield from self._directory_changed(name, event.mask, now)
            if name not in own:
                yield NameChanged(directory, event.name)
                if handle is not None:
                    yield ContentChanged(handle)
        elif handle is not None and handle not in own and name not in own:
            yield ContentChanged(handle) if event.mask & IN_MODIFY else AttributesChanged(handle)

    def _directory_changed(self, name: Name, mask: int, now: InodeHandle | None) -> Iterator[NameChanged]:
        """A directory has come or gone; *now* is where its name leads."""
        if mask & _VANISHES:
            gone = self._children.pop(name, None)
            if gone is not None and mask & IN_DELETE:
                self._unwatch(gone)
        elif now is not None and self._is_directory(now):
            self._children[name] = now
            if now not in self._watches:
                try:
                    yield from self._walk(now)
                except (FsError, OSError) as exc:
                    log.warning("changes in a new directory %r are not noticed: %s", name[1], exc)

    def _overflowed(self) -> Iterator[Change]:
        """Also new directories may have been missed."""
        try:
            for handle in [self._storage.root().handle, *self._watches]:
                for _ in self._walk(handle):
                    pass
        except (FsError, OSError) as exc:
            log.warning("changes in some new directory are not noticed: %s", exc)
        yield Overflow()

    def _walk(self, top: InodeHandle) -> Iterator[NameChanged]:
        """Watches *top* and every directory below; yields every name, as each may have come before the
        watch."""
        pending = [top]
        self._watch(top)
        while pending:
            directory = pending.pop()
            for entry in self._entries(directory):
                yield NameChanged(directory, entry.name)
                if entry.handle is not None and self._is_directory(entry.handle):
                    self._children[directory, entry.name] = entry.handle
                    if self._watch(entry.handle):
                        pending.append(entry.handle)

    def _entries(self, directory: InodeHandle) -> Iterator[Listed]:
        cookie, end = 0, False
        while not end:
            try:
                entries, end = self._storage.readdir(directory, cookie, LISTED_AT_ONCE)
            except FsError as exc:
                if exc.errno in _GONE:
                    return
                raise
            for entry in entries:
                cookie = entry.cookie
                yield entry

    def _is_directory(self, handle: InodeHandle) -> bool:
        try:
            return stat.S_ISDIR(self._storage.getattr(handle).mode)
        except FsError as exc:
            if exc.errno in _GONE:
                return False
            raise

    def _watch(self, handle: InodeHandle) -> bool:
        """Whether it is watched now and was not before."""
        if handle in self._watches:
            return False
        try:
            self._storage.pin(handle)
        except FsError as exc:
            if exc.errno in _GONE:
                return False
            raise
        try:
            number = self._queue.add(self._storage.proc_path(handle), _WATCHED)
        except OSError:
            self._storage.unpin(handle)
            raise
        self._directories[number] = handle
        self._watches[handle] = number
        return True

    def _unwatch(self, handle: InodeHandle) -> None:
        number = self._watches.pop(handle, None)
        if number is not None:
            del self._directories[number]
            self._queue.remove(number)
            self._storage.unpin(handle)
