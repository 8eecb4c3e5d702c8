"""The server's machines with *n* of something, and a step each, which leaves them as it found them."""

from __future__ import annotations

import itertools
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.locks import LockKind, LockMode
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import (
    PAGE_SIZE,
    Credentials,
    InodeHandle,
    LockOpenId,
    LockOwner,
    RequestId,
    SessionId,
)
from nfsfuse_server.machines.leases import Leases
from nfsfuse_server.machines.lock_limits import LockLimits
from nfsfuse_server.machines.locks import LockManager
from nfsfuse_server.machines.sync_errors import SyncErrors
from nfsfuse_server.machines.token_effects import Effect, Granted, Recall
from nfsfuse_server.machines.tokens import TokenManager
from nfsfuse_server.state.journal import Journal
from nfsfuse_server.state.records import Intent, Named
from nfsfuse_server.storage.local import LocalStorage
from tests.helpers.memory_state import MemoryLog
from tests.scale.client_worlds import HANDLE, Step

DATA, DIR, ATTR = Resource.DATA, Resource.DIR, Resource.ATTR
SHARED, EXCLUSIVE, NONE = TokenMode.SHARED, TokenMode.EXCLUSIVE, TokenMode.NONE
ME: Final = SessionId(b"me")
OTHER: Final = SessionId(b"other")


def session(number: int) -> SessionId:
    return SessionId(b"%d" % number)


class Tokens:
    """A token manager, and sessions that do what they are asked."""

    def __init__(self) -> None:
        self.manager = TokenManager()
        self.tickets = itertools.count(1)

    def acquire(
        self, who: SessionId, mode: TokenMode, handle: InodeHandle = HANDLE,
        start: int = 0, end: int = RANGE_END,
    ) -> tuple[int, list[Effect]]:  # fmt: skip
        ticket = next(self.tickets)
        return ticket, self.manager.acquire(ticket, who, handle, DATA, start, end, mode)

    def hold(
        self, who: SessionId, mode: TokenMode, handle: InodeHandle = HANDLE,
        start: int = 0, end: int = RANGE_END,
    ) -> None:
        """*who* has it now, as all others give it up."""
        ticket, effects = self.acquire(who, mode, handle, start, end)
        self.obey(effects)
        self.obey(self.manager.settle(ticket))

    def obey(self, effects: list[Effect]) -> None:
        while effects:
            effect = effects.pop(0)
            if isinstance(effect, Recall):
                effects += self.manager.acknowledged(effect.session, effect.recall_id)


def page(number: int) -> tuple[int, int]:
    return number * PAGE_SIZE, (number + 1) * PAGE_SIZE


def inodes_of_a_session(n: int) -> Step:
    tokens = Tokens()
    for number in range(n):
        tokens.hold(ME, SHARED, InodeHandle(b"inode %d" % number))

    def step() -> None:
        tokens.hold(ME, EXCLUSIVE)
        tokens.hold(OTHER, SHARED)
        everything = Token(HANDLE, DATA, 0, RANGE_END, NONE)
        for who in (ME, OTHER):
            tokens.manager.give_back(who, (everything,))

    return step


def sharers_of_a_file(n: int) -> Step:
    tokens = Tokens()
    for number in range(n):
        tokens.hold(session(number), SHARED)

    def step() -> None:
        tokens.hold(ME, SHARED)
        tokens.manager.give_back(ME, (Token(HANDLE, DATA, 0, RANGE_END, NONE),))

    return step


def holders_of_pages(n: int) -> Step:
    """Each of *n* sessions has a page of one file for itself."""
    tokens = Tokens()
    for number in range(n):
        tokens.hold(session(number), EXCLUSIVE, HANDLE, *page(number))
    start, end = page(n // 2)

    def step() -> None:
        for who in (ME, session(n // 2)):
            tokens.hold(who, EXCLUSIVE, HANDLE, start, end)

    return step


def waiters(n: int, mode: TokenMode, *, apart: bool = False) -> tuple[Tokens, list[Recall]]:
    """A file that OTHER has, and *n* sessions wait for it; each for a page of its own, if they are *apart*."""
    tokens = Tokens()
    tokens.hold(OTHER, EXCLUSIVE)
    recalls: list[Recall] = []
    for number in range(n):
        start, end = page(number + 2) if apart else page(0)
        _, effects = tokens.acquire(session(number), mode, HANDLE, start, end)
        recalls += [effect for effect in effects if isinstance(effect, Recall)]
    return tokens, recalls


def come_and_go(n: int, mode: TokenMode, *, apart: bool = False) -> Step:
    """One more waits, and gives up."""
    tokens, _ = waiters(n, mode, apart=apart)

    def step() -> None:
        ticket, _ = tokens.acquire(ME, EXCLUSIVE, HANDLE, *page(0))
        assert tokens.manager.cancel(ticket) == []

    return step


def turn_by_turn(n: int) -> Step:
    """A page goes from one that waits to the next, who asks for it again."""
    tokens, recalls = waiters(n, EXCLUSIVE)
    numbers = itertools.cycle(range(n))

    def step() -> None:
        recall = recalls.pop(0)
        effects = tokens.manager.acknowledged(recall.session, recall.recall_id)
        granted = [effect.ticket for effect in effects if isinstance(effect, Granted)]
        assert len(granted) == 1
        effects += tokens.manager.settle(granted[0])
        effects += tokens.acquire(session(next(numbers)), EXCLUSIVE, HANDLE, *page(0))[1]
        recalls.extend(effect for effect in effects if isinstance(effect, Recall))

    return step


def a_write_while_others_wait(n: int) -> Step:
    tokens, _ = waiters(n, SHARED)

    def step() -> None:
        ticket = next(tokens.tickets)
        assert tokens.manager.use(ticket, OTHER, HANDLE, DATA, *page(1), EXCLUSIVE)
        assert tokens.manager.finish(ticket) == []

    return step


def sharers_of_pages(n: int) -> Step:
    """Each of *n* sessions reads a page of one file; one page is written to, and read again."""
    tokens = Tokens()
    for number in range(n):
        tokens.hold(session(number), SHARED, HANDLE, *page(2 * number))
    start, end = page(n // 2 * 2)

    def step() -> None:
        tokens.hold(ME, EXCLUSIVE, HANDLE, start, end)
        tokens.hold(session(n // 2), SHARED, HANDLE, start, end)
        tokens.manager.give_back(ME, (Token(HANDLE, DATA, 0, RANGE_END, NONE),))

    step()  # dictionaries grow by the first one more
    return step


def a_writer_behind_another(n: int) -> Step:
    """*n* sessions read a file, one waits to write to it, and one more comes and goes."""
    tokens = Tokens()
    for number in range(n):
        tokens.hold(session(number), SHARED)
    tokens.acquire(OTHER, EXCLUSIVE)

    def step() -> None:
        ticket, effects = tokens.acquire(ME, EXCLUSIVE)
        assert effects == [], "all have been asked"
        assert tokens.manager.cancel(ticket) == []

    return step


def operations_under_way(n: int) -> Step:
    """*n* names of a directory are being changed, and one more is."""
    tokens = Tokens()

    def change(number: int) -> int:
        ticket = next(tokens.tickets)
        where = (HANDLE, DIR, number, number + 1, EXCLUSIVE)
        granted = tokens.manager.acquire(ticket, session(number), *where, transient=True)
        assert granted == [Granted(ticket, ())]
        return ticket

    for number in range(n):
        change(number)

    def step() -> None:
        assert tokens.manager.finish(change(n)) == []

    return step


class Locks:
    def __init__(self) -> None:
        self.manager = LockManager(LockLimits(10**6, 10**6, 10**6, 10**6))
        self.tickets = itertools.count(1)

    def ask(self, who: SessionId, mode: LockMode, start: int, end: int, *, wait: bool = False) -> int:
        ticket = next(self.tickets)
        self.manager.request(
            who, HANDLE, LockOpenId(1), LockOwner(1), LockKind.POSIX, mode, start, end, 1, wait, ticket
        )
        return ticket


def locks_of_a_file(n: int, *, owners: bool) -> Step:
    locks = Locks()
    for number in range(n):
        locks.ask(session(number if owners else 0), LockMode.WRITE, 2 * number, 2 * number)
    at = n // 2 * 2 + 1

    def step() -> None:
        locks.ask(ME, LockMode.WRITE, at, at)
        locks.ask(ME, LockMode.WRITE, at - 1, at)
        locks.ask(ME, LockMode.UNLOCK, at, at)

    return step


def waiters_for_a_lock(n: int, *, apart: bool = False) -> Step:
    """*n* wait for the same byte, or each, if they are *apart*, for one of its own."""
    locks = Locks()
    locks.ask(OTHER, LockMode.WRITE, 0, n)
    for number in range(n):
        at = number + 1 if apart else 0
        locks.ask(session(number), LockMode.WRITE, at, at, wait=True)

    def step() -> None:
        locks.manager.cancel(locks.ask(ME, LockMode.WRITE, 0, 0, wait=True))

    return step


def turn_by_turn_of_a_lock(n: int) -> Step:
    """A lock goes from one that waits to the next, who asks for it again."""
    locks = Locks()
    for number in range(n + 1):
        locks.ask(session(number), LockMode.WRITE, 0, 0, wait=True)
    holders = itertools.cycle(range(n + 1))

    def step() -> None:
        holder = session(next(holders))
        locks.ask(holder, LockMode.UNLOCK, 0, 0)
        locks.ask(holder, LockMode.WRITE, 0, 0, wait=True)

    return step


def journal_records(n: int) -> Step:
    journal = Journal(MemoryLog(1 << 24))
    journal.load()
    journal.begin([ME])
    requests = itertools.count(1)

    def do() -> None:
        request = RequestId(next(requests))
        name = Named(HANDLE, b"name", None)
        journal.intend(Intent(ME, request, m.Unlink(HANDLE, b"name"), b"", (name,), 0), lambda _: 0)
        journal.done(ME, request, m.Done(), request)

    for _ in range(n):
        do()
    return do


def sessions_with_leases(n: int) -> Step:
    leases = Leases(10.0)
    for number in range(n):
        leases.opened(session(number), 0.0)

    def step() -> None:
        leases.opened(ME, 0.0)
        leases.heard(ME, 1.0)
        leases.recalled(ME, 1, 2.0)
        leases.answered(ME, 1)
        leases.closed(ME)

    return step


def recalls_of_a_session(n: int) -> Step:
    leases = Leases(10.0)
    leases.opened(ME, 0.0)
    for number in range(n):
        leases.recalled(ME, number, float(number))

    def step() -> None:
        leases.recalled(ME, n, float(n))
        leases.answered(ME, n)

    return step


def files_not_synchronised(n: int) -> Step:
    errors = SyncErrors()
    for number in range(n):
        errors.wrote(ME, InodeHandle(b"%d" % number))

    def step() -> None:
        errors.wrote(ME, HANDLE)
        errors.synced(ME, HANDLE)

    return step


def orphans_of_a_storage(n: int) -> Step:
    """Open files without a name: one more, which is closed."""
    directory = mkdtemp(prefix="nfsfuse-orphans-")
    storage = LocalStorage(Path(directory), bytes(32))
    root, me = storage.root().handle, Credentials(0, 0)

    def make(name: bytes) -> InodeHandle:
        node = storage.create(root, name, 0o600, me)
        storage.pin(node.handle)
        storage.unlink(root, name)
        return node.handle

    for number in range(n):
        make(b"%d" % number)

    def step() -> None:
        handle = make(b"another")
        assert storage.unpin_nowait(handle) is False
        storage.unpin(handle)

    weakref.finalize(step, shutil.rmtree, directory)
    return step


SERVER: Final[dict[str, Callable[[int], Step]]] = {
    "inodes of a session: one more": inodes_of_a_session,
    "sharers of a file: one more": sharers_of_a_file,
    "holders of pages of a file: one passes on": holders_of_pages,
    "writers that wait for a page: one comes and goes": lambda n: come_and_go(n, EXCLUSIVE),
    "readers that wait for a page: one comes and goes": lambda n: come_and_go(n, SHARED),
    "waiters for other pages: one comes and goes": lambda n: come_and_go(n, EXCLUSIVE, apart=True),
    "writers that wait for a page: their turn": turn_by_turn,
    "readers that wait for a page: the holder writes back": a_write_while_others_wait,
    "sharers of pages of a file: one is written to": sharers_of_pages,
    "sharers of a file that one waits to write to: one more waits": a_writer_behind_another,
    "operations under way in a directory: one more": operations_under_way,
    "locks of a file and an owner: one more": lambda n: locks_of_a_file(n, owners=False),
    "locks of a file and many owners: one more": lambda n: locks_of_a_file(n, owners=True),
    "waiters for a lock: one comes and goes": waiters_for_a_lock,
    "waiters for other locks: one comes and goes": lambda n: waiters_for_a_lock(n, apart=True),
    "waiters for a lock: their turn": turn_by_turn_of_a_lock,
    "records in the journal: one more": journal_records,
    "sessions: one more": sessions_with_leases,
    "recalls of a session: one more": recalls_of_a_session,
    "files not synchronised: one more": files_not_synchronised,
    "orphans: one more": orphans_of_a_storage,
}
