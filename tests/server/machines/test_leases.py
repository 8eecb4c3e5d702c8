"""The server's leases: who is fenced, and when."""

from __future__ import annotations

from nfsfuse.protocol.types import SessionId
from nfsfuse_server.machines.leases import COURTESY_SECONDS, MARGIN, Leases

ONE, TWO = SessionId(b"one"), SessionId(b"two")
SECONDS = 10.0
PATIENCE = SECONDS * (1 + MARGIN)


def leases() -> Leases:
    made = Leases(SECONDS)
    made.opened(ONE, 100.0)
    made.opened(TWO, 100.0)
    return made


def fenced(made: Leases, now: float) -> list[SessionId]:
    made.check()
    return [session for session, _ in expired(made, now)]


def expired(made: Leases, now: float, *with_locks: SessionId) -> list[tuple[SessionId, str]]:
    return made.expired(now, with_locks.__contains__)


def test_silence_for_the_lease_and_a_margin_fences_whom_others_wait_for():
    made = leases()
    made.recalled(ONE, 7, 100.0 + SECONDS)
    made.recalled(TWO, 8, 100.0 + SECONDS)
    made.heard(TWO, 105.0)
    made.heard(TWO, 103.0)  # nothing goes back
    assert fenced(made, 100 + PATIENCE - 0.1) == []
    assert expired(made, 100 + PATIENCE) == [(ONE, "not heard of for 12.0 s")]
    made.closed(ONE)
    assert fenced(made, 105 + PATIENCE - 0.1) == []
    assert fenced(made, 105 + PATIENCE) == [TWO]


def test_a_recall_that_is_not_answered_fences_who_is_heard_of():
    made = leases()
    made.recalled(ONE, 7, 101.0)
    made.recalled(ONE, 8, 105.0)
    made.heard(ONE, 113.0)
    made.heard(TWO, 113.0)
    assert expired(made, 113.0) == [(ONE, "a recall was not answered in 12.0 s")]
    made.answered(ONE, 7)
    assert fenced(made, 113.0) == [], "the other one is younger"
    made.answered(ONE, 8)
    made.heard(ONE, 120.0)
    made.heard(TWO, 120.0)
    assert fenced(made, 120.0) == []


def test_write_backs_show_that_it_is_about_to_be_answered():
    made = leases()
    made.recalled(ONE, 7, 101.0)
    made.write_began(ONE)
    made.write_ended(ONE, 110.0)
    for session in ONE, TWO:
        made.heard(session, 121.9)
    assert fenced(made, 121.9) == []
    assert fenced(made, 122.0) == [ONE]


def test_nobody_is_fenced_while_the_servers_disk_is_at_its_write():
    made = leases()
    made.recalled(ONE, 7, 101.0)
    made.write_began(ONE)
    made.write_began(ONE)
    made.write_ended(ONE, 110.0)
    for session in ONE, TWO:
        made.heard(session, 200.0)
    assert fenced(made, 200.0) == [], "it cannot answer before it has its own answer"
    made.write_ended(ONE, 200.0)
    for session in ONE, TWO:
        made.heard(session, 200.0 + PATIENCE)
    assert fenced(made, 200.0 + PATIENCE - 0.1) == []
    assert fenced(made, 200.0 + PATIENCE) == [ONE]


def test_nobody_is_fenced_because_the_server_stood_still():
    made = leases()
    made.recalled(ONE, 7, 105.0)
    made.stood_still(100.0, 206.0)
    assert fenced(made, 206.0) == []
    assert fenced(made, 200 + PATIENCE) == [ONE], "not heard of since"
    made.heard(ONE, 211.9)
    made.heard(TWO, 211.9)
    assert fenced(made, 205 + PATIENCE) == [ONE], "the recall has been there for a lease in which it ran"


def test_a_recall_reaches_a_client_that_was_away_when_it_is_back():
    made = leases()
    made.recalled(ONE, 7, 101.0)
    made.resumed(ONE, 109.0)
    made.heard(ONE, 115.0)
    made.heard(TWO, 115.0)
    assert fenced(made, 115.0) == []
    made.heard(ONE, 121.0)
    made.heard(TWO, 121.0)
    assert fenced(made, 121.0) == [ONE]


def test_nobody_is_fenced_of_whom_nobody_wants_anything():
    made = leases()
    made.resumed(ONE, 100.0)  # a daemon that is busy; of the other the connection is lost
    for now in (100 + PATIENCE, 200.0, 100 + COURTESY_SECONDS - 0.1):
        assert fenced(made, now) == []
    assert fenced(made, 100 + COURTESY_SECONDS) == [ONE, TWO], "not for ever"


def test_who_is_connected_has_its_time_from_when_it_was_asked():
    made = leases()
    made.resumed(ONE, 100.0)
    made.recalled(ONE, 7, 150.0)
    made.recalled(TWO, 8, 150.0)
    assert fenced(made, 150.0) == [TWO], "it has had its time"
    made.closed(TWO)
    assert fenced(made, 150 + PATIENCE - 0.1) == []
    assert fenced(made, 150 + PATIENCE) == [ONE]
    made.disconnected(ONE)
    assert fenced(made, 151.0) == [ONE]


def test_who_is_asked_for_a_lock_has_as_long():
    made = leases()
    made.resumed(ONE, 100.0)
    made.wanted(ONE, 105.0)
    made.heard(ONE, 106.0)  # it is there: its lock is its own
    made.closed(TWO)
    assert fenced(made, 300.0) == []
    made.wanted(ONE, 300.0)
    made.wanted(ONE, 301.0)
    assert fenced(made, 300 + PATIENCE - 0.1) == []
    assert fenced(made, 300 + PATIENCE) == [ONE]
    made.stood_still(1.0, 301 + PATIENCE)
    assert fenced(made, 300.9 + PATIENCE) == []
    assert fenced(made, 301 + PATIENCE) == [ONE]


def test_who_has_locks_and_no_connection_is_not_waited_for():
    made = leases()
    made.resumed(ONE, 100.0)
    assert [session for session, _ in expired(made, 100 + PATIENCE, ONE, TWO)] == [TWO]
    assert expired(made, 100 + PATIENCE - 0.1, ONE, TWO) == []
