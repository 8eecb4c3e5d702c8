"""The numbers by which messages are known on the wire and in the journal: a literal beside each message.

A code is given once, to one message, for good: what an older peer sends and what an older server has written
down is read by it. A message that is not sent any more leaves its code to `RETIRED`.
`tests/protocol/test_golden.py` keeps every message's bytes, and says which line is missing for a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, dataclass_transform

from nfsfuse.protocol.record import record


class Message:
    """Anything that is sent."""

    __slots__ = ()


CODES: Final[dict[type[Message], int]] = {}
"""Of every message, by `message`."""

RETIRED: Final[frozenset[int]] = frozenset({39, 48})
"""Codes of messages that there were once: never given again."""

_M = TypeVar("_M", bound=Message)


@dataclass_transform(frozen_default=True)
def message(code: int) -> Callable[[type[_M]], type[_M]]:
    """Makes a class a `record` that is sent under *code*. The next free one is one more than the largest here
    and in `RETIRED`; it need not be the next: two branches that add messages take numbers that are far apart.
    ValueError for one that is taken."""

    def make(kind: type[_M]) -> type[_M]:
        taken = [other.__name__ for other, number in CODES.items() if number == code]
        if code < 1 or code in RETIRED or taken:
            raise ValueError(f"{kind.__name__} cannot have code {code}: {taken or 'it is none, or retired'}")
        made: type[_M] = record(frozen=True, slots=True)(kind)
        CODES[made] = code
        return made

    return make
