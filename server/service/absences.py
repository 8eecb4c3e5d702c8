"""For how long sessions that have not come back were waited for, kept for the next epoch (`Grace`).

Written down while grace lasts, again and again; what is not written when the server dies is waited once more.
A session that comes back begins anew, durably before its client is told: from then on that may believe for a
lease what it holds, and the next epoch must wait for it as long.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping

import trio

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import SessionId
from server.service.disk import Disk
from server.state.interface import KnownSession, Registry, StateError

log = logging.getLogger(__name__)


class Absences:
    """Of the sessions *known* from earlier epochs, in *registry*."""

    def __init__(self, known: Iterable[KnownSession], registry: Registry, disk: Disk) -> None:
        self._registry = registry
        self._disk = disk
        self._written = {session.id for session in known if session.waited_seconds}
        self._turn = trio.Lock()
        self._failed = False

    async def note(self, waited: Callable[[], Mapping[SessionId, float]]) -> None:
        """Write down how long those that are absent now (*waited*) have been waited for. If that fails the log
        says so, once: the next epoch waits longer."""
        async with self._turn:  # whoever comes back meanwhile is written down after this
            seconds = dict(waited())
            if not seconds:
                return
            self._written.update(seconds)
            try:
                await self._disk.slow(lambda: self._registry.waited(seconds))
            except StateError as exc:
                if not self._failed:
                    log.warning("a restart would wait again for sessions that do not come back: %s", exc)
                self._failed = True

    async def returned(self, session: SessionId) -> None:
        """*session* is not absent any more. Raises FsError if that cannot be written down."""
        async with self._turn:
            if session not in self._written:
                return
            try:
                await self._disk.slow(lambda: self._registry.waited({session: 0.0}))
            except StateError as exc:
                raise FsError(errno.EIO, f"the server cannot take a session back: {exc}") from exc
            self._written.discard(session)
