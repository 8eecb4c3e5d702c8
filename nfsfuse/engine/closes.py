"""Last closes of open files, and accesses of files, told to the server together.

Nobody waits for a last close: what it gives up is only room on the server, and tokens that a recall would bring
as well. A message for each would cost both sides more than what it says is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from nfsfuse.protocol.limits import ACCESSES_MAX, RELEASES_MAX
from nfsfuse.protocol.messages import Closed
from nfsfuse.protocol.types import InodeHandle

RELEASE_SECONDS: Final = 0.05
"""How long a close may wait for others: long enough for the files of whoever makes or reads some hundreds a
second to share a message; and nobody notices that a descriptor on the server, or the room of a file that
another client has unlinked, is kept for as long."""


class Closes:
    """Closes of which the server is still to be told, oldest first. They are given to *send* as soon as there
    are RELEASES_MAX of them, and by `run` when the oldest has waited for RELEASE_SECONDS at most. Files that
    were read to *send_accessed*, likewise."""

    def __init__(
        self,
        send: Callable[[tuple[Closed, ...]], None],
        send_accessed: Callable[[tuple[InodeHandle, ...]], None],
    ) -> None:
        self._send = send
        self._send_accessed = send_accessed
        self._pending: list[Closed] = []
        self._accessed: dict[InodeHandle, None] = {}
        self._begun = trio.lowlevel.ParkingLot()

    @property
    def pending(self) -> tuple[Closed, ...]:
        """Those that wait."""
        return tuple(self._pending)

    def add(self, closed: Closed) -> None:
        """One more."""
        self._pending.append(closed)
        if len(self._pending) >= RELEASES_MAX:
            self.send()
        else:
            self._begun.unpark()

    def accessed(self, handle: InodeHandle) -> None:
        """A file's time of access has changed."""
        self._accessed[handle] = None
        if len(self._accessed) >= ACCESSES_MAX:
            self.send()
        else:
            self._begun.unpark()

    def send(self) -> None:
        """Those that wait are sent now; nothing if there are none."""
        if self._accessed:
            accessed, self._accessed = tuple(self._accessed), {}
            self._send_accessed(accessed)
        if self._pending:
            pending, self._pending = tuple(self._pending), []
            self._send(pending)

    def drop(self) -> None:
        """The server knows of none of these files any more."""
        self._pending.clear()
        self._accessed.clear()

    async def run(self) -> None:
        """Send what has waited long enough, until cancelled."""
        while True:
            if not (self._pending or self._accessed):
                await self._begun.park()
            # If some are sent for another reason meanwhile, later ones wait for less: better than a timer each.
            await trio.sleep(RELEASE_SECONDS)
            self.send()
