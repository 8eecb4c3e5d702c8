"""The tokens of one resource of one inode: who holds what, who uses it, who waits, what is being recalled.

Rules of this file, from which the manager composes its events:

* Two claims *conflict* if they are of different sessions, overlap, and `COMPATIBLE` says no. Claims are what
  a session holds, what a running operation holds (a *transient*), and what a waiting request asks for.
* Held and transient claims never conflict (K0). What was granted counts as held before the client knows.
* A request is *grantable* if it conflicts with nothing held, nothing transient and nothing that waits ahead
  of it, and none of it is being recalled from its own session. The last rule is what lets a grant and an
  acknowledgement cross on the wire: an acknowledgement never takes back what was granted after its recall.
* Exempt from the queue is, when it arrives, what is fully held already and not being recalled: it costs the
  others nothing. (Once in the queue, strictly first come, first served: one pass over it is then enough.)
* An *urgent* request waits for nothing that waits: its session cannot give up what it holds here until the
  request is answered. Two sessions that would so wait for each other are found when the second one asks.
* A token is *in flight* from its grant until the reply that carries it is queued for sending (`settle`).
  Nothing in flight is recalled: the recall would overtake the grant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from nfsfuse.protocol.intervals import Interval, IntervalMap, IntervalSet
from nfsfuse.protocol.record import record
from nfsfuse.protocol.tokens import COMPATIBLE, RANGE_END, STRONGEST_BESIDE, Resource, Token, TokenMode
from nfsfuse.protocol.types import InodeHandle, SessionId
from nfsfuse_server.machines.token_effects import Granted, Recall

EXTENTS_PER_HOLDER_MAX: Final = 1024
"""Extents one session may hold of one resource (about 100 kB of state). Only clients that fight over
scattered pages come near it. Beyond it the server recalls half of them, and the session's requests for more
wait until it has acknowledged: it may always be asked to give up a cache, so nothing has to fail."""


FEW_EXTENTS: Final = 16
"""Extents that are looked through to see whether any of them is EXCLUSIVE."""


@record(frozen=True, slots=True)
class Request:
    """*ranges* (disjoint, ascending) of the resource wanted at *mode*: by the session, or, if *transient*, by
    the operation alone."""

    ticket: int
    session: SessionId
    ranges: tuple[Interval, ...]
    mode: TokenMode
    transient: bool
    urgent: bool = False

    def conflicts(self, other: Request) -> bool:
        """Whether one has to wait for the other."""
        return (
            self.session != other.session
            and not COMPATIBLE[self.mode, other.mode]
            and any(a < d and c < b for a, b in self.ranges for c, d in other.ranges)
        )


_SEVERAL: Final = SessionId(b"several sessions")


class Claims:
    """What requests ask for, all together: whether one more conflicts with any of them."""

    def __init__(self) -> None:
        self._of_mode: dict[TokenMode, IntervalMap[SessionId]] = {}

    def add(self, request: Request) -> None:
        """One more asks."""
        claims = self._of_mode.setdefault(request.mode, IntervalMap())
        for start, end in request.ranges:
            for low, high, session in claims.overlapping(start, end):
                if session != request.session:
                    claims.set(low, high, _SEVERAL)
            for low, high in claims.gaps(start, end):
                claims.set(low, high, request.session)

    def conflict_with(self, request: Request) -> bool:
        """Whether *request* has to wait for any that ask."""
        return any(
            session != request.session
            for mode, claims in self._of_mode.items()
            if not COMPATIBLE[request.mode, mode]
            for start, end in request.ranges
            for _, _, session in claims.overlapping(start, end)
        )


class Holder:
    """What one session has to do with one resource."""

    __slots__ = ("in_flight", "recalls", "tokens", "trimming", "waiting")

    def __init__(self) -> None:
        self.tokens: IntervalMap[TokenMode] = IntervalMap()
        self.in_flight: dict[int, Interval] = {}  # ticket: where it was granted something, until settled
        self.recalls: dict[int, Recall] = {}  # not acknowledged
        self.trimming: set[int] = set()  # those of the recalls that are only for EXTENTS_PER_HOLDER_MAX
        self.waiting: set[int] = set()  # tickets

    def __bool__(self) -> bool:
        return bool(self.tokens or self.in_flight or self.recalls or self.waiting)

    def holds(self, start: int, end: int, mode: TokenMode) -> bool:
        """Whether all of the range is held at *mode* or stronger, being recalled or not."""
        return self.tokens.is_at_least(start, end, mode)

    def strengthen(self, start: int, end: int, mode: TokenMode) -> None:
        """Hold all of the range at *mode*, or as strong as before."""
        self.tokens.raise_to(start, end, mode)

    def reduce(self, start: int, end: int, keep: TokenMode) -> None:
        """Hold nothing in the range that is stronger than *keep*."""
        for low, high, held in self.tokens.overlapping(start, end):
            if held > keep:
                if keep is TokenMode.NONE:
                    self.tokens.delete(low, high)
                else:
                    self.tokens.set(low, high, keep)

    def being_recalled(self, start: int, end: int) -> bool:
        """Whether any of the range is, to whatever mode."""
        recalls = self.recalls
        return bool(recalls) and any(r.token.start < end and start < r.token.end for r in recalls.values())

    def is_in_the_way(self, request: Request) -> bool:
        """Whether something is held that the session of *request*, another, could not have it beside."""
        for start, end in request.ranges:
            for _, _, held in self.tokens.overlapping(start, end):
                if not COMPATIBLE[request.mode, held]:
                    return True
        return False

    def recallable(self, start: int, end: int, keep: TokenMode) -> list[Interval]:
        """The parts of the range that are held stronger than *keep*, less those in flight and those that are
        being recalled to *keep* or lower already."""
        held_more = [(low, high) for low, high, held in self.tokens.overlapping(start, end) if held > keep]
        if len(held_more) <= 1 and not (self.in_flight or self.recalls):
            return held_more
        parts = IntervalSet()
        for low, high in held_more:
            parts.add(low, high)
        for low, high in self.in_flight.values():
            parts.delete(low, high)
        for recall in self.recalls.values():
            if recall.token.mode <= keep:
                parts.delete(recall.token.start, recall.token.end)
        return parts.intervals()


class ResourceTokens:
    """All state of one (inode, resource)."""

    __slots__ = (
        "extents_max", "flying", "handle", "holders", "resource", "strong", "transients", "waiting",
    )  # fmt: skip

    def __init__(self, handle: InodeHandle, resource: Resource, extents_max: int) -> None:
        self.handle = handle
        self.resource = resource
        self.extents_max = extents_max
        self.holders: dict[SessionId, Holder] = {}
        self.strong: dict[SessionId, None] = {}
        """Those that may hold something EXCLUSIVE. All others are in no reader's way, however many they are."""
        self.flying: dict[int, SessionId] = {}  # tickets: whose grants are in flight
        self.transients: dict[int, Request] = {}
        self.waiting: dict[int, Request] = {}  # in the order of arrival

    def __bool__(self) -> bool:
        return bool(self.holders or self.transients)

    def token(self, start: int, end: int, mode: TokenMode) -> Token:
        """The token of this resource for that range."""
        return Token(self.handle, self.resource, start, end, mode)

    def granted_with(self, ticket: int) -> tuple[SessionId, Holder]:
        """Whose grant of *ticket* is in flight."""
        session = self.flying[ticket]
        return session, self.holders[session]

    def strengthen(self, session: SessionId, start: int, end: int, mode: TokenMode) -> None:
        """*session* holds all of the range at *mode*, or as strong as before."""
        self.holders[session].strengthen(start, end, mode)
        if mode is TokenMode.EXCLUSIVE:
            self.strong[session] = None

    def reduce(self, session: SessionId, start: int, end: int, keep: TokenMode) -> None:
        """*session* holds nothing in the range that is stronger than *keep*."""
        holder = self.holders[session]
        holder.reduce(start, end, keep)
        # One with many extents is looked at again when it has few: to look at all of them takes its time.
        few = session in self.strong and len(holder.tokens) <= FEW_EXTENTS
        if few and all(held is not TokenMode.EXCLUSIVE for _, _, held in holder.tokens):
            del self.strong[session]

    def may_be_in_the_way(self, mode: TokenMode) -> dict[SessionId, Holder]:
        """The holders of which any may have something that *mode* conflicts with."""
        if mode is TokenMode.EXCLUSIVE:
            return self.holders
        return {session: self.holders[session] for session in self.strong}

    def is_held_already(self, request: Request) -> bool:
        """Whether *request* asks only for what its session holds and is not being asked to give up."""
        holder = self.holders.get(request.session)
        return holder is not None and all(
            holder.holds(start, end, request.mode) and not holder.being_recalled(start, end)
            for start, end in request.ranges
        )

    def grantable(self, request: Request, ahead: Iterable[Request]) -> bool:
        """Whether *request* need not wait, when *ahead* are the requests that came before it and still do."""
        holder = self.holders.get(request.session)
        if holder is not None and not request.transient:
            if self.has_too_many(holder):
                return False
            for start, end in request.ranges:
                if holder.being_recalled(start, end):
                    return False
        if not request.urgent:
            for earlier in ahead:
                if request.conflicts(earlier):
                    return False
        for running in self.transients.values():
            if request.conflicts(running):
                return False
        return not self._conflicts_with_held(request)

    def _conflicts_with_held(self, request: Request) -> bool:
        for other, holder in self.may_be_in_the_way(request.mode).items():
            if other != request.session and holder.is_in_the_way(request):
                return True
        return False

    def waits_in_a_circle(self, request: Request) -> bool:
        """Whether an urgent *request* would wait for what a session holds that cannot give it up, as an urgent
        request of its own waits for what *request*'s session holds; or so on over several sessions."""
        seen: set[SessionId] = set()
        frontier = [request]
        while frontier:
            asking = frontier.pop()
            for session, holder in self.holders.items():
                if session in seen or session == asking.session or not holder.is_in_the_way(asking):
                    continue
                if session == request.session:
                    return True
                seen.add(session)
                frontier += [r for r in self.waiting.values() if r.urgent and r.session == session]
        return False

    def enqueue(self, request: Request) -> None:
        """Put *request* behind those that wait, or, if it is urgent, behind those that are."""
        if request.urgent:
            waiting = list(self.waiting.values())
            count = sum(other.urgent for other in waiting)
            waiting.insert(count, request)
            self.waiting = {other.ticket: other for other in waiting}
        else:
            self.waiting[request.ticket] = request

    def grant(self, request: Request) -> Granted:
        """Give a grantable *request* what it asks for, and if it is not transient as much as is free."""
        if request.transient:
            self.transients[request.ticket] = request
            return Granted(request.ticket, ())
        ((start, end),) = request.ranges
        holder = self.holders[request.session]
        if not holder.holds(start, end, request.mode):
            start, end = self._largest(request.session, start, end, request.mode)
            wider = Request(request.ticket, request.session, ((start, end),), request.mode, False)
            assert not self._conflicts_with_held(wider), f"K0: {self.token(start, end, request.mode)}"
            self.strengthen(request.session, start, end, request.mode)
        holder.in_flight[request.ticket] = (start, end)
        self.flying[request.ticket] = request.session
        tokens = tuple(self.token(*piece) for piece in holder.tokens.overlapping(start, end))
        return Granted(request.ticket, tokens)

    def _largest(self, session: SessionId, start: int, end: int, mode: TokenMode) -> Interval:
        """The largest range around ``[start, end)`` in which *session* can hold *mode* beside the others: it
        does not reach into what a waiting request is about to get, nor into what *session* is losing."""
        low, high = 0, RANGE_END
        if len(self.holders) == 1 and not (self.transients or self.waiting or self.holders[session].recalls):
            return low, high  # nobody else is here
        for begin, stop in self._fixed_obstacles(session, mode):
            if begin < start:
                low = max(low, min(stop, start))
            if stop > end:
                high = min(high, max(begin, end))
        for other, holder in self.may_be_in_the_way(mode).items():
            if other == session:
                continue
            for _, stop, held in reversed(holder.tokens.overlapping(low, start)):
                if not COMPATIBLE[mode, held]:
                    low = stop
                    break
            for begin, _, held in holder.tokens.overlapping(end, high):
                if not COMPATIBLE[mode, held]:
                    high = begin
                    break
        return low, high

    def _fixed_obstacles(self, session: SessionId, mode: TokenMode) -> Iterator[Interval]:
        for claims in (self.transients, self.waiting):
            for claim in claims.values():
                if claim.session != session and not COMPATIBLE[mode, claim.mode]:
                    yield from claim.ranges
        for recall in self.holders[session].recalls.values():
            yield recall.token.start, recall.token.end

    def to_recall(
        self, request: Request, holders: dict[SessionId, Holder]
    ) -> Iterator[tuple[SessionId, Token]]:
        """What has still to be asked of *holders*, and can be now, before *request* can be granted."""
        keep = STRONGEST_BESIDE[request.mode]
        for other, holder in holders.items():
            if other != request.session:
                for start, end in request.ranges:
                    for low, high in holder.recallable(start, end, keep):
                        yield other, self.token(low, high, keep)

    def has_too_many(self, holder: Holder) -> bool:
        """Whether *holder* has more extents than one session may."""
        return len(holder.tokens) > self.extents_max

    def to_trim(self, holder: Holder) -> list[Token]:
        """What to recall of a *holder* that `has_too_many` extents: the lower or the upper half of them,
        whichever covers less, so that the large extents stay. Nothing while that is under way."""
        if holder.trimming:
            return []
        extents = list(holder.tokens)
        half = len(extents) // 2
        spans = [(extents[0][0], extents[half - 1][1]), (extents[-half][0], extents[-1][1])]
        spans.sort(key=lambda span: span[1] - span[0])
        for start, end in spans:
            parts = holder.recallable(start, end, TokenMode.NONE)
            if parts:
                # The gaps in between are asked for too, as far as they are free: one recall, not hundreds.
                return [self.token(*part, TokenMode.NONE) for part in self._joined(holder, parts)]
        return []

    def _joined(self, holder: Holder, parts: list[Interval]) -> list[Interval]:
        """*parts* joined across the gaps in which the holder holds nothing and nothing is in flight."""
        joined = parts[:1]
        for start, end in parts[1:]:
            gap = (joined[-1][1], start)
            in_flight = any(low < gap[1] and gap[0] < high for low, high in holder.in_flight.values())
            if in_flight or holder.tokens.overlapping(*gap):
                joined.append((start, end))
            else:
                joined[-1] = (joined[-1][0], end)
        return joined

    def check(self) -> None:
        """Assert K0, that nothing waits in vain, and that nothing needed remains unasked."""
        claims: list[tuple[SessionId, int, int, TokenMode]] = []
        for session, holder in self.holders.items():
            assert holder, (session, "an empty holder is kept")
            holder.tokens.check()
            assert holder.trimming <= holder.recalls.keys()
            assert all(not holder.being_recalled(*granted) for granted in holder.in_flight.values())
            claims += [(session, *piece) for piece in holder.tokens]
        for running in self.transients.values():
            claims += [(running.session, *interval, running.mode) for interval in running.ranges]
        for index, (session, start, end, mode) in enumerate(claims):
            for other, begin, stop, held in claims[:index]:
                if other != session and begin < end and start < stop:
                    assert COMPATIBLE[mode, held], ("K0", claims)
        assert self.strong.keys() <= self.holders.keys()
        for session, holder in self.holders.items():
            if session not in self.strong:
                assert all(held is not TokenMode.EXCLUSIVE for _, _, held in holder.tokens), session
        in_flight = {ticket: session for session, holder in self.holders.items() for ticket in holder.in_flight}
        assert in_flight == self.flying
        ahead: list[Request] = []
        for request in self.waiting.values():
            assert request.ticket in self.holders[request.session].waiting
            assert not self.grantable(request, ahead), ("it need not wait", request)
            assert not list(self.to_recall(request, self.holders)), ("nobody was asked", request)
            ahead.append(request)
        for holder in self.holders.values():
            if holder.waiting and self.has_too_many(holder):
                assert holder.recalls or holder.in_flight, "too many extents and nothing is done"
        assert sum(len(holder.waiting) for holder in self.holders.values()) == len(self.waiting)
