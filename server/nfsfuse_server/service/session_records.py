"""What the registry is told of sessions, so that the next start of the server knows whom to wait for, how long.

Two things must be certain before others are granted anything: that sessions that are over are forgotten, and
that this epoch grants. They are tried for as long as it takes.

And for how long sessions that have not come back were waited for is written down while grace lasts, again and
again (`nfsfuse_server.machines.grace`). What is not written when the server dies is waited once more. A
session that comes back begins anew, durably before its client is told: from then on that may believe for a
lease what it holds, and the next epoch must wait for it as long.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import trio

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import SessionId
from nfsfuse_server.service.disk import Disk
from nfsfuse_server.state.interface import KnownSession, Registry, StateError

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
"""Pause before the registry is written again after that has failed."""


class SessionRecords:
    """The sessions in *registry*; *known* are those of earlier epochs."""

    def __init__(self, known: Iterable[KnownSession], registry: Registry, disk: Disk) -> None:
        self._registry = registry
        self._disk = disk
        self._waited = {session.id for session in known if session.waited_seconds}
        """Of whom it may be written that they were waited for."""
        self._turn = trio.Lock()
        self._failed = False

    async def add(self, session: KnownSession) -> None:
        """A restarted server will know of *session*. Raises FsError if it would not."""
        try:
            await self._disk.slow(lambda: self._registry.add(session))
        except StateError as exc:
            raise FsError(errno.EIO, f"the server cannot keep a session: {exc}") from exc

    async def forget(self, sessions: Iterable[SessionId]) -> None:
        """A restarted server will not know of *sessions*. Until that is certain nothing that they held may be
        granted to others, however long it takes."""
        sessions = list(sessions)
        why = "sessions that are over cannot be removed: others wait for them"
        await self._written(lambda: self._registry.remove(sessions), why)

    async def grant(self) -> None:
        """A restarted server will know that something may have been granted in this epoch, also to those who
        have come in it."""
        await self._written(
            lambda: self._registry.granting(), "nothing is granted, as that cannot be written down"
        )

    async def _written(self, change: Callable[[], None], otherwise: str) -> None:
        """Carry out a *change* of the registry, however long it takes; the log says what is *otherwise*."""
        while True:
            try:
                await self._disk.slow(change)
                return
            except StateError as exc:
                log.critical("%s: %s", otherwise, exc)
                await trio.sleep(RETRY_SECONDS)

    async def note_waits(self, waited: Callable[[], Mapping[SessionId, float]]) -> None:
        """Write down how long those that are absent now (*waited*) have been waited for. If that fails the log
        says so, once: the next epoch waits longer."""
        async with self._turn:  # whoever comes back meanwhile is written down after this
            seconds = dict(waited())
            if not seconds:
                return
            self._waited.update(seconds)
            try:
                await self._disk.slow(lambda: self._registry.waited(seconds))
            except StateError as exc:
                if not self._failed:
                    log.warning("a restart would wait again for sessions that do not come back: %s", exc)
                self._failed = True

    async def returned(self, session: SessionId) -> None:
        """*session* is not absent any more. Raises FsError if that cannot be written down."""
        async with self._turn:
            if session not in self._waited:
                return
            try:
                await self._disk.slow(lambda: self._registry.waited({session: 0.0}))
            except StateError as exc:
                raise FsError(errno.EIO, f"the server cannot take a session back: {exc}") from exc
            self._waited.discard(session)
