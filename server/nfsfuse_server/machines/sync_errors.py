"""Whom a failure of the disk concerns: a pure machine.

What the kernel could not write to the disk it tells once, to the first fsync of the descriptor (lib/errseq.c).
The server has one descriptor for all clients, but each of them may have had data there: a session that has
written to the file since its last fsync is told at its next, and every one once.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import InodeHandle, SessionId

UNSYNCED_MAX: Final = 65_536
"""Files that a session has written to and not synchronised, remembered: the kernel writes what is older than
half a minute by itself, and a client cannot write to that many files in that time."""


class SyncErrors:
    """Which sessions are still to be told of which errors."""

    def __init__(self) -> None:
        self._unsynced: dict[SessionId, OrderedDict[InodeHandle, FsError | None]] = {}

    def wrote(self, session: SessionId, handle: InodeHandle) -> None:
        """*session* has written to the file."""
        files = self._unsynced.setdefault(session, OrderedDict())
        files.setdefault(handle, None)
        files.move_to_end(handle)
        if len(files) > UNSYNCED_MAX:
            files.popitem(last=False)

    def failed(self, session: SessionId, handle: InodeHandle, error: FsError) -> None:
        """An fsync of *session* has failed, which is told so. The others' data may be lost as well."""
        for other, files in self._unsynced.items():
            if other == session:
                files.pop(handle, None)
            elif handle in files:
                files[handle] = error.alone()

    def synced(self, session: SessionId, handle: InodeHandle) -> FsError | None:
        """An fsync of *session* has succeeded: what it is to be told all the same."""
        files = self._unsynced.get(session)
        return None if files is None else files.pop(handle, None)

    def ended(self, session: SessionId) -> None:
        """The session is over."""
        self._unsynced.pop(session, None)
