"""A small language for lock scenarios: one step a line, the expected outcome beside it.

    1a try f W 0-9 #1          session 1, owner a: F_SETLK on file f, ticket 1; ranges 5, 0-9, 0- (to the end)
    1b wait f R 5 #2           F_SETLKW; 'fd=3' names the open file (1 if not given), 'ofd' an OFD lock
    1a tryflock f W #3         flock with LOCK_NB; waitflock without
    cancel #2
    1a flush f
    1 release f fd=1           or '1a release ...': with the owner of a flock
    1 drop
    1a test f W 0-9            F_GETLK

Outcomes: 'ok 1; EDEADLK 2' in order ('' where nothing happened yet), for a test 'free' or 'W 0-9 pid 101'.
`LockManager.check` runs after every step.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from nfsfuse.protocol.locks import LockKind, LockMode
from nfsfuse.protocol.types import OFFSET_MAX, InodeHandle, LockOpenId, LockOwner, SessionId
from nfsfuse_server.machines.lock_effects import Effect, Granted
from nfsfuse_server.machines.locks import LockManager

MODES = {"R": LockMode.READ, "W": LockMode.WRITE, "U": LockMode.UNLOCK}
LETTERS = {mode: letter for letter, mode in MODES.items()}


def session_id(number: str) -> SessionId:
    return SessionId(number.encode() * 16)


def owner_id(letter: str) -> LockOwner:
    return LockOwner(ord(letter))


def inode_handle(name: str) -> InodeHandle:
    return InodeHandle(name.encode())


def process_id(who: str) -> int:
    """1a is 101, 1b is 102, 2a is 201."""
    return int(who[0]) * 100 + ord(who[1]) - ord("a") + 1


def span(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not dash:
        return int(first), int(first)
    return int(first), int(last) if last else OFFSET_MAX


def show(effects: Sequence[Effect]) -> str:
    return "; ".join(
        f"ok {effect.ticket}" if isinstance(effect, Granted) else f"{_name(effect.errno)} {effect.ticket}"
        for effect in effects
    )


def _name(number: int) -> str:
    # EDEADLOCK is another name of the same number on Linux, and the one errorcode has.
    return "EDEADLK" if number == errno.EDEADLK else errno.errorcode[number]


class LockScript:
    """Runs steps on a manager, checking every invariant after each."""

    def __init__(self, manager: LockManager | None = None) -> None:
        self.manager = manager or LockManager()

    def run(self, step: str) -> str:
        """The outcome of one step."""
        words = step.split()
        ticket = next((int(word[1:]) for word in words if word.startswith("#")), 0)
        fd = next((int(word[3:]) for word in words if word.startswith("fd=")), 1)
        words = [word for word in words if word[0] != "#" and not word.startswith("fd=")]
        outcome = self._run(words, ticket, LockOpenId(fd))
        self.manager.check()
        return outcome

    def _run(self, words: list[str], ticket: int, fd: LockOpenId) -> str:
        match words:
            case ["cancel"]:
                return show(self.manager.cancel(ticket))
            case [session, "drop"]:
                return show(self.manager.drop_session(session_id(session)))
            case [who, "flush", file]:
                return show(self.manager.flush(session_id(who[0]), inode_handle(file), owner_id(who[1])))
            case [who, "release", file]:
                owner = owner_id(who[1]) if len(who) > 1 else None
                return show(self.manager.release(session_id(who[0]), inode_handle(file), fd, owner))
            case [who, "test", file, mode, bytes_]:
                return self._test(who, file, mode, bytes_)
            case [who, ("tryflock" | "waitflock") as verb, file, mode]:
                return self._ask(who, file, LockKind.FLOCK, mode, "0-", fd, verb == "waitflock", ticket)
            case [who, ("try" | "wait") as verb, file, mode, bytes_, *ofd]:
                wait = verb == "wait"
                return self._ask(who, file, LockKind.POSIX, mode, bytes_, fd, wait, ticket, ofd=bool(ofd))
        raise ValueError(f"no such step: {words}")

    def _ask(
        self,
        who: str,
        file: str,
        kind: LockKind,
        mode: str,
        bytes_: str,
        fd: LockOpenId,
        wait: bool,
        ticket: int,
        ofd: bool = False,
    ) -> str:
        start, end = span(bytes_)
        effects = self.manager.request(
            session_id(who[0]),
            inode_handle(file),
            fd,
            owner_id(who[1]),
            kind,
            MODES[mode],
            start,
            end,
            process_id(who),
            wait,
            ticket,
            deadlock_checked=not ofd,
        )
        return show(effects)

    def _test(self, who: str, file: str, mode: str, bytes_: str) -> str:
        start, end = span(bytes_)
        session, owner = session_id(who[0]), owner_id(who[1])
        held = self.manager.test(session, inode_handle(file), owner, LockKind.POSIX, MODES[mode], start, end)
        if held is None:
            return "free"
        last = "" if held.end == OFFSET_MAX else held.end
        return f"{LETTERS[held.mode]} {held.start}-{last} pid {held.pid}"

    def held(self, who: str, file: str = "f", kind: LockKind = LockKind.POSIX) -> str:
        """What an owner holds: 'R 0-4, W 5-9'."""
        locks = [
            lock
            for lock in self.manager.locks_of(session_id(who[0]))
            if (lock.owner, lock.inode, lock.kind) == (owner_id(who[1]), inode_handle(file), kind)
        ]
        return ", ".join(
            f"{LETTERS[lock.mode]} {lock.start}-{'' if lock.end == OFFSET_MAX else lock.end}"
            for lock in locks
        )
