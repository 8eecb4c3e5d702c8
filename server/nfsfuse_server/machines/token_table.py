"""All tokens of the server as a table: what is held where, by whom, and the indices to find it by.

The events that change it are in `tokens`, the rules of one resource in `token_state`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from nfsfuse.protocol.tokens import Resource, Token, TokenMode
from nfsfuse.protocol.types import InodeHandle, SessionId
from nfsfuse_server.machines.token_check import check_resource
from nfsfuse_server.machines.token_effects import Recall
from nfsfuse_server.machines.token_holder import Holder
from nfsfuse_server.machines.token_state import EXTENTS_PER_HOLDER_MAX, ResourceTokens

STORY_LENGTH_MAX: Final = 1000
"""Events kept, of all resources together, to be told in the message of a failed assertion."""

Key = tuple[InodeHandle, Resource]


class TokenTable:
    """Resources by key and by session, requests by ticket, recalls by id. A (handle, resource) without tokens
    and requests takes no memory."""

    def __init__(self, extents_max: int = EXTENTS_PER_HOLDER_MAX) -> None:
        assert extents_max >= 2
        self._extents_max = extents_max
        self._states: dict[Key, ResourceTokens] = {}
        self._sessions: dict[SessionId, dict[Key, None]] = {}  # where a session is a holder
        self._tickets: dict[int, Key] = {}  # waiting, in flight or transient
        self._recalls: dict[int, Key] = {}  # not acknowledged
        self._next_recall = 1
        self._events: deque[tuple[InodeHandle, object]] = deque(maxlen=STORY_LENGTH_MAX)

    # --- questions ---------------------------------------------------------------------------------------

    def holds(
        self, session: SessionId, handle: InodeHandle, resource: Resource, start: int, end: int,
        mode: TokenMode,
    ) -> bool:  # fmt: skip
        """Whether *session* holds all of ``[start, end)`` at *mode* or stronger, being recalled or not."""
        state = self._states.get((handle, resource))
        holder = state.holders.get(session) if state is not None else None
        return holder is not None and holder.holds(start, end, mode)

    def holders(self, handle: InodeHandle, resource: Resource) -> dict[SessionId, tuple[Token, ...]]:
        """Who holds what of a resource, in flight or not."""
        state = self._states.get((handle, resource))
        if state is None:
            return {}
        return {
            session: tuple(state.token(*piece) for piece in holder.tokens)
            for session, holder in state.holders.items()
            if holder.tokens
        }

    def tokens_of(self, session: SessionId) -> tuple[Token, ...]:
        """All that *session* holds."""
        states = [self._states[key] for key in self._sessions.get(session, ())]
        return tuple(state.token(*piece) for state in states for piece in state.holders[session].tokens)

    def recalls_of(self, session: SessionId) -> list[Recall]:
        """What *session* has not acknowledged, in the order asked."""
        states = [self._states[key] for key in self._sessions.get(session, ())]
        recalls = [recall for state in states for recall in state.holders[session].recalls.values()]
        return sorted(recalls, key=lambda recall: recall.recall_id)

    def handles_held(self, session: SessionId) -> set[InodeHandle]:
        """The inodes of which *session* holds a token: they are pinned for it."""
        keys = self._sessions.get(session, ())
        return {key[0] for key in keys if self._states[key].holders[session].tokens}

    def is_held(self, handle: InodeHandle, resources: Iterable[Resource] = Resource) -> bool:
        """Whether any session holds any token of the inode's *resources*."""
        states = [self._states[handle, r] for r in resources if (handle, r) in self._states]
        return any(holder.tokens for state in states for holder in state.holders.values())

    def held(self) -> list[Key]:
        """Everything of which any session holds a token."""
        return [
            key
            for key, state in self._states.items()
            if any(holder.tokens for holder in state.holders.values())
        ]

    def story(self, handle: InodeHandle) -> str:
        """What happened to an inode lately, a line an event."""
        return "\n".join(str(event) for about, event in self._events if about == handle)

    # --- upkeep -----------------------------------------------------------------------------------------

    def _state(self, key: Key) -> ResourceTokens:
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = ResourceTokens(*key, self._extents_max)
        return state

    def _holder(self, state: ResourceTokens, session: SessionId) -> Holder:
        holder = state.holders.get(session)
        if holder is None:
            holder = state.add_holder(session)
            self._sessions.setdefault(session, {})[state.handle, state.resource] = None
        return holder

    def _remove_holder(self, state: ResourceTokens, session: SessionId) -> None:
        state.remove_holder(session)
        keys = self._sessions[session]
        del keys[state.handle, state.resource]
        if not keys:
            del self._sessions[session]

    def _forget_if_idle(self, state: ResourceTokens) -> None:
        if not state:
            del self._states[state.handle, state.resource]

    def _note(self, handle: InodeHandle, event: object) -> None:
        self._events.append((handle, event))

    def check(self) -> None:
        """Assert every invariant; for tests, it looks at everything."""
        tickets: dict[int, Key] = {}
        recalls: dict[int, Key] = {}
        sessions: dict[SessionId, set[Key]] = {}
        for key, state in self._states.items():
            try:
                assert state, "an empty state is kept"
                assert key == (state.handle, state.resource)
                check_resource(state)
            except AssertionError as exc:
                exc.add_note(self.story(key[0]))
                raise
            tickets.update(dict.fromkeys((*state.waiting, *state.transients), key))
            for session, holder in state.holders.items():
                sessions.setdefault(session, set()).add(key)
                tickets.update(dict.fromkeys(holder.in_flight, key))
                recalls.update(dict.fromkeys(holder.recalls, key))
        assert tickets == self._tickets
        assert recalls == self._recalls
        assert sessions == {session: set(keys) for session, keys in self._sessions.items()}
