"""The lock handlers of the server, over real sessions."""

from __future__ import annotations

import errno

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.locks import HeldLock, LockKind, LockMode
from nfsfuse.protocol.types import OFFSET_MAX, InodeHandle, LockOpenId, LockOwner, SessionId
from nfsfuse_server.machines.leases import Leases
from nfsfuse_server.service.locks import WAITERS_PER_SESSION_MAX, Locks, LockWaiting
from tests.helpers.service import Client, serving

READ, WRITE, UNLOCK = LockMode.READ, LockMode.WRITE, LockMode.UNLOCK
FILE = InodeHandle(b"a file")


def lock(
    mode: LockMode,
    start: int = 0,
    end: int = OFFSET_MAX,
    *,
    owner: int = 1,
    file: InodeHandle = FILE,
    kind: LockKind = LockKind.POSIX,
    wait: bool = False,
    open_file: int = 1,
) -> m.SetLock:
    return m.SetLock(file, LockOpenId(open_file), LockOwner(owner), kind, mode, start, end, 100 + owner, wait)


async def refused(client: Client, message: m.SetLock | m.GetLock) -> int:
    with pytest.raises(FsError) as caught:
        await client.session.call(message)
    return caught.value.errno


async def test_sessions_exclude_each_other_and_are_told_by_whom(autojump_clock):
    async with serving() as server:
        one, two = await server.client(), await server.client()
        await one.session.call(lock(WRITE, 10, 19))
        assert await refused(two, lock(READ, 0, 10)) == errno.EAGAIN
        reply, _ = await two.session.call(
            m.GetLock(FILE, LockOwner(1), LockKind.POSIX, READ, 0, OFFSET_MAX)
        )
        assert reply.lock == HeldLock(10, 19, WRITE, 101)
        await two.session.call(lock(READ, 0, 9))
        await one.session.call(lock(UNLOCK))
        await two.session.call(lock(WRITE))
        reply, _ = await two.session.call(m.GetLock(FILE, LockOwner(1), LockKind.POSIX, READ, 0, 5))
        assert reply.lock is None, "one's own lock is in nobody's way"


async def test_what_is_no_range_is_refused(autojump_clock):
    async with serving() as server:
        client = await server.client()
        assert await refused(client, lock(WRITE, 5, 4)) == errno.EINVAL
        wrong = m.GetLock(FILE, LockOwner(1), LockKind.POSIX, READ, 0, 2**63)
        assert await refused(client, wrong) == errno.EINVAL


async def test_waiting_requests_hold_up_nothing_and_are_granted_in_order(autojump_clock):
    async with serving() as server:
        one, two = await server.client(), await server.client()
        await one.session.call(lock(WRITE))
        granted: list[int] = []

        async def wait(owner: int) -> None:
            await two.session.call(lock(WRITE, owner=owner, wait=True))
            granted.append(owner)
            await two.session.call(lock(UNLOCK, owner=owner))

        async with trio.open_nursery() as nursery:
            for owner in range(1, 6):
                nursery.start_soon(wait, owner)
                await wait_all_tasks_blocked()
            await two.session.call(m.GetAttr(two.root.handle))
            await two.session.call(lock(WRITE, file=InodeHandle(b"another")))
            assert granted == []
            await one.session.call(lock(UNLOCK))
        assert granted == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("settled", [True, False])
async def test_a_cancelled_request_leaves_the_queue(autojump_clock, settled: bool):
    """Also if the cancellation arrives together with the request (not *settled*)."""
    async with serving() as server:
        one, two = await server.client(), await server.client()
        await one.session.call(lock(READ))
        failures: list[Exception] = []
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                if settled:
                    nursery.start_soon(_cancel_when_blocked, scope)
                else:
                    nursery.start_soon(_cancel_at_once, scope)
                await two.session.call(lock(WRITE, wait=True), b"", None, failures.append)
        await wait_all_tasks_blocked()
        assert [exc.errno for exc in failures if isinstance(exc, FsError)] == [errno.EINTR]
        await two.session.call(lock(READ, owner=2))  # a writer in the queue would be in its way
        await one.session.call(lock(UNLOCK))


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def _cancel_at_once(scope: trio.CancelScope) -> None:
    scope.cancel()


class _Party:
    """All that the lock service asks of a session."""

    def __init__(self, number: int) -> None:
        self.id = SessionId(number.to_bytes(16, "big"))


async def test_a_grant_that_comes_between_cancellation_and_its_delivery_is_answered():
    """Its lock would be nobody's otherwise: the client was told EINTR."""
    locks, one, two = Locks(Leases(10.0)), _Party(1), _Party(2)
    assert locks.begin(one, lock(WRITE)) == m.Done()  # type: ignore[arg-type]
    waiting = locks.begin(two, lock(WRITE, wait=True))  # type: ignore[arg-type]
    assert isinstance(waiting, LockWaiting)
    results: list[m.Done] = []

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            results.append(await waiting.wait())

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, scope)
        await wait_all_tasks_blocked()
        scope.cancel()
        locks.begin(one, lock(UNLOCK))  # type: ignore[arg-type]
    assert results == [m.Done()]
    found = locks.begin(one, m.GetLock(FILE, LockOwner(9), LockKind.POSIX, READ, 0, 0))  # type: ignore[arg-type]
    assert isinstance(found, m.LockFound)
    assert found.lock is not None, "and is held"


async def test_a_cycle_over_sessions_and_files_is_a_deadlock(autojump_clock):
    other = InodeHandle(b"another")
    async with serving() as server:
        one, two = await server.client(), await server.client()
        await one.session.call(lock(WRITE))
        await two.session.call(lock(WRITE, file=other))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.session.call, lock(WRITE, file=other, wait=True))
            await wait_all_tasks_blocked()
            assert await refused(two, lock(WRITE, wait=True)) == errno.EDEADLK
            await two.session.call(lock(UNLOCK, file=other))


async def test_a_lost_lease_drops_locks_and_places(autojump_clock):
    async with serving(lease_seconds=10) as server:
        one, two, three = [await server.client() for _ in range(3)]
        await one.session.call(lock(WRITE))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.session.call, lock(WRITE, wait=True))  # and has no connection to hear it by
            await wait_all_tasks_blocked()
            two.vanish()
            one.vanish()
            began = trio.current_time()
            assert await refused(three, lock(WRITE)) == errno.EAGAIN, "they may come back"
            await three.session.call(lock(WRITE, wait=True))
            assert 12 <= trio.current_time() - began <= 12.5, "the lease and its margin"
            nursery.cancel_scope.cancel()
        assert list(server.service.sessions) == [three.session.session_id]
        assert server.service.locks.manager.locks_of(three.session.session_id)


async def test_flush_takes_an_owners_posix_locks_and_no_others(autojump_clock):
    async with serving() as server:
        one, two = await server.client(), await server.client()
        await one.session.call(lock(WRITE, 0, 9))
        await one.session.call(lock(WRITE, 10, 19, owner=2))
        await one.session.call(lock(WRITE, kind=LockKind.FLOCK))
        await one.session.call(m.FlushLocks(FILE, LockOwner(1)))
        await two.session.call(lock(WRITE, 0, 9))
        assert await refused(two, lock(WRITE, 10, 19)) == errno.EAGAIN
        assert await refused(two, lock(READ, kind=LockKind.FLOCK)) == errno.EAGAIN


async def test_release_takes_what_the_open_file_had_and_the_owners_flock(autojump_clock):
    async with serving() as server:
        one, two = await server.client(), await server.client()
        await one.session.call(lock(WRITE, 0, 9, open_file=7))
        await one.session.call(lock(WRITE, 10, 19, open_file=8))
        await one.session.call(lock(WRITE, kind=LockKind.FLOCK, owner=5, open_file=8))
        await one.session.call(m.ReleaseLocks(FILE, LockOpenId(7), LockOwner(5)))
        await two.session.call(lock(WRITE, 0, 9))
        await two.session.call(lock(WRITE, kind=LockKind.FLOCK))
        assert await refused(two, lock(WRITE, 10, 19)) == errno.EAGAIN


async def test_waiting_requests_leave_room_for_others(autojump_clock):
    """More of them than may be in flight would cost the client its connection."""
    async with serving() as server:
        one, two = await server.client(), await server.client()
        await one.session.call(lock(WRITE))
        async with trio.open_nursery() as nursery:
            for owner in range(WAITERS_PER_SESSION_MAX):
                nursery.start_soon(two.session.call, lock(WRITE, owner=owner, wait=True))
            await wait_all_tasks_blocked()
            assert await refused(two, lock(WRITE, owner=10**6, wait=True)) == errno.ENOLCK
            await two.session.call(m.GetAttr(two.root.handle))
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        await one.session.call(lock(UNLOCK))
        await two.session.call(lock(WRITE, owner=10**6, wait=True))
