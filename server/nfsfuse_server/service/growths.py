"""Sizes that others have to be told: a file has become longer, and some clients have it open.

A kernel goes by the size that it believes in where it asks nobody: in a read fault, in splice(2), sendfile(2)
and copy_file_range(2). So whoever makes a file longer is answered when all who have it open have said that
their kernels know. None of them waits for anything that is granted to say so, and one that does not say so in
its lease is fenced, as if it had not answered a recall.
"""

from __future__ import annotations

import itertools
from collections.abc import Coroutine
from typing import Any

import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.types import SessionId
from nfsfuse_server.machines.leases import Leases
from nfsfuse_server.machines.open_counts import OpenCounts
from nfsfuse_server.service.calls import Call, TellOthers
from nfsfuse_server.service.session import Session


class _Telling:
    """One growth, and the sessions that have not said yet that they know of it."""

    def __init__(self, sessions: tuple[SessionId, ...]) -> None:
        self._left = set(sessions)
        self._told = trio.Event()

    def told(self, session: SessionId) -> None:
        """*session* knows, or is over."""
        self._left.discard(session)
        if not self._left:
            self._told.set()

    async def wait(self, call: Call) -> bool:
        """Until all know, or the client that made the file longer gives up on *call*. It is answered all the
        same: what others have to be told has happened."""
        try:
            await self._told.wait()
        except trio.Cancelled:
            if not call.session.has_given_up(call.id):
                raise
        return True


class Growths:
    """Tells the sessions of a service how long files have become."""

    def __init__(
        self, sessions: dict[SessionId, Session], open_counts: OpenCounts, leases: Leases
    ) -> None:
        self._sessions = sessions
        self._open_counts = open_counts
        self._leases = leases
        self._numbers = itertools.count(-1, -1)  # beside those of recalls, which are positive
        self._unanswered: dict[SessionId, dict[int, _Telling]] = {}

    def tell(self, call: Call, step: TellOthers) -> bool | Coroutine[Any, Any, bool]:
        """Carry out a TellOthers step."""
        others = self._open_counts.others(call.session.id, step.handle)
        if not others:
            return False
        telling = _Telling(others)
        for other in others:
            self._send(other, m.Grew(step.handle, step.size), telling)
        return telling.wait(call)

    def _send(self, to: SessionId, message: m.Grew, telling: _Telling) -> None:
        number = next(self._numbers)
        self._unanswered.setdefault(to, {})[number] = telling

        def answered(_reply: m.Message, _: bytes | bytearray) -> None:
            if to in self._sessions:
                self._leases.answered(to, number)
                del self._unanswered[to][number]
                telling.told(to)

        self._leases.recalled(to, number, trio.current_time())
        self._sessions[to].channel.post(message, answered)

    def dropped(self, session: Session) -> None:
        """The session is over: nobody waits for what it has not said."""
        for telling in self._unanswered.pop(session.id, {}).values():
            telling.told(session.id)
