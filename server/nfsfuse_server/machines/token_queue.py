"""The requests that wait for one resource: in which order, and what each of them waits for.

Each waits for one *blocker*, of perhaps several reasons why it is not granted, and is looked at again only
when that is gone: so what ends costs as much as what it may let go on, however many wait. A request that comes
waits for the last of those that came before it and conflict with it: they form a row, of which one moves on at
a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nfsfuse.protocol.range_index import RangeIndex
from nfsfuse.protocol.types import SessionId
from nfsfuse_server.machines.token_claims import Claims, Request

Blocker = tuple[str, int | SessionId]
"""What a request waits for: one of the following, and which."""

TICKET: Final = "ticket"
"""Another request, which waits before it, or is transient and granted."""
RECALL: Final = "recall"
"""The end of a recall of what its own session holds."""
HOLDER: Final = "holder"
"""What another session holds."""
EXTENTS: Final = "extents"
"""That its own session holds fewer extents."""

_URGENT: Final = -(2**62)
"""What is urgent goes before what is not."""


class Queue:
    """Urgent requests in the order of their arrival, and then all others in theirs."""

    def __init__(self) -> None:
        self._arrivals = 0
        self._ranks: dict[int, int] = {}  # by ticket
        self._blockers: dict[int, Blocker] = {}  # by ticket
        self._followers: dict[Blocker, dict[int, Request]] = {}  # but for those that wait for holders
        self._behind: dict[SessionId, RangeIndex[int, Request]] = {}
        self._claims: Claims[int] = Claims()
        self._urgent: Claims[int] = Claims()

    def rank(self, request: Request) -> int:
        """The place of *request*, which waits: who has a smaller one goes first."""
        return self._ranks[request.ticket]

    def blocker(self, request: Request) -> Blocker:
        """What *request* waits for."""
        return self._blockers[request.ticket]

    # --- who is before whom ---

    def last_before(self, request: Request) -> int | None:
        """The ticket of one that *request*, which has just come, has to wait behind: of those that want the
        same range the last."""
        if request.urgent:
            return None
        for line in self._claims.lines(request):
            for ticket, session in reversed(line.items()):
                if session != request.session:
                    return ticket
        return self._urgent.someone(request)

    def goes_before(self, other: Request, request: Request) -> bool:
        """Whether *request* has to wait behind *other*, which both wait."""
        before = self._ranks[other.ticket] < self._ranks[request.ticket]
        return before and not request.urgent and request.conflicts(other)

    def someone_before(self, request: Request) -> int | None:
        """The ticket of one that *request*, which waits, has to wait behind; None if there is none."""
        if request.urgent:
            return None
        rank = self._ranks[request.ticket]
        for line in self._claims.lines(request):
            for ticket, session in line.items():
                if self._ranks[ticket] >= rank:
                    break
                if session != request.session:
                    return ticket
        return self._urgent.someone(request)

    def wanted(self, session: SessionId, start: int, end: int) -> list[int]:
        """The tickets of requests of others for some of ``[start, end)``, in order; of those for the same range
        in the same mode the first."""
        found = set()
        for claims in (self._urgent, self._claims):
            for line in claims.meeting(start, end):
                for ticket, other in line.items():
                    if other != session:
                        found.add(ticket)
                        break
        return sorted(found, key=self._ranks.__getitem__)

    def claims(self) -> tuple[Claims[int], Claims[int]]:
        """What all that wait want."""
        return self._urgent, self._claims

    # --- changes ---

    def add(self, request: Request, blocker: Blocker) -> None:
        """*request* waits from now on, for *blocker*."""
        self._arrivals += 1
        self._ranks[request.ticket] = self._arrivals + (_URGENT if request.urgent else 0)
        claims = self._urgent if request.urgent else self._claims
        for start, end in request.ranges:
            claims.add(request.ticket, request.session, start, end, request.mode)
        self._follow(request, blocker)

    def remove(self, request: Request) -> list[Request]:
        """*request* waits no more. Those that waited for that, to be looked at again."""
        self._unfollow(request)
        del self._ranks[request.ticket]
        claims = self._urgent if request.urgent else self._claims
        for start, end in request.ranges:
            claims.remove(request.ticket, start, end, request.mode)
        return self.behind((TICKET, request.ticket))

    def put_behind(self, request: Request, blocker: Blocker) -> None:
        """*request* waits for *blocker* from now on."""
        self._unfollow(request)
        self._follow(request, blocker)

    def behind(self, blocker: Blocker) -> list[Request]:
        """Those that wait for *blocker*, which is no HOLDER."""
        return list(self._followers.get(blocker, {}).values())

    def behind_holder(self, session: SessionId, start: int, end: int) -> Iterable[Request]:
        """Those that wait for what *session* holds in ``[start, end)``."""
        index = self._behind.get(session)
        if index is None:
            return ()
        return [request for line in index.lines(start, end) for request in line.values()]

    def _follow(self, request: Request, blocker: Blocker) -> None:
        self._blockers[request.ticket] = blocker
        why, what = blocker
        if why != HOLDER:
            self._followers.setdefault(blocker, {})[request.ticket] = request
            return
        assert isinstance(what, bytes)
        index = self._behind.setdefault(SessionId(what), RangeIndex())
        for start, end in request.ranges:
            index.add(start, end, request.ticket, request)

    def _unfollow(self, request: Request) -> None:
        blocker = self._blockers.pop(request.ticket)
        why, what = blocker
        if why != HOLDER:
            followers = self._followers[blocker]
            del followers[request.ticket]
            if not followers:
                del self._followers[blocker]
            return
        assert isinstance(what, bytes)
        index = self._behind[SessionId(what)]
        for start, end in request.ranges:
            index.remove(start, end, request.ticket)
        if not index:
            del self._behind[SessionId(what)]

    def check(self, waiting: dict[int, Request]) -> None:
        """Assert that each that waits is in its place."""
        assert self._ranks.keys() == self._blockers.keys() == waiting.keys()
        filed = [ticket for followers in self._followers.values() for ticket in followers]
        whole = (0, 2**64)
        behind = {t for index in self._behind.values() for _, _, t, _ in index.meeting(*whole)}
        assert sorted([*filed, *behind]) == sorted(waiting)
        for claims, urgent in ((self._urgent, True), (self._claims, False)):
            claims.check()
            claimed = {ticket for line in claims.meeting(*whole) for ticket in line}
            assert claimed == {ticket for ticket, request in waiting.items() if request.urgent is urgent}
