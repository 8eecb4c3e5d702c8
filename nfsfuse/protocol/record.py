"""Immutable records that cost no more to make than others.

A frozen dataclass sets each of its fields by a call of ``object.__setattr__``: making one takes three to four
times as long as making one that is not frozen, and a message on its way through a daemon is a handful of them.
So `record` is ``dataclass`` to the type checker, which lets nobody assign to a frozen field, and leaves that
check out when the program runs.

In the tests it is in force: ``tests/conftest.py`` sets `enforced` before a module with records is imported, and
an assignment to a field raises ``FrozenInstanceError``. A class is frozen or not from when it is made, so later
is too late. Programs that tests start run as they are installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

enforced: bool = False
"""Whether the classes that are made from now on are frozen when the program runs. False but in tests."""

if TYPE_CHECKING:
    from dataclasses import dataclass as record
else:
    from dataclasses import dataclass

    def record(*, frozen, slots):
        """As ``dataclass(frozen=True, slots=True)``: compared and hashed by its fields."""
        assert (frozen, slots) == (True, True)
        if enforced:
            return dataclass(frozen=True, slots=True)
        return dataclass(slots=True, unsafe_hash=True)


__all__ = ["enforced", "record"]
