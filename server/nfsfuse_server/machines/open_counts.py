"""Which sessions have a file open: a pure machine.

Whoever makes a file longer has to know whether anybody must be told, in a step that takes the same time
however many files are open.
"""

from __future__ import annotations

from nfsfuse.protocol.types import InodeHandle, SessionId


class OpenCounts:
    """How often each session has each file open."""

    def __init__(self) -> None:
        self._counts: dict[InodeHandle, dict[SessionId, int]] = {}

    def opened(self, session: SessionId, handle: InodeHandle) -> None:
        """*session* has opened the file once more."""
        counts = self._counts.setdefault(handle, {})
        counts[session] = counts.get(session, 0) + 1

    def closed(self, session: SessionId, handle: InodeHandle) -> None:
        """*session* has closed the file once."""
        counts = self._counts[handle]
        counts[session] -= 1
        if not counts[session]:
            del counts[session]
            if not counts:
                del self._counts[handle]

    def others(self, session: SessionId, handle: InodeHandle) -> tuple[SessionId, ...]:
        """The sessions beside *session* that have the file open."""
        return tuple(other for other in self._counts.get(handle, ()) if other != session)

    def is_watched(self, session: SessionId, handle: InodeHandle) -> bool:
        """Whether any session beside *session* has the file open."""
        counts = self._counts.get(handle)
        return counts is not None and len(counts) > (session in counts)

    def check(self) -> None:
        """Assert the invariants."""
        for counts in self._counts.values():
            assert counts, "what is closed is forgotten"
            assert all(count > 0 for count in counts.values())
