"""Locks between two mounts: what fcntl(2) and flock(2) promise, over two kernels that know nothing of it."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nfsfuse.cli import registry
from scripts.rig.rig import Rig
from scripts.rig.sweep import end_process
from tests.helpers.locker import Locker
from tests.mount.conftest import Mounts, Pair

AGAIN = f"error {errno.EAGAIN}"
WAITS_SECONDS = 0.2
"""A command without an answer by then is taken to wait; only how sharp a test is depends on it."""

Start = Callable[..., Locker]


@pytest.fixture
def start(program: Callable[[str], Path]) -> Iterator[Start]:
    """Starts lockers that end with the test."""
    with ExitStack() as stack:
        yield lambda *files: stack.enter_context(Locker(program("locker"), *files))


@pytest.fixture
def two(pair: Pair, start: Start) -> tuple[Locker, Locker]:
    """A locker on each mount, with one file open as descriptor 3."""
    (pair.export / "file").write_bytes(bytes(100))
    return start(pair.one / "file"), start(pair.two / "file")


@pytest.mark.parametrize("kind", ["posix", "ofd", "flock"])
def test_locks_exclude(two: tuple[Locker, Locker], kind: str) -> None:
    one, other = two
    assert one.ask(f"try {kind} 3 w 0 0") == "ok"
    assert other.ask(f"try {kind} 3 w 0 0") == AGAIN
    assert other.ask(f"try {kind} 3 r 0 0") == AGAIN
    other.tell(f"wait {kind} 3 r 0 0")
    assert not other.answered(WAITS_SECONDS)
    assert one.ask(f"try {kind} 3 r 0 0") == "ok"  # a downgrade lets readers in
    assert other.answer() == "ok"
    assert other.ask(f"try {kind} 3 w 0 0") == AGAIN
    assert one.ask(f"try {kind} 3 u 0 0") == "ok"
    # flock(2): the failed upgrade has cost the lock it had
    assert other.ask(f"try {kind} 3 w 0 0") == "ok"


def test_posix_and_ofd_locks_exclude_one_another_and_flock_does_not(two: tuple[Locker, Locker]) -> None:
    one, other = two
    assert one.ask("try posix 3 w 0 10") == "ok"
    assert other.ask("try ofd 3 w 5 10") == AGAIN
    assert other.ask("try flock 3 w 0 0") == "ok"


def test_ranges_split_and_merge(two: tuple[Locker, Locker]) -> None:
    one, other = two
    assert one.ask("try posix 3 w 0 100") == "ok"
    assert one.ask("try posix 3 u 40 20") == "ok"  # split
    assert other.ask("test posix 3 w 0 0") == f"held w 0 40 {one.pid}"
    assert other.ask("try posix 3 w 40 20") == "ok"
    assert other.ask("test posix 3 w 60 0") == f"held w 60 40 {one.pid}"
    assert other.ask("try posix 3 u 40 20") == "ok"
    assert one.ask("try posix 3 w 40 20") == "ok"  # merge
    assert other.ask("test posix 3 w 50 0") == f"held w 0 100 {one.pid}"
    assert one.ask("try posix 3 r 20 10") == "ok"  # a downgrade in the middle
    assert other.ask("try posix 3 r 20 10") == "ok"
    assert other.ask("test posix 3 r 0 0") == f"held w 0 20 {one.pid}"
    assert one.ask("try posix 3 w 20 10") == AGAIN  # the upgrade finds the other reader
    assert one.ask("test posix 3 w 20 10") == f"held r 20 10 {other.pid}"


def test_a_lock_to_the_end_covers_what_is_appended(two: tuple[Locker, Locker], pair: Pair) -> None:
    one, other = two
    assert one.ask("try posix 3 w 50 0") == "ok"
    with (pair.two / "file").open("ab") as file:
        file.write(bytes(1000))
    assert other.ask("try posix 3 r 900 1") == AGAIN
    assert other.ask("test posix 3 r 900 1") == f"held w 50 0 {one.pid}"


def test_fork_inherits_flock_and_ofd_but_no_posix_lock(two: tuple[Locker, Locker]) -> None:
    one, other = two
    assert one.ask("try posix 3 w 0 10") == "ok"
    assert one.ask("child test posix 3 w 0 10") == f"held w 0 10 {one.pid}"
    assert other.ask("try posix 3 w 0 10") == AGAIN, "the child's end took its parent's lock"
    assert one.ask("try ofd 3 w 20 10") == "ok"
    assert one.ask("child try ofd 3 w 20 5") == "ok"
    assert other.ask("try ofd 3 w 20 10") == AGAIN
    assert one.ask("child try ofd 3 u 20 10") == "ok"
    assert other.ask("try ofd 3 w 20 10") == "ok"
    assert one.ask("try flock 3 w 0 0") == "ok"
    assert other.ask("try flock 3 w 0 0") == AGAIN
    assert one.ask("child try flock 3 u 0 0") == "ok"
    assert other.ask("try flock 3 w 0 0") == "ok"


def test_closing_another_descriptor_drops_the_processs_locks(two: tuple[Locker, Locker], pair: Pair) -> None:
    one, other = two
    second = one.open(pair.one / "file")
    assert one.ask("try posix 3 w 0 10") == "ok"
    assert one.ask("try ofd 3 w 20 10") == "ok"
    assert one.ask("try flock 3 w 0 0") == "ok"
    assert one.ask(f"close {second}") == "ok"
    assert other.ask("try posix 3 w 0 10") == "ok"
    assert other.ask("try ofd 3 w 20 10") == AGAIN  # of the open file, which is still open
    assert other.ask("try flock 3 w 0 0") == AGAIN


@pytest.mark.parametrize("kind", ["ofd", "flock"])
def test_the_last_close_drops_what_the_open_file_had(two: tuple[Locker, Locker], kind: str) -> None:
    one, other = two
    assert one.ask("dup 3") == "fd 4"
    assert one.ask(f"try {kind} 3 w 0 0") == "ok"
    assert one.ask("close 3") == "ok"
    assert other.ask(f"try {kind} 3 w 0 0") == AGAIN
    assert one.ask("close 4") == "ok"
    assert other.ask(f"wait {kind} 3 w 0 0") == "ok"  # nobody waits for a RELEASE, in the kernel either


def test_a_cycle_of_waiting_processes_is_a_deadlock(two: tuple[Locker, Locker]) -> None:
    one, other = two
    assert one.ask("try posix 3 w 0 1") == "ok"
    assert other.ask("try posix 3 w 1 1") == "ok"
    one.tell("wait posix 3 w 1 1")
    assert not one.answered(WAITS_SECONDS)
    assert other.ask("wait posix 3 w 0 1") == f"error {errno.EDEADLK}"
    assert other.ask("try posix 3 u 1 1") == "ok"
    assert one.answer() == "ok"


@pytest.mark.parametrize("kind", ["posix", "ofd", "flock"])
def test_a_waiting_program_is_interrupted_and_its_place_is_free(
    two: tuple[Locker, Locker], pair: Pair, start: Start, kind: str
) -> None:
    one, other = two
    third = start(pair.one / "file")
    assert one.ask(f"try {kind} 3 r 0 0") == "ok"
    assert other.ask("alarm 100") == "ok"
    assert other.ask(f"wait {kind} 3 w 0 0") == f"error {errno.EINTR}"
    assert third.ask(f"try {kind} 3 r 0 0") == "ok", "the writer that has left is still waited for"
    assert one.ask(f"try {kind} 3 u 0 0") == "ok"
    assert third.ask(f"try {kind} 3 u 0 0") == "ok"
    assert other.ask(f"try {kind} 3 w 0 0") == "ok"


def test_interrupted_again_and_again_no_grant_is_lost(two: tuple[Locker, Locker]) -> None:
    """The grant crosses with the cancellation in some of these rounds: whatever the waiter is told is true."""
    one, other = two
    granted = 0
    for number in range(60):
        assert one.ask("try posix 3 w 0 1") == "ok"
        assert other.ask(f"alarm {20 + number % 3}") == "ok"
        other.tell("wait posix 3 w 0 1")
        time.sleep(0.02 + number / 20_000)  # the point of time is what is tried here
        assert one.ask("try posix 3 u 0 1") == "ok"
        told = other.answer()
        if told == "ok":
            granted += 1
            assert one.ask("test posix 3 w 0 1") == f"held w 0 1 {other.pid}"
            assert other.ask("try posix 3 u 0 1") == "ok"
        else:
            assert told == f"error {errno.EINTR}"
            assert one.ask("test posix 3 w 0 1") == "free"
        assert other.ask("alarm 0") == "ok"
    print(f"{granted} of 60 were granted")


def test_a_killed_waiter_frees_its_place(two: tuple[Locker, Locker], pair: Pair, start: Start) -> None:
    one, other = two
    third = start(pair.one / "file")
    assert one.ask("try posix 3 r 0 1") == "ok"
    other.tell("wait posix 3 w 0 1")
    assert not other.answered(WAITS_SECONDS)
    assert third.ask("try posix 3 r 0 1") == AGAIN  # the writer came first
    other.kill()
    assert third.ask("try posix 3 r 0 1") == "ok"


def test_a_killed_holder_frees_its_locks(two: tuple[Locker, Locker], pair: Pair, start: Start) -> None:
    one, other = two
    for kind in ("posix", "ofd", "flock"):
        holder = start(pair.one / "file")
        assert holder.ask(f"try {kind} 3 w 0 1") == "ok"
        other.tell(f"wait {kind} 3 w 0 1")
        assert not other.answered(WAITS_SECONDS)
        holder.kill()
        assert other.answer() == "ok"
        assert one.ask(f"try {kind} 3 w 0 1") == AGAIN
        assert other.ask(f"try {kind} 3 u 0 1") == "ok"


def test_waiting_locks_hold_up_nothing_else(two: tuple[Locker, Locker], pair: Pair, start: Start) -> None:
    one, _ = two
    assert one.ask("try posix 3 w 0 1") == "ok"
    waiters = [start(pair.two / "file") for _ in range(150)]  # more than pyfuse3 has workers by default
    for waiter in waiters:
        waiter.tell("wait posix 3 r 0 1")
    assert not waiters[-1].answered(WAITS_SECONDS)
    began = time.monotonic()
    (pair.two / "other").write_text("x" * 100_000)
    assert (pair.one / "other").read_text() == "x" * 100_000
    assert (pair.two / "file").stat().st_size == 100
    assert time.monotonic() - began < 2
    assert not any(waiter.answered(0) for waiter in waiters)
    assert one.ask("try posix 3 u 0 1") == "ok"
    assert [waiter.answer() for waiter in waiters] == ["ok"] * len(waiters)


def test_closing_a_file_that_was_never_locked_costs_no_round_trip(mounts: Mounts, pair: Pair) -> None:
    """What the kernel sends a FLUSH for is every close(2)."""
    (pair.one / "file").write_text("x")
    with (pair.one / "file").open() as file:
        began = time.monotonic()
        mounts.server.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(10):
                os.close(os.dup(file.fileno()))
        finally:
            mounts.server.process.send_signal(signal.SIGCONT)
        assert time.monotonic() - began < 1


def test_a_killed_daemons_locks_are_free(rig: Rig, start: Start) -> None:
    """With its lease: it might come back until then."""
    server = rig.server(arguments=["--lease", "2"])
    one, two = rig.mount(server), rig.mount(server)
    (server.export / "file").touch()
    holder, waiter = start(one / "file"), start(two / "file")
    for kind in ("posix", "flock"):
        assert holder.ask(f"try {kind} 3 w 0 0") == "ok"
    waiter.tell("wait posix 3 w 0 0")
    assert not waiter.answered(WAITS_SECONDS)
    daemon = registry.served_by(str(one))
    assert daemon is not None
    assert end_process(daemon)
    assert waiter.answer() == "ok"
    assert waiter.ask("try flock 3 w 0 0") == "ok"


def test_nolock_is_local_and_said(rig: Rig, start: Start) -> None:
    server = rig.server()
    one, two = rig.mount(server, "nolock"), rig.mount(server)
    (server.export / "file").touch()
    local, remote, neighbour = start(one / "file"), start(two / "file"), start(one / "file")
    for kind in ("posix", "ofd", "flock"):
        assert local.ask(f"try {kind} 3 w 0 0") == "ok"
        assert neighbour.ask(f"try {kind} 3 w 0 0") == AGAIN
        assert remote.ask(f"try {kind} 3 w 0 0") == "ok"
        assert local.ask(f"try {kind} 3 u 0 0") == "ok"
        assert remote.ask(f"try {kind} 3 u 0 0") == "ok"
    assert "nolock" in rig.log_of(one).read_text()
    assert "posix_locks" not in rig.log_of(one).read_text()
    assert "posix_locks" in rig.log_of(two).read_text()
    assert "flock_locks" in rig.log_of(two).read_text()


def test_the_wait_for_a_lock_outlives_the_server(rig: Rig, start: Start) -> None:
    state = ["--state-dir", str(rig.directory / "state")]
    server = rig.server(arguments=state)
    mountpoint = rig.mount(server)
    (server.export / "file").touch()
    holder, waiter = start(mountpoint / "file"), start(mountpoint / "file")
    assert holder.ask("try posix 3 w 0 0") == "ok"
    waiter.tell("wait posix 3 w 0 0")
    assert not waiter.answered(WAITS_SECONDS)
    server.kill()
    rig.server(server.export, server.address, state)
    assert holder.ask("try posix 3 r 5 5") == "ok", "the server is back"
    assert not waiter.answered(WAITS_SECONDS), "and knows who holds it"
    assert holder.ask("try posix 3 u 0 0") == "ok"
    assert waiter.answer() == "ok"
