"""One word as a register, step by step: is there still an order of all operations that explains what was seen?

The set of *views* has every state the word may be in: its value, and which operations under way have taken
effect already (Wing and Gong, Testing and Verifying Concurrent Objects, 1993, done as the history grows). An
operation that ends leaves the views in which it has had its effect; if none is left, nothing explains it.
"""

from __future__ import annotations

from tests.helpers.history import Violation

_View = tuple[int, frozenset[tuple[int, int]]]
"""A value, and operations that have had their effect: number, value."""


class Register:
    """A word; zero at first."""

    def __init__(self) -> None:
        self.views: frozenset[_View] = frozenset({(0, frozenset())})
        self.under_way: dict[int, int | None] = {}  # the value to be written; None of a read
        self._last = 0

    def begin(self, value: int | None) -> int:
        """A write of *value*, or a read, begins; its number."""
        number = next(n for n in range(1, 99) if n not in self.under_way)
        self.under_way[number] = value
        return number

    def end(self, number: int, value: int, who: str) -> None:
        """It has written, or seen, *value*."""
        views = self._all_views()
        left = {(now, done - {(number, value)}) for now, done in views if (number, value) in done}
        if not left:
            possible = sorted({now for now, _ in views})
            raise Violation(f"{who} saw {value}, where only {possible} can have been")
        del self.under_way[number]
        self.views = frozenset(left)

    def set(self, value: int, who: str) -> None:
        """A store through a mapping: begun and ended in one step."""
        self.end(self.begin(value), value, who)

    def see(self, value: int, who: str) -> None:
        """A load through a mapping."""
        self.end(self.begin(None), value, who)

    def lose(self, value: int) -> None:
        """Writes were lost with the client that had them: the word is *value* again."""
        self.views = frozenset({(value, frozenset())})

    def _all_views(self) -> set[_View]:
        found = set(self.views)
        frontier = list(found)
        while frontier:
            now, done = frontier.pop()
            for number, value in self.under_way.items():
                if any(other == number for other, _ in done):
                    continue
                effect = now if value is None else value
                view = (effect, done | {(number, effect)})
                if view not in found:
                    found.add(view)
                    frontier.append(view)
        return found
