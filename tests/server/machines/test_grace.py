"""When grace ends, and who is forgotten."""

from __future__ import annotations

import random

from nfsfuse.protocol.types import SessionId
from nfsfuse_server.machines.grace import Grace

ONE, TWO, THREE = SessionId(b"one"), SessionId(b"two"), SessionId(b"three")


def begun(*known: SessionId) -> Grace:
    return Grace(dict.fromkeys(known, 0.0), now=100.0, seconds=12.0)


def test_without_known_sessions_there_is_none() -> None:
    grace = begun()
    assert grace.over
    assert not grace.may_return(ONE, 100.0)
    assert grace.expired(1000.0) == ()


def test_it_ends_when_all_have_reclaimed_or_gone() -> None:
    grace = begun(ONE, TWO, THREE)
    grace.returned(ONE, 101.0)
    grace.returned(TWO, 102.0)
    grace.ended(ONE)
    assert not grace.may_reclaim(ONE), "whoever is complete cannot reclaim more"
    grace.ended(THREE)
    assert not grace.over
    grace.ended(TWO)
    assert grace.over
    assert grace.expired(1000.0) == ()


def test_who_has_not_returned_by_the_deadline_is_forgotten_first() -> None:
    grace = begun(ONE, TWO)
    grace.returned(ONE, 101.0)
    grace.ended(ONE)
    assert grace.expired(111.9) == ()
    assert grace.expired(112.0) == (TWO,)
    assert not grace.over, "not before they are forgotten durably"
    assert not grace.may_return(TWO, 112.0), "and too late to come back"
    assert grace.expired(113.0) == (), "told once"
    grace.ended(TWO)
    assert not grace.over
    grace.forgotten([TWO])
    assert grace.over


def test_a_session_in_the_middle_of_reclaiming_has_as_long_again() -> None:
    grace = begun(ONE, TWO)
    grace.returned(ONE, 101.0)
    assert grace.expired(112.0) == (TWO,)
    grace.forgotten([TWO])
    assert not grace.over
    assert grace.may_reclaim(ONE)
    assert grace.expired(112.9) == ()
    grace.ended(ONE)
    assert grace.over


def test_a_session_that_does_not_complete_is_forgotten_in_the_end() -> None:
    grace = begun(ONE)
    grace.returned(ONE, 101.0)
    grace.returned(ONE, 105.0)
    assert grace.may_return(ONE, 112.9)
    assert not grace.may_return(ONE, 113.0), "or it could keep the others waiting for ever"
    assert grace.expired(116.9) == (), "the lease that it was welcomed with runs from its last Hello"
    assert grace.expired(117.0) == (ONE,)
    assert not grace.may_reclaim(ONE)
    grace.forgotten([ONE])
    assert grace.over


def test_a_session_may_return_twice_and_must_return_to_reclaim() -> None:
    grace = begun(ONE)
    assert not grace.may_reclaim(ONE)
    grace.returned(ONE, 101.0)
    grace.returned(ONE, 105.0)
    assert grace.may_reclaim(ONE)
    grace.ended(TWO)
    assert not grace.over, "strangers do not matter"
    assert grace.waits_for() == (ONE,)


def test_time_in_which_the_server_stood_still_does_not_count() -> None:
    grace = begun(ONE)
    grace.stood_still(100.0)
    assert grace.expired(211.9) == ()
    assert grace.expired(212.0) == (ONE,)


def test_what_earlier_epochs_have_waited_counts() -> None:
    grace = Grace({ONE: 7.5, TWO: 0.0, THREE: 12.0}, now=100.0, seconds=12.0)
    assert grace.expired(100.0) == (THREE,), "nobody waits for it any more"
    assert grace.expired(104.4) == ()
    assert grace.waited(104.25) == {ONE: 11.75, TWO: 4.25}
    assert grace.expired(104.5) == (ONE,)
    assert grace.expired(112.0) == (TWO,)
    assert grace.waited(112.0) == {}


def test_who_returns_has_all_the_time_again_whatever_was_waited() -> None:
    """Its lease was renewed: it may believe for as long that it holds what it held."""
    grace = Grace({ONE: 11.0}, now=100.0, seconds=12.0)
    grace.returned(ONE, 100.5)
    assert grace.waited(101.0) == {}, "it is not waited for any more, and begins anew"
    assert grace.expired(112.4) == ()
    assert grace.expired(112.5) == (ONE,)


def test_time_without_a_server_is_not_waited() -> None:
    grace = begun(ONE)
    grace.stood_still(50.0)
    assert grace.waited(151.0) == {ONE: 1.0}


def test_over_any_number_of_restarts_a_dead_client_is_waited_for_once() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        now, served = 0.0, 0.0
        known = {ONE: 0.0}
        while True:
            grace = Grace(known, now, 12.0)
            begin, dies = now, now + rng.randint(1, 10) / 2
            forgotten: tuple[SessionId, ...] = ()
            while not (forgotten := grace.expired(now)) and now < dies:
                now += 0.5
                known = grace.waited(now)
            served += now - begin
            if forgotten:
                break
            now += rng.randrange(100)  # there is no server
        assert served == 12.0, seed


def test_nobody_waits_for_those_that_hold_nothing_and_they_may_come_back_all_the_same() -> None:
    grace = Grace({ONE: 0.0, TWO: 0.0, THREE: 0.0}, 100.0, 12.0, hold_nothing=[TWO, THREE])
    assert not grace.over
    grace.ended(ONE)
    assert grace.over
    assert grace.may_return(TWO, 101.0)
    grace.returned(TWO, 105.0)
    grace.ended(TWO)
    assert grace.expired(111.0) == ()
    assert grace.expired(112.0) == (THREE,)
    assert not grace.may_return(THREE, 112.0)
    grace.forgotten([THREE])
    assert Grace({TWO: 0.0}, 100.0, 12.0, hold_nothing=[TWO]).over


def test_without_time_everybody_is_forgotten_at_once() -> None:
    grace = Grace({ONE: 0.0, TWO: 0.0}, 5.0, 0.0)
    assert grace.expired(5.0) == (ONE, TWO)


def test_at_random_everybody_is_complete_gone_or_forgotten_and_it_ends() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        known = [SessionId(bytes([number])) for number in range(rng.randrange(6))]
        grace = Grace(dict.fromkeys(known, 0.0), 0.0, 10.0)
        now = 0.0
        returned_at: dict[SessionId, float] = {}
        forgetting: list[tuple[SessionId, ...]] = []
        while not grace.over:
            now += rng.random() * 2
            session = rng.choice(known)
            match rng.randrange(5):
                case 0 if grace.may_return(session, now):
                    returned_at[session] = now
                    grace.returned(session, now)
                case 1 if grace.may_reclaim(session):
                    grace.ended(session)
                case 2:
                    grace.ended(session)
                case 3 if forgetting:
                    grace.forgotten(forgetting.pop())
                case _:
                    late = grace.expired(now)
                    for one in late:
                        assert now >= 10.0, seed
                        assert now >= returned_at.get(one, -10.0) + 10.0, (seed, "it may still be believed")
                    if late:
                        forgetting.append(late)
            assert now < 100.0, seed
        assert not forgetting, seed
