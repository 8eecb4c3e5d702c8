"""The token manager at work: its effects put on the sessions' connections, in order.

Everything here is synchronous. `acquire` returns the tokens at once or a `Waiting`; recalls go out as requests
to the holder, and their replies are fed back as acknowledgements. What waited goes on as soon as the event that
granted it has been dealt with (`resume_granted`), without a turn of the scheduler: the way of a page from one
client to another has enough of them.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

import trio

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import InodeHandle, SessionId
from nfsfuse_server.machines.leases import Leases
from nfsfuse_server.machines.token_effects import Effect, Granted, Recall, Refused
from nfsfuse_server.machines.tokens import TokenManager
from nfsfuse_server.service.calls import Acquire, AcquireRun, Call, Clear, Hold, Tell, Use
from nfsfuse_server.service.session import Session

log = logging.getLogger(__name__)

NOBODY: Final = SessionId(b"")
"""Whose changes directly in the exported directory are: programs' on the server. No session has this id."""

DirectChange = tuple[InodeHandle, Resource, int, int]
"""What has changed: a range of a resource."""


class Waiting:
    """A request that is in the token manager's queue. Whoever asked waits for it in a task (`wait`), or says
    how to go on (`then`)."""

    def __init__(self, ticket: int, tokens: Tokens) -> None:
        self._ticket = ticket
        self._owner = tokens
        self._event: trio.Event | None = None
        self._go_on: Callable[[tuple[Token, ...]], None] | None = None
        self._tokens: tuple[Token, ...] | None = None

    @property
    def granted(self) -> bool:
        """Whether it has been."""
        return self._tokens is not None

    def grant(self, tokens: tuple[Token, ...]) -> bool:
        """It is granted; whether `resume` has to be called."""
        self._tokens = tokens
        if self._event is not None:
            self._event.set()
        return self._go_on is not None

    def then(self, go_on: Callable[[tuple[Token, ...]], None]) -> None:
        """Have *go_on* called with the tokens, after the event that grants them. It must not raise."""
        self._go_on = go_on
        if self.granted:
            self._owner.resume_later(self)

    def resume(self) -> None:
        """Go on, with the tokens. Nothing happens if the wait was given up."""
        if self._go_on is not None:
            assert self._tokens is not None
            self._go_on(self._tokens)

    def give_up(self) -> None:
        """The request leaves the queue."""
        self._go_on = None
        self._owner.cancelled(self._ticket)

    async def wait(self) -> tuple[Token, ...]:
        """The tokens, once they are granted. Cancelled, the request leaves the queue."""
        if self._tokens is None:
            self._event = trio.Event()
            try:
                await self._event.wait()
            except trio.Cancelled:
                self.give_up()
                raise
        assert self._tokens is not None
        return self._tokens


TOLD_SECONDS_MAX: Final = 0.1
"""How long clients are waited for that are told of a change. They answer at once if their kernel is stuck; one
that has vanished must not delay it by more than its recalls did."""


async def _waited(over: trio.Event) -> None:
    with trio.move_on_after(TOLD_SECONDS_MAX):
        await over.wait()


class Tokens:
    """The one token manager of a service. *pin* and *unpin* keep an inode on the storage while any token on
    it is held although its last name is gone: a client may have opened it under its tokens alone. (Pinning
    every inode that anybody holds would take a descriptor each.) *pin* may wait for the disk, and is called by
    the driver; *unpin* must not: it has a task wait."""

    def __init__(
        self,
        sessions: dict[SessionId, Session],
        pin: Callable[[InodeHandle], None],
        unpin: Callable[[InodeHandle], None],
        leases: Leases,
    ) -> None:
        self.manager = TokenManager()
        self._leases = leases
        self._sessions = sessions
        self.pin = pin
        self._unpin = unpin
        self._pinned: set[InodeHandle] = set()
        self._tickets = itertools.count(1)
        self._waiting: dict[int, Waiting] = {}
        self._resumable: deque[Waiting] = deque()
        self._resuming = False
        self._ending = False
        self._direct: dict[int, DirectChange] = {}  # by ticket: waiting, for nobody
        self._direct_waiting: set[DirectChange] = set()  # the same

    # --- what handlers ask for ---

    def acquire(self, call: Call, step: Acquire) -> tuple[Token, ...] | Waiting | None:
        """Carry out an Acquire step."""
        ticket = next(self._tickets)
        call.granted_handles += (step.handle,)
        effects = self.manager.acquire(
            ticket, call.session.id, step.handle, step.resource, step.start, step.end, step.mode,
            wait=step.wait,
        )  # fmt: skip
        result = self._begun(ticket, effects)
        if result is not None:
            call.granted += (ticket,)
        return result

    def acquire_run(self, call: Call, step: AcquireRun) -> int:
        """Carry out an AcquireRun step."""
        for count, handle in enumerate(step.handles):
            ticket = next(self._tickets)
            effects = self.manager.acquire(
                ticket, call.session.id, handle, step.resource, 0, RANGE_END, step.mode, wait=False
            )
            if self._begun(ticket, effects) is None:
                return count
            call.granted += (ticket,)
            call.granted_handles += (handle,)
        return len(step.handles)

    def hold(self, call: Call, step: Hold) -> tuple[Token, ...] | Waiting | None:
        """Carry out a Hold step."""
        ticket = next(self._tickets)
        effects = self.manager.acquire(
            ticket, call.session.id, step.handle, step.resource, step.start, step.end, step.mode,
            transient=True, also=step.also, urgent=step.urgent,
        )  # fmt: skip
        if step.resource is Resource.DIR:
            call.recalled |= {effect.session for effect in effects if isinstance(effect, Recall)}
        result = self._begun(ticket, effects)
        if result is not None:
            call.held += (ticket,)
        return result

    def clear(self, call: Call, step: Clear) -> None:
        """Carry out a Clear step."""
        for handle in step.handles:
            self._ask_others(call.session, handle, step.resource, step.mode)

    def use(self, call: Call, step: Use) -> bool:
        """Carry out a Use step."""
        ticket = next(self._tickets)
        used = self.manager.use(
            ticket, call.session.id, step.handle, step.resource, step.start, step.end, step.mode,
            also=step.also,
        )
        if used:
            call.held += (ticket,)
        return used

    def tell(self, call: Call, step: Tell) -> Coroutine[Any, Any, None] | None:
        """Carry out a Tell step."""
        told = [self._sessions[session] for session in call.recalled if session in self._sessions]
        left, over = len(told), trio.Event()

        def heard(reply: m.Message, _: bytes | bytearray) -> None:
            nonlocal left
            left -= 1
            if not left:
                over.set()

        for session in told:
            session.channel.post(step.message, heard)
        return _waited(over) if told and step.wait else None

    def _begun(self, ticket: int, effects: list[Effect]) -> tuple[Token, ...] | Waiting | None:
        """What the first of *effects* answers to the request *ticket*; none of them does if it has to wait."""
        result: tuple[Token, ...] | Waiting
        first = effects[0] if effects else None
        if isinstance(first, Refused):
            return None
        if isinstance(first, Granted):
            result = first.tokens
            del effects[0]
        else:
            result = self._waiting[ticket] = Waiting(ticket, self)
        if effects:
            self._carry_out(effects)
        return result

    def ended(self, call: Call) -> None:
        """The call's reply is queued for sending (or it failed): what it took may go to others."""
        for handle in call.granted_handles:
            call.session.granted(handle)
        for ticket in call.granted:
            self._waiting.pop(ticket, None)
            if effects := self.manager.settle(ticket):
                self._carry_out(effects)
        for ticket in call.held:
            self._waiting.pop(ticket, None)
            if effects := self.manager.finish(ticket):
                self._carry_out(effects)

    def attributes_changed(self, session: Session, handle: InodeHandle) -> None:
        """A write-back changed times: all others are asked to forget the attributes, and not waited for, as
        the write-back may be part of somebody's recall (K6). Sizes never change so: for that the writer
        holds ATTR exclusively."""
        self._ask_others(session, handle, Resource.ATTR, TokenMode.EXCLUSIVE)

    def _ask_others(
        self, session: Session, handle: InodeHandle, resource: Resource, mode: TokenMode
    ) -> None:
        """Recall what is in the way of *session*, if anything is, without waiting for it."""
        manager = self.manager
        if not manager.is_in_the_way(session.id, handle, resource, mode):
            return
        ticket = next(self._tickets)
        effects = manager.acquire(ticket, session.id, handle, resource, 0, RANGE_END, mode, transient=True)
        self._carry_out(effects + manager.cancel(ticket))

    def changed_directly(
        self, handle: InodeHandle, resource: Resource, start: int = 0, end: int = RANGE_END
    ) -> bool:
        """Somebody who is no client has changed this: whoever holds a token for it gives that up. False if
        nobody does.

        It is a transient hold of nobody's that ends as soon as it is granted, so it is never in the way of
        anybody for longer than the recalls take. It has to wait, not just ask: a token in flight cannot be
        recalled yet, and what was read under it may be older than the change. One that still waits does for
        any further change, as nobody keeps anything beyond its grant.
        """
        what = (handle, resource, start, end)
        if not self.manager.is_held(handle, (resource,)):
            return False
        if what in self._direct_waiting:
            return True
        ticket = next(self._tickets)
        effects = self.manager.acquire(
            ticket, NOBODY, handle, resource, start, end, TokenMode.EXCLUSIVE, transient=True
        )
        self._direct[ticket] = what
        self._direct_waiting.add(what)
        self._carry_out(effects)
        self.resume_granted()
        return True

    def cancelled(self, ticket: int) -> None:
        """The request *ticket* is not waited for any more."""
        self._waiting.pop(ticket, None)
        self._carry_out(self.manager.cancel(ticket))

    def resume_later(self, waiting: Waiting) -> None:
        """At the next `resume_granted`, which whoever deals with the event calls at its end."""
        self._resumable.append(waiting)

    def resume_granted(self) -> None:
        """Go on with all that has been granted. To be called when an event has been dealt with: not in the
        middle of a handler, which could find what it has just looked at changed."""
        if self._ending:
            self._resumable.clear()
        if self._resuming:
            return  # by whoever does it already
        self._resuming = True
        try:
            while self._resumable:
                self._resumable.popleft().resume()
        finally:
            self._resuming = False

    # --- what clients say ---

    def given_back(self, session: Session, returned: tuple[Token, ...], frames_received: int) -> None:
        """The client gave up *returned* unasked, except what it was granted in frames it had not seen, or is
        being granted: a file that it has closed may be opened again before the close is told."""
        tokens = tuple(
            token
            for token in returned
            if session.knows_of_grants(token.handle, frames_received)
            and not self.manager.is_in_flight(session.id, token.handle, token.resource)
        )
        self._carry_out(self.manager.give_back(session.id, tokens))
        for handle in {token.handle for token in tokens}:
            self._unpin_if_free(handle)

    def reclaimed(self, session: Session, token: Token) -> bool:
        """*session* held *token* before the server's restart; whether it does again."""
        return self.manager.reclaim(session.id, token)

    def dropped(self, session: Session) -> None:
        """The session is over; nothing of it is left."""
        handles = self.manager.handles_held(session.id)
        self._carry_out(self.manager.drop_session(session.id))
        for handle in handles:
            self._unpin_if_free(handle)
        self.resume_granted()

    # --- effects ---

    def _carry_out(self, effects: list[Effect]) -> None:
        passed: list[int] = []
        for effect in effects:
            if isinstance(effect, Recall):
                self._send(effect)
            elif isinstance(effect, Refused):
                raise AssertionError("refusals are answered where they are asked")
            elif effect.ticket in self._direct:
                passed.append(effect.ticket)
            else:
                waiting = self._waiting.pop(effect.ticket)
                if waiting.grant(effect.tokens):
                    self.resume_later(waiting)
        for ticket in passed:  # only now: effects are carried out before the next event is fed
            self._direct_waiting.remove(self._direct.pop(ticket))
            self._carry_out(self.manager.finish(ticket))

    def _send(self, recall: Recall) -> None:
        session = self._sessions[recall.session]

        def acknowledged(reply: m.Message, _: bytes | bytearray) -> None:
            assert isinstance(reply, m.Recalled)
            if recall.session in self._sessions:
                self._leases.answered(recall.session, recall.recall_id)
                effects = self.manager.acknowledged(recall.session, recall.recall_id, reply.returned)
                self._carry_out(effects)
                for handle in {recall.token.handle, *(token.handle for token in reply.returned)}:
                    self._unpin_if_free(handle)
                self.resume_granted()

        self._leases.recalled(recall.session, recall.recall_id, trio.current_time())
        session.channel.post(m.Recall(recall.token), acknowledged)

    def end(self) -> None:
        """The server is ending: nothing that has waited goes on any more. It would change what the server's
        successor may be looking at already, and nobody would be told."""
        self._ending = True

    def check(self) -> None:
        """Assert the invariants, between two events."""
        self.manager.check()
        assert not self._resumable, "what was granted has gone on"

    def wants_pin(self, handle: InodeHandle) -> bool:
        """Whether *handle*, which is about to lose a name, perhaps its last, is to be pinned first."""
        return handle not in self._pinned and self.manager.is_held(handle)

    def pinned(self, handle: InodeHandle) -> None:
        """It has been. Meanwhile somebody else may have done so as well, or nobody hold it any more."""
        if self.wants_pin(handle):
            self._pinned.add(handle)
        else:
            self._unpin(handle)

    def _unpin_if_free(self, handle: InodeHandle) -> None:
        if handle in self._pinned and not self.manager.is_held(handle):
            self._pinned.remove(handle)
            self._unpin(handle)
