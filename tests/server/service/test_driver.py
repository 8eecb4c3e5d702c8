"""The driver: steps at once where nothing waits, exceptions at their yield, handlers closed at the end."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import InodeHandle, RequestId, SessionId
from nfsfuse_server.machines.leases import Leases
from nfsfuse_server.machines.open_counts import OpenCounts
from nfsfuse_server.service.calls import Acquire, Call, Change, Handling, Hold, Quick, Slow, Unnaming, Use
from nfsfuse_server.service.disk import COLD_SECONDS, INLINE_SECONDS_MAX, Disk, waits_of_this_thread
from nfsfuse_server.service.driver import Driver
from nfsfuse_server.service.growths import Growths
from nfsfuse_server.service.locks import Locks
from nfsfuse_server.service.sub_steps import ATTR, EXCLUSIVE, SHARED
from nfsfuse_server.service.tokens import Tokens, Waiting
from nfsfuse_server.state.journal import Journal
from nfsfuse_server.state.records import Intent, Named, unpack
from tests.helpers.memory_state import MemoryLog

T = TypeVar("T")
HANDLE = InodeHandle(b"handle")


class GatedDisk(Disk):
    """Slow calls wait for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()

    async def slow(self, call: Callable[[], T]) -> T:
        await self.gate.wait()
        return call()


class World:
    def __init__(self) -> None:
        self.pinned: list[InodeHandle] = []
        self.tokens = Tokens({}, self.pinned.append, self.pinned.remove, Leases(10))
        self.disk = GatedDisk()
        self.log = MemoryLog()
        self.journal = Journal(self.log)
        self.journal.begin([])
        leases = Leases(10.0)
        growths = Growths({}, OpenCounts(), leases)
        self.driver = Driver(self.tokens, Locks(leases), growths, self.disk, self.journal, lambda session: 0)

    def call(self, session: bytes = b"one", number: int = 1) -> Call:
        class Somebody:
            id = session

            def granted(self, handle: InodeHandle) -> None:
                """The frame just queued grants tokens of *handle*."""

        return Call(Somebody(), m.Unlink(HANDLE, b"x"), b"", None, RequestId(number))  # type: ignore[arg-type]

    def granted(self, handle: InodeHandle) -> None:
        """The frame just queued grants tokens of *handle*."""


async def test_a_handler_that_need_not_wait_is_answered_without_a_task() -> None:
    world, steps = World(), []

    def handling() -> Handling:
        steps.append((yield Quick(lambda: 7)))
        steps.append((yield Acquire(HANDLE, ATTR, SHARED)))
        steps.append((yield Use(HANDLE, ATTR, SHARED, 0, 1)))
        steps.append((yield Use(HANDLE, ATTR, EXCLUSIVE, 0, 1)))
        steps.append((yield Hold(HANDLE, ATTR)))
        yield Unnaming(HANDLE)
        return m.Done()

    call = world.call()
    assert world.driver.advance(call, handling()) == m.Done()
    assert steps[0] == 7
    assert [token.mode for token in steps[1]] == [SHARED]
    assert steps[2:4] == [True, False]
    assert (len(call.granted), len(call.held)) == (1, 2)
    assert world.pinned == [HANDLE]
    world.tokens.ended(call)
    world.tokens.check()


async def test_an_exception_of_a_step_is_raised_at_its_yield() -> None:
    world = World()

    def fail() -> None:
        raise FsError(errno.ENOENT)

    def handling() -> Handling:
        caught = []
        for step in (Quick(fail), Slow(fail)):
            try:
                yield step
            except FsError as exc:
                caught.append(exc.errno)
        assert caught == [errno.ENOENT] * 2
        yield Quick(fail)
        raise AssertionError("not reached")

    waiting = world.driver.advance(world.call(), handling())
    assert isinstance(waiting, Coroutine)
    world.disk.gate.set()
    with pytest.raises(FsError):
        await waiting


async def test_what_a_handler_raises_at_once_comes_out_of_advance() -> None:
    def handling() -> Handling:
        raise FsError(errno.EINVAL)
        yield Quick(lambda: None)

    world = World()
    with pytest.raises(FsError):
        world.driver.advance(world.call(), handling())


async def test_a_cancelled_handler_is_closed_where_it_waits() -> None:
    world, closed = World(), []

    def handling() -> Handling:
        try:
            yield Slow(lambda: None)
        except GeneratorExit:
            closed.append("at the yield")
            raise
        return m.Done()

    waiting = world.driver.advance(world.call(), handling())
    assert isinstance(waiting, Coroutine)
    with trio.CancelScope() as scope:
        scope.cancel()
        await waiting
    assert closed == ["at the yield"]


async def test_what_a_cancelled_handler_leaves_is_unpinned() -> None:
    world, unpinned = World(), []

    class Storage:
        def unpin(self, handle: InodeHandle) -> None:
            unpinned.append(handle)

    call = world.call()
    call.storage = Storage()  # type: ignore[assignment]

    def handling() -> Handling:
        try:
            yield Slow(lambda: None)
        except GeneratorExit:
            call.unwanted = (HANDLE,)
            raise
        return m.Done()

    waiting = world.driver.advance(call, handling())
    assert isinstance(waiting, Coroutine)
    world.disk.gate.set()
    with trio.CancelScope() as scope:
        scope.cancel()
        await waiting
    assert unpinned == [HANDLE]


async def test_a_waiting_grant_resumes_the_handler_in_the_middle() -> None:
    world, order = World(), []
    holder = world.call(b"one")

    def holding() -> Handling:
        yield Hold(HANDLE, ATTR)
        return m.Done()

    def waiting() -> Handling:
        order.append("before")
        tokens = yield Acquire(HANDLE, ATTR, SHARED)
        order.append(tokens[0].mode)
        return m.Done()

    world.driver.advance(holder, holding())
    waiter = world.call(b"two")
    handling = waiting()
    rest = world.driver.advance(waiter, handling)
    assert isinstance(rest, Waiting)
    replies: list[object] = []
    rest.then(lambda tokens: replies.append(world.driver.advance(waiter, handling, tokens)))
    assert order == ["before"]
    world.tokens.ended(holder)  # granted now, before it goes on
    assert world.tokens.manager.holds(b"two", HANDLE, ATTR, 0, 1, SHARED)  # type: ignore[arg-type]
    assert order == ["before"]
    world.tokens.resume_granted()
    assert order == ["before", SHARED]
    assert replies == [m.Done()]
    world.tokens.ended(waiter)


async def test_a_handler_that_is_in_a_task_waits_there_for_its_grant() -> None:
    world = World()
    holder, waiter = world.call(b"one"), world.call(b"two")

    def holding() -> Handling:
        yield Hold(HANDLE, ATTR)
        return m.Done()

    def waiting() -> Handling:
        yield Slow(lambda: None)
        yield Acquire(HANDLE, ATTR, SHARED)
        return m.Done()

    world.driver.advance(holder, holding())
    rest = world.driver.advance(waiter, waiting())
    assert isinstance(rest, Coroutine)
    replies: list[object] = []

    async def run() -> None:
        replies.append(await rest)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        world.disk.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert replies == []
        world.tokens.ended(holder)
    assert replies == [m.Done()]
    world.tokens.ended(waiter)


# --- the journal ---


def changing(world: World, name: bytes, did: list[str], *, slow: bool = False) -> Handling:
    def change() -> None:
        world.journal.check()
        did.append("changed")

    yield Change(change, (Named(HANDLE, name, None),), slow=slow)
    return m.Done()


async def test_a_change_is_written_down_before_and_after() -> None:
    world, did = World(), []
    call = world.call()
    assert world.driver.advance(call, changing(world, b"name", did)) == m.Done()
    _, intent = world.log.records
    assert isinstance(unpack(intent), Intent)
    assert call.intended
    world.driver.ended(call, m.Done(), 1)
    assert world.journal.outcome(SessionId(b"one"), RequestId(1)) == m.Done()
    world.driver.ended(call, FsError(errno.EINTR), 2)
    assert world.journal.outcome(SessionId(b"one"), RequestId(1)) == m.Done(), "it has one outcome"


async def test_a_second_change_of_a_name_waits_for_the_first_one() -> None:
    world, did = World(), []
    first, second, other = world.call(number=1), world.call(number=2), world.call(number=3)
    slow = world.driver.advance(first, changing(world, b"name", did, slow=True))
    assert isinstance(slow, Coroutine)
    waiting = world.driver.advance(second, changing(world, b"name", did))
    assert isinstance(waiting, Coroutine)
    assert world.driver.advance(other, changing(world, b"other name", did)) == m.Done()
    assert len(world.log.records) == 3, "one is not begun"

    async def finish() -> None:
        assert await slow == m.Done()
        world.driver.ended(first, m.Done(), 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(finish)
        world.disk.gate.set()
        assert await waiting == m.Done()
    assert len(world.log.records) == 5
    assert did == ["changed"] * 3


async def test_without_room_for_the_journal_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    world, did = World(), []
    monkeypatch.setattr(world.log, "room", lambda: 0)

    def full(records: object, reserve: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(world.log, "replace", full)
    call = world.call()
    with pytest.raises(FsError) as caught:
        world.driver.advance(call, changing(world, b"name", did))
    assert caught.value.errno == errno.ENOSPC
    assert did == []
    assert not call.intended


async def test_what_cannot_be_written_down_as_done_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    world, did = World(), []
    call = world.call()
    world.driver.advance(call, changing(world, b"name", did))

    def broken(record: bytes) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(world.log, "append", broken)
    with pytest.raises(SystemExit, match="broken disk"):
        world.driver.ended(call, m.Done(), 1)


# --- the disk ---


async def run(result: Any) -> Any:
    return await result if isinstance(result, Coroutine) else result


class Storage:
    """Calls that take long; those of a cold disk wait meanwhile."""

    def __init__(self, clock: trio.testing.MockClock) -> None:
        self._clock = clock
        self.waits = 0

    def cold(self) -> None:
        self.waits += 1
        self._clock.jump(INLINE_SECONDS_MAX * 2)

    def preempted(self) -> None:
        self._clock.jump(INLINE_SECONDS_MAX * 2)

    def failing(self) -> None:
        self.cold()
        raise FsError(errno.EIO)


async def test_a_long_call_sends_those_that_follow_to_threads_for_a_while(
    mock_clock: trio.testing.MockClock,
) -> None:
    storage = Storage(mock_clock)
    disk = Disk(lambda: storage.waits)
    assert disk.quick(lambda: "warm") == "warm"
    assert disk.quick(storage.cold) is None
    following = disk.quick(lambda: "cold")
    assert isinstance(following, Coroutine)
    assert await following == "cold"
    assert (disk.inline_calls, disk.thread_calls) == (2, 1)
    mock_clock.jump(COLD_SECONDS + 0.001)
    assert disk.quick(lambda: "warm again") == "warm again"


async def test_threads_are_used_as_long_as_calls_are_long(mock_clock: trio.testing.MockClock) -> None:
    storage = Storage(mock_clock)
    disk = Disk(lambda: storage.waits)
    disk.quick(storage.cold)
    for _ in range(5):
        mock_clock.jump(COLD_SECONDS * 0.9)
        following = disk.quick(storage.cold)
        assert isinstance(following, Coroutine)
        await following
    mock_clock.jump(COLD_SECONDS * 0.9)
    following = disk.quick(lambda: "short")
    assert isinstance(following, Coroutine)
    assert await following == "short"
    mock_clock.jump(COLD_SECONDS * 0.2)
    assert disk.quick(lambda: "warm again") == "warm again"


async def test_a_long_call_that_fails_counts_too(mock_clock: trio.testing.MockClock) -> None:
    storage = Storage(mock_clock)
    disk = Disk(lambda: storage.waits)
    with pytest.raises(FsError):
        disk.quick(storage.failing)
    assert await run(disk.quick(lambda: 1)) == 1
    assert disk.thread_calls == 1


async def test_a_long_call_that_waited_for_nothing_says_nothing_of_the_disk(
    mock_clock: trio.testing.MockClock,
) -> None:
    storage = Storage(mock_clock)
    disk = Disk(lambda: storage.waits)
    disk.quick(storage.preempted)
    assert disk.quick(lambda: "warm") == "warm"
    assert disk.thread_calls == 0


def test_a_thread_that_waits_is_counted() -> None:
    before = waits_of_this_thread()
    time.sleep(0.001)
    assert waits_of_this_thread() > before


async def test_a_slow_call_runs_in_a_thread_and_to_its_end() -> None:
    import threading

    disk = Disk()
    here, finished = threading.get_ident(), []

    def work() -> int:
        finished.append(threading.get_ident())
        return 3

    assert await disk.slow(work) == 3
    assert finished[0] != here
