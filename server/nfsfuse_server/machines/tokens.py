"""The token manager: which session may cache what, for all inodes (K0), as a machine without I/O.

Every event is a method that returns the effects to carry out, in order. One machine serves data, attributes
and directories alike: a range of one (handle, resource). Their rules are in `token_state`.

What the caller owes, and the proof rests on:

1. Effects are put on each session's connection in the order of the lists, before the next event is fed.
2. After `Granted` comes, when the operation is done, its reply with the tokens onto the connection, and then
   `settle` at once; its effects follow the reply. An operation that fails settles too: that the session
   does not know of its tokens is harmless. A transient grant is ended by `finish` instead.
3. An operation has at most one ticket per (handle, resource), and takes several in ascending order of
   (resource, handle): fairness makes a request wait behind waiting ones, so any other order can deadlock.
4. A reconnected session is sent the replies and the recalls (`recalls_of`) it lacks in their old order.

What a client owes:

1. It applies grants and recalls in the order received, and acknowledges without waiting for a grant (K6).
2. What it gives up *unasked* while a request of its own on that resource is unanswered may cross with the
   grant: it leaves that out of what the reply grants it. (The server then believes too much: harmless.)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.intervals import Interval, IntervalSet
from nfsfuse.protocol.pages import is_page_range
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import InodeHandle, SessionId
from nfsfuse_server.machines.token_claims import Request
from nfsfuse_server.machines.token_effects import Effect, Granted, Recall, Refused
from nfsfuse_server.machines.token_holder import Holder
from nfsfuse_server.machines.token_queue import RECALL, TICKET, Blocker
from nfsfuse_server.machines.token_state import ResourceTokens
from nfsfuse_server.machines.token_table import Key, TokenTable


class TokenManager(TokenTable):
    """The events. *extents_max* is for tests."""

    # --- operations --------------------------------------------------------------------------------------

    def acquire(
        self, ticket: int, session: SessionId, handle: InodeHandle, resource: Resource,
        start: int, end: int, mode: TokenMode,
        *, wait: bool = True, transient: bool = False, also: tuple[Interval, ...] = (), urgent: bool = False,
    ) -> list[Effect]:  # fmt: skip
        """The operation *ticket* of *session* needs ``[start, end)`` at *mode*.

        It is answered by one `Granted`, now or as an effect of a later event, or, unless it is to *wait*, by
        `Refused`. Conflicting requests are granted in the order of arrival. If not *transient* the session
        keeps what is granted: the largest range in which nobody is in the way. If *transient*, the operation
        holds exactly what was asked for until `finish`; with it the ranges *also*, taken at the same instant
        (a rename has two names in one directory). No ticket may be in use twice.

        If *urgent* (and transient), the session cannot acknowledge recalls of what it holds here before this
        is answered: it goes before all that wait, and is `Refused` if it would wait in a circle of such."""
        assert ticket not in self._tickets, self.story(handle)
        assert mode is not TokenMode.NONE
        assert transient or not (also or urgent)
        ranges: tuple[Interval, ...] = ((start, end), *also)
        for wanted in ranges:
            assert _is_range(resource, *wanted), (resource, ranges)
        if also:
            ranges = _united(ranges)
        request = Request(ticket, session, ranges, mode, transient, urgent)
        self._note(handle, request)
        state = self._state((handle, resource))
        held = not transient and state.is_held_already(request)
        blocker = None if held else state.blocker_of_new(request)
        if blocker is None:  # it is grantable
            return [self._grant(state, request), *self._trim(state, session)]
        if not wait or (urgent and state.waits_in_a_circle(request)):
            return [Refused(ticket)]
        return self._enqueue(state, request, blocker)

    def is_in_the_way(
        self, session: SessionId, handle: InodeHandle, resource: Resource, mode: TokenMode
    ) -> bool:
        """Whether another session holds something that *session* could not have *mode* of all beside."""
        state = self._states.get((handle, resource))
        if state is None:
            return False
        everything = Request(0, session, ((0, RANGE_END),), mode, True)
        return state.conflicting_holder(everything) is not None

    def is_in_flight(self, session: SessionId, handle: InodeHandle, resource: Resource) -> bool:
        """Whether something of *resource* was granted to *session* in a reply that is not settled yet."""
        state = self._states.get((handle, resource))
        holder = state.holders.get(session) if state is not None else None
        return holder is not None and bool(holder.in_flight)

    def use(
        self, ticket: int, session: SessionId, handle: InodeHandle, resource: Resource,
        start: int, end: int, mode: TokenMode, *, also: tuple[Interval, ...] = (),
    ) -> bool:  # fmt: skip
        """Whether *session* holds all of the range, and of *also*, which follow in order, at *mode* or more,
        being recalled or not. If so, the operation *ticket* holds it too, until `finish`: the storage may be at
        work on a write-back when the session is fenced, and nobody must read under a token of his own before it
        is through. (An operation that changes something under tokens it was just granted does this as well.) It
        never queues: the write-backs of a recall must not wait for whom it is for (K6)."""
        assert ticket not in self._tickets, self.story(handle)
        ranges: tuple[Interval, ...] = ((start, end), *also)
        if also and self.holds(session, handle, resource, ranges[0][0], ranges[-1][1], mode):
            ranges = ((ranges[0][0], ranges[-1][1]),)  # what it holds in between nobody can have meanwhile
        elif not all(self.holds(session, handle, resource, start, end, mode) for start, end in ranges):
            return False
        request = Request(ticket, session, ranges, mode, True)
        self._note(handle, request)
        self._grant(self._states[handle, resource], request)
        return True

    def settle(self, ticket: int) -> list[Effect]:
        """The reply that carries the grant of *ticket* is queued for sending: what it granted may be recalled
        from now on. Nothing happens for a ticket that a fence took away."""
        state = self._ended(ticket, "settled", transient=False)
        if state is None:
            return []
        session, holder = state.granted_with(ticket)
        granted = holder.in_flight.pop(ticket)
        del state.flying[ticket]
        effects: list[Effect] = []
        if state.queue is not None:
            for wanted in state.queue.wanted(session, *granted):
                effects += self._recall_for(state, state.waiting[wanted], {session: holder})
        effects += self._trim(state, session)
        if not holder:
            self._remove_holder(state, session)
            self._forget_if_idle(state)
        return effects

    def finish(self, ticket: int) -> list[Effect]:
        """The transient operation *ticket* has ended, well or not. This is owed also after a fence, which
        leaves transient grants alone: the storage is still at work. Nothing happens for a ticket whose wait
        the fence ended."""
        state = self._ended(ticket, "finished", transient=True)
        if state is None:
            return []
        request = state.remove_transient(ticket)
        behind = () if state.queue is None else state.queue.behind((TICKET, ticket))
        return self._advance(state, request.session, behind)

    def cancel(self, ticket: int) -> list[Effect]:
        """The request *ticket* is given up if it is still waiting; it will not be answered. Its recalls stay
        outstanding. If it has been granted nothing happens: then `settle` or `finish` is owed."""
        key = self._tickets.get(ticket)
        if key is None or ticket not in self._states[key].waiting:
            return []
        self._note(key[0], ("cancelled", ticket))
        state = self._states[key]
        request = state.waiting[ticket]
        hint = state.waited_for(request)
        return self._advance(state, request.session, self._unqueue(state, request), hint)

    # --- sessions ----------------------------------------------------------------------------------------

    def acknowledged(
        self, session: SessionId, recall_id: int, returned: tuple[Token, ...] = ()
    ) -> list[Effect]:
        """The holder keeps no more than the recall said, and of every token in *returned* (of any inode) no
        more than its mode. Raises ProtocolError for a recall that *session* does not owe, or a malformed
        token; then nothing has changed."""
        key = self._recalls.get(recall_id)
        holder = self._states[key].holders.get(session) if key is not None else None
        if key is None or holder is None or recall_id not in holder.recalls:
            raise ProtocolError(f"recall {recall_id} is not outstanding")
        _check_tokens(returned)
        self._note(key[0], ("acknowledged", recall_id, returned))
        recall = holder.remove_recall(recall_id)
        del self._recalls[recall_id]
        return self._reduce(session, (recall.token, *returned), self._states[key].behind((RECALL, recall_id)))

    def give_back(self, session: SessionId, tokens: tuple[Token, ...]) -> list[Effect]:
        """Unasked, the holder keeps of each of *tokens* no more than its mode. What is not held does not
        matter. Raises ProtocolError for a malformed token; then nothing has changed."""
        _check_tokens(tokens)
        for token in tokens:
            self._note(token.handle, ("given back", session, token))
        return self._reduce(session, tokens)

    def drop_session(self, session: SessionId) -> list[Effect]:
        """Fence: everything *session* holds, waits for and owes is gone. Only its running transient
        operations stay, until `finish`."""
        states = [self._states[key] for key in self._sessions.get(session, ())]
        agenda: list[list[Request]] = []
        for state in states:
            self._note(state.handle, ("dropped", session))
            holder = state.holders[session]
            behind: list[Request] = []
            for ticket in list(holder.waiting):
                behind += self._unqueue(state, state.waiting[ticket])
            for ticket in holder.in_flight:
                del state.flying[ticket], self._tickets[ticket]
            for recall_id in holder.recalls:
                del self._recalls[recall_id]
            self._remove_holder(state, session)
            agenda.append(behind + state.behind_holder(session, 0, RANGE_END))
        advanced = [self._advance(state, session, behind) for state, behind in zip(states, agenda, strict=True)]
        return [effect for effects in advanced for effect in effects]

    def reclaim(self, session: SessionId, token: Token) -> bool:
        """Hold *token* again, as before the server's restart. False, and nothing has changed, if that would
        conflict with what another session holds, uses or waits for, or if *session* itself waits for or is
        being asked for something here (then it is not reclaiming). Raises ProtocolError for a malformed
        token."""
        _check_tokens((token,))
        if token.mode is TokenMode.NONE:
            raise ProtocolError(f"nothing to reclaim: {token}")
        state = self._state((token.handle, token.resource))
        holder = state.holders.get(session)
        request = Request(0, session, ((token.start, token.end),), token.mode, True)
        if holder is not None and (holder.waiting or holder.recalls):
            return False
        if state.blocker_of_new(request) is not None:
            return False  # somebody is in the way, so the state was not made for this and stays
        self._note(token.handle, ("reclaimed", session, token))
        self._holder(state, session)
        state.strengthen(session, token.start, token.end, token.mode)
        return True

    # --- inside ------------------------------------------------------------------------------------------

    def _grant(self, state: ResourceTokens, request: Request) -> Granted:
        if not request.transient:
            self._holder(state, request.session)
        self._tickets[request.ticket] = (state.handle, state.resource)
        granted = state.grant(request)
        self._note(state.handle, granted)
        return granted

    def _enqueue(self, state: ResourceTokens, request: Request, blocker: Blocker) -> list[Effect]:
        state.enqueue(request, blocker)
        self._holder(state, request.session).waiting.add(request.ticket)
        self._tickets[request.ticket] = (state.handle, state.resource)
        holders = state.to_be_asked(request, blocker)
        return [*self._recall_for(state, request, holders), *self._trim(state, request.session)]

    def _unqueue(self, state: ResourceTokens, request: Request) -> list[Request]:
        state.holders[request.session].waiting.remove(request.ticket)
        del self._tickets[request.ticket]
        return state.unqueue(request.ticket)

    def _advance(
        self, state: ResourceTokens, session: SessionId, behind: Sequence[Request], hint: Request | None = None
    ) -> list[Effect]:
        """Something of *session* has ended: grant what has become grantable, of those that were *behind* it.
        (If it was a wait, *hint* is what that was for.)

        One pass in the order of the queue is enough: a grant never makes another request grantable, but who
        waited behind the granted one waits for something else now. And nothing has become recallable: for what
        was held when a request came it was asked then, and what was granted since is asked for by `settle`."""
        effects: list[Effect] = []
        touched = {session: None}
        agenda: list[tuple[int, int]] = []
        if behind:
            _put_on(agenda, state, behind)
        while agenda:
            request = state.waiting.get(heapq.heappop(agenda)[1])
            if request is None:
                continue  # it came up twice, and was granted the first time
            blocker = state.blocker_of_waiting(request, hint)
            if blocker is not None:
                state.put_behind(request, blocker)
                continue
            freed = self._unqueue(state, request)
            effects.append(self._grant(state, request))
            touched[request.session] = None
            _put_on(agenda, state, freed)
        for each in touched:
            holder = state.holders.get(each)
            if holder is None:
                continue
            if state.has_too_many(holder):
                effects += self._trim(state, each)
            elif not holder:
                self._remove_holder(state, each)
        self._forget_if_idle(state)
        return effects

    def _recall_for(
        self, state: ResourceTokens, request: Request, holders: dict[SessionId, Holder]
    ) -> list[Effect]:
        return [self._recall(state, other, token) for other, token in list(state.to_recall(request, holders))]

    def _trim(self, state: ResourceTokens, session: SessionId) -> list[Effect]:
        holder = state.holders.get(session)
        if holder is None or not state.has_too_many(holder):
            return []
        recalls = [self._recall(state, session, token) for token in state.to_trim(holder)]
        holder.trimming.update(recall.recall_id for recall in recalls)
        return list(recalls)

    def _recall(self, state: ResourceTokens, session: SessionId, token: Token) -> Recall:
        recall = Recall(self._next_recall, session, token)
        self._next_recall += 1
        state.holders[session].add_recall(recall)
        self._recalls[recall.recall_id] = (state.handle, state.resource)
        self._note(state.handle, recall)
        return recall

    def _reduce(
        self, session: SessionId, tokens: Iterable[Token], behind: Sequence[Request] = ()
    ) -> list[Effect]:
        """*session* holds no more of *tokens* than their modes. Those *behind* something else that has ended
        are looked at as well: they wait for what the first of *tokens* is of."""
        touched: dict[Key, list[Request]] = {}
        for token in tokens:
            key = (token.handle, token.resource)
            state = self._states.get(key)
            if state is not None and session in state.holders:
                state.reduce(session, token.start, token.end, token.mode)
                freed = touched.setdefault(key, list(behind))
                freed += state.behind_holder(session, token.start, token.end)
                behind = ()
        return [
            effect
            for key, requests in touched.items()
            for effect in self._advance(self._states[key], session, requests)
        ]

    def _ended(self, ticket: int, how: str, *, transient: bool) -> ResourceTokens | None:
        key = self._tickets.get(ticket)
        if key is None:
            return None
        state = self._states[key]
        assert ticket not in state.waiting, ("a waiting request cannot end", self.story(key[0]))
        assert (ticket in state.transients) is transient, ("settle or finish?", self.story(key[0]))
        self._note(key[0], (how, ticket))
        del self._tickets[ticket]
        return state


def _put_on(agenda: list[tuple[int, int]], state: ResourceTokens, requests: Iterable[Request]) -> None:
    for request in requests:
        if request.ticket in state.waiting:
            heapq.heappush(agenda, (state.rank(request), request.ticket))


def _united(ranges: Iterable[Interval]) -> tuple[Interval, ...]:
    union = IntervalSet()
    for start, end in ranges:
        union.add(start, end)
    return tuple(union.intervals())


def _is_range(resource: Resource, start: int, end: int) -> bool:
    return is_page_range(start, end) if resource is Resource.DATA else 0 <= start < end <= RANGE_END


def _check_tokens(tokens: Iterable[Token]) -> None:
    for token in tokens:
        if not _is_range(token.resource, token.start, token.end):
            raise ProtocolError(f"no such range: {token}")
