"""The journal: what makes an operation happen once although the server died in the middle of it.

Before an operation that must not be repeated its *intent* is written down, with what the names it changes lead
to at that moment; after it, and before its reply is sent, that it is *done*, with the reply. What a restarted
server finds is then one of three things:

* done: whoever asks again is answered from here;
* an intent alone: `nfsfuse_server.state.settle` looks what became of it, before anybody else may change
  anything;
* nothing: it was not begun. Whoever asks again has it done now.

That a look can tell rests on this: while an intent is open, nobody else changes what it is about. Other
sessions are kept away by the operation's transient tokens, which end after the record that it is done; other
operations of the same session by `busy`.

An outcome is kept until the session's client has acknowledged the frame that carried it. The log is written
anew, with what is still to be kept, when it is full.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from nfsfuse.protocol.errors import ProtocolError
from nfsfuse.protocol.types import InodeHandle, RequestId, SessionId
from nfsfuse_server.state.interface import OVERHEAD, Log, StateError
from nfsfuse_server.state.records import (
    JOURNAL_VERSION,
    Done,
    Intent,
    Named,
    Outcome,
    outcome_of,
    pack_done,
    pack_intent,
    pack_version,
    unpack,
    version_of,
)

log = logging.getLogger(__name__)

OUTCOME_SIZE_MAX: Final = 4096
"""Bytes of a record that something is done: the largest, of a rename, has five inodes of at most 300."""

INTENT_SIZE_MAX: Final = 80 << 10
"""Bytes of an intent: the value of an extended attribute (64 KiB), names and handles."""

NOT_YET: Final = 1 << 63
"""In place of a frame's number: it is still to be sent, so no client has acknowledged it."""

Acknowledged = Callable[[SessionId], int]
"""How many frames of a session its client has acknowledged."""


@dataclass(slots=True)
class _Entry:
    """One operation. *done* is None while it runs, *frame* the number of the frame with its reply: None if
    that was sent by an earlier process, or not at all."""

    intent: bytes
    names: tuple[Named, ...]
    done: bytes | None = None
    frame: int | None = None


class Journal:
    """The operations that must not be done twice."""

    def __init__(self, records: Log) -> None:
        self._log = records
        self._entries: dict[SessionId, dict[RequestId, _Entry]] = {}
        self._open_names: set[tuple[InodeHandle, bytes]] = set()
        self._open = 0

    # --- a start ---

    def load(self) -> list[Intent]:
        """Read the log, of this version or an earlier one; the operations of which it does not say that they
        are done, in the order begun. Each is to be settled. StateError for a log that cannot be understood."""
        intents: dict[tuple[SessionId, RequestId], Intent] = {}
        for record, what in self._understood(self._log.read()):
            match what:
                case Intent() as intent:
                    intents[intent.session, intent.request] = intent
                case Done(session=session, request=request):
                    intents.pop((session, request), None)
                    self._entries.setdefault(session, {})[request] = _Entry(b"", (), record)
        return list(intents.values())

    @staticmethod
    def _understood(records: list[bytes]) -> Iterator[tuple[bytes, Intent | Done]]:
        """Each of *records*, and what it says. All of it is looked at now: later it would be a client's request
        that meets what nobody understands."""
        try:
            version = version_of(records)
            if version > JOURNAL_VERSION:
                raise ValueError(f"it is of version {version}, and this server knows {JOURNAL_VERSION}")
            for record in records[min(version - 1, 1) :]:
                what = unpack(record)
                if isinstance(what, Done):
                    outcome_of(what)
                yield record, what
        except (ValueError, ProtocolError) as exc:
            raise StateError(
                f"the journal cannot be understood ({exc}): start the nfsfuse-server that has written it, "
                "unmount its clients, stop it, and then start this one. (Without the file 'journal' of the "
                "state directory this one starts, but what was under way may be done twice, or fail although "
                "it was done)"
            ) from exc

    def settled(self, intent: Intent, outcome: Outcome) -> None:
        """It was found out that *intent* has ended so."""
        record = pack_done(intent.session, intent.request, outcome)
        self._entries.setdefault(intent.session, {})[intent.request] = _Entry(b"", (), record)

    def begin(self, known: Iterable[SessionId]) -> None:
        """Everything is settled: write it down, all at once. What is of sessions that are not *known* will
        never be asked for. OSError if there is no room for a log."""
        known = set(known)
        self._entries = {session: entries for session, entries in self._entries.items() if session in known}
        self._rewrite()

    # --- operations ---

    def busy(self, names: Iterable[Named]) -> bool:
        """Whether an operation on any of *names* is open: the next one has to wait for its end."""
        return any((named.parent, named.name) in self._open_names for named in names)

    def intend(self, intent: Intent, acknowledged: Acknowledged) -> None:
        """*intent* is about to be done; *acknowledged* tells what need not be kept if the log is full. OSError
        if there is no room, and then nothing must be done."""
        assert not self.busy(intent.names), intent
        entries = self._entries.setdefault(intent.session, {})
        assert intent.request not in entries, intent
        if self._log.room() < INTENT_SIZE_MAX + OVERHEAD + self._reserve() + OUTCOME_SIZE_MAX + OVERHEAD:
            self._forget_acknowledged(acknowledged)
            self._rewrite()
        record = pack_intent(intent)
        assert len(record) <= INTENT_SIZE_MAX, (len(record), type(intent.message))
        self._log.append(record)
        self._entries.setdefault(intent.session, {})[intent.request] = _Entry(record, intent.names)
        self._open += 1
        self._open_names.update((named.parent, named.name) for named in intent.names)

    def done(self, session: SessionId, request: RequestId, outcome: Outcome, frame: int | None) -> None:
        """An operation has ended: its reply is about to be sent as the session's frame number *frame*, or,
        None, to nobody as the session is over."""
        entry = self._entries[session][request]
        assert entry.done is None, (session, request)
        record = pack_done(session, request, outcome)
        assert len(record) <= OUTCOME_SIZE_MAX, (len(record), type(outcome))
        self._log.append(record)
        self._open -= 1
        self._open_names.difference_update((named.parent, named.name) for named in entry.names)
        entry.intent, entry.names, entry.done, entry.frame = b"", (), record, frame
        if frame is None:
            del self._entries[session][request]

    # --- sessions ---

    def outcome(self, session: SessionId, request: RequestId) -> Outcome | None:
        """How *request* ended, if it is known here."""
        entry = self._entries.get(session, {}).get(request)
        if entry is None or entry.done is None:
            return None
        done = unpack(entry.done)
        assert isinstance(done, Done)
        return outcome_of(done)

    def answering(self, session: SessionId, request: RequestId) -> None:
        """The outcome of *request*, asked for again, is about to be sent: it is kept until `answered`."""
        self._entries[session][request].frame = NOT_YET

    def answered(self, session: SessionId, request: RequestId, frame: int) -> None:
        """The outcome of *request* is sent again, as frame number *frame* of the new epoch."""
        self._entries[session][request].frame = frame

    def reclaimed(self, session: SessionId) -> None:
        """The client has asked again for all that it was not answered: the rest it knows."""
        entries = self._entries.get(session, {})
        for request in [number for number, entry in entries.items() if entry.done and entry.frame is None]:
            del entries[request]

    def forget(self, session: SessionId) -> None:
        """The session is over: it will ask for nothing again. Operations that still run are kept."""
        entries = self._entries.pop(session, {})
        running = {number: entry for number, entry in entries.items() if entry.done is None}
        if running:
            self._entries[session] = running

    # --- inside ---

    def _forget_acknowledged(self, acknowledged: Acknowledged) -> None:
        for session, entries in list(self._entries.items()):
            received = acknowledged(session)
            for request, entry in list(entries.items()):
                if entry.done is not None and entry.frame is not None and entry.frame <= received:
                    del entries[request]
            if not entries:
                del self._entries[session]

    def _reserve(self) -> int:
        return self._open * (OUTCOME_SIZE_MAX + OVERHEAD)

    def _rewrite(self) -> None:
        self._log.replace([pack_version(), *self._kept()], self._reserve())

    def _kept(self) -> Iterator[bytes]:
        for entries in self._entries.values():
            for entry in entries.values():
                yield entry.intent if entry.done is None else entry.done

    def check(self) -> None:
        """Assert the invariants."""
        running = [entry for entries in self._entries.values() for entry in entries.values() if not entry.done]
        assert len(running) == self._open
        names = [(named.parent, named.name) for entry in running for named in entry.names]
        assert set(names) == self._open_names
        assert self._log.room() >= self._reserve(), "what has been begun can be written down as done"
