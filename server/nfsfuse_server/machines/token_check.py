"""The invariants of the tokens of one resource, in plain words: no index is asked, everything is looked at."""

from __future__ import annotations

from collections.abc import Iterable

from nfsfuse.protocol.tokens import COMPATIBLE, TokenMode
from nfsfuse.protocol.types import SessionId
from nfsfuse_server.machines.token_claims import Claims, Request
from nfsfuse_server.machines.token_queue import EXTENTS, HOLDER, RECALL, TICKET
from nfsfuse_server.machines.token_state import ResourceTokens


def is_grantable(state: ResourceTokens, request: Request, ahead: Iterable[Request]) -> bool:
    """Whether *request* need not wait, when *ahead* are the requests that are before it: the definition."""
    holder = state.holders.get(request.session)
    if holder is not None and not request.transient:
        recalled = [(recall.token.start, recall.token.end) for recall in holder.recalls.values()]
        if state.has_too_many(holder) or any(a < d and c < b for a, b in recalled for c, d in request.ranges):
            return False
    others = [*state.transients.values(), *(() if request.urgent else ahead)]
    if any(request.conflicts(other) for other in others):
        return False
    return all(
        other == request.session or not each.is_in_the_way(request) for other, each in state.holders.items()
    )


def check_resource(state: ResourceTokens) -> None:
    """Assert K0, that nothing waits in vain, that nothing needed remains unasked, and that indices agree."""
    _check_claims(state)
    _check_holders(state)
    _check_waiting(state)
    if state.held is not None:
        held = {(s, *piece) for s, holder in state.holders.items() for piece in holder.tokens}
        assert _claimed(state.held) == held, "the index of what is held"
    if state.running is not None:
        running = {(r.ticket, *interval, r.mode) for r in state.transients.values() for interval in r.ranges}
        assert _claimed(state.running) == running, "the index of what runs"


def _claimed(claims: Claims[int] | Claims[SessionId]) -> set[tuple[int | SessionId, int, int, TokenMode]]:
    claims.check()
    return {
        (key, start, end, mode)
        for mode, index in claims._of_mode.items()
        for start, end, key, _ in index.meeting(0, 2**64)
    }


def _check_claims(state: ResourceTokens) -> None:
    claims: list[tuple[SessionId, int, int, TokenMode]] = []
    for session, holder in state.holders.items():
        claims += [(session, *piece) for piece in holder.tokens]
    for running in state.transients.values():
        claims += [(running.session, *interval, running.mode) for interval in running.ranges]
    for index, (session, start, end, mode) in enumerate(claims):
        for other, begin, stop, held in claims[:index]:
            if other != session and begin < end and start < stop:
                assert COMPATIBLE[mode, held], ("K0", claims)


def _check_holders(state: ResourceTokens) -> None:
    assert state.strong.keys() <= state.holders.keys()
    for session, holder in state.holders.items():
        assert holder, (session, "an empty holder is kept")
        holder.tokens.check()
        assert holder.trimming <= holder.recalls.keys()
        asked = [] if holder.asked is None else list(holder.asked.meeting(0, 2**64))
        assert sorted(asked) == sorted(
            (r.token.start, r.token.end, number, r.token.mode) for number, r in holder.recalls.items()
        )
        assert all(not holder.being_recalled(*granted) for granted in holder.in_flight.values())
        if session not in state.strong:
            assert all(held is not TokenMode.EXCLUSIVE for _, _, held in holder.tokens), session
        if holder.waiting and state.has_too_many(holder):
            assert holder.recalls or holder.in_flight, "too many extents and nothing is done"
    in_flight = {ticket: session for session, holder in state.holders.items() for ticket in holder.in_flight}
    assert in_flight == state.flying


def _check_waiting(state: ResourceTokens) -> None:
    assert sum(len(holder.waiting) for holder in state.holders.values()) == len(state.waiting)
    assert (state.queue is not None) is bool(state.waiting)
    if state.queue is None:
        return
    state.queue.check(state.waiting)
    ahead: list[Request] = []
    for request in sorted(state.waiting.values(), key=state.queue.rank):
        assert request.ticket in state.holders[request.session].waiting
        assert not is_grantable(state, request, ahead), ("it need not wait", request)
        assert _is_blocked(state, request), ("it waits for nothing", request, state.queue.blocker(request))
        assert not list(state.to_recall(request, state.holders)), ("nobody was asked", request)
        ahead.append(request)


def _is_blocked(state: ResourceTokens, request: Request) -> bool:
    """Whether what *request* is said to wait for is there, and it has to."""
    assert state.queue is not None
    why, what = state.queue.blocker(request)
    if why == EXTENTS:
        return what == request.session and state.has_too_many(state.holders[request.session])
    if why == RECALL:
        return what in state.holders[request.session].recalls
    if why == HOLDER:
        assert isinstance(what, bytes)
        holder = state.holders.get(SessionId(what))
        return holder is not None and what != request.session and holder.is_in_the_way(request)
    assert why == TICKET
    assert isinstance(what, int)
    other = state.waiting.get(what)
    if other is None:
        return what in state.transients and request.conflicts(state.transients[what])
    return state.queue.goes_before(other, request)
