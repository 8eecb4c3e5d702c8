"""Copies of a `World`, by hand: an exploration makes one per step, and pickling doubled its time.

What a class consists of is asserted, so that a field that is added cannot be forgotten here and be shared.
"""

from __future__ import annotations

from collections import deque
from typing import TypeVar

from nfsfuse.protocol.intervals import IntervalMap
from nfsfuse_server.machines.token_holder import Holder
from nfsfuse_server.machines.token_queue import Queue
from nfsfuse_server.machines.token_state import ResourceTokens
from nfsfuse_server.machines.tokens import TokenManager
from tests.helpers.token_world import Client, World

V = TypeVar("V")

assert set(IntervalMap.__slots__) == {"_starts", "_ends", "_values", "_leaves", "_count"}
assert set(Holder.__slots__) == {
    "tokens", "in_flight", "recalls", "asked", "trimming", "waiting",
}  # fmt: skip
assert set(ResourceTokens.__slots__) == {
    "handle", "resource", "extents_max", "holders", "transients", "waiting", "strong", "flying",
    "held", "running", "queue",
}  # fmt: skip
assert set(vars(Queue())) == {
    "_arrivals", "_ranks", "_blockers", "_followers", "_behind", "_claims", "_urgent",
}  # fmt: skip
assert set(vars(TokenManager())) == {
    "_extents_max", "_states", "_sessions", "_tickets", "_recalls", "_next_recall", "_events",
}  # fmt: skip
assert set(vars(Client())) == {"belief", "asked", "owed"}
assert set(vars(World(TokenManager(), ()))) == {"manager", "clients", "up", "down", "waiting", "running"}


def copy_map(old: IntervalMap[V]) -> IntervalMap[V]:
    assert old._leaves is None, "small worlds have few extents"
    new: IntervalMap[V] = IntervalMap()
    new._starts, new._ends, new._values = list(old._starts), list(old._ends), list(old._values)
    return new


def copy_holder(old: Holder) -> Holder:
    new = Holder()
    new.tokens = copy_map(old.tokens)
    new.in_flight = dict(old.in_flight)
    for recall in old.recalls.values():
        new.add_recall(recall)
    new.trimming = set(old.trimming)
    new.waiting = set(old.waiting)
    return new


def copy_state(old: ResourceTokens) -> ResourceTokens:
    new = ResourceTokens(old.handle, old.resource, old.extents_max)
    assert old.held is None, "small worlds have few holders"
    assert old.running is None
    new.holders = {session: copy_holder(holder) for session, holder in old.holders.items()}
    new.strong = dict(old.strong)
    new.flying = dict(old.flying)
    new.transients = dict(old.transients)
    if old.queue is not None:
        for request in old.waiting.values():
            new.enqueue(request, old.queue.blocker(request))
    return new


def copy_manager(old: TokenManager) -> TokenManager:
    new = type(old)(old._extents_max)
    new._states = {key: copy_state(state) for key, state in old._states.items()}
    new._sessions = {session: dict(keys) for session, keys in old._sessions.items()}
    new._tickets = dict(old._tickets)
    new._recalls = dict(old._recalls)
    new._next_recall = old._next_recall
    new._events = deque(old._events, old._events.maxlen)
    return new


def copy_client(old: Client) -> Client:
    return Client(
        {key: copy_map(tokens) for key, tokens in old.belief.items()},
        {ticket: list(given_up) for ticket, given_up in old.asked.items()},
        list(old.owed),
    )


def copy_world(old: World) -> World:
    new = World(copy_manager(old.manager), ())
    new.clients = {session: copy_client(client) for session, client in old.clients.items()}
    new.up = {session: deque(messages) for session, messages in old.up.items()}
    new.down = {session: deque(messages) for session, messages in old.down.items()}
    new.waiting = dict(old.waiting)
    new.running = dict(old.running)
    return new
