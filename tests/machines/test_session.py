"""The session's machine: what each Welcome means (the table in docs/recovery.md), and every short life."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from nfsfuse.machines.lease import SUSPEND_AT
from nfsfuse.machines.session import NO_SESSION, Effect, SessionMachine, survives_epoch, survives_session
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.locks import LockKind, LockMode
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import Credentials, Epoch, InodeHandle, LockOwner, OpenId, SessionId

LEASE = 10.0
TIMEO = 15.0
ONE, OTHER, DEAD = SessionId(b"one"), SessionId(b"other"), SessionId(b"dead")
FILE, ME = InodeHandle(b"file"), Credentials(0, 0)


def welcome(session_id: SessionId, epoch: int = 1, *, resumed: bool = False, received: int = 0) -> m.Welcome:
    root = cast(Any, None)  # of no interest here
    return m.Welcome(session_id, Epoch(epoch), resumed, received, False, int(LEASE * 1000), "", root)


def begin(machine: SessionMachine, answer: m.Welcome, sent_at: float, now: float) -> list[Effect]:
    """Carry out all that *answer* leads to; the effects in their order."""
    done = []
    for effect in machine.welcomed(answer, sent_at):
        done.append(effect)
        if effect is Effect.BEGIN:
            machine.begun()
        elif effect is Effect.ATTACH:
            done += machine.attached(now)
        machine.check()
    return done


def begun(replaces: SessionId = NO_SESSION, timeo_seconds: float | None = None) -> SessionMachine:
    machine = SessionMachine(replaces, timeo_seconds)
    begin(machine, welcome(ONE), 0.0, 0.0)
    return machine


def away(seconds: float) -> SessionMachine:
    """A session whose connection was lost at once, so long ago."""
    machine = begun()
    machine.interrupted(0.0)
    machine.advance(seconds, connected=False, heard_at=0.0)
    return machine


# --- the table ---

E = Effect
SUSPENDED_AT = LEASE * SUSPEND_AT

TABLE = {
    # the Welcome, for how long the client was away: what is done
    "resume": (welcome(ONE, resumed=True), 1.0, [E.WELCOMED, E.ATTACH]),
    "resume, suspended": (
        welcome(ONE, resumed=True), SUSPENDED_AT, [E.WELCOMED, E.ATTACH, E.RESUME, E.WAKE],
    ),
    "reclaim": (welcome(ONE, 2), 1.0, [E.WELCOMED, E.RECLAIM, E.BEGIN, E.ATTACH, E.WAKE]),
    "reclaim, suspended": (
        welcome(ONE, 2), SUSPENDED_AT, [E.WELCOMED, E.RECLAIM, E.RESUME, E.BEGIN, E.ATTACH, E.WAKE],
    ),
    "fence": (welcome(OTHER), 1.0, [E.WELCOMED, E.FENCE, E.BEGIN, E.ATTACH, E.WAKE]),
    "fence, suspended": (
        welcome(OTHER), SUSPENDED_AT, [E.WELCOMED, E.FENCE, E.BEGIN, E.ATTACH, E.WAKE],
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", TABLE)
def test_what_a_welcome_means(row: str) -> None:
    answer, seconds, effects = TABLE[row]
    machine = away(seconds)
    assert begin(machine, answer, seconds, seconds + 1) == effects
    assert (machine.session_id, machine.epoch) == (answer.session_id, answer.epoch)
    assert machine.number == (1 if answer.resumed else 2)
    assert machine.leased(seconds + LEASE - 0.1, finishing=True), "the lease counts from the Hello"
    assert machine.leased(seconds + 1)
    assert not machine.leased(seconds + LEASE, finishing=True)


def test_the_first_welcome_begins_a_session_and_nothing_is_lost_by_it() -> None:
    machine = SessionMachine(DEAD)
    machine.check()
    assert (machine.session_id, machine.replaces) == (NO_SESSION, DEAD)
    assert begin(machine, welcome(ONE), 0.0, 1.0) == [E.WELCOMED, E.BEGIN, E.ATTACH, E.WAKE]
    assert (machine.session_id, machine.replaces) == (ONE, NO_SESSION)


@pytest.mark.parametrize("answer", [welcome(OTHER, resumed=True), welcome(ONE, 2, resumed=True)])
def test_a_session_that_was_not_asked_for_is_not_resumed(answer: m.Welcome) -> None:
    machine = away(1.0)
    with pytest.raises(ProtocolError, match="not asked for"):
        machine.verify(answer)
    machine.check()
    assert begin(machine, welcome(ONE, resumed=True), 1.0, 1.0) == [E.WELCOMED, E.ATTACH], "as it was"


def test_before_anything_was_sent_nothing_can_be_acknowledged() -> None:
    with pytest.raises(ProtocolError, match="3 frames acknowledged"):
        SessionMachine().verify(welcome(ONE, received=3))


def test_the_old_lease_counts_until_what_it_covered_is_forgotten() -> None:
    machine = away(LEASE)
    assert machine.welcomed(welcome(OTHER), LEASE)[:2] == [E.WELCOMED, E.FENCE]
    assert not machine.leased(LEASE, finishing=True)
    machine.begun()
    assert machine.leased(LEASE)


@pytest.mark.parametrize("attaching", [False, True])
def test_who_gives_a_session_up_asks_for_a_new_one_and_for_the_end_of_the_old(attaching: bool) -> None:
    machine = away(1.0)
    if attaching:
        machine.welcomed(welcome(ONE, resumed=True), 1.0)
    machine.given_up()
    machine.check()
    assert (machine.session_id, machine.replaces) == (NO_SESSION, ONE)
    assert E.FENCE in begin(machine, welcome(OTHER), 2.0, 2.0)
    assert (machine.session_id, machine.replaces) == (OTHER, NO_SESSION)


# --- without a connection ---


def test_the_server_is_asked_then_given_up_then_not_believed() -> None:
    machine = begun()
    done = [(now, machine.advance(now, connected=True, heard_at=0.0)) for now in map(float, range(9))]
    told = [(now, effects) for now, effects in done if effects]
    assert told == [(4.0, [E.HEARTBEAT]), (8.0, [E.SUSPEND, E.DISCONNECT])]
    assert not machine.leased(9.0)
    assert machine.leased(9.0, finishing=True)
    assert not machine.leased(LEASE, finishing=True)
    assert machine.acknowledged(9.0, 10.0) == [E.RESUME, E.WAKE]
    assert machine.leased(10.0)


def test_soft_mounts_are_told_once_that_the_server_is_away_and_once_that_it_is_back() -> None:
    machine = begun(timeo_seconds=TIMEO)
    machine.interrupted(1.0)
    assert machine.advance(TIMEO + 0.9, connected=False, heard_at=0.0) == [E.SUSPEND]
    assert machine.away_seconds(TIMEO) == TIMEO - 1
    assert machine.advance(TIMEO + 1, connected=False, heard_at=0.0) == [E.UNREACHABLE]
    assert machine.advance(TIMEO + 2, connected=False, heard_at=0.0) == []
    machine.check()
    assert machine.reconnected() == [E.REACHABLE]
    assert machine.advance(3 * TIMEO, connected=False, heard_at=0.0) == []


# --- what ends with what ---

ASKED: dict[m.Message, tuple[bool, bool, bool]] = {
    # asked again: of a restarted server; in a new session if it was never sent; if it may have been done
    m.GetAttr(FILE): (True, True, True),
    m.Lookup(FILE, b"name"): (True, True, True),
    m.Open(FILE, os.O_RDWR, True): (True, True, True),
    m.Open(FILE, os.O_RDWR | os.O_TRUNC, True): (True, True, False),
    m.GetToken(FILE, TokenMode.SHARED, 0, 1, TokenMode.NONE): (True, True, True),
    m.SetLock(FILE, OpenId(1), LockOwner(1), LockKind.POSIX, LockMode.WRITE, 0, 1, 7, True): (True, True, True),
    m.MkDir(FILE, b"name", 0o755, ME): (True, True, False),
    m.Unlink(FILE, b"name"): (True, True, False),
    m.Rename(FILE, b"name", FILE, b"other", 0): (True, True, False),
    m.Write(FILE, 0): (True, False, False),
    m.Heartbeat(): (True, False, False),
    m.Goodbye(): (True, False, False),
    m.Release(()): (False, False, False),
    m.ReturnTokens((), 0): (False, False, False),
    m.ReclaimComplete(): (False, True, False),
}


@pytest.mark.parametrize("message", ASKED, ids=repr)
def test_what_is_asked_again(message: m.Message) -> None:
    found = (
        survives_epoch(message),
        survives_session(message, transmitted=False),
        survives_session(message, transmitted=True),
    )
    assert found == ASKED[message]


# --- every short life ---


@dataclass
class Life:
    """One machine, and what a bystander knows of it without looking inside."""

    now: float = 0.0
    sent_at: float = 0.0
    """The newest sending that the server has acknowledged in this session."""
    connected: bool = True
    believes: bool = True
    """The owner is not suspended."""
    done: Counter[Effect] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.machine = SessionMachine(timeo_seconds=TIMEO)
        self.names = (SessionId(b"%d" % number) for number in itertools.count())
        self._carry_out(self.machine.welcomed(welcome(next(self.names)), 0.0))

    def possible(self) -> list[str]:
        if self.connected:
            return ["tick", "acknowledge", "lose", "give up"]
        known = self.machine.session_id != NO_SESSION
        return ["tick", "fence", "wrong", *(["resume", "reclaim"] if known else [])]

    def step(self, event: str) -> None:
        machine = self.machine
        match event:
            case "tick":
                self.now += 3.0
                heard_at = self.now if self.connected else self.sent_at
                self._carry_out(machine.advance(self.now, connected=self.connected, heard_at=heard_at))
            case "acknowledge":
                self.sent_at = max(self.sent_at, self.now - 2)
                self._carry_out(machine.acknowledged(self.sent_at, self.now))
            case "give up" | "lose":
                self.connected = False
                if event == "give up":
                    machine.given_up()
                machine.interrupted(self.now)
            case "resume":
                self._greeted(welcome(machine.session_id, machine.epoch, resumed=True))
            case "reclaim":
                self._greeted(welcome(machine.session_id, machine.epoch + 1))
            case "fence":
                self._greeted(welcome(next(self.names)))
            case "wrong":
                with pytest.raises(ProtocolError):
                    machine.welcomed(welcome(SessionId(b"nobody's"), resumed=True), self.now)
        self.check()

    def _greeted(self, answer: m.Welcome) -> None:
        self.connected = True
        hello_at = self.now - 1
        self.sent_at = max(self.sent_at, hello_at) if answer.resumed else hello_at
        self._carry_out(self.machine.welcomed(answer, hello_at))
        self._carry_out(self.machine.reconnected())

    def _carry_out(self, effects: list[Effect]) -> None:
        order = [Effect.WELCOMED, Effect.RECLAIM, Effect.FENCE, Effect.BEGIN, Effect.ATTACH]
        places = [order.index(effect) for effect in effects if effect in order]
        assert places == sorted(places)
        assert not {Effect.RECLAIM, Effect.FENCE} <= set(effects)
        for effect in effects:
            self.done[effect] += 1
            match effect:
                case Effect.SUSPEND:
                    assert self.believes, "it is suspended"
                    self.believes = False
                case Effect.RESUME:
                    assert not self.believes, "it is not suspended"
                    self.believes = True
                case Effect.FENCE:
                    self.believes = True  # and nothing of the old session
                case Effect.BEGIN:
                    self.machine.begun()
                case Effect.ATTACH:
                    self._carry_out(self.machine.attached(self.now))

    def check(self) -> None:
        self.machine.check()
        leased = self.machine.leased(self.now)
        assert not leased or self.believes, "what is suspended is believed"
        assert not leased or self.now < self.sent_at + LEASE, "the server may have given it to others"
        assert self.machine.leased(self.now, finishing=True) == (self.now < self.sent_at + LEASE)
        away = self.done[Effect.UNREACHABLE] - self.done[Effect.REACHABLE]
        assert away in ((0,) if self.connected else (0, 1))


def lives(steps: int) -> list[tuple[str, ...]]:
    """Every sequence of so many events that can be."""
    found: list[tuple[str, ...]] = [()]
    for _ in range(steps):
        found = [(*events, event) for events in found for event in _after(events).possible()]
    return found


def _after(events: tuple[str, ...]) -> Life:
    life = Life()
    for event in events:
        life.step(event)
    return life


def test_every_short_life_is_a_right_one() -> None:
    done: Counter[Effect] = Counter()
    for events in lives(6):
        done += _after(events).done
    assert set(done) >= set(Effect) - {Effect.UNREACHABLE, Effect.REACHABLE, Effect.DISCONNECT}


def test_a_long_absence_is_a_right_life() -> None:
    for end in ("resume", "reclaim", "fence"):
        life = _after(("lose", *["tick"] * 6, end, "tick"))
        assert life.done[Effect.UNREACHABLE] == life.done[Effect.REACHABLE] == 1
        assert life.done[Effect.SUSPEND] == 1
        assert life.machine.leased(life.now)
