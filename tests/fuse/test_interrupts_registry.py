"""The registry of interruptible requests, without a mount."""

from __future__ import annotations

import os
import threading

import pytest
import trio
import trio.testing

from nfsfuse.fuse.interrupt import EARLY_MAX, Interrupts, fatal_signal_pending

ME = threading.get_native_id()


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
    monkeypatch.setattr("nfsfuse.fuse.interrupt.fatal_signal_pending", lambda thread_id: killed)
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


def test_fatal_signal_pending() -> None:
    assert not fatal_signal_pending(ME)
    assert not fatal_signal_pending(os.getpid())
    assert fatal_signal_pending(0), "of a foreign pid namespace"
    assert fatal_signal_pending(2**22 + 1), "gone"
