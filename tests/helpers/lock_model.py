"""A lock manager as naive as can be: a mode per byte and owner, one list of waiters, nothing remembered.

It follows the rules that `nfsfuse_server.machines.locks` states, and shares no code with it but the vocabulary.
Every file has `SIZE` bytes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nfsfuse.protocol.locks import LockKind, LockMode
from nfsfuse_server.machines.lock_effects import Denied, Effect, Granted

SIZE = 4

Who = tuple[int, int]  # session, owner
Byte = tuple[int, LockKind, int]  # file, kind, offset


@dataclass(frozen=True)
class Ask:
    """One request."""

    ticket: int
    who: Who
    file: int
    kind: LockKind
    mode: LockMode
    start: int
    end: int
    fd: int

    @property
    def bytes_(self) -> list[Byte]:
        """What is asked for, byte by byte."""
        flock = self.kind is LockKind.FLOCK
        offsets = range(SIZE) if flock else range(self.start, self.end + 1)
        return [(self.file, self.kind, offset) for offset in offsets]


def _clash(one: LockMode, other: LockMode) -> bool:
    return LockMode.WRITE in (one, other)


class LockModel:
    """`held[byte][who]` is (mode, open file); `queue` is in order of arrival."""

    def __init__(self) -> None:
        self.held: dict[Byte, dict[Who, tuple[LockMode, int]]] = {}
        self.queue: list[Ask] = []

    # -- the rules ----------------------------------------------------------------------------------------

    def holders(self, ask: Ask) -> set[Who]:
        return {
            who
            for byte in ask.bytes_
            for who, (mode, _) in self.held.get(byte, {}).items()
            if who != ask.who and _clash(mode, ask.mode)
        }

    def earlier(self, ask: Ask) -> set[Who]:
        before = self.queue[: self.queue.index(ask)] if ask in self.queue else self.queue
        return {
            other.who
            for other in before
            if other.who != ask.who and _clash(other.mode, ask.mode) and set(other.bytes_) & set(ask.bytes_)
        }

    def waits_for(self, who: Who, target: Who, *, locks_only: bool = False) -> bool:
        """Whether *who* waits for *target*, directly or through others."""
        seen: set[Who] = set()
        todo = [who]
        while todo:
            node = todo.pop()
            for ask in self.queue:
                if ask.who != node or (locks_only and ask.kind is LockKind.FLOCK):
                    continue
                new = (self.holders(ask) | (set() if locks_only else self.earlier(ask))) - seen
                seen |= new
                todo += new
        return target in seen

    def grantable(self, ask: Ask) -> bool:
        return not self.holders(ask) and all(self.waits_for(who, ask.who) for who in self.earlier(ask))

    # -- the calls ----------------------------------------------------------------------------------------

    def request(self, ask: Ask, wait: bool) -> list[Effect]:
        if ask.mode is LockMode.UNLOCK or self.grantable(ask):
            self._set(ask)
            return [Granted(ask.ticket), *self._settle()]
        detects = wait and ask.kind is LockKind.POSIX
        if detects and any(self.waits_for(who, ask.who, locks_only=True) for who in self.holders(ask)):
            return [Denied(ask.ticket, errno.EDEADLK)]
        effects: list[Effect] = []
        if ask.kind is LockKind.FLOCK:
            self._drop(lambda byte, who, fd: byte in ask.bytes_ and who == ask.who)
            effects = self._settle()
        if not wait:
            return [Denied(ask.ticket, errno.EAGAIN), *effects]
        self.queue.append(ask)
        return effects + self._settle()

    def cancel(self, ticket: int) -> list[Effect]:
        return self._abandon([ask for ask in self.queue if ask.ticket == ticket], errno.EINTR)

    def flush(self, who: Who, file: int) -> list[Effect]:
        self._drop(lambda byte, owner, fd: byte[:2] == (file, LockKind.POSIX) and owner == who)
        return self._settle()

    def release(self, session: int, file: int, fd: int) -> list[Effect]:
        mine = (session, file, fd)
        self._drop(lambda byte, owner, through: (owner[0], byte[0], through) == mine)
        by_kind = sorted(self.queue, key=lambda ask: ask.kind.value)
        return self._abandon([a for a in by_kind if (a.who[0], a.file, a.fd) == mine], errno.EBADF)

    def drop_session(self, session: int) -> list[Effect]:
        self._drop(lambda byte, owner, fd: owner[0] == session)
        return self._abandon([ask for ask in self.queue if ask.who[0] == session], errno.ENOTCONN)

    def _abandon(self, asks: Iterable[Ask], why: int) -> list[Effect]:
        effects: list[Effect] = []
        for ask in asks:
            self.queue.remove(ask)
            effects.append(Denied(ask.ticket, why))
        return effects + self._settle()

    def _settle(self) -> list[Effect]:
        effects: list[Effect] = []
        while (ask := next(filter(self.grantable, self.queue), None)) is not None:
            self.queue.remove(ask)
            self._set(ask)
            effects.append(Granted(ask.ticket))
        return effects

    def _set(self, ask: Ask) -> None:
        for byte in ask.bytes_:
            self.held.setdefault(byte, {}).pop(ask.who, None)
            if ask.mode is not LockMode.UNLOCK:
                self.held[byte][ask.who] = (ask.mode, ask.fd)

    def _drop(self, which: Callable[[Byte, Who, int], bool]) -> None:
        for byte, owners in self.held.items():
            for who, (_, fd) in list(owners.items()):
                if which(byte, who, fd):
                    del owners[who]
