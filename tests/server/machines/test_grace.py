"""When grace ends, and who is forgotten."""

from __future__ import annotations

import random

from nfsfuse.protocol.types import SessionId
from server.machines.grace import Grace, Phase

ONE, TWO, THREE = SessionId(b"one"), SessionId(b"two"), SessionId(b"three")


def begun(*known: SessionId) -> Grace:
    grace = Grace(known, now=100.0, seconds=12.0)
    grace.check()
    return grace


def test_without_known_sessions_there_is_none() -> None:
    grace = begun()
    assert grace.phase is Phase.OVER
    assert grace.deadline is None
    assert not grace.waits_for(ONE)


def test_it_ends_when_all_have_reclaimed_or_gone() -> None:
    grace = begun(ONE, TWO, THREE)
    grace.returned(ONE)
    grace.returned(TWO)
    grace.complete(ONE)
    assert not grace.waits_for(ONE), "whoever is complete cannot reclaim more"
    grace.gone(THREE)
    assert grace.phase is Phase.RECLAIM
    grace.complete(TWO)
    assert grace.phase is Phase.OVER
    assert grace.deadline is None
    assert grace.expired(1000.0) == ()


def test_who_has_not_returned_by_the_deadline_is_forgotten_first() -> None:
    grace = begun(ONE, TWO)
    grace.returned(ONE)
    grace.complete(ONE)
    assert grace.deadline == 112.0
    assert grace.expired(111.9) == ()
    assert grace.expired(112.0) == (TWO,)
    assert grace.phase is Phase.FORGETTING, "not over before they are forgotten durably"
    assert not grace.waits_for(TWO), "and too late to come back"
    assert grace.deadline is None
    assert grace.expired(113.0) == (), "told once"
    grace.forgotten()
    assert grace.phase is Phase.OVER
    grace.check()


def test_a_session_in_the_middle_of_reclaiming_is_waited_for_once_more() -> None:
    grace = begun(ONE, TWO)
    grace.returned(ONE)
    assert grace.expired(112.0) == ()
    assert grace.deadline == 124.0
    assert grace.waits_for(TWO), "others may return as well"
    grace.returned(TWO)
    grace.complete(TWO)
    assert grace.expired(124.0) == (ONE,)


def test_who_reclaims_in_the_extension_is_kept() -> None:
    grace = begun(ONE)
    grace.returned(ONE)
    assert grace.expired(112.0) == ()
    grace.complete(ONE)
    assert grace.phase is Phase.OVER


def test_a_session_may_return_twice_and_strangers_do_not_matter() -> None:
    grace = begun(ONE)
    grace.returned(ONE)
    grace.returned(ONE)
    grace.complete(TWO)
    grace.gone(THREE)
    assert grace.phase is Phase.RECLAIM
    assert not grace.waits_for(TWO)


def test_at_random_everybody_is_complete_gone_or_forgotten_and_it_ends() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        known = [SessionId(bytes([number])) for number in range(rng.randrange(6))]
        grace = Grace(known, 0.0, 10.0)
        now, accounted = 0.0, set()
        while grace.phase is Phase.RECLAIM:
            now += rng.random() * 4
            session = rng.choice(known)
            match rng.randrange(4):
                case 0 if grace.waits_for(session):
                    grace.returned(session)
                case 1 if grace.waits_for(session):
                    grace.complete(session)
                    accounted.add(session)
                case 2:
                    if grace.waits_for(session):
                        accounted.add(session)
                    grace.gone(session)
                case _:
                    accounted |= set(grace.expired(now))
            grace.check()
            assert now < 40.0, seed
        if grace.phase is Phase.FORGETTING:
            grace.forgotten()
        grace.check()
        assert accounted == set(known), seed
