"""What a session needs of whoever caches and holds things under it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.types import SessionId

Callback = m.Recall | m.Gone | m.Moved | m.Grew
"""What the server asks of a client."""


class SessionOwner(Protocol):
    """Is told what becomes of a session, synchronously, before anything else of its connection is looked
    at. None of these waits."""

    def welcomed(self, welcome: m.Welcome) -> None:
        """The server, perhaps a new one, has greeted. Comes first of what a new connection brings."""

    def recalled(self, callback: Callback, answer: Callable[[m.Recalled | m.Done], None]) -> None:
        """The server asks for something; *answer* is called when it is done."""

    def suspended(self) -> None:
        """The lease is about to run out: what is cached is to be dropped, what is held is kept."""

    def resumed(self) -> None:
        """The lease runs again, and nothing was lost."""

    def fenced(self) -> None:
        """There is a new session. Nothing that was held in the old one is held any more."""

    def new_epoch(self, welcome: m.Welcome) -> list[m.Reclaim]:
        """The server was started anew and has forgotten all that is held, but not the session: what is to be
        reclaimed."""

    def refused(self, reclaimed: m.Reclaimed) -> None:
        """Of what was reclaimed, this is not held any more."""

    def session_began(self, session_id: SessionId) -> None:
        """There is a session with this id: the first one, one after a fence, or the same in a new epoch."""

    def unreachable(self, away: bool) -> None:
        """The server has been away for so long that programs do not wait for it, or (False) is back after
        that. Of soft mounts only."""
