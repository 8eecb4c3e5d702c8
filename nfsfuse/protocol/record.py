"""Immutable records that cost no more to make than others.

A frozen dataclass sets each of its fields by a call of ``object.__setattr__``: making one takes three to four
times as long as making one that is not frozen, and a message on its way through a daemon is a handful of them.
So `record` is ``dataclass`` to the type checker, which lets nobody assign to a frozen field, and leaves that
check out when the program runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    from dataclasses import dataclass

    def record(*, frozen, slots):
        """As ``dataclass(frozen=True, slots=True)``: compared and hashed by its fields."""
        assert (frozen, slots) == (True, True)
        return dataclass(slots=True, unsafe_hash=True)


__all__ = ["record"]
