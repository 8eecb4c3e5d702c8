"""Fairness and liveness of the lock manager: nobody is overtaken without need, no wake-up is lost."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nfsfuse.protocol.locks import LockKind, LockMode
from nfsfuse.protocol.types import InodeHandle, LockOpenId, LockOwner, SessionId
from nfsfuse_server.machines.lock_effects import Denied, Effect, Granted
from nfsfuse_server.machines.locks import LockManager

SIZE = 8
SESSION = SessionId(b"s" * 16)
FILES = (InodeHandle(b"f"), InodeHandle(b"g"))
OWNERS = range(4)
MODE = st.sampled_from([LockMode.READ, LockMode.WRITE])
SPAN = st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)).map(sorted)
DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=150)

Wish = tuple[LockMode, list[int]]


def ask(
    manager: LockManager,
    owner: int,
    mode: LockMode,
    span: list[int],
    ticket: int,
    *,
    kind: LockKind = LockKind.POSIX,
    file: InodeHandle = FILES[0],
) -> list[Effect]:
    """A blocking request."""
    owner_id, (start, end) = LockOwner(owner), span
    return manager.request(
        SESSION, file, LockOpenId(1), owner_id, kind, mode, start, end, 1, wait=True, ticket=ticket
    )


def clash(one: Wish, other: Wish) -> bool:
    writes = LockMode.WRITE in (one[0], other[0])
    return writes and one[1][0] <= other[1][1] and other[1][0] <= one[1][1]


@DETERMINISTIC
@given(wishes=st.lists(st.tuples(MODE, SPAN), min_size=2, max_size=10))
def test_conflicting_requests_are_granted_in_order_of_arrival(wishes: list[Wish]) -> None:
    """Each owner asks once, so that nobody waits for two things and nobody has a reason to pass."""
    manager = LockManager()
    order = [e.ticket for n, wish in enumerate(wishes) for e in ask(manager, n, *wish, n)]
    finished = 0
    while finished < len(order):
        effects = manager.flush(SESSION, FILES[0], LockOwner(order[finished]))
        manager.check()
        assert all(isinstance(effect, Granted) for effect in effects)
        order += [effect.ticket for effect in effects]
        finished += 1
    assert sorted(order) == list(range(len(wishes))), "a wake-up was lost"
    position = {ticket: place for place, ticket in enumerate(order)}
    for later, wish in enumerate(wishes):
        for earlier in range(later):
            assert not clash(wish, wishes[earlier]) or position[earlier] < position[later]


@DETERMINISTIC
@given(
    requests=st.lists(
        st.tuples(st.sampled_from(OWNERS), st.sampled_from(FILES), MODE, SPAN), min_size=4, max_size=30
    )
)
def test_single_threaded_programs_all_come_to_their_end(
    requests: list[tuple[int, InodeHandle, LockMode, list[int]]],
) -> None:
    """However owners have nested their locks: those not waiting let go of all they have, and again, until
    nobody waits. Fairness adds no deadlock, and EDEADLK has averted the real ones."""
    manager = LockManager()
    waiting: dict[int, int] = {}  # ticket -> owner
    for ticket, (owner, file, mode, span) in enumerate(requests):
        if owner in waiting.values():
            continue
        waiting[ticket] = owner
        for effect in ask(manager, owner, mode, span, ticket, file=file):
            del waiting[effect.ticket]
        manager.check()
    while waiting:
        awake = [owner for owner in OWNERS if owner not in waiting.values()]
        effects = [
            e for owner in awake for file in FILES for e in manager.flush(SESSION, file, LockOwner(owner))
        ]
        manager.check()
        assert effects, f"nobody will ever wake {waiting}"
        for effect in effects:
            del waiting[effect.ticket]


@DETERMINISTIC
@given(modes=st.lists(MODE, min_size=2, max_size=12), cancelled=st.sets(st.integers(0, 11)))
def test_flocks_are_granted_in_order_around_those_cancelled(
    modes: list[LockMode], cancelled: set[int]
) -> None:
    manager = LockManager()
    whole = [0, 0]
    order = [
        effect.ticket
        for n, mode in enumerate(modes)
        for effect in ask(manager, n, mode, whole, n, kind=LockKind.FLOCK)
    ]
    gone: list[int] = []
    for ticket in sorted(cancelled):
        for effect in manager.cancel(ticket):
            (gone if isinstance(effect, Denied) else order).append(effect.ticket)
        manager.check()
    for owner in order:
        order += [e.ticket for e in ask(manager, owner, LockMode.UNLOCK, whole, 99, kind=LockKind.FLOCK)[1:]]
        manager.check()
    assert order == [n for n in range(len(modes)) if n not in gone]


def test_a_stream_of_readers_does_not_starve_a_writer() -> None:
    """Readers come and go so that one always holds the lock; the writer gets it once those before it left."""
    manager = LockManager()
    assert ask(manager, 1, LockMode.READ, [0, 7], 1) == [Granted(1)]
    assert ask(manager, 2, LockMode.READ, [0, 7], 2) == [Granted(2)]
    assert ask(manager, 3, LockMode.WRITE, [0, 7], 3) == []
    for reader in range(10, 1010):
        assert ask(manager, reader, LockMode.READ, [0, 7], reader) == []
    assert manager.flush(SESSION, FILES[0], LockOwner(1)) == []
    assert manager.flush(SESSION, FILES[0], LockOwner(2)) == [Granted(3)]
    readers = [Granted(reader) for reader in range(10, 1010)]
    assert manager.flush(SESSION, FILES[0], LockOwner(3)) == readers
    manager.check()
