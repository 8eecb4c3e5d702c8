"""All states of something that can be copied, breadth first: for machines by themselves."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Hashable
from typing import Protocol

from nfsfuse.protocol.errors import ProtocolError
from tests.helpers.history import Violation


class Model(Protocol):
    """A state, to be copied."""

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """What may happen next, by name. Called on a copy, which it then changes."""

    def check(self) -> None:
        """Raise AssertionError for what must not be."""

    def mark(self) -> Hashable:
        """Equal for states that cannot be told apart by anything that follows."""


def exhaust(first: Model) -> int:
    """See every state that can be reached from *first*; how many there are. Raises Violation for a bad one
    (an assertion that fails, or an end that takes the other for no correct one), with the shortest way to it as
    a note."""
    first.check()
    seen = {first.mark()}
    to_go: deque[tuple[Model, tuple[str, ...]]] = deque([(first, ())])
    while to_go:
        model, way = to_go.popleft()
        for number in range(len(model.steps())):
            after = copy.deepcopy(model)
            name, step = after.steps()[number]
            try:
                step()
                after.check()
            except (AssertionError, ProtocolError) as exc:
                violation = Violation(str(exc) or repr(exc))
                violation.add_note("\n".join((*way, name)))
                raise violation from exc
            mark = after.mark()
            if mark not in seen:
                seen.add(mark)
                to_go.append((after, (*way, name)))
    return len(seen)
