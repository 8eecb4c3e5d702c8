"""Whether the name that is looked up next will be opened at once: a pure machine.

Who goes through files asks for each by name and then opens it, which are two round trips, one after the other.
With the answer to the first the server can send what the second is for, the content of a small file; which is
in vain where names are only looked at, as stat(2) does. So it is asked for on credit: a file that is opened
after it was not asked for earns some, one whose content has come ahead and is used earns more than it has
cost, and where nothing is opened it is soon used up.
"""

from __future__ import annotations

from typing import Final

CREDIT_MAX: Final = 8
"""Contents asked for and not used, at most, before no more are: half a MiB."""

EARNED: Final = 2
"""For a file that is opened. More than the one that it costs to ask, so that every other may stay unopened."""


class OpensAhead:
    """Of one mount: whoever looks names up is not told apart."""

    def __init__(self) -> None:
        self._credit = 0

    def expected(self) -> bool:
        """Whether to ask for the content of the name that is about to be looked up."""
        return self._credit > 0

    def asked(self) -> None:
        """A content came with a name."""
        self._credit = max(self._credit - 1, 0)

    def opened(self) -> None:
        """A file was opened, and its content had come with its name, or should have."""
        self._credit = min(self._credit + EARNED, CREDIT_MAX)
