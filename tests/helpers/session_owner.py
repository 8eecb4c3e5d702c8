"""An owner of a session whose every decision a test can replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from nfsfuse.engine.session import Session
from nfsfuse.ports.session_owner import Callback, SessionOwner
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.types import SessionId

Answer = Callable[[m.Recalled | m.Done], None]


def _nothing_is_held(callback: Callback, answer: Answer) -> None:
    raise ProtocolError("a recall before anything was granted")


@dataclass(eq=False)
class HookedOwner(SessionOwner):
    """What is not replaced holds nothing, and wants to know of nothing."""

    on_welcomed: Callable[[m.Welcome], object] = lambda welcome: None
    on_recall: Callable[[Callback, Answer], object] = _nothing_is_held
    on_suspended: Callable[[], object] = lambda: None
    on_resumed: Callable[[], object] = lambda: None
    on_fenced: Callable[[], object] = lambda: None
    on_new_epoch: Callable[[m.Welcome], list[m.Reclaim]] = lambda welcome: []
    on_refused: Callable[[m.Reclaimed], object] = lambda reclaimed: None
    on_session: Callable[[SessionId], object] = lambda session_id: None
    on_unreachable: Callable[[bool], object] = lambda away: None

    @classmethod
    def of(cls, owner: SessionOwner) -> HookedOwner:
        """What is not replaced is *owner*'s."""
        return cls(
            owner.welcomed, owner.recalled, owner.suspended, owner.resumed, owner.fenced, owner.new_epoch,
            owner.refused, owner.session_began, owner.unreachable,
        )  # fmt: skip

    def welcomed(self, welcome: m.Welcome) -> None:
        self.on_welcomed(welcome)

    def recalled(self, callback: Callback, answer: Answer) -> None:
        self.on_recall(callback, answer)

    def suspended(self) -> None:
        self.on_suspended()

    def resumed(self) -> None:
        self.on_resumed()

    def fenced(self) -> None:
        self.on_fenced()

    def new_epoch(self, welcome: m.Welcome) -> list[m.Reclaim]:
        return self.on_new_epoch(welcome)

    def refused(self, reclaimed: m.Reclaimed) -> None:
        self.on_refused(reclaimed)

    def session_began(self, session_id: SessionId) -> None:
        self.on_session(session_id)

    def unreachable(self, away: bool) -> None:
        self.on_unreachable(away)


async def begin(nursery: trio.Nursery, session: Session, owner: SessionOwner | None = None) -> m.Welcome:
    """Have *session* run in *nursery*; with no *owner*, for one that holds nothing."""
    greeted = await session.greet()
    await nursery.start(session.run, owner or HookedOwner(), greeted)
    return greeted.welcome
