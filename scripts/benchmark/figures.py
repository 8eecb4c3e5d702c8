"""What is measured: names, units, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Better(Enum):
    """Which of two values of a figure is the better one."""

    MORE = "more"
    LESS = "less"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a work gives: *name* for the command line and for machines, *title* for people."""

    name: str
    title: str
    unit: str
    better: Better

    def best(self, values: list[float]) -> float:
        """The best of *values*, of which there must be one."""
        return max(values) if self.better is Better.MORE else min(values)

    def ratio(self, ours: float, theirs: float) -> float:
        """How many times better *ours* is than *theirs*: 2 is twice as fast, 0.5 half as fast."""
        return ours / theirs if self.better is Better.MORE else theirs / ours


def microseconds_each(measured: dict[str, float], count: str = "count") -> float:
    """What one of *count* took, of what a program printed."""
    return measured["seconds"] / measured[count] * 1e6


def rate(name: str, title: str, unit: str) -> Figure:
    """A figure of which more is better."""
    return Figure(name, title, unit, Better.MORE)


def duration(name: str, title: str, unit: str) -> Figure:
    """A figure of which less is better."""
    return Figure(name, title, unit, Better.LESS)
