"""A server's token manager with model clients and ordered connections, one step at a time.

A model client believes it holds a token from the moment it has processed the grant until it sends the
acknowledgement (or gives it back unasked). `World.check` compares: no two clients may believe what K0
forbids, nobody may believe what a running operation of another excludes, and the server must know of
everything anybody believes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from nfsfuse.protocol.intervals import IntervalMap
from nfsfuse.protocol.tokens import COMPATIBLE, Resource, Token, TokenMode
from nfsfuse.protocol.types import InodeHandle, SessionId
from nfsfuse_server.machines.token_effects import Effect, Granted, Recall, Refused
from nfsfuse_server.machines.tokens import TokenManager

Key = tuple[InodeHandle, Resource]
Belief = dict[Key, IntervalMap[TokenMode]]


@dataclass(frozen=True)
class Ask:
    """A request of a model client, as its server sees it."""

    ticket: int
    session: SessionId
    handle: InodeHandle
    resource: Resource
    start: int
    end: int
    mode: TokenMode
    transient: bool

    def conflicts(self, other: Ask) -> bool:
        return (
            self.session != other.session
            and (self.handle, self.resource) == (other.handle, other.resource)
            and self.start < other.end
            and other.start < self.end
            and not COMPATIBLE[self.mode, other.mode]
        )


@dataclass(frozen=True)
class Acknowledge:
    recall_id: int
    returned: tuple[Token, ...]


@dataclass(frozen=True)
class GiveBack:
    tokens: tuple[Token, ...]


def reduce(belief: Belief, token: Token) -> None:
    """Believe in nothing of the token's range that is stronger than its mode."""
    tokens = belief.get((token.handle, token.resource), IntervalMap())
    for start, end, mode in tokens.overlapping(token.start, token.end):
        if mode > token.mode:
            tokens.delete(start, end)
            if token.mode is not TokenMode.NONE:
                tokens.set(start, end, token.mode)


@dataclass
class Client:
    """What a client knows."""

    belief: Belief = field(default_factory=dict)
    asked: dict[int, list[Token]] = field(default_factory=dict)  # ticket: given up unasked since
    owed: list[Recall] = field(default_factory=list)

    def granted(self, granted: Granted) -> None:
        for token in granted.tokens:
            for recall in self.owed:
                about = recall.token
                apart = token.end <= about.start or about.end <= token.start
                same = (about.handle, about.resource) == (token.handle, token.resource)
                assert apart or not same, "granted in a recall"
            key = (token.handle, token.resource)
            self.belief.setdefault(key, IntervalMap()).set(token.start, token.end, token.mode)
        for token in self.asked.pop(granted.ticket):
            reduce(self.belief, token)

    def give_up(self, tokens: Iterable[Token]) -> None:
        """Unasked, hence left out of the grants that may be crossing with it."""
        for token in tokens:
            reduce(self.belief, token)
            for given_up in self.asked.values():
                given_up.append(token)


class World:
    """Steps are methods; each leaves the world consistent or raises."""

    def __init__(self, manager: TokenManager, sessions: Iterable[SessionId]) -> None:
        self.manager = manager
        self.clients: dict[SessionId, Client] = {}
        self.up: dict[SessionId, deque[Ask | Acknowledge | GiveBack]] = {}
        self.down: dict[SessionId, deque[Granted | Recall]] = {}
        self.waiting: dict[int, Ask] = {}
        self.running: dict[int, tuple[Ask, Granted]] = {}
        for session in sessions:
            self.join(session)

    def join(self, session: SessionId) -> None:
        self.clients[session] = Client()
        self.up[session] = deque()
        self.down[session] = deque()

    # --- a client's steps ---

    def ask(self, ask: Ask) -> None:
        self.clients[ask.session].asked[ask.ticket] = []
        self.up[ask.session].append(ask)

    def acknowledge(self, session: SessionId, index: int = 0, returned: tuple[Token, ...] = ()) -> None:
        client = self.clients[session]
        recall = client.owed.pop(index)
        reduce(client.belief, recall.token)
        client.give_up(returned)
        self.up[session].append(Acknowledge(recall.recall_id, returned))

    def give_back(self, session: SessionId, tokens: tuple[Token, ...]) -> None:
        self.clients[session].give_up(tokens)
        self.up[session].append(GiveBack(tokens))

    def receive(self, session: SessionId) -> None:
        """The client processes the oldest message from the server."""
        match self.down[session].popleft():
            case Granted() as granted:
                self.clients[session].granted(granted)
            case Recall() as recall:
                self.clients[session].owed.append(recall)

    # --- the server's steps ---

    def deliver(self, session: SessionId) -> None:
        """The server processes the oldest message from the client."""
        match self.up[session].popleft():
            case Ask() as ask:
                self.waiting[ask.ticket] = ask
                where = (session, ask.handle, ask.resource, ask.start, ask.end, ask.mode)
                held = not ask.transient and self.manager.holds(*where)
                effects = self.manager.acquire(ask.ticket, *where, transient=ask.transient)
                self._carry_out(effects, may_overtake=ask.ticket if held else None)
            case Acknowledge(recall_id, returned):
                self._carry_out(self.manager.acknowledged(session, recall_id, returned))
            case GiveBack(tokens):
                self._carry_out(self.manager.give_back(session, tokens))

    def use(self, ask: Ask) -> None:
        """An operation that runs under what its session holds, as a write-back does."""
        where = (ask.session, ask.handle, ask.resource, ask.start, ask.end, ask.mode)
        assert self.manager.use(ask.ticket, *where), "believed, hence held"
        self.clients[ask.session].asked[ask.ticket] = []
        self.running[ask.ticket] = (ask, Granted(ask.ticket, ()))

    def end(self, ticket: int) -> None:
        """A granted operation is done: its reply, and then what had to wait for that."""
        ask, granted = self.running.pop(ticket)
        if ask.session in self.down:
            self.down[ask.session].append(granted)
        manager = self.manager
        self._carry_out(manager.finish(ticket) if ask.transient else manager.settle(ticket))

    def cancel(self, ticket: int) -> None:
        ask = self.waiting.pop(ticket)
        del self.clients[ask.session].asked[ticket]
        self._carry_out(self.manager.cancel(ticket))

    def drop(self, session: SessionId) -> None:
        """Fence: the lease has run out, on both sides. Operations that run go on."""
        del self.clients[session], self.up[session], self.down[session]
        self.waiting = {t: ask for t, ask in self.waiting.items() if ask.session != session}
        self._carry_out(self.manager.drop_session(session))

    def _carry_out(self, effects: list[Effect], *, may_overtake: int | None = None) -> None:
        for effect in effects:
            match effect:
                case Granted(ticket, tokens):
                    ask = self.waiting[ticket]
                    if ticket != may_overtake:
                        self._assert_in_turn(ask)
                    del self.waiting[ticket]
                    self.running[ticket] = (ask, effect)
                    if ask.transient:
                        assert tokens == ()
                    else:
                        assert covers(tokens, ask), "a grant covers what was asked for"
                case Recall(session=session):
                    self.down[session].append(effect)
                case Refused():
                    raise AssertionError("nobody asked not to wait")

    def _assert_in_turn(self, ask: Ask) -> None:
        """FIFO: nobody who came earlier and still waits is in conflict."""
        for earlier in self.waiting.values():
            if earlier.ticket == ask.ticket:
                return
            assert not earlier.conflicts(ask), ("overtaken", earlier, ask)

    # --- the oracle ---

    def check(self) -> None:
        self.manager.check()
        assert self.waiting.keys() == {t for s in self.manager._states.values() for t in s.waiting}
        claims: list[tuple[SessionId, Key, int, int, TokenMode]] = []
        for ask, _ in self.running.values():
            if ask.transient:
                claims.append((ask.session, (ask.handle, ask.resource), ask.start, ask.end, ask.mode))
        for session, client in self.clients.items():
            for key, tokens in client.belief.items():
                for start, end, mode in tokens:
                    assert self.manager.holds(session, *key, start, end, mode), "the server does not know"
                    claims.append((session, key, start, end, mode))
        for index, (session, key, start, end, mode) in enumerate(claims):
            for other, other_key, begin, stop, held in claims[:index]:
                if other != session and other_key == key and begin < end and start < stop:
                    assert COMPATIBLE[mode, held], ("K0 among clients", claims)

    def drain(self) -> None:
        """Everybody does what he owes and nothing else. Raises if anything waits for ever."""
        moved = True
        while moved:
            moved = False
            for session, client in self.clients.items():
                while self.down[session]:
                    self.receive(session)
                while client.owed:
                    self.acknowledge(session)
                while self.up[session]:
                    self.deliver(session)
                    moved = True
            for ticket in list(self.running):
                self.end(ticket)
                moved = True
        assert not self.waiting, ("never granted", self.waiting)


def covers(tokens: tuple[Token, ...], ask: Ask) -> bool:
    """Whether *tokens* give all that was asked for."""
    held: IntervalMap[bool] = IntervalMap()
    for token in tokens:
        if (token.handle, token.resource) == (ask.handle, ask.resource) and token.mode >= ask.mode:
            held.set(token.start, token.end, True)
    return held.covers(ask.start, ask.end)
