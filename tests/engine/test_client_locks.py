"""The client's locks over a server in memory: cancellations, abandoned requests, the record."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nfsfuse.engine.locks import CANCEL_SECONDS_MAX, LockRequest, Locks
from nfsfuse.machines.inodes import ROOT, InodeTable
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.locks import HeldLock, LockKind, LockMode, LockRange
from nfsfuse.protocol.types import OFFSET_MAX, LockOwner
from tests.helpers.service import Client, serving

READ, WRITE, UNLOCK = LockMode.READ, LockMode.WRITE, LockMode.UNLOCK


def request(
    mode: LockMode,
    start: int = 0,
    end: int = OFFSET_MAX,
    *,
    owner: int = 1,
    kind: LockKind = LockKind.POSIX,
    open_file: int = 1,
) -> LockRequest:
    return LockRequest(ROOT, open_file, LockOwner(owner), kind, mode, LockRange(start, end), 100 + owner)


def locks_of(client: Client) -> Locks:
    return Locks(client.session, InodeTable(client.root))


async def held(locks: Locks) -> list[HeldLock]:
    """All locks of others, as F_GETLK tells them one after the other."""
    found, start = [], 0
    while (lock := await locks.find(request(WRITE, start, owner=99))) is not None:
        found.append(lock)
        if lock.end == OFFSET_MAX:
            break
        start = lock.end + 1
    return found


async def cancelled_after(seconds: float, work: Callable[[], Awaitable[None]]) -> bool:
    with trio.move_on_after(seconds) as scope:
        await work()
    return scope.cancelled_caught


async def test_a_cancelled_wait_holds_nothing(autojump_clock):
    async with serving() as server:
        one, two = locks_of(await server.client()), locks_of(await server.client())
        await one.set(request(WRITE), wait=False)
        began = trio.current_time()
        assert await cancelled_after(1, lambda: two.set(request(WRITE), wait=True))
        assert trio.current_time() == began + 1, "the server's word comes at once"
        await one.set(request(UNLOCK), wait=False)
        await wait_all_tasks_blocked()
        assert await held(one) == []
        two.check()


@pytest.mark.parametrize("milliseconds", range(0, 400, 20))
async def test_whatever_a_cancelled_waiter_is_told_is_true(autojump_clock, milliseconds: int):
    """The grant takes 0.1 s to arrive, the cancellation too: they cross."""
    async with serving() as server:
        near, far = await server.client(), await server.client(there_seconds=0.1, back_seconds=0.1)
        one, two = locks_of(near), locks_of(far)
        await one.set(request(WRITE), wait=False)
        caught: list[bool] = []

        async def wait() -> None:
            caught.append(await cancelled_after(1, lambda: two.set(request(WRITE), wait=True)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.8 + milliseconds / 1000 + 0.0001)
            await one.set(request(UNLOCK), wait=False)
        assert caught == [milliseconds >= 300]
        assert bool(await held(one)) is not caught[0]
        two.check()


async def test_an_abandoned_grant_is_undone_exactly(autojump_clock):
    """The server says nothing for 5 s, and a killed program does not wait for it. What its owner held before
    is held afterwards, in the same mode."""
    async with serving() as server:
        one = locks_of(await server.client())
        two = locks_of(await server.client(back_seconds=5.0))
        await two.set(request(READ, 0, 9), wait=False)
        began = trio.current_time()
        assert await cancelled_after(1, lambda: two.set(request(WRITE, 5, 20), wait=True))
        assert trio.current_time() == began + 1 + CANCEL_SECONDS_MAX
        await wait_all_tasks_blocked()
        assert await held(one) == [HeldLock(0, 4, READ, 101), HeldLock(5, 20, WRITE, 101)]
        await trio.sleep(6)
        assert await held(one) == [HeldLock(0, 9, READ, 101)]
        two.check()


async def test_the_same_owner_waits_for_what_it_abandoned(autojump_clock):
    """Or the undoing would hit the lock that it has taken meanwhile."""
    async with serving() as server:
        one = locks_of(await server.client())
        two = locks_of(await server.client(back_seconds=5.0))
        began = trio.current_time()
        assert await cancelled_after(1, lambda: two.set(request(WRITE), wait=True))
        await two.set(request(WRITE, owner=2, kind=LockKind.FLOCK), wait=False)  # another's does not wait
        assert trio.current_time() == began + 1 + CANCEL_SECONDS_MAX + 5
        assert await cancelled_after(1, lambda: two.set(request(WRITE), wait=True))
        await two.set(request(WRITE), wait=True)
        await trio.sleep(20)
        assert await held(one) == [HeldLock(0, OFFSET_MAX, WRITE, 101)]
        two.check()


async def test_only_a_close_that_has_something_to_drop_asks_the_server(autojump_clock):
    async with serving() as server:
        client = await server.client()
        locks, other = locks_of(client), locks_of(await server.client())
        sent = client.session.channel.frames_sent
        await locks.flush(ROOT, LockOwner(1))
        locks.release(ROOT, 1, None)
        assert client.session.channel.frames_sent == sent
        await locks.set(request(WRITE, 0, 9), wait=False)
        await locks.set(request(UNLOCK, 0, 9), wait=False)
        await locks.flush(ROOT, LockOwner(1))
        locks.release(ROOT, 1, None)
        assert client.session.channel.frames_sent == sent + 2
        await locks.set(request(WRITE, 0, 9), wait=False)
        await locks.flush(ROOT, LockOwner(2))
        assert client.session.channel.frames_sent == sent + 3
        await locks.flush(ROOT, LockOwner(1))
        assert client.session.channel.frames_sent == sent + 4
        assert await held(other) == []
        locks.check()


async def test_a_close_whose_program_is_killed_gives_the_locks_up_all_the_same(autojump_clock):
    """Whether it was cut off before it has asked the server, or while it waits for the answer."""
    async with serving() as server:
        locks, other = locks_of(await server.client(back_seconds=5.0)), locks_of(await server.client())
        for seconds in (0, 1):
            await locks.set(request(WRITE, 0, 9), wait=False)
            assert await held(other) != []
            assert await cancelled_after(seconds, lambda: locks.flush(ROOT, LockOwner(1)))
            await wait_all_tasks_blocked()
            assert await held(other) == []
            locks.check()


async def test_a_release_drops_what_no_flush_has(autojump_clock):
    """OFD locks, whose owner no process is, and flocks."""
    async with serving() as server:
        locks, other = locks_of(await server.client()), locks_of(await server.client())
        await locks.set(request(WRITE, 0, 9, owner=7, open_file=3), wait=False)
        await locks.set(request(WRITE, kind=LockKind.FLOCK, owner=8, open_file=3), wait=False)
        await locks.flush(ROOT, LockOwner(1))
        assert await held(other) != []
        locks.release(ROOT, 3, LockOwner(8))
        await wait_all_tasks_blocked()
        assert await held(other) == []
        await other.set(request(WRITE, kind=LockKind.FLOCK), wait=False)
        locks.check()


async def test_a_lost_connection_does_not_end_the_wait_nor_lose_the_place(autojump_clock):
    async with serving() as server:
        client = await server.client()
        locks, other = locks_of(client), locks_of(await server.client())
        await other.set(request(WRITE), wait=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(locks.set, request(WRITE), wait=True))
            await wait_all_tasks_blocked()
            client.cut()
            await wait_all_tasks_blocked()
            await other.set(request(UNLOCK), wait=False)
        assert await held(other) == [HeldLock(0, OFFSET_MAX, WRITE, 101)]
        assert client.connector.attempts == 2
        locks.check()


async def test_nothing_is_held_once_the_session_is_lost(autojump_clock):
    async with serving() as server:
        client = await server.client()
        locks = locks_of(client)
        await locks.set(request(WRITE, 0, 9), wait=False)
        await locks.set(request(WRITE, kind=LockKind.FLOCK, owner=8), wait=False)
        client.cut()
        locks.lost()
        await locks.flush(ROOT, LockOwner(1))  # which would have to fail
        locks.check()


async def test_the_record_is_what_the_server_has(autojump_clock):
    """Whatever the locks, conversions and closes: what the client would reclaim is what the server holds."""
    rng = random.Random(1)
    async with serving() as server:
        client = await server.client()
        locks = locks_of(client)
        manager = server.service.locks.manager
        for _ in range(400):
            kind = rng.choice([LockKind.POSIX, LockKind.FLOCK])
            start = rng.randrange(20)
            end = OFFSET_MAX if kind is LockKind.FLOCK else start + rng.randrange(20)
            owner, open_file = rng.randrange(1, 4), rng.randrange(1, 4)
            match rng.randrange(6):
                case 0:
                    await locks.flush(ROOT, LockOwner(owner))
                case 1:
                    flock_owner = rng.choice([None, LockOwner(owner)])
                    locks.release(ROOT, open_file, flock_owner)
                    await wait_all_tasks_blocked()
                case choice:
                    mode = UNLOCK if choice == 2 else rng.choice([READ, WRITE])
                    span = 0 if kind is LockKind.FLOCK else start
                    asked = request(mode, span, end, owner=owner, kind=kind, open_file=open_file)
                    with contextlib.suppress(FsError):
                        await locks.set(asked, wait=False)
            locks.check()
            (session,) = server.service.sessions
            assert set(locks.owned()) == set(manager.locks_of(session))


async def test_what_cannot_be_reclaimed_is_not_held(autojump_clock):
    async with serving() as server:
        locks = locks_of(await server.client())
        await locks.set(request(WRITE, 0, 9), wait=False)
        await locks.set(request(READ, 20, 29), wait=False)
        (first, second) = sorted(locks.owned(), key=lambda lock: lock.start)
        locks.refused(first)
        assert list(locks.owned()) == [second]
        locks.refused(second)
        assert list(locks.owned()) == []
        locks.check()
