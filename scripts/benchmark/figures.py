"""What is measured: names, units, and which way is better; and what one measurement has come to."""

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


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor time: of the server, and of the daemons of all clients. Programs' own is not in it."""

    server: float
    clients: float

    @property
    def total(self) -> float:
        return self.server + self.clients

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.server - other.server, self.clients - other.clients)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.server + other.server, self.clients + other.clients)

    def each(self, count: float) -> Cost:
        """What one of *count* cost, in microseconds if this is in seconds."""
        return Cost(self.server / count * 1e6, self.clients / count * 1e6)


@dataclass(frozen=True, slots=True)
class Value:
    """What a figure has come to: *amount* in its unit; *cost* is microseconds of processor time for one file,
    MiB or operation, None where that means nothing."""

    amount: float
    cost: Cost | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a program printed, as numbers, and what it cost while it ran (in seconds)."""

    numbers: dict[str, float]
    cost: Cost

    def __getitem__(self, name: str) -> float:
        return self.numbers[name]


def microseconds_each(measured: Measured, count: str = "count") -> Value:
    """What one of *count* took."""
    number = measured[count]
    return Value(measured["seconds"] / number * 1e6, measured.cost.each(number))


def per_second(measured: Measured, count: str = "count", unit: float = 1.0) -> Value:
    """How many there were in a second, of *count* in units of *unit*."""
    number = measured[count] / unit
    return Value(number / measured["seconds"], measured.cost.each(number))


def rate(name: str, title: str, unit: str) -> Figure:
    """A figure of which more is better."""
    return Figure(name, title, unit, Better.MORE)


def duration(name: str, title: str, unit: str) -> Figure:
    """A figure of which less is better."""
    return Figure(name, title, unit, Better.LESS)
