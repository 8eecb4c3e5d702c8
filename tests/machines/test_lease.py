"""The client's lease: what is done when, and what may be believed."""

from __future__ import annotations

import random

from nfsfuse.machines.lease import Do, Lease

SECONDS = 9.0


def test_it_runs_from_the_sending_of_what_is_acknowledged():
    lease = Lease(SECONDS, 100.0)
    assert lease.runs(108.9)
    assert not lease.runs(109.0)
    lease.renew(104.0, 108.0)
    assert lease.runs(112.9)
    lease.renew(103.0, 108.0)  # an older one, acknowledged late
    assert lease.runs(112.9)
    assert not lease.runs(113.0)


def test_a_heartbeat_is_due_after_a_third_and_the_connection_given_up_after_two():
    lease = Lease(SECONDS, 100.0)
    assert lease.advance(102.9, connected=True, heard_at=100.0) == []
    assert lease.advance(103.0, connected=True, heard_at=100.0) == [Do.HEARTBEAT]
    assert lease.advance(104.5, connected=True, heard_at=100.0) == []
    assert lease.advance(105.9, connected=True, heard_at=100.0) == []
    assert lease.advance(106.0, connected=True, heard_at=100.0) == [Do.RECONNECT]


def test_a_client_that_did_nothing_for_long_has_still_to_read_the_answer():
    lease = Lease(SECONDS, 100.0)
    assert lease.advance(103.0, connected=True, heard_at=100.0) == [Do.HEARTBEAT]
    assert lease.advance(120.0, connected=True, heard_at=100.0) == [Do.SUSPEND], "and not a new connection"
    assert lease.advance(121.4, connected=True, heard_at=100.0) == []
    assert lease.advance(121.5, connected=True, heard_at=100.0) == [Do.RECONNECT]


def test_whatever_arrives_shows_that_the_connection_works():
    lease = Lease(SECONDS, 100.0)
    assert lease.advance(103.0, connected=True, heard_at=100.0) == [Do.HEARTBEAT]
    assert lease.advance(106.0, connected=True, heard_at=105.0) == []


def test_an_answered_heartbeat_is_followed_by_the_next():
    lease = Lease(SECONDS, 100.0)
    assert lease.advance(103.0, connected=True, heard_at=100.0) == [Do.HEARTBEAT]
    lease.renew(103.0, 103.5)
    assert lease.advance(105.9, connected=True, heard_at=103.5) == []
    assert lease.advance(106.0, connected=True, heard_at=103.5) == [Do.HEARTBEAT]


def test_without_a_connection_there_is_no_heartbeat_and_a_new_one_begins_anew():
    lease = Lease(SECONDS, 100.0)
    assert lease.advance(103.0, connected=True, heard_at=100.0) == [Do.HEARTBEAT]
    assert lease.advance(106.5, connected=False, heard_at=100.0) == []
    lease.connected()
    assert lease.advance(106.6, connected=True, heard_at=106.6) == [Do.HEARTBEAT]


def test_it_is_suspended_before_it_has_run_out_and_once():
    lease = Lease(SECONDS, 100.0)
    assert lease.advance(107.2, connected=False, heard_at=100.0) == [Do.SUSPEND]
    assert lease.suspended
    assert lease.runs(107.2), "there is time to drop what is cached"
    assert lease.advance(108.0, connected=False, heard_at=100.0) == []
    assert lease.advance(200.0, connected=False, heard_at=100.0) == []


def test_it_is_resumed_by_what_was_sent_lately_only():
    lease = Lease(SECONDS, 100.0)
    lease.advance(150.0, connected=False, heard_at=100.0)
    assert not lease.renew(101.0, 150.0), "acknowledged before the machine slept, say"
    assert lease.suspended
    assert lease.renew(149.0, 150.0)
    assert not lease.suspended
    assert lease.runs(150.0)


def test_whatever_happens_nothing_runs_longer_than_a_lease_after_what_the_server_has():
    for seed in range(200):
        draw = random.Random(seed)
        now, lease, newest = 0.0, Lease(SECONDS, 0.0), 0.0
        for _ in range(100):
            now += draw.random() * 2
            if draw.random() < 0.3:
                sent_at = draw.uniform(max(0.0, now - 12), now)
                newest = max(newest, sent_at)
                lease.renew(sent_at, now)
            lease.advance(now, connected=draw.random() < 0.7, heard_at=newest)
            assert lease.runs(now) == (now < newest + SECONDS)
            assert lease.suspended or lease.runs(now), "suspended before it ran out, if looked at"
