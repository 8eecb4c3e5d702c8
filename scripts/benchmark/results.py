"""What was measured: values by figure, system and round; medians and ratios of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from scripts.benchmark.figures import Better, Cost, Figure, Value

OURS: Final = "nfsfuse"
LOCAL: Final = "local"
LIMIT: Final = "fuse-c"
BEFORE: Final = "before"


@dataclass(frozen=True, slots=True)
class Pairs:
    """Ours over another system's in the same round, in every round that has both: what it takes, so that less
    is better whatever the figure. The middle, the least and the most."""

    median: float
    least: float
    most: float
    rounds: int


@dataclass(slots=True)
class Results:
    """The values of a run. *systems* in the order in which they are shown; *notes* say what could not be
    measured, and why; what is *impossible* is not tried again."""

    figures: dict[str, Figure]
    systems: Sequence[str]
    values: dict[tuple[str, str], dict[int, Value]] = field(default_factory=dict)
    notes: dict[tuple[str, str], str] = field(default_factory=dict)
    impossible: set[tuple[str, str]] = field(default_factory=set)

    @property
    def peers(self) -> list[str]:
        """The systems of others that do the same work: neither ours, nor local, nor a reference."""
        return [system for system in self.systems if system not in (OURS, LOCAL, LIMIT, BEFORE)]

    def add(self, round_number: int, system: str, figures: Iterable[Figure], values: Iterable[Value]) -> None:
        """A work was measured on *system*."""
        for figure, value in zip(figures, values, strict=True):
            self.values.setdefault((figure.name, system), {})[round_number] = value

    def note(self, system: str, figures: Iterable[Figure], why: str) -> None:
        """A work could not be measured on *system*, this time at least."""
        for figure in figures:
            self.notes[figure.name, system] = why

    def amounts(self, figure: str, system: str) -> list[float]:
        """Of all rounds, in their order."""
        return [value.amount for value in self.values.get((figure, system), {}).values()]

    def median(self, figure: str, system: str) -> float | None:
        """Of all rounds; None if it was measured in none."""
        values = self.amounts(figure, system)
        return median(values) if values else None

    def cost(self, figure: str, system: str) -> Cost | None:
        """Processor time for one unit of work in microseconds, medians of all rounds; None if nobody's was
        looked at."""
        values = self.values.get((figure, system), {}).values()
        costs = [value.cost for value in values if value.cost is not None]
        if not costs:
            return None
        return Cost(median(cost.server for cost in costs), median(cost.clients for cost in costs))

    def best_peer(self, figure: str) -> float | None:
        """The best median of a peer's; None if no peer was measured."""
        found = [value for peer in self.peers if (value := self.median(figure, peer)) is not None]
        return self.figures[figure].best(found) if found else None

    def ratio(self, figure: str, other: float | None) -> float | None:
        """How many times better ours is than *other*; None if one of them is missing."""
        ours = self.median(figure, OURS)
        if ours is None or other is None or not ours or not other:
            return None
        return self.figures[figure].ratio(ours, other)

    def spread(self, figure: str, system: str) -> float | None:
        """How far apart the rounds are: the most less the least, as a part of the median."""
        values = self.amounts(figure, system)
        middle = self.median(figure, system)
        return (max(values) - min(values)) / middle if middle else None

    def elapsed(self, figure: str, other: str) -> Pairs | None:
        """What ours takes of the time that *other* takes; None without a round that has both."""
        less = self.figures[figure].better is Better.LESS
        return self._pairs(figure, other, lambda value: value.amount if less else 1 / value.amount)

    def processor(self, figure: str, other: str) -> Pairs | None:
        """What ours takes of the processor time of *other*, clients and server together."""
        return self._pairs(figure, other, lambda value: None if value.cost is None else value.cost.total)

    def _pairs(self, figure: str, other: str, taken: Callable[[Value], float | None]) -> Pairs | None:
        ours, theirs = (self.values.get((figure, system), {}) for system in (OURS, other))
        ratios = []
        for number in sorted(ours.keys() & theirs.keys()):
            above, below = taken(ours[number]), taken(theirs[number])
            if above is not None and below:
                ratios.append(above / below)
        return Pairs(median(ratios), min(ratios), max(ratios), len(ratios)) if ratios else None
