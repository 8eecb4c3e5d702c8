"""What was measured: values by figure, system and round; medians and ratios of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from scripts.benchmark.figures import Figure

OURS: Final = "nfsfuse"
LOCAL: Final = "local"


@dataclass(slots=True)
class Results:
    """The values of a run. *systems* in the order in which they are shown; *notes* say what could not be
    measured, and why; what is *impossible* is not tried again."""

    figures: dict[str, Figure]
    systems: Sequence[str]
    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    notes: dict[tuple[str, str], str] = field(default_factory=dict)
    impossible: set[tuple[str, str]] = field(default_factory=set)

    @property
    def peers(self) -> list[str]:
        """The systems that are neither ours nor local."""
        return [system for system in self.systems if system not in (OURS, LOCAL)]

    def add(self, system: str, figures: Iterable[Figure], values: Iterable[float]) -> None:
        """A work was measured on *system*."""
        for figure, value in zip(figures, values, strict=True):
            self.values.setdefault((figure.name, system), []).append(value)

    def note(self, system: str, figures: Iterable[Figure], why: str) -> None:
        """A work could not be measured on *system*, this time at least."""
        for figure in figures:
            self.notes[figure.name, system] = why

    def median(self, figure: str, system: str) -> float | None:
        """Of all rounds; None if it was measured in none."""
        values = self.values.get((figure, system))
        return median(values) if values else None

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
        """The largest value of all rounds over the smallest: how noisy it was."""
        values = self.values.get((figure, system))
        return max(values) / min(values) if values and min(values) > 0 else None
