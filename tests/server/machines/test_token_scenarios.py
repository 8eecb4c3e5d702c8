"""The token manager, one rule at a time."""

from __future__ import annotations

import pytest

from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode, name_point
from nfsfuse.protocol.types import PAGE_SIZE, InodeHandle, SessionId
from nfsfuse_server.machines.token_effects import Effect, Granted, Recall, Refused
from nfsfuse_server.machines.tokens import TokenManager

A, B, C = SessionId(b"a"), SessionId(b"b"), SessionId(b"c")
H, OTHER = InodeHandle(b"h"), InodeHandle(b"other")
DATA, ATTR, DIR = Resource.DATA, Resource.ATTR, Resource.DIR
NONE, S, X = TokenMode.NONE, TokenMode.SHARED, TokenMode.EXCLUSIVE
P = PAGE_SIZE
ALL = (0, RANGE_END)


def data(start: int, end: int, mode: TokenMode) -> Token:
    """A token of pages ``[start, end)``; an *end* of RANGE_END is no page number."""
    return Token(H, DATA, start * P, end if end == RANGE_END else end * P, mode)


class Bench:
    """A manager that is checked after every event and numbers the tickets."""

    def __init__(self, extents_max: int = 1024) -> None:
        self.manager = TokenManager(extents_max)
        self.ticket = 0

    def ask(self, session, pages, mode, *, resource=DATA, **options) -> list[Effect]:
        """Asks for a range of pages of DATA, of points of anything else."""
        self.ticket += 1
        unit = P if resource is DATA else 1
        start, end = (point if point == RANGE_END else point * unit for point in pages)
        return self.checked(
            self.manager.acquire(self.ticket, session, H, resource, start, end, mode, **options)
        )

    def get(self, session, pages, mode, *, resource=DATA) -> tuple[Token, ...]:
        """Asks, is granted at once, and the reply is sent."""
        (granted,) = self.ask(session, pages, mode, resource=resource)
        assert isinstance(granted, Granted)
        assert self.settle(granted.ticket) == []
        return granted.tokens

    def settle(self, ticket) -> list[Effect]:
        return self.checked(self.manager.settle(ticket))

    def finish(self, ticket) -> list[Effect]:
        return self.checked(self.manager.finish(ticket))

    def acknowledge(self, recall: Effect, *returned: Token) -> list[Effect]:
        assert isinstance(recall, Recall)
        return self.checked(self.manager.acknowledged(recall.session, recall.recall_id, returned))

    def drop(self, session) -> list[Effect]:
        return self.checked(self.manager.drop_session(session))

    def checked(self, effects: list[Effect]) -> list[Effect]:
        self.manager.check()
        return effects


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- how much is granted ---------------------------------------------------------------------------------


def test_the_first_holder_gets_everything(bench):
    assert bench.get(A, (3, 4), X) == (data(0, RANGE_END, X),)


def test_readers_share_everything(bench):
    bench.get(A, (0, 1), S)
    assert bench.get(B, (7, 8), S) == (data(0, RANGE_END, S),)


def test_a_grant_reaches_to_what_others_hold_on_both_sides(bench):
    bench.manager.reclaim(B, data(0, 2, X))
    bench.manager.reclaim(C, data(9, 10, S))
    assert bench.get(A, (4, 5), X) == (data(2, 9, X),)


def test_a_shared_grant_passes_over_what_others_share(bench):
    bench.manager.reclaim(B, data(0, 2, X))
    bench.manager.reclaim(C, data(9, 10, S))
    assert bench.get(A, (4, 5), S) == (data(2, RANGE_END, S),)


def test_what_is_held_stronger_stays_so(bench):
    bench.manager.reclaim(A, data(2, 3, X))
    assert bench.get(A, (1, 5), S) == (data(0, 2, S), data(2, 3, X), data(3, RANGE_END, S))


def test_a_grant_does_not_reach_into_what_somebody_waits_for(bench):
    bench.manager.reclaim(A, data(0, 1, X))
    (_recall,) = bench.ask(B, (0, 4), X)
    assert bench.get(C, (6, 7), X) == (data(4, RANGE_END, X),)


def test_a_grant_does_not_reach_into_what_its_own_session_is_losing(bench):
    bench.get(A, (0, 1), X)
    (recall,) = bench.ask(B, (0, 1), S)
    bench.checked(bench.manager.give_back(A, (data(0, RANGE_END, NONE),)))
    assert bench.get(A, (5, 6), S) == (data(1, RANGE_END, S),)
    assert bench.acknowledge(recall) == []


def test_what_is_held_already_is_granted_again_without_growing(bench):
    bench.get(A, (0, 1), X)
    assert bench.get(A, (5, 6), S) == (data(5, 6, X),)


# --- recalls ---------------------------------------------------------------------------------------------


def test_only_what_is_in_the_way_is_recalled_and_the_rest_is_kept(bench):
    bench.get(A, (0, 1), X)
    (recall,) = bench.ask(B, (5, 6), X)
    assert recall == Recall(1, A, data(5, 6, NONE))
    assert bench.acknowledge(recall) == [Granted(2, (data(5, 6, X),))]
    assert bench.manager.holders(H, DATA)[A] == (data(0, 5, X), data(6, RANGE_END, X))


def test_a_reader_leaves_the_writer_a_reader(bench):
    bench.get(A, (0, 1), X)
    (recall,) = bench.ask(B, (5, 6), S)
    assert recall == Recall(1, A, data(5, 6, S))
    bench.acknowledge(recall)
    assert bench.manager.holds(A, H, DATA, 5 * P, 6 * P, S)
    assert not bench.manager.holds(A, H, DATA, 5 * P, 6 * P, X)


def test_a_writer_recalls_every_reader_and_waits_for_all_of_them(bench):
    bench.get(A, (0, 1), S)
    bench.get(B, (0, 1), S)
    first, second = bench.ask(C, (0, 2), X)
    assert (first.session, second.session) == (A, B)
    assert bench.acknowledge(second) == []
    assert bench.acknowledge(first) == [Granted(3, (data(0, 2, X),))]


def test_an_upgrade_recalls_the_other_reader_only(bench):
    bench.get(A, (0, 1), S)
    bench.get(B, (0, 1), S)
    (recall,) = bench.ask(A, (0, 1), X)
    assert recall == Recall(1, B, data(0, 1, NONE))
    assert bench.acknowledge(recall) == [Granted(3, (data(0, 1, X),))]


def test_what_is_being_recalled_is_not_recalled_again(bench):
    bench.get(A, (0, 1), X)
    bench.ask(B, (0, 2), X)
    assert bench.ask(C, (1, 3), S) == [Recall(2, A, data(2, 3, S))]


def test_a_deeper_recall_follows_a_shallow_one_and_they_are_acknowledged_in_any_order(bench):
    bench.get(A, (0, 1), X)
    (shallow,) = bench.ask(B, (0, 1), S)
    (deep,) = bench.ask(C, (0, 1), X)
    assert deep == Recall(2, A, data(0, 1, NONE))
    assert bench.acknowledge(deep) == [Granted(2, (data(0, 1, S),))]
    assert bench.acknowledge(shallow) == []
    assert bench.settle(2) == [Recall(3, B, data(0, 1, NONE))]


def test_a_grant_in_flight_is_recalled_only_after_its_reply(bench):
    (granted,) = bench.ask(A, (0, 1), X)
    assert bench.ask(B, (0, 1), X) == []
    assert bench.settle(granted.ticket) == [Recall(1, A, data(0, 1, NONE))]


def test_what_was_held_before_is_recalled_beside_a_grant_in_flight(bench):
    bench.manager.reclaim(B, data(4, 5, X))
    bench.get(A, (0, 1), X)  # pages 0 to 3
    (granted,) = bench.ask(A, (6, 7), X)  # from page 5 on
    assert bench.ask(C, (3, 6), X) == [Recall(1, B, data(4, 5, NONE)), Recall(2, A, data(3, 4, NONE))]
    assert bench.settle(granted.ticket) == [Recall(3, A, data(5, 6, NONE))]


def test_two_grants_in_flight_on_one_page_are_both_waited_for(bench):
    (first,) = bench.ask(A, (0, 1), X)
    (second,) = bench.ask(A, (0, 1), X)
    assert bench.ask(B, (0, 1), S) == []
    assert bench.settle(first.ticket) == []
    assert bench.settle(second.ticket) == [Recall(1, A, data(0, 1, S))]


def test_the_holder_may_give_up_more_than_it_is_asked_for(bench):
    bench.get(A, (0, 1), X)
    (recall,) = bench.ask(B, (0, 1), S)
    assert bench.acknowledge(recall, data(0, 8, NONE)) == [Granted(2, (data(0, 8, S),))]


def test_giving_back_unasked_serves_who_waits_and_the_recall_is_still_owed(bench):
    bench.get(A, (0, 1), X)
    (recall,) = bench.ask(B, (0, 1), X)
    given = bench.manager.give_back(A, (data(0, RANGE_END, NONE),))
    assert bench.checked(given) == [Granted(2, (data(0, RANGE_END, X),))]
    assert bench.manager.recalls_of(A) == [recall]
    assert bench.acknowledge(recall) == []
    assert bench.manager.holders(H, DATA) == {B: (data(0, RANGE_END, X),)}


def test_a_holder_under_recall_still_writes_back_but_is_granted_nothing_there(bench):
    bench.get(A, (0, 1), X)
    (recall,) = bench.ask(B, (0, 1), X)
    assert bench.manager.holds(A, H, DATA, 0, P, X)
    assert bench.ask(A, (0, 1), S) == []
    assert bench.acknowledge(recall) == [Granted(2, (data(0, 1, X),))]
    assert bench.settle(2) == [Recall(2, B, data(0, 1, S))]


@pytest.mark.parametrize("who", [B, C])
def test_an_acknowledgement_nobody_owes_is_a_protocol_error(bench, who):
    bench.get(A, (0, 1), X)
    (recall,) = bench.ask(B, (0, 1), X)
    with pytest.raises(ProtocolError):
        bench.manager.acknowledged(who, recall.recall_id)
    bench.acknowledge(recall)
    with pytest.raises(ProtocolError):
        bench.acknowledge(recall)


@pytest.mark.parametrize("token", [data(3, 3, S), Token(H, DATA, 1, P, NONE), Token(H, DIR, -1, 4, NONE)])
def test_a_malformed_token_is_a_protocol_error_and_changes_nothing(bench, token):
    bench.get(A, (0, 1), X)
    (recall,) = bench.ask(B, (0, 1), X)
    with pytest.raises(ProtocolError):
        bench.acknowledge(recall, token)
    with pytest.raises(ProtocolError):
        bench.manager.give_back(A, (data(0, 1, NONE), token))
    assert bench.manager.holds(A, H, DATA, 0, P, X)
    assert bench.manager.recalls_of(A) == [recall]


# --- waiting ---------------------------------------------------------------------------------------------


def test_who_will_not_wait_is_refused_and_nobody_is_asked(bench):
    bench.get(A, (0, 1), X)
    assert bench.ask(B, (0, 1), S, wait=False) == [Refused(2)]
    assert bench.manager.recalls_of(A) == []


def test_a_stream_of_readers_does_not_starve_a_writer(bench):
    bench.get(A, (0, 1), S)
    (recall,) = bench.ask(B, (0, 1), X)
    for _ in range(10):
        assert bench.ask(C, (0, 1), S) == []
    (granted,) = bench.acknowledge(recall)
    assert granted == Granted(2, (data(0, 1, X),))
    (second,) = bench.settle(2)
    assert [effect.ticket for effect in bench.acknowledge(second)] == list(range(3, 13))


def test_a_reader_that_lost_its_page_to_a_writer_waits_behind_him(bench):
    bench.get(A, (0, 1), S)
    bench.get(C, (0, 1), S)
    to_a, to_c = bench.ask(B, (0, 1), X)
    bench.acknowledge(to_a)
    assert bench.ask(A, (0, 1), S) == []
    assert bench.acknowledge(to_c) == [Granted(3, (data(0, 1, X),))]


def test_disjoint_and_compatible_requests_are_not_held_up(bench):
    bench.get(A, (0, 1), X)
    (slow,) = bench.ask(B, (0, 2), S)
    (fast,) = bench.ask(C, (5, 6), X)
    assert bench.acknowledge(fast) == [Granted(3, (data(5, 6, X),))]
    assert bench.ask(C, (1, 2), S) == []
    assert bench.acknowledge(slow) == [Granted(2, (data(0, 2, S),)), Granted(4, (data(0, 2, S),))]


def test_a_waiting_request_keeps_its_place_when_its_session_is_granted_all_of_it_in_parts(bench):
    """Found by the simulation: exempt from the queue, it would have been grantable, and was not looked at."""
    bench.get(A, (0, 1), X)
    for_first, for_second = *bench.ask(B, (0, 1), X), *bench.ask(B, (1, 2), X)
    assert bench.ask(C, (0, 2), X) == []
    assert bench.ask(B, (0, 2), S) == []
    assert bench.acknowledge(for_first) == [Granted(2, (data(0, 1, X),))]
    assert bench.acknowledge(for_second) == [Granted(3, (data(1, 2, X),))]
    (first,), (second,) = bench.settle(2), bench.settle(3)
    assert bench.acknowledge(first) == []
    assert bench.acknowledge(second) == [Granted(4, (data(0, 2, X),))]
    assert bench.settle(4) == [Recall(5, C, data(0, 2, S))]


def test_giving_up_a_wait_lets_those_behind_go(bench):
    bench.get(A, (0, 1), S)
    (recall,) = bench.ask(B, (0, 1), X)
    assert bench.ask(C, (0, 1), S) == []
    assert bench.checked(bench.manager.cancel(2)) == [Granted(3, (data(0, RANGE_END, S),))]
    assert bench.acknowledge(recall) == []
    assert bench.manager.cancel(2) == []


def test_giving_up_too_late_changes_nothing(bench):
    bench.ask(A, (0, 1), X)
    assert bench.manager.cancel(1) == []
    assert bench.manager.holds(A, H, DATA, 0, P, X)


# --- operations ------------------------------------------------------------------------------------------


def test_a_mutation_recalls_one_name_and_the_others_keep_the_directory(bench):
    bench.get(A, ALL, S, resource=DIR)
    point = name_point(b"file")
    (recall,) = bench.ask(B, (point, point + 1), X, resource=DIR, transient=True)
    assert recall.token == Token(H, DIR, point, point + 1, NONE)
    assert bench.acknowledge(recall) == [Granted(2, ())]
    assert bench.manager.holders(H, DIR).keys() == {A}
    assert bench.ask(A, (point, point + 1), S, resource=DIR) == []
    assert bench.finish(2) == [Granted(3, (Token(H, DIR, 0, RANGE_END, S),))]


def test_an_operation_gets_along_with_its_own_session_only(bench):
    bench.get(A, ALL, X, resource=ATTR)
    assert bench.ask(A, ALL, X, resource=ATTR, transient=True) == [Granted(2, ())]
    assert bench.ask(A, ALL, X, resource=ATTR, transient=True) == [Granted(3, ())]
    (recall,) = bench.ask(B, ALL, S, resource=ATTR)
    assert bench.acknowledge(recall) == []
    assert bench.finish(2) == []
    assert bench.finish(3) == [Granted(4, (Token(H, ATTR, *ALL, S),))]


def test_a_rename_takes_both_names_at_one_instant(bench):
    """One after the other would deadlock with a listing that has come in between: it waits for the first
    name, and in the queue ahead of the second."""
    bench.get(B, (7, 8), S, resource=DIR)
    first, second = bench.ask(A, (3, 4), X, resource=DIR, transient=True, also=((7, 8),))
    assert first.token == Token(H, DIR, 3, 4, NONE)
    assert second.token == Token(H, DIR, 7, 8, NONE)
    assert bench.ask(C, ALL, S, resource=DIR) == []
    assert bench.acknowledge(first) == []
    assert bench.acknowledge(second) == [Granted(2, ())]
    assert bench.finish(2) == [Granted(3, (Token(H, DIR, *ALL, S),))]


def test_a_write_back_of_a_recall_does_not_queue_behind_whom_it_is_for(bench):
    bench.get(A, (0, 1), X)
    (recall,) = bench.ask(B, (0, 1), S)
    assert bench.manager.use(7, A, H, DATA, 0, P, X)
    bench.manager.check()
    assert bench.finish(7) == []
    assert bench.acknowledge(recall) == [Granted(2, (data(0, 1, S),))]


def test_nobody_works_under_a_token_he_lacks(bench):
    bench.get(A, (0, 1), S)
    assert not bench.manager.use(7, A, H, DATA, 0, P, X)
    assert not bench.manager.use(7, B, H, DATA, 0, P, S)


# --- sessions --------------------------------------------------------------------------------------------


def test_a_fence_frees_what_was_held_and_ends_what_was_waited_for(bench):
    bench.get(A, (0, 1), X)
    bench.ask(B, (0, 1), X)
    assert bench.ask(C, (0, 1), S) == []
    assert bench.drop(B) == []  # the recall down to nothing is under way already
    assert bench.drop(A) == [Granted(3, (data(0, RANGE_END, S),))]
    assert bench.manager.settle(2) == []


def test_after_a_fence_a_write_still_in_the_storage_keeps_readers_out(bench):
    bench.get(A, (0, 1), X)
    assert bench.manager.use(7, A, H, DATA, 0, P, X)
    bench.ask(B, (0, 1), S)
    assert bench.drop(A) == []
    assert bench.finish(7) == [Granted(2, (data(0, RANGE_END, S),))]


def test_an_idle_inode_takes_no_memory(bench):
    bench.get(A, (0, 1), X)
    assert bench.manager.is_held(H)
    assert not bench.manager.is_held(OTHER)
    assert bench.manager.handles_held(A) == {H}
    bench.checked(bench.manager.give_back(A, (data(0, RANGE_END, NONE),)))
    assert not bench.manager.is_held(H)
    assert bench.manager.handles_held(A) == set()
    assert not bench.manager._states
    assert not bench.manager._sessions


def test_after_a_restart_everybody_takes_back_what_he_held(bench):
    bench.get(A, (0, 1), X)
    bench.acknowledge(bench.ask(B, (5, 6), S)[0])
    restarted = TokenManager()
    for session in (B, A):
        for token in bench.manager.tokens_of(session):
            assert restarted.reclaim(session, token)
            restarted.check()
    assert restarted.holders(H, DATA) == {
        session: bench.manager.holders(H, DATA)[session] for session in (A, B)
    }
    assert not restarted.reclaim(C, data(2, 3, S))
    assert restarted.reclaim(C, data(5, 6, S))
    assert not restarted.reclaim(C, data(5, 6, X))
    restarted.check()


# --- limits ----------------------------------------------------------------------------------------------


def test_beyond_the_limit_of_extents_half_of_them_are_recalled_at_once():
    bench = Bench(extents_max=4)
    bench.get(A, (0, 1), X)
    recalls = []
    for page in range(1, 9, 2):  # B picks every second page out of A's
        (recall, *_) = bench.ask(B, (page, page + 1), X)
        granted, *recalls = bench.acknowledge(recall)
        bench.settle(granted.ticket)
    (trim,) = recalls  # A has 0, 2, 4, 6 and all from 8 on
    assert trim == Recall(trim.recall_id, A, data(0, 3, NONE))
    assert bench.get(A, (20, 21), X) == (data(20, 21, X),)  # held already: costs nothing
    (recall,) = bench.ask(A, (5, 6), X)
    assert bench.acknowledge(recall) == [], "no more of it before the trim is done"
    assert bench.acknowledge(trim) == [Granted(bench.ticket, (data(4, 7, X),))]
    assert bench.manager.holders(H, DATA)[A] == (data(4, 7, X), data(8, RANGE_END, X))


def test_a_trim_does_not_overtake_a_grant_that_was_given_back_in_flight():
    bench = Bench(extents_max=2)
    bench.manager.reclaim(B, data(3, 4, X))
    bench.manager.reclaim(B, data(7, 8, X))
    bench.manager.reclaim(A, data(0, 1, X))
    (granted,) = bench.ask(A, (4, 6), X)
    assert granted.tokens == (data(4, 7, X),)
    bench.manager.reclaim(A, data(8, 9, X))
    bench.manager.reclaim(A, data(10, 11, X))
    bench.manager.reclaim(A, data(12, RANGE_END, X))
    trims = bench.checked(bench.manager.give_back(A, (data(4, 7, NONE),)))
    assert trims == [Recall(1, A, data(0, 1, NONE)), Recall(2, A, data(8, 9, NONE))]
    assert bench.settle(granted.ticket) == []
    assert bench.acknowledge(trims[0]) == []
    assert bench.acknowledge(trims[1]) == []
    assert bench.manager.holders(H, DATA)[A] == (data(10, 11, X), data(12, RANGE_END, X))


def test_a_thousand_inodes_and_a_thousand_extents_are_a_matter_of_course():
    manager = TokenManager()
    for number in range(1000):
        handle = InodeHandle(b"%d" % number)
        (granted,) = manager.acquire(number, A, handle, ATTR, *ALL, S)
        assert manager.settle(granted.ticket) == []
    for number in range(1000):
        assert manager.reclaim(B, data(2 * number + 1, 2 * number + 2, X))
    for number in range(1000):
        page = (2 * number * P, (2 * number + 1) * P)
        (granted,) = manager.acquire(5000 + number, A, H, DATA, *page, S)
        assert granted.tokens == (Token(H, DATA, *page, S),)
        assert manager.settle(5000 + number) == []
    assert len(manager.handles_held(A)) == 1001
    assert manager.drop_session(B) == []
    assert manager.drop_session(A) == []
    assert not manager._states


# --- urgent operations ---


def hold_a_page_each(bench: Bench, *sessions: SessionId) -> None:
    for page, session in enumerate(sessions):
        assert bench.manager.reclaim(session, data(page, page + 1, X))


def test_an_urgent_operation_goes_before_those_that_wait():
    """ftruncate(2) of a file with dirty mapped pages: its kernel gives up none before it is answered."""
    bench = Bench()
    hold_a_page_each(bench, A)
    (recall,) = bench.ask(B, (0, 4), S)
    waiting = bench.ticket
    assert bench.ask(A, ALL, X, transient=True, urgent=True) == [Granted(bench.ticket, ())]
    assert bench.finish(bench.ticket) == []
    assert bench.acknowledge(recall) == [Granted(waiting, (data(0, RANGE_END, S),))]


def test_an_urgent_operation_waits_for_holders_only():
    bench = Bench()
    hold_a_page_each(bench, A, B)
    (of_a,) = bench.ask(C, (0, 1), S)
    first = bench.ticket
    (of_b,) = bench.ask(A, ALL, X, transient=True, urgent=True)
    urgent = bench.ticket
    assert of_b.session == B
    assert bench.acknowledge(of_b) == [Granted(urgent, ())], "C, who came earlier, goes on waiting"
    assert bench.finish(urgent) == []
    (granted,) = bench.acknowledge(of_a)
    assert granted.ticket == first


def test_urgent_operations_that_would_wait_in_a_circle_are_refused():
    bench = Bench()
    hold_a_page_each(bench, A, B, C)
    (of_b,) = bench.ask(A, (1, 2), X, transient=True, urgent=True)
    first = bench.ticket
    assert of_b.session == B
    (of_c,) = bench.ask(B, (2, 3), X, transient=True, urgent=True)
    second = bench.ticket
    assert of_c.session == C
    assert bench.ask(C, (0, 1), X, transient=True, urgent=True) == [Refused(bench.ticket)]
    assert bench.acknowledge(of_c) == [Granted(second, ())], "C, refused, can give up its page"
    assert bench.finish(second) == []
    assert bench.acknowledge(of_b) == [Granted(first, ())]


# --- what is in the way ---


def test_what_is_in_the_way_is_what_another_session_holds(bench):
    assert not bench.manager.is_in_the_way(A, H, ATTR, X)
    bench.get(A, (0, 1), S, resource=ATTR)
    assert not bench.manager.is_in_the_way(A, H, ATTR, X)
    assert bench.manager.is_in_the_way(B, H, ATTR, X)
    assert not bench.manager.is_in_the_way(B, H, ATTR, S)
