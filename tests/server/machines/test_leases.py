"""The server's leases: who is fenced, and when."""

from __future__ import annotations

from nfsfuse.protocol.types import SessionId
from server.machines.leases import MARGIN, Leases

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
    return [session for session, _ in made.expired(now)]


def test_silence_for_the_lease_and_a_margin_fences():
    made = leases()
    made.heard(TWO, 105.0)
    made.heard(TWO, 103.0)  # nothing goes back
    assert fenced(made, 100 + PATIENCE - 0.1) == []
    assert made.expired(100 + PATIENCE) == [(ONE, "not heard of for 12.0 s")]
    made.closed(ONE)
    assert fenced(made, 105 + PATIENCE - 0.1) == []
    assert fenced(made, 105 + PATIENCE) == [TWO]


def test_a_recall_that_is_not_answered_fences_who_is_heard_of():
    made = leases()
    made.recalled(ONE, 7, 101.0)
    made.recalled(ONE, 8, 105.0)
    made.heard(ONE, 113.0)
    made.heard(TWO, 113.0)
    assert made.expired(113.0) == [(ONE, "a recall was not answered in 12.0 s")]
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
    assert fenced(made, 200 + PATIENCE) == [ONE, TWO], "not heard of since"
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
