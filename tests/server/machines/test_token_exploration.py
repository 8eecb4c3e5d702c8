"""Every interleaving of tiny worlds; and the same worlds find each of the bugs that could be made.

A "fast" world hands a client every message at once: as far as the server can tell, a client that receives
late is one that acts late. Only giving back unasked differs, so the worlds with gifts are slow.
"""

from __future__ import annotations

import pytest

from nfsfuse.protocol.tokens import STRONGEST_BESIDE, TokenMode
from nfsfuse_server.machines.token_holder import Holder
from nfsfuse_server.machines.token_queue import Queue
from nfsfuse_server.machines.token_state import ResourceTokens
from tests.helpers.token_explorer import BOTH, FIRST, SECOND, QuietManager, Rules, explore
from tests.helpers.token_world import Client, reduce

S, X = TokenMode.SHARED, TokenMode.EXCLUSIVE
TOKENS = tuple((pages, mode, False) for pages in (FIRST, SECOND, BOTH) for mode in (S, X))
TRANSIENTS = tuple((pages, mode, True) for pages, mode, _ in TOKENS)

WORLDS = {
    "all wishes, one each, with gift, crash and cancel": (
        Rules(TOKENS + TRANSIENTS, asks=1, gifts=1, drops=1, cancels=1),
        7900,
    ),
    "all token wishes, two each": (Rules(TOKENS, slow_messages=False), 15_000),
    "upgrades of one page, two each, with crash and cancel": (
        Rules(((FIRST, X, False), (FIRST, S, False)), drops=1, cancels=1),
        6900,
    ),
    "a page against the whole, two each, slow messages": (
        Rules(((FIRST, X, False), (BOTH, S, False))),
        2100,
    ),
    "tokens against operations, two each, with a crash": (
        Rules(((FIRST, X, False), (BOTH, S, False), (SECOND, X, True)), drops=1, slow_messages=False),
        7200,
    ),
}


@pytest.mark.parametrize("name", WORLDS)
def test_every_interleaving_is_coherent_and_serves_everybody(name: str):
    rules, at_least = WORLDS[name]
    states = explore(rules)
    print(f"{states} states")
    assert states >= at_least, "the world has shrunk: is what is explored still what is meant?"


class Trusting(QuietManager):
    """The machine's own check is switched off: the clients' beliefs alone must show the bug."""

    def check(self) -> None:
        pass


class GrantsBeforeTheAcknowledgement(Trusting):
    """Takes a recall that was sent for one that was honoured."""

    def _recall(self, state, session, token):
        recall = super()._recall(state, session, token)
        state.holders[session].reduce(token.start, token.end, token.mode)
        return recall


class ForgetsWhatTheStorageIsDoing(Trusting):
    """A fence takes the running operations away as well."""

    def drop_session(self, session):
        for state in self._states.values():
            for ticket, running in list(state.transients.items()):
                if running.session == session:
                    del state.transients[ticket], self._tickets[ticket]
        return super().drop_session(session)


INCOHERENT = r"K0 among clients|the server does not know|granted in a recall"
SMALL = Rules(((FIRST, X, False), (BOTH, S, False), (FIRST, X, True)), asks=2, slow_messages=False)


def test_granting_before_the_acknowledgement_is_found():
    with pytest.raises(AssertionError, match=INCOHERENT):
        explore(SMALL, GrantsBeforeTheAcknowledgement)


def test_a_recall_that_overtakes_its_grant_is_found(monkeypatch):
    recallable = Holder.recallable

    def hasty(self, start, end, keep):
        in_flight, self.in_flight = self.in_flight, {}
        try:
            return recallable(self, start, end, keep)
        finally:
            self.in_flight = in_flight

    monkeypatch.setattr(Holder, "recallable", hasty)
    with pytest.raises(AssertionError, match=INCOHERENT):
        explore(SMALL, Trusting)


def test_an_upgrade_beside_other_readers_is_found(monkeypatch):
    conflicting = ResourceTokens.conflicting_holder

    def careless(self, request):
        holder = self.holders.get(request.session)
        has_it = holder is not None and all(holder.holds(*interval, S) for interval in request.ranges)
        return None if has_it else conflicting(self, request)

    monkeypatch.setattr(ResourceTokens, "conflicting_holder", careless)
    with pytest.raises(AssertionError, match=INCOHERENT):
        explore(SMALL, Trusting)


def test_a_grant_inside_an_own_recall_is_found(monkeypatch):
    monkeypatch.setattr(Holder, "being_recalled", lambda self, start, end: False)
    with pytest.raises(AssertionError, match=INCOHERENT + "|overtaken"):
        explore(SMALL, Trusting)


def test_overtaking_in_the_queue_is_found(monkeypatch):
    monkeypatch.setattr(Queue, "last_before", lambda self, request: None)
    monkeypatch.setattr(Queue, "someone_before", lambda self, request: None)
    with pytest.raises(AssertionError, match="overtaken"):
        explore(SMALL, Trusting)


def test_a_fence_that_forgets_what_the_storage_is_still_doing_is_found():
    with pytest.raises(AssertionError, match=INCOHERENT):
        explore(Rules(((FIRST, X, True), (FIRST, S, False)), asks=1, drops=1), ForgetsWhatTheStorageIsDoing)


def test_a_client_that_forgets_what_it_gave_back_while_it_asked_is_found(monkeypatch):
    """The second duty of a client is one: the server cannot see the crossing."""

    def forget(self, tokens):
        for token in tokens:
            reduce(self.belief, token)

    monkeypatch.setattr(Client, "give_up", forget)
    with pytest.raises(AssertionError, match=INCOHERENT):
        explore(Rules(((FIRST, X, False), (FIRST, S, False)), asks=1, gifts=1), Trusting)


def test_a_request_nobody_is_asked_for_is_found(monkeypatch):
    to_recall = ResourceTokens.to_recall

    def shy(self, request, holders):
        return (pair for pair in to_recall(self, request, holders) if STRONGEST_BESIDE[request.mode] is not S)

    monkeypatch.setattr(ResourceTokens, "to_recall", shy)
    with pytest.raises(AssertionError, match="waits for ever"):
        explore(SMALL, Trusting)
