"""The tokens of one resource of one inode: who holds what, who uses it, who waits, what is being recalled.

Rules of this file, from which the manager composes its events:

* Two claims *conflict* if they are of different sessions, overlap, and `COMPATIBLE` says no. Claims are what
  a session holds, what a running operation holds (a *transient*), and what a waiting request asks for.
* Held and transient claims never conflict (K0). What was granted counts as held before the client knows.
* A request is *grantable*, and has no *blocker*, if it conflicts with nothing held, nothing transient and
  nothing that waits ahead of it, and none of it is being recalled from its own session. The last rule is what
  lets a grant and an acknowledgement cross on the wire: an acknowledgement never takes back what was granted
  after its recall.
* Exempt from the queue is, when it arrives, what is fully held already and not being recalled: it costs the
  others nothing. (Once in the queue, strictly first come, first served: one pass over it is then enough.)
* An *urgent* request waits for nothing that waits: its session cannot give up what it holds here until the
  request is answered. Two sessions that would so wait for each other are found when the second one asks.
* A token is *in flight* from its grant until the reply that carries it is queued for sending (`settle`).
  Nothing in flight is recalled: the recall would overtake the grant.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from nfsfuse.protocol.intervals import Interval
from nfsfuse.protocol.tokens import COMPATIBLE, RANGE_END, STRONGEST_BESIDE, Resource, Token, TokenMode
from nfsfuse.protocol.types import InodeHandle, SessionId
from nfsfuse_server.machines.token_claims import Claims, Request
from nfsfuse_server.machines.token_effects import Granted
from nfsfuse_server.machines.token_holder import Holder
from nfsfuse_server.machines.token_queue import EXTENTS, HOLDER, RECALL, TICKET, Blocker, Queue

EXTENTS_PER_HOLDER_MAX: Final = 1024
"""Extents one session may hold of one resource (about 100 kB of state). Only clients that fight over
scattered pages come near it. Beyond it the server recalls half of them, and the session's requests for more
wait until it has acknowledged: it may always be asked to give up a cache, so nothing has to fail."""

FEW_EXTENTS: Final = 16
"""Extents that are looked through to see whether any of them is EXCLUSIVE."""

FEW_HOLDERS: Final = 8
"""Holders, and running operations, that are looked through one by one."""


class ResourceTokens:
    """All state of one (inode, resource)."""

    __slots__ = (
        "extents_max", "flying", "handle", "held", "holders", "queue", "resource", "running", "strong",
        "transients", "waiting",
    )  # fmt: skip

    def __init__(self, handle: InodeHandle, resource: Resource, extents_max: int) -> None:
        self.handle = handle
        self.resource = resource
        self.extents_max = extents_max
        self.holders: dict[SessionId, Holder] = {}
        self.held: Claims[SessionId] | None = None  # what they hold, if they are more than FEW_HOLDERS
        self.strong: dict[SessionId, None] = {}
        """Those that may hold something EXCLUSIVE. All others are in no reader's way, however many they are."""
        self.flying: dict[int, SessionId] = {}  # tickets: whose grants are in flight
        self.transients: dict[int, Request] = {}
        self.running: Claims[int] | None = None  # the transients, if they are more than FEW_HOLDERS
        self.waiting: dict[int, Request] = {}  # in the order of arrival
        self.queue: Queue | None = None  # those that wait, if any do

    def __bool__(self) -> bool:
        return bool(self.holders or self.transients)

    # --- who is here ---

    def add_holder(self, session: SessionId) -> Holder:
        """*session* has something to do with the resource from now on."""
        holder = self.holders[session] = Holder()
        if self.held is None and len(self.holders) > FEW_HOLDERS:
            self.held = Claims()
            for other, each in self.holders.items():
                for start, end, mode in each.tokens:
                    self.held.add(other, other, start, end, mode)
        return holder

    def remove_holder(self, session: SessionId) -> None:
        """*session* has nothing to do with it any more, whatever it held."""
        holder = self.holders.pop(session)
        self.strong.pop(session, None)
        if self.held is not None:
            for start, end, mode in holder.tokens:
                self.held.remove(session, start, end, mode)
            if len(self.holders) <= FEW_HOLDERS // 2:
                self.held = None

    def add_transient(self, request: Request) -> None:
        """An operation runs from now on."""
        self.transients[request.ticket] = request
        if self.running is not None:
            self._add_running(self.running, request)
        elif len(self.transients) > FEW_HOLDERS:
            self.running = Claims()
            for running in self.transients.values():
                self._add_running(self.running, running)

    def _add_running(self, claims: Claims[int], request: Request) -> None:
        for start, end in request.ranges:
            claims.add(request.ticket, request.session, start, end, request.mode)

    def remove_transient(self, ticket: int) -> Request:
        """It has ended."""
        request = self.transients.pop(ticket)
        if self.running is not None:
            for start, end in request.ranges:
                self.running.remove(ticket, start, end, request.mode)
            if len(self.transients) <= FEW_HOLDERS // 2:
                self.running = None
        return request

    def token(self, start: int, end: int, mode: TokenMode) -> Token:
        """The token of this resource for that range."""
        return Token(self.handle, self.resource, start, end, mode)

    def granted_with(self, ticket: int) -> tuple[SessionId, Holder]:
        """Whose grant of *ticket* is in flight."""
        session = self.flying[ticket]
        return session, self.holders[session]

    def strengthen(self, session: SessionId, start: int, end: int, mode: TokenMode) -> None:
        """*session* holds all of the range at *mode*, or as strong as before."""
        holder = self.holders[session]
        if self.held is None:
            holder.strengthen(start, end, mode)
        else:
            before = holder.extents_around(start, end)
            holder.strengthen(start, end, mode)
            self._held_changed(self.held, session, before, holder.extents_around(start, end))
        if mode is TokenMode.EXCLUSIVE:
            self.strong[session] = None

    def reduce(self, session: SessionId, start: int, end: int, keep: TokenMode) -> None:
        """*session* holds nothing in the range that is stronger than *keep*."""
        holder = self.holders[session]
        if self.held is None:
            holder.reduce(start, end, keep)
        else:
            before = holder.extents_around(start, end)
            holder.reduce(start, end, keep)
            self._held_changed(self.held, session, before, holder.extents_around(start, end))
        # One with many extents is looked at again when it has few: to look at all of them takes its time.
        few = session in self.strong and len(holder.tokens) <= FEW_EXTENTS
        if few and all(held is not TokenMode.EXCLUSIVE for _, _, held in holder.tokens):
            del self.strong[session]

    def _held_changed(
        self, held: Claims[SessionId], session: SessionId,
        before: list[tuple[int, int, TokenMode]], after: list[tuple[int, int, TokenMode]],
    ) -> None:  # fmt: skip
        for start, end, mode in before:
            held.remove(session, start, end, mode)
        for start, end, mode in after:
            held.add(session, session, start, end, mode)

    def _suspects(self, mode: TokenMode) -> dict[SessionId, Holder]:
        """The holders of which any may have something that *mode* conflicts with."""
        if mode is TokenMode.EXCLUSIVE:
            return self.holders
        return {session: self.holders[session] for session in self.strong}

    def to_be_asked(self, request: Request, blocker: Blocker) -> dict[SessionId, Holder]:
        """Those of whom something has perhaps still to be asked for *request*, which waits for *blocker*."""
        why, what = blocker
        other = self.waiting.get(what) if why == TICKET and isinstance(what, int) else None
        if other is not None and other.mode >= request.mode and other.ranges == request.ranges:
            return {other.session: self.holders[other.session]}  # all others have been asked for the same
        return self.in_the_way(request)

    def in_the_way(self, request: Request) -> dict[SessionId, Holder]:
        """The holders of what *request* conflicts with, and perhaps others."""
        if self.held is None:
            return self._suspects(request.mode)
        return {session: self.holders[session] for session in self.held.everyone(request)}

    def is_held_already(self, request: Request) -> bool:
        """Whether *request* asks only for what its session holds and is not being asked to give up."""
        holder = self.holders.get(request.session)
        return holder is not None and all(
            holder.holds(start, end, request.mode) and not holder.being_recalled(start, end)
            for start, end in request.ranges
        )

    def blocker_of_new(self, request: Request) -> Blocker | None:
        """What *request*, which has just come, has to wait for; None if it need not wait."""
        blocker = None if request.transient else self._own_blocker(request)
        if blocker is None and self.queue is not None:
            ticket = self.queue.last_before(request)
            if ticket is not None:
                return TICKET, ticket
        return blocker or self._blocker_before_queue(request)

    def blocker_of_waiting(self, request: Request, hint: Request | None) -> Blocker | None:
        """What *request*, which waits, has still to wait for: *hint*, which waits as well, if that is one of
        several; None if it is *grantable*."""
        assert self.queue is not None
        blocker = self._own_blocker(request)
        if blocker is None and hint is not None and self.queue.goes_before(hint, request):
            blocker = (TICKET, hint.ticket)
        blocker = blocker or self._blocker_before_queue(request)
        if blocker is None:
            ticket = self.queue.someone_before(request)
            blocker = None if ticket is None else (TICKET, ticket)
        return blocker

    def _own_blocker(self, request: Request) -> Blocker | None:
        holder = self.holders.get(request.session)
        if holder is None or request.transient:
            return None
        if self.has_too_many(holder):
            return EXTENTS, request.session
        if holder.asked is not None:
            for start, end in request.ranges:
                if holder.being_recalled(start, end):
                    return RECALL, holder.recall_of(start, end)
        return None

    def _blocker_before_queue(self, request: Request) -> Blocker | None:
        if self.running is not None:
            ticket = self.running.someone(request)
            if ticket is not None:
                return TICKET, ticket
        elif self.transients:
            for running in self.transients.values():
                if request.conflicts(running):
                    return TICKET, running.ticket
        session = self.conflicting_holder(request)
        return None if session is None else (HOLDER, session)

    def conflicting_holder(self, request: Request) -> SessionId | None:
        """Another session that holds something *request* conflicts with, None if there is none."""
        if self.held is not None:
            return self.held.someone(request)
        if request.mode is TokenMode.EXCLUSIVE:
            for other, holder in self.holders.items():
                if other != request.session and holder.is_in_the_way(request):
                    return other
        else:
            for other in self.strong:
                if other != request.session and self.holders[other].is_in_the_way(request):
                    return other
        return None

    def waits_in_a_circle(self, request: Request) -> bool:
        """Whether an urgent *request* would wait for what a session holds that cannot give it up, as an urgent
        request of its own waits for what *request*'s session holds; or so on over several sessions."""
        seen: set[SessionId] = set()
        frontier = [request]
        while frontier:
            asking = frontier.pop()
            for session, holder in self.in_the_way(asking).items():
                if session in seen or session == asking.session or not holder.is_in_the_way(asking):
                    continue
                if session == request.session:
                    return True
                seen.add(session)
                frontier += [self.waiting[t] for t in holder.waiting if self.waiting[t].urgent]
        return False

    def enqueue(self, request: Request, blocker: Blocker) -> None:
        """Put *request* behind those that wait, or, if it is urgent, behind those that are: for *blocker*."""
        if self.queue is None:
            self.queue = Queue()
        self.waiting[request.ticket] = request
        self.queue.add(request, blocker)

    def unqueue(self, ticket: int) -> list[Request]:
        """It waits no more. Those that waited for that."""
        assert self.queue is not None
        behind = self.queue.remove(self.waiting.pop(ticket))
        if not self.waiting:
            self.queue = None
        return behind

    def put_behind(self, request: Request, blocker: Blocker) -> None:
        """*request* waits for *blocker* from now on."""
        assert self.queue is not None
        self.queue.put_behind(request, blocker)

    def rank(self, request: Request) -> int:
        """The place of *request* in the queue: who has a smaller one goes first."""
        assert self.queue is not None
        return self.queue.rank(request)

    def waited_for(self, request: Request) -> Request | None:
        """The other that waits and *request* waits for, None if it is for something else."""
        assert self.queue is not None
        why, what = self.queue.blocker(request)
        return self.waiting.get(what) if why == TICKET and isinstance(what, int) else None

    def behind(self, blocker: Blocker) -> list[Request]:
        """Those that wait for *blocker*, which is no HOLDER, and has gone."""
        return [] if self.queue is None else self.queue.behind(blocker)

    def behind_holder(self, session: SessionId, start: int, end: int) -> list[Request]:
        """Those that wait for *session*, which holds less of the range than it did."""
        if self.queue is None:
            return []
        behind = [*self.queue.behind_holder(session, start, end)]
        holder = self.holders.get(session)
        if holder is None or not self.has_too_many(holder):
            behind += self.queue.behind((EXTENTS, session))
        return behind

    def grant(self, request: Request) -> Granted:
        """Give a grantable *request* what it asks for, and if it is not transient as much as is free."""
        if request.transient:
            self.add_transient(request)
            return Granted(request.ticket, ())
        ((start, end),) = request.ranges
        holder = self.holders[request.session]
        if not holder.holds(start, end, request.mode):
            start, end = self._largest(request.session, start, end, request.mode)
            wider = Request(request.ticket, request.session, ((start, end),), request.mode, False)
            assert self.conflicting_holder(wider) is None, f"K0: {self.token(start, end, request.mode)}"
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
        if self.queue is not None:
            for claims in self.queue.claims():
                low, high = claims.free_around(session, mode, start, end, low, high)
        if self.running is not None:
            low, high = self.running.free_around(session, mode, start, end, low, high)
        for begin, stop in self._fixed_obstacles(session, mode, start, end):
            if begin < start:
                low = max(low, min(stop, start))
            if stop > end:
                high = min(high, max(begin, end))
        if self.held is not None:
            return self.held.free_around(session, mode, start, end, low, high)
        for other, holder in self._suspects(mode).items():
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

    def _fixed_obstacles(self, session: SessionId, mode: TokenMode, start: int, end: int) -> Iterator[Interval]:
        """Running operations, if they are few, and the recalls from *session* that are next to the range."""
        if self.running is None:
            for running in self.transients.values():
                if running.session != session and not COMPATIBLE[mode, running.mode]:
                    yield from running.ranges
        asked = self.holders[session].asked
        if asked is not None:
            for low, high, _, _ in asked.meeting(start - 1, end + 1):
                yield low, high
            for near in itertools.islice(asked.before(start), 1):
                yield near[0] - 1, near[0]
            for near in itertools.islice(asked.behind(end), 1):
                yield near[0], near[0] + 1

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
        """What to recall of a *holder* that `has_too_many` extents."""
        return [self.token(*part, TokenMode.NONE) for part in holder.half_to_give_up()]
