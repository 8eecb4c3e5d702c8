"""Limits, reclaim after a restart, size, and that `LockManager.check` can fail."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.locks import HeldLock, LockKind, LockMode, LockRange, OwnedLock
from nfsfuse.protocol.types import OFFSET_MAX, InodeHandle, LockOpenId, LockOwner
from nfsfuse_server.machines import lock_ranges
from nfsfuse_server.machines.deadlock import WaitsForGraph
from nfsfuse_server.machines.lock_limits import Ledger, LockLimits
from nfsfuse_server.machines.lock_ranges import Segment
from nfsfuse_server.machines.lock_space import HeldLocks, LockSpace
from nfsfuse_server.machines.locks import LockManager
from tests.helpers.lock_script import LockScript, inode_handle, owner_id, session_id


@pytest.mark.parametrize(("start", "end"), [(-1, 0), (5, 4), (0, OFFSET_MAX + 1)])
def test_a_range_that_fcntl_would_refuse_is_refused(start: int, end: int) -> None:
    with pytest.raises(FsError) as caught:
        LockRange(start, end)
    assert caught.value.errno == errno.EINVAL


# -- limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [LockLimits(locks_per_inode=2), LockLimits(locks_per_session=2)])
def test_locks_past_the_limit_get_enolck_and_change_nothing(limits: LockLimits) -> None:
    script = LockScript(LockManager(limits))
    assert script.run("1a try f W 0-9 #1") == "ok 1"
    assert script.run("1b try f R 20 #2") == "ok 2"
    assert script.run("1c try f R 40 #3") == "ENOLCK 3"
    assert script.run("1a try f U 5 #4") == "ENOLCK 4", "an unlock that splits needs a lock more"
    assert script.held("1a") == "W 0-9"
    assert script.run("1a try f W 10-15 #5") == "ok 5", "growing a lock needs none"
    assert script.run("1a try f U 0- #6") == "ok 6"
    assert script.run("1c try f R 40 #7") == "ok 7"


def test_the_limit_of_an_inode_is_not_that_of_another() -> None:
    script = LockScript(LockManager(LockLimits(locks_per_inode=1)))
    assert script.run("1a try f W 0 #1") == "ok 1"
    assert script.run("1a tryflock f W #2") == "ENOLCK 2"
    assert script.run("1a try g W 0 #3") == "ok 3"


@pytest.mark.parametrize("limits", [LockLimits(waiters_per_inode=1), LockLimits(waiters_per_session=1)])
def test_waiters_past_the_limit_get_enolck_and_lose_nothing(limits: LockLimits) -> None:
    script = LockScript(LockManager(limits))
    assert script.run("1a tryflock f R #1") == "ok 1"
    assert script.run("1b tryflock f R #2") == "ok 2"
    assert script.run("1c waitflock f W #3") == ""
    assert script.run("1a waitflock f W #4") == "ENOLCK 4"
    assert script.held("1a", kind=LockKind.FLOCK) == "R 0-"
    assert script.run("cancel #3") == "EINTR 3"
    assert script.run("1c waitflock f W #5") == ""


def test_a_waiter_whose_turn_comes_at_the_limit_gets_enolck_and_holds_up_nobody() -> None:
    script = LockScript(LockManager(LockLimits(locks_per_inode=2)))
    assert script.run("1a try f W 0-9 #1") == "ok 1"
    assert script.run("1a try f W 20-29 #2") == "ok 2"
    assert script.run("2b wait f W 5 #3") == ""
    assert script.run("2c wait f R 5-9 #4") == ""
    assert script.run("1a try f U 5-9 #5") == "ok 5; ENOLCK 3; ENOLCK 4"
    assert script.run("2b try f W 0 #6") == "EAGAIN 6"


# -- reclaim -------------------------------------------------------------------------------------------------


def test_reclaimed_locks_are_what_was_held() -> None:
    before = LockScript()
    for ticket, step in enumerate(
        ["1a try f W 0-4", "1a try f R 5- fd=2", "1b tryflock g W", "2c try g R 7"]
    ):
        assert before.run(f"{step} #{ticket}") == f"ok {ticket}"
    after = LockManager()
    for number in "12":
        locks = before.manager.locks_of(session_id(number))
        assert all(after.reclaim(session_id(number), lock) for lock in locks)
        assert all(after.reclaim(session_id(number), lock) for lock in locks), "once more is no harm"
        assert set(after.locks_of(session_id(number))) == set(locks)
    after.check()


def owned(owner: str, mode: LockMode, start: int, end: int) -> OwnedLock:
    return OwnedLock(InodeHandle(b"f"), LockOpenId(1), owner_id(owner), LockKind.POSIX, mode, start, end, 7)


def test_a_reclaim_in_conflict_is_refused_and_changes_nothing() -> None:
    script = LockScript()
    assert script.run("2b try f R 0-9 #1") == "ok 1"
    assert not script.manager.reclaim(session_id("1"), owned("a", LockMode.WRITE, 9, 12))
    assert script.held("1a") == ""
    assert script.manager.reclaim(session_id("1"), owned("a", LockMode.READ, 9, 12))
    script.manager.check()


def test_a_reclaim_passes_those_that_wait_and_they_wait_for_it() -> None:
    script = LockScript()
    assert script.run("2b try f W 0-4 #1") == "ok 1"
    assert script.run("2c wait f W 0-9 #2") == ""
    assert script.manager.reclaim(session_id("1"), owned("a", LockMode.WRITE, 5, 9))
    assert script.run("2b flush f") == ""
    assert script.run("1a flush f") == "ok 2"


def test_an_owner_that_waits_cannot_reclaim() -> None:
    script = LockScript()
    assert script.run("2b try f W 0 #1") == "ok 1"
    assert script.run("1a wait f W 0 #2") == ""
    assert not script.manager.reclaim(session_id("1"), owned("a", LockMode.WRITE, 5, 9))


def test_an_unlock_or_a_bad_range_is_nothing_to_reclaim() -> None:
    for lock in (owned("a", LockMode.UNLOCK, 0, 1), owned("a", LockMode.READ, 3, 1)):
        with pytest.raises(FsError):
            LockManager().reclaim(session_id("1"), lock)


# -- size ----------------------------------------------------------------------------------------------------


def test_nothing_is_remembered_once_all_is_released() -> None:
    script = LockScript()
    for ticket, step in enumerate(["1a try f W 0", "1b tryflock g R", "2c try f U 0-", "2c try f R 0"]):
        script.run(f"{step} #{ticket}")
    script.run("2c wait f W 0 #9")
    assert script.run("1 drop") == "ok 9"
    assert script.run("2 drop") == ""
    fresh = vars(LockManager())
    assert {k: v for k, v in vars(script.manager).items() if isinstance(v, dict)} == {
        k: v for k, v in fresh.items() if isinstance(v, dict)
    }
    assert not script.manager._graph.parties
    assert not script.manager._ledger.inodes
    assert not script.manager._ledger.sessions


def test_thousands_of_locks_on_one_inode_stay_right() -> None:
    manager = LockManager()
    inode, session = inode_handle("f"), session_id("1")
    for n in range(4_000):
        owner, start = LockOwner(n % 40), 10 * (n * 7919 % 4_000)
        posix, write = LockKind.POSIX, LockMode.WRITE
        manager.request(session, inode, LockOpenId(1), owner, posix, write, start, start + 4, n % 40, False, n)
    manager.check()
    assert len(manager.locks_of(session)) == 4_000
    found = manager.test(
        session_id("2"), inode, LockOwner(0), LockKind.POSIX, LockMode.READ, 20_005, OFFSET_MAX
    )
    assert found is not None
    assert (found.start, found.end) == (20_010, 20_014)
    assert isinstance(found, HeldLock)


# -- check() can fail ----------------------------------------------------------------------------------------


def unmerged(parts: list[Segment], new: Segment | None) -> list[Segment]:
    return parts


MUTATIONS: dict[str, tuple[object, str, Callable[..., object], list[str], str]] = {
    "conflicts_go_unseen": (
        HeldLocks,
        "in_the_way",
        lambda *_: iter(()),
        ["1a try f W 0-9 #1", "2b try f R 9 #2"],
        "held in conflict",
    ),
    "a_wake_up_is_lost": (
        LockSpace,
        "behind",
        lambda *_: [],
        ["1a try f W 0 #1", "2b wait f W 0 #2", "1a flush f"],
        "for nothing",
    ),
    "a_deadlock_goes_unseen": (
        WaitsForGraph,
        "would_deadlock",
        lambda *_: False,
        ["1a try f W 0 #1", "2b try f W 1 #2", "1a wait f W 1 #3", "2b wait f W 0 #4"],
        "deadlock",
    ),
    "neighbours_are_not_merged": (
        lock_ranges,
        "_merged",
        unmerged,
        ["1a try f W 0-4 #1", "1a try f W 5-9 #2"],
        "not merged",
    ),
    "a_limit_goes_unheeded": (
        Ledger,
        "allows_locks",
        lambda *_: True,
        ["1a try f W 0 #1", "1a try f W 5 #2", "1a try f W 9 #3"],
        "locks on an inode",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_check_sees_a_fault_put_in_on_purpose(
    mutation: tuple[object, str, Callable[..., object], list[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name, fault, steps, complaint = mutation
    monkeypatch.setattr(where, name, fault)
    script = LockScript(LockManager(LockLimits(locks_per_inode=2)))
    for step in steps[:-1]:
        script.run(step)
    with pytest.raises(AssertionError, match=complaint):
        script.run(steps[-1])
