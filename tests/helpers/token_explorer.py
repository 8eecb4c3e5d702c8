"""Every reachable state of a tiny `World`: breadth first, each state once, checked when first seen.

Two sessions, two pages (the second reaches to the end of the file), two requests outstanding each. A state is
what `fingerprint` says of it: recall ids count only by their order, and the order in which dictionaries of
sessions were filled not at all.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import InodeHandle, SessionId
from nfsfuse_server.machines.token_effects import Granted, Recall
from nfsfuse_server.machines.token_holder import Holder
from nfsfuse_server.machines.tokens import TokenManager
from tests.helpers.token_copy import copy_world
from tests.helpers.token_world import Acknowledge, Ask, Client, World

HANDLE = InodeHandle(b"h")
RESOURCE = Resource.DIR  # a page is a point, the rest is the same
FIRST, SECOND, BOTH = (0, 1), (1, RANGE_END), (0, RANGE_END)
SESSIONS = (SessionId(b"a"), SessionId(b"b"))

Wish = tuple[tuple[int, int], TokenMode, bool]  # range, mode, transient


class QuietManager(TokenManager):
    """Without a story, which would make every state a different one."""

    def _note(self, handle: InodeHandle, event: object) -> None:
        pass


@dataclass(frozen=True)
class Rules:
    """What may happen. The budgets are for one run."""

    wishes: tuple[Wish, ...]
    asks: int = 2  # of each session
    gifts: int = 0  # given back unasked, of both together
    drops: int = 0
    cancels: int = 0
    slow_messages: bool = True  # else a client processes what it is sent at once (but still acts late)


@dataclass
class Node:
    """A world and what is left of the budgets."""

    world: World
    asked: dict[SessionId, int]
    gifts: int
    drops: int
    cancels: int

    def copy(self) -> Node:
        world = copy_world(self.world)
        return Node(world, dict(self.asked), self.gifts, self.drops, self.cancels)


def explore(rules: Rules, manager: Callable[[], TokenManager] = QuietManager) -> int:
    """The number of states; raises AssertionError, with the way there, in the first bad one."""
    gc.disable()  # it would look for cycles among a million objects again and again; there are none
    try:
        return _explore(rules, manager)
    finally:
        gc.enable()


def _explore(rules: Rules, manager: Callable[[], TokenManager]) -> int:
    world = World(manager(), SESSIONS)
    root = Node(world, dict.fromkeys(SESSIONS, 0), rules.gifts, rules.drops, rules.cancels)
    seen = {fingerprint(root)}
    frontier: deque[tuple[Node, tuple[Any, ...]]] = deque([(root, ())])
    while frontier:
        parent, way = frontier.popleft()
        steps = list(enabled(parent, rules))
        if not any(progress for _, _, progress in steps):
            assert not parent.world.waiting, ("waits for ever", _tell(way))
        for name, arguments, _ in steps:
            node = parent.copy()
            taken = (way, (name, *arguments))
            try:
                apply(node, name, arguments)
                if not rules.slow_messages:
                    for session, messages in node.world.down.items():
                        while messages:
                            node.world.receive(session)
                mark = fingerprint(node)
                if mark in seen:
                    continue
                node.world.check()
            except AssertionError as exc:
                exc.add_note(_tell(taken))
                raise
            seen.add(mark)
            frontier.append((node, taken))
    return len(seen)


def _tell(way: tuple[Any, ...]) -> str:
    steps: list[str] = []
    while way:
        way, step = way
        steps.append(str(step))
    return "\n".join(reversed(steps))


def enabled(node: Node, rules: Rules) -> Iterator[tuple[str, tuple[Any, ...], bool]]:
    """The possible steps, and whether each is one that is owed: those alone must serve every request."""
    world = node.world
    for session, client in world.clients.items():
        if world.down[session]:
            yield "receive", (session,), True
        if world.up[session]:
            yield "deliver", (session,), True
        for index in range(len(client.owed)):
            yield "acknowledge", (session, index), True
        # The two are alike: it is enough to see the first begin.
        if node.asked[session] < rules.asks and (session == SESSIONS[0] or node.asked[SESSIONS[0]]):
            for wish in rules.wishes:
                yield "ask", (session, wish), False
        if node.gifts:
            for page in (FIRST, SECOND):
                yield "give_back", (session, page), False
        if node.drops:
            yield "drop", (session,), False
    for ticket in world.running:
        yield "end", (ticket,), True
    if node.cancels:
        for ticket in world.waiting:
            yield "cancel", (ticket,), False


def apply(node: Node, name: str, arguments: tuple[Any, ...]) -> None:
    world = node.world
    match name, arguments:
        case "ask", (session, ((start, end), mode, transient)):
            ticket = SESSIONS.index(session) * 10 + node.asked[session]
            node.asked[session] += 1
            world.ask(Ask(ticket, session, HANDLE, RESOURCE, start, end, mode, transient))
            if len(world.up[session]) == 1:
                world.deliver(session)  # what the client does not do meanwhile, nobody can tell apart
        case "give_back", (session, (start, end)):
            node.gifts -= 1
            world.give_back(session, (Token(HANDLE, RESOURCE, start, end, TokenMode.NONE),))
        case "drop", _:
            node.drops -= 1
            world.drop(*arguments)
        case "cancel", _:
            node.cancels -= 1
            world.cancel(*arguments)
        case _:
            getattr(world, name)(*arguments)


def fingerprint(node: Node) -> object:
    """All that can matter for what happens from here on."""
    world = node.world
    rank = {recall: n for n, recall in enumerate(sorted(world.manager._recalls))}
    states = []
    for state in world.manager._states.values():
        holders = {s: _holder(h, rank) for s, h in state.holders.items()}
        states.append((
            tuple(holders.get(session) for session in SESSIONS),
            tuple(state.waiting.values()), frozenset(state.transients.values()),
        ))  # fmt: skip
    return (
        tuple(states),
        tuple(_client(world, session, rank) for session in SESSIONS),
        frozenset(granted for _, granted in world.running.values()),
        tuple(node.asked.values()), node.gifts, node.drops, node.cancels,
    )  # fmt: skip


def _holder(holder: Holder, rank: dict[int, int]) -> object:
    recalls = tuple((rank[number], recall.token) for number, recall in holder.recalls.items())
    return tuple(holder.tokens), frozenset(holder.in_flight.items()), recalls, frozenset(holder.waiting)


def _client(world: World, session: SessionId, rank: dict[int, int]) -> object:
    client: Client | None = world.clients.get(session)
    if client is None:
        return None

    def plain(message: object) -> object:
        match message:
            case Recall(recall_id, _, token):
                return rank[recall_id], token
            case Acknowledge(recall_id, returned):
                return rank[recall_id], returned
            case Granted() | _:
                return message

    return (
        tuple((key, tuple(tokens)) for key, tokens in client.belief.items() if tokens),
        tuple(sorted((ticket, tuple(given)) for ticket, given in client.asked.items())),
        tuple(plain(recall) for recall in client.owed),
        tuple(plain(message) for message in world.up[session]),
        tuple(plain(message) for message in world.down[session]),
    )
