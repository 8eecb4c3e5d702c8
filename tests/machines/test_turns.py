"""Who is waited for before pages are taken, and for how long."""

from __future__ import annotations

from nfsfuse.machines.turns import CONTENDED_SECONDS, TURN_SECONDS_MAX, Turn, Turns
from nfsfuse.protocol.types import PAGE_SIZE as P


def test_readers_are_watched_for_a_while_after_each_recall() -> None:
    turns = Turns()
    assert not turns.are_watched(100.0)
    turns.recalled(100.0)
    assert turns.are_watched(100.0)
    assert not turns.are_watched(100.0 + CONTENDED_SECONDS)
    turns.recalled(100.9)
    assert turns.are_watched(101.0)


def test_who_takes_pages_waits_once_for_whoever_has_read_any_of_them_last() -> None:
    turns = Turns()
    turns.answered(0, P, 11, (1, 1000), 5.0)
    turns.answered(P, 3 * P, 12, (2, 2000), 5.001)
    turns.answered(0, 2 * P, 13, (3, 3000), 5.002)
    turns.answered(8 * P, 9 * P, 14, (4, 4000), 5.003)
    assert turns.take(3 * P, 4 * P, 5.004) is None
    assert turns.take(2 * P, 4 * P, 5.004) == Turn(P, 3 * P, 12, 2, 2000, 5.001 + TURN_SECONDS_MAX)
    assert turns.take(0, P, 5.004) == Turn(0, 2 * P, 13, 3, 3000, 5.002 + TURN_SECONDS_MAX)
    assert turns.take(0, 4 * P, 5.004) is None
    assert turns.take(0, 9 * P, 5.004) == Turn(8 * P, 9 * P, 14, 4, 4000, 5.003 + TURN_SECONDS_MAX)


def test_nobody_is_waited_for_who_has_had_his_time() -> None:
    turns = Turns()
    turns.answered(0, P, 11, (1, 1000), 5.0)
    assert turns.take(0, P, 5.0 + TURN_SECONDS_MAX) is None


def test_none_of_them_is_kept_for_long() -> None:
    turns = Turns()
    for number in range(1000):
        turns.answered(0, P, number, (1, 1), number * TURN_SECONDS_MAX / 2)
    assert len(turns._turns) == 2
