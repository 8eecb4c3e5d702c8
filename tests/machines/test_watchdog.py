"""An event loop that does not turn is told of, then aborted; one that could not run is not."""

from __future__ import annotations

import pytest

from nfsfuse.machines.watchdog import LOOK_SECONDS, TELL_SECONDS, Do, Watchdog


class Loop:
    """Looked at once a second of *now*."""

    def __init__(self, abort_seconds: float | None = 60.0) -> None:
        self.watchdog = Watchdog(abort_seconds)
        self.now = 1000.0
        self.beats = 0

    def goes_by(self, seconds: float, *, turns: bool = False, could_run: bool = True) -> list[tuple[int, Do]]:
        """What is to be done, and after how many of these seconds."""
        found = []
        for second in range(1, int(seconds / LOOK_SECONDS) + 1):
            self.now += LOOK_SECONDS
            self.beats += turns
            do = self.watchdog.look(self.now, self.beats, could_run=could_run)
            if do is not Do.NOTHING:
                found.append((second, do))
        return found


def test_one_that_turns_is_left_alone() -> None:
    assert Loop().goes_by(1000, turns=True) == []


def test_one_that_does_not_is_told_of_and_then_aborted_once() -> None:
    loop = Loop()
    loop.goes_by(3, turns=True)
    assert loop.goes_by(1000) == [(TELL_SECONDS, Do.TELL), (60, Do.ABORT)]


@pytest.mark.parametrize("abort_seconds", [2.0, 6.0])
def test_it_is_told_before_it_is_aborted(abort_seconds: float) -> None:
    loop = Loop(abort_seconds)
    loop.goes_by(3, turns=True)
    assert loop.goes_by(1000) == [(abort_seconds / 2, Do.TELL), (abort_seconds, Do.ABORT)]


def test_it_may_be_left_for_ever() -> None:
    loop = Loop(None)
    loop.goes_by(3, turns=True)
    assert loop.goes_by(1000) == [(TELL_SECONDS, Do.TELL)]


def test_one_that_turns_again_is_told_of_and_may_stall_anew() -> None:
    loop = Loop()
    loop.goes_by(3, turns=True)
    for _ in range(2):
        assert loop.goes_by(50) == [(TELL_SECONDS, Do.TELL)]
        assert loop.goes_by(10, turns=True) == [(1, Do.TURNS_AGAIN)]
        assert loop.watchdog.stalled_seconds == 50


def test_one_that_is_stopped_is_left_alone() -> None:
    loop = Loop()
    loop.goes_by(3, turns=True)
    assert loop.goes_by(1000, could_run=False) == []
    assert loop.goes_by(3, turns=True) == []


def test_time_that_nobody_has_looked_is_not_held_against_it() -> None:
    """The machine was paused, or both processes were."""
    loop = Loop()
    loop.goes_by(3, turns=True)
    loop.now += 100_000
    assert loop.goes_by(2) == []
    assert loop.goes_by(3, turns=True) == []
