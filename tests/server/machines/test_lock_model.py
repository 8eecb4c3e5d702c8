"""The lock manager against the naive model: same effects, same order, same bytes held, after any history."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nfsfuse.protocol.locks import LockKind, LockMode
from nfsfuse.protocol.types import InodeHandle, LockOpenId, LockOwner, SessionId
from nfsfuse_server.machines.deadlock import WaitsForGraph
from nfsfuse_server.machines.lock_space import LockSpace
from nfsfuse_server.machines.locks import LockManager
from tests.helpers.lock_model import SIZE, Ask, Byte, LockModel, Who

SESSIONS = range(2)
FILES = range(2)
WHO = st.tuples(st.sampled_from(SESSIONS), st.integers(0, 2))
FILE = st.sampled_from(FILES)
FD = st.integers(1, 2)
SPAN = st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)).map(sorted)
LOCK_MODE = st.sampled_from([LockMode.READ, LockMode.WRITE])
KIND = st.sampled_from([LockKind.POSIX, LockKind.POSIX, LockKind.POSIX, LockKind.FLOCK])


def session_id(number: int) -> SessionId:
    return SessionId(bytes([number]) * 16)


def inode(number: int) -> InodeHandle:
    return InodeHandle(b"inode %d" % number)


def pid(who: Who) -> int:
    return 100 * who[0] + who[1]


def seldom(histories: LockHistories) -> bool:
    """Rules that end much are applicable at every eighth request only: queues must have time to grow."""
    return histories.tickets % 8 == 7


class LockHistories(RuleBasedStateMachine):
    """Owners may have several requests waiting, as processes with threads have."""

    threads = True

    def __init__(self) -> None:
        super().__init__()
        self.manager = LockManager()
        self.model = LockModel()
        self.tickets = 0

    def ask(
        self, who: Who, file: int, kind: LockKind, mode: LockMode, span: list[int], fd: int, wait: bool
    ) -> None:
        if not self.threads and any(ask.who == who for ask in self.model.queue):
            return  # it sleeps in the kernel and asks for nothing
        self.tickets += 1
        start, end = span
        expected = self.model.request(Ask(self.tickets, who, file, kind, mode, start, end, fd), wait)
        session, owner = session_id(who[0]), LockOwner(who[1])
        effects = self.manager.request(
            session, inode(file), LockOpenId(fd), owner, kind, mode, start, end, pid(who), wait, self.tickets
        )
        assert effects == expected

    @rule(who=WHO, file=FILE, kind=KIND, mode=LOCK_MODE, span=SPAN, fd=FD)
    def lock_and_wait(
        self, who: Who, file: int, kind: LockKind, mode: LockMode, span: list[int], fd: int
    ) -> None:
        self.ask(who, file, kind, mode, span, fd, True)

    @rule(who=WHO, file=FILE, kind=KIND, mode=LOCK_MODE, span=SPAN, fd=FD)
    def try_lock(self, who: Who, file: int, kind: LockKind, mode: LockMode, span: list[int], fd: int) -> None:
        self.ask(who, file, kind, mode, span, fd, False)

    @rule(who=WHO, file=FILE, kind=KIND, span=SPAN, fd=FD)
    def unlock(self, who: Who, file: int, kind: LockKind, span: list[int], fd: int) -> None:
        self.ask(who, file, kind, LockMode.UNLOCK, span, fd, False)

    @precondition(lambda self: bool(self.model.queue) and self.tickets % 2 == 0)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([ask.ticket for ask in self.model.queue]))
        assert self.manager.cancel(ticket) == self.model.cancel(ticket)

    @precondition(lambda self: self.tickets % 3 == 0)
    @rule(who=WHO, file=FILE)
    def flush(self, who: Who, file: int) -> None:
        effects = self.manager.flush(session_id(who[0]), inode(file), LockOwner(who[1]))
        assert effects == self.model.flush(who, file)

    @precondition(seldom)
    @rule(session=st.sampled_from(SESSIONS), file=FILE, fd=FD)
    def release(self, session: int, file: int, fd: int) -> None:
        effects = self.manager.release(session_id(session), inode(file), LockOpenId(fd))
        assert effects == self.model.release(session, file, fd)

    @precondition(seldom)
    @rule(session=st.sampled_from(SESSIONS))
    def drop_session(self, session: int) -> None:
        assert self.manager.drop_session(session_id(session)) == self.model.drop_session(session)

    @rule(who=WHO, file=FILE, mode=LOCK_MODE, span=SPAN)
    def test_lock(self, who: Who, file: int, mode: LockMode, span: list[int]) -> None:
        start, end = span
        ask = Ask(0, who, file, LockKind.POSIX, mode, start, end, 0)
        holders = self.model.holders(ask)
        found = self.manager.test(
            session_id(who[0]), inode(file), LockOwner(who[1]), LockKind.POSIX, mode, start, end
        )
        if found is None:
            assert not holders
            return
        assert found.start <= end
        assert found.end >= start
        named = [holder for holder in holders if pid(holder) == found.pid]
        assert len(named) == 1
        assert self.held_run(named[0], file, found.mode, max(found.start, start)) == (found.start, found.end)
        firsts = [offset for holder in holders for offset in self.conflicts(holder, ask)]
        assert max(found.start, start) == min(firsts)

    def conflicts(self, holder: Who, ask: Ask) -> list[int]:
        return [
            byte[2]
            for byte in ask.bytes_
            if (lock := self.model.held.get(byte, {}).get(holder)) and LockMode.WRITE in (lock[0], ask.mode)
        ]

    def held_run(self, who: Who, file: int, mode: LockMode, offset: int) -> tuple[int, int]:
        def held(at: int) -> bool:
            lock = self.model.held.get((file, LockKind.POSIX, at), {}).get(who)
            return lock is not None and lock[0] is mode

        start = end = offset
        while held(start - 1):
            start -= 1
        while held(end + 1):
            end += 1
        return start, end

    @precondition(seldom)
    @rule()
    def restart(self) -> None:
        """Held locks are reclaimed; waiting requests were forgotten (their clients would send them again)."""
        restarted = LockManager()
        for session in SESSIONS:
            for lock in self.manager.locks_of(session_id(session)):
                assert restarted.reclaim(session_id(session), lock)
        self.model.queue.clear()
        self.manager = restarted

    @invariant()
    def books_are_in_order(self) -> None:
        self.manager.check()

    @invariant()
    def the_same_bytes_are_held(self) -> None:
        held: dict[Byte, dict[Who, tuple[LockMode, int]]] = {}
        for session in SESSIONS:
            for lock in self.manager.locks_of(session_id(session)):
                file = int(lock.inode.split()[1])
                for offset in range(lock.start, min(lock.end, SIZE - 1) + 1):
                    who = (session, int(lock.owner))
                    held.setdefault((file, lock.kind, offset), {})[who] = (lock.mode, lock.open_id)
        assert held == {byte: owners for byte, owners in self.model.held.items() if owners}


class SequentialLockHistories(LockHistories):
    """An owner that waits asks for nothing: processes of one thread. Then waits-for cycles of locks are
    deadlocks, and `check` sees to it that there are none."""

    threads = False


SETTINGS = settings(max_examples=80, stateful_step_count=40, deadline=None, derandomize=True)
TestThreads = LockHistories.TestCase
TestThreads.settings = SETTINGS
TestSequential = SequentialLockHistories.TestCase
TestSequential.settings = SETTINGS

FAULTS: dict[str, tuple[type, str, Callable[..., object]]] = {
    "nobody_waits_behind_a_waiter": (LockSpace, "waiters_in_the_way", lambda *_: iter(())),
    "nobody_passes_who_waits_for_it": (WaitsForGraph, "waiting_for", lambda *_: set()),
    "a_wake_up_is_lost": (LockSpace, "behind", lambda *_: []),
}


@pytest.mark.parametrize(("where", "name", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_these_histories_find_a_fault_put_in_on_purpose(
    where: type, name: str, fault: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, fault)
    found_only = settings(SETTINGS, phases=[Phase.generate], database=None, report_multiple_bugs=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(SequentialLockHistories, settings=found_only)
