"""The registry of interruptible requests, without a mount."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from nfsfuse.fuse.upcalls.interrupt import EARLY_MAX, LOOKS_MAX, Interrupts

ME = threading.get_native_id()

DYING = "nfsfuse.fuse.upcalls.interrupt.is_dying"


async def test_any_signal_cancels_where_asked() -> None:
    interrupts = Interrupts()
    with interrupts.register(2, ME, any_signal=True) as scope:
        interrupts.interrupt(2)
        await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_signal_that_is_not_fatal_cancels_nothing() -> None:
    interrupts = Interrupts()
    with interrupts.register(2, ME) as scope:
        interrupts.interrupt(2)
        await trio.testing.wait_all_tasks_blocked()
    assert not scope.cancel_called
    interrupts.forget(2)


async def test_an_interrupt_before_the_handler_counts() -> None:
    interrupts = Interrupts()
    interrupts.interrupt(2)
    with interrupts.register(2, ME, any_signal=True) as scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_an_interrupt_after_the_answer_hits_no_other_request() -> None:
    interrupts = Interrupts()
    interrupts.register(2, ME, any_signal=True)
    interrupts.forget(2)
    interrupts.interrupt(2)
    assert not interrupts.register(4, ME, any_signal=True).cancel_called


async def test_unclaimed_interrupts_are_forgotten_oldest_first() -> None:
    interrupts = Interrupts()
    for unique in range(0, 2 * (EARLY_MAX + 1), 2):
        interrupts.interrupt(unique)
    assert not interrupts.register(0, ME, any_signal=True).cancel_called
    assert interrupts.register(2, ME, any_signal=True).cancel_called


async def test_a_thread_that_is_killed_later_is_noticed(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = False
    monkeypatch.setattr(DYING, lambda thread_id: killed)
    interrupts = Interrupts()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupts.watch)
        with interrupts.register(2, ME) as scope:
            interrupts.interrupt(2)
            await trio.sleep(10)
            assert not scope.cancel_called
            killed = True
            await trio.sleep_forever()
        assert scope.cancelled_caught
        interrupts.forget(2)
        nursery.cancel_scope.cancel()


async def cancelled(interrupts: Interrupts, begin: Callable[[int], None], unique: int = 2) -> bool:
    """Whether request *unique* of this thread, begun so, is cancelled within a second of waiting."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupts.watch)
        with trio.move_on_after(1), interrupts.register(unique, ME) as scope:
            begin(unique)
            await trio.sleep_forever()
        interrupts.forget(unique)
        nursery.cancel_scope.cancel()
    return scope.cancelled_caught


async def test_who_waits_for_a_flush_is_looked_at_without_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts = Interrupts()
    monkeypatch.setattr(DYING, lambda thread_id: False)
    assert not await cancelled(interrupts, interrupts.flushes)
    monkeypatch.setattr(DYING, lambda thread_id: True)
    assert await cancelled(interrupts, interrupts.flushes)


async def test_of_a_dying_thread_the_next_flushes_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts = Interrupts()
    monkeypatch.setattr(DYING, lambda thread_id: True)
    assert await cancelled(interrupts, interrupts.flushes)
    with interrupts.register(4, ME) as scope:
        interrupts.flushes(4)
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    with interrupts.register(6, ME + 1) as scope:
        interrupts.flushes(6)
        await trio.lowlevel.checkpoint()
    assert not scope.cancelled_caught, "of another thread"


async def test_of_a_thread_that_cannot_be_looked_at_an_interrupt_counts_and_a_flush_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupts = Interrupts()
    monkeypatch.setattr(DYING, lambda thread_id: None)
    assert await cancelled(interrupts, interrupts.interrupt)
    assert not await cancelled(interrupts, interrupts.flushes, 4)


async def test_flushes_that_are_answered_soon_cost_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(DYING, looks.append)
    interrupts = Interrupts()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupts.watch)
        for unique in range(2, 200, 2):
            interrupts.register(unique, ME)
            interrupts.flushes(unique)
            await trio.sleep(0.0001)
            interrupts.forget(unique)
        nursery.cancel_scope.cancel()
    assert len(looks) < 10, "but for those that a busy machine has kept waiting"


@contextmanager
def hanging_looks(monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], bool]) -> Iterator[None]:
    """A look at such a thread does not return: it holds what the look needs."""
    over = threading.Event()

    def look(thread_id: int) -> bool:
        if threads(thread_id):
            over.wait(60)
        return True

    monkeypatch.setattr(DYING, look)
    try:
        yield
    finally:
        over.set()


async def test_nobody_waits_for_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs keeps neither its request, nor the looks at others, nor the end of the mount waiting."""
    with hanging_looks(monkeypatch, lambda thread_id: thread_id != ME), trio.fail_after(10):
        interrupts = Interrupts()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupts.watch)
            for number in range(1, LOOKS_MAX):
                interrupts.register(2 * number, ME + number)
                interrupts.flushes(2 * number)
            with interrupts.register(2 * LOOKS_MAX, ME) as scope:
                interrupts.flushes(2 * LOOKS_MAX)
                await trio.sleep_forever()
            assert scope.cancelled_caught
            for number in range(1, LOOKS_MAX):
                interrupts.forget(2 * number)
            nursery.cancel_scope.cancel()


async def test_a_thread_is_looked_at_by_one_look_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one that hangs would use up all of them."""
    with hanging_looks(monkeypatch, lambda thread_id: thread_id == ME), trio.fail_after(10):
        interrupts = Interrupts()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupts.watch)
            for unique in range(2, 4 * LOOKS_MAX, 2):
                interrupts.register(unique, ME)
                interrupts.interrupt(unique)
            await trio.sleep(0.2)
            with interrupts.register(1, ME + 1) as scope:
                interrupts.interrupt(1)
                await trio.sleep(math.inf)
            assert scope.cancelled_caught
            nursery.cancel_scope.cancel()
