"""What is being measured now, and how long it will still take."""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

LINE_SECONDS: Final = 10.0
"""How often a line is printed where it cannot be overwritten (a file, a pipe)."""


class Progress:
    """Steps of a run in rounds. The time left is estimated: what was measured in a round before takes as long
    again, anything else as long as the average step."""

    def __init__(self, steps: list[tuple[str, str]], rounds: int, output: TextIO | None = None) -> None:
        self._steps = steps
        self._rounds = rounds
        self._output = output if output is not None else sys.stderr
        self._terminal = self._output.isatty()
        self._taken: dict[tuple[str, str], float] = {}
        self._done = 0
        self._last_line = float("-inf")

    def begin(self, round_number: int, step: tuple[str, str]) -> None:
        """*step*, the name of a work and a system, is next in *round_number* (from 1)."""
        left = self.seconds_left()
        eta = "" if left is None else f", about {_clock(left)} left"
        text = (
            f"round {round_number}/{self._rounds}: {step[0]} on {step[1]} "
            f"(step {self._done + 1} of {len(self._steps) * self._rounds}{eta})"
        )
        now = time.monotonic()
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=self._output, flush=True)
        elif now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            print(text, file=self._output, flush=True)

    def end(self, step: tuple[str, str], seconds: float) -> None:
        """*step* has taken that long."""
        self._done += 1
        self._taken[step] = seconds

    def seconds_left(self) -> float | None:
        """None before anything is known."""
        if not self._taken:
            return None
        average = sum(self._taken.values()) / len(self._taken)
        whole_rounds, into = divmod(self._done, len(self._steps))
        a_round = sum(self._taken.get(step, average) for step in self._steps)
        done = sum(self._taken.get(step, average) for step in self._steps[:into])
        return (self._rounds - whole_rounds) * a_round - done

    def close(self) -> None:
        """Nothing more is measured."""
        if self._terminal:
            print("\r\x1b[K", end="", file=self._output, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
