"""Who owns a mount's session: its filesystem, and those of the daemon that want to know of the server."""

from __future__ import annotations

from collections.abc import Callable

from nfsfuse.ports.session_owner import Callback, SessionOwner
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.types import SessionId


class MountOwner(SessionOwner):
    """*filesystem* decides what is held and believed; *unreachable* and *session_began* are told besides it,
    as `SessionOwner` says."""

    def __init__(
        self,
        filesystem: SessionOwner,
        unreachable: Callable[[bool], None],
        session_began: Callable[[SessionId], None],
    ) -> None:
        self._filesystem = filesystem
        self._unreachable = unreachable
        self._session_began = session_began

    def welcomed(self, welcome: m.Welcome) -> None:
        self._filesystem.welcomed(welcome)

    def recalled(self, callback: Callback, answer: Callable[[m.Recalled | m.Done], None]) -> None:
        self._filesystem.recalled(callback, answer)

    def suspended(self) -> None:
        self._filesystem.suspended()

    def resumed(self) -> None:
        self._filesystem.resumed()

    def fenced(self) -> None:
        self._filesystem.fenced()

    def new_epoch(self, welcome: m.Welcome) -> list[m.Reclaim]:
        return self._filesystem.new_epoch(welcome)

    def refused(self, reclaimed: m.Reclaimed) -> None:
        self._filesystem.refused(reclaimed)

    def session_began(self, session_id: SessionId) -> None:
        self._filesystem.session_began(session_id)
        self._session_began(session_id)

    def unreachable(self, away: bool) -> None:
        self._filesystem.unreachable(away)
        self._unreachable(away)
