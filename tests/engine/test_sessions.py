"""Sessions that lose their connection, and their lease: what programs see of it, over memory streams."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nfsfuse.engine.locks import LockRequest
from nfsfuse.machines.inodes import ROOT, NodeId
from nfsfuse.machines.lease import SUSPEND_AT
from nfsfuse.machines.turns import Turn
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.locks import LockKind, LockMode, LockRange
from nfsfuse.protocol.types import OFFSET_MAX, LockOwner
from nfsfuse_server.machines.leases import MARGIN
from tests.helpers.fake_kernel import ME, Client, FakeKernel, Rig, rig

LEASE = 10.0
FENCED_AFTER = LEASE * (1 + MARGIN)


async def away(made: Rig, client: Client, seconds: float) -> None:
    """The client's connection is cut, and there is none for so long."""
    client.connector.reachable = False
    client.connector.cut()
    await trio.sleep(seconds)
    client.connector.reachable = True


async def connected(client: Client) -> None:
    """Wait until there is a connection."""
    while not client.remote.session.connected:  # noqa: ASYNC110 - nothing tells of it but the log
        await trio.sleep(0.05)


def write_lock(client: Client, number: int, node_id: int) -> LockRequest:
    whole = LockRange(0, OFFSET_MAX)
    return LockRequest(node_id, number, LockOwner(7), LockKind.POSIX, LockMode.WRITE, whole, 1)


async def test_a_cut_shorter_than_the_lease_is_invisible(autojump_clock, caplog):
    async with rig(2, lease_seconds=LEASE) as made:
        one, two = made.clients
        made.make_file(b"file", b"old")
        number = await one.open(b"file", os.O_RDWR)
        node_id = await one.node(b"file")
        await one.fs.locks.set(write_lock(one, number, node_id), wait=False)
        await one.write(number, 0, b"new")
        session = one.remote.session.session_id
        await away(made, one, 7.0)
        assert await one.read(number, 0, 3) == b"new", "it is still its own"
        await connected(one)
        await one.close(number)
        assert made.content(b"file") == b"new"
        assert one.remote.session.session_id == session
        other = await two.open(b"file", os.O_RDWR)
        with pytest.raises(FsError) as caught:
            await two.fs.locks.set(write_lock(two, other, await two.node(b"file")), wait=False)
        assert caught.value.errno == errno.EAGAIN, "the lock was kept"
        assert await two.read(other, 0, 3) == b"new"
        await two.close(other)
        assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_what_is_asked_while_there_is_no_connection_is_done_once(autojump_clock):
    async with rig(1, lease_seconds=LEASE) as made:
        (one,) = made.clients
        async with trio.open_nursery() as nursery:
            nursery.start_soon(away, made, one, 5.0)
            await trio.sleep(1)
            for number in range(20):
                nursery.start_soon(one.fs.names.mkdir, ROOT, b"dir %d" % number, 0o755, ME)
        await connected(one)
        root = made.storage.root().handle
        assert all(made.storage.lookup(root, b"dir %d" % number) for number in range(20))


async def test_others_wait_for_a_client_that_is_away_and_get_what_it_wrote(autojump_clock):
    async with rig(2, lease_seconds=LEASE) as made:
        one, two = made.clients
        made.make_file(b"file", b"old")
        number = await one.open(b"file", os.O_RDWR)
        await one.write(number, 0, b"new")
        other = await two.open(b"file")
        one.connector.reachable = False
        one.connector.cut()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def come_back() -> None:
                await trio.sleep(6)
                one.connector.reachable = True

            nursery.start_soon(come_back)
            assert await two.read(other, 0, 3) == b"new"
        assert 6 <= trio.current_time() - began < LEASE
        await two.close(other)
        await one.close(number)


async def test_nothing_is_served_past_the_lease_and_the_dirty_file_is_told_once(autojump_clock, caplog):
    async with rig(2, lease_seconds=LEASE) as made:
        one, two = made.clients
        made.make_file(b"file", b"old")
        made.make_file(b"clean", b"old")
        number, clean = await one.open(b"file", os.O_RDWR), await one.open(b"clean")
        assert await one.read(clean, 0, 3) == b"old"
        await one.write(number, 0, b"mine")
        one.connector.reachable = False
        one.connector.cut()
        found: list[tuple[bytes, float]] = []
        began = trio.current_time()

        async def read_again_and_again() -> None:
            while True:
                with trio.move_on_after(0.5):
                    found.append((await one.read(clean, 0, 3), trio.current_time() - began))
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_again_and_again)
            other, its_clean = await two.open(b"file", os.O_RDWR), await two.open(b"clean", os.O_RDWR)
            await two.write(other, 0, b"ours")
            assert FENCED_AFTER <= trio.current_time() - began < FENCED_AFTER + 1
            await two.write(its_clean, 0, b"new")
            await two.close(other)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        assert {content for content, _ in found} == {b"old"}
        assert max(when for _, when in found) <= LEASE * SUSPEND_AT + 0.5, "not one stale read past the lease"
        one.connector.reachable = True
        await connected(one)
        assert await one.read(clean, 0, 3) == b"new"
        with pytest.raises(FsError) as caught:
            await one.fs.files.fsync(number, False)
        assert caught.value.errno == errno.EIO
        await one.fs.files.fsync(number, False)
        assert await one.read(number, 0, 4) == b"ours", "never overwritten"
        await one.write(number, 0, b"next")
        await one.close(number)
        assert made.content(b"file") == b"next", "the mount goes on"
        text = "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR)
        assert "file: 4 bytes written here are lost" in text
        assert "4 bytes written here are lost" in text
        await one.close(clean)
        await two.close(its_clean)


async def test_caches_are_dropped_before_the_lease_has_run_out_and_what_is_held_stays(autojump_clock):
    async with rig(1, lease_seconds=LEASE) as made:
        (one,) = made.clients
        made.make_file(b"file", b"x" * 8192)
        number = await one.open(b"file", os.O_RDWR)
        await one.fs.files.read(number, 0, 4096, cached=True)  # a fault in a mapping
        began = trio.current_time()

        async def store_through_a_mapping(start: int, end: int) -> None:
            assert trio.current_time() - began < LEASE
            await one.fs.files.write(number, 0, b"mapped" + b"x" * 4090, page=True)
            one.kernel.during_invalidation = None

        one.kernel.during_invalidation = store_through_a_mapping
        await away(made, one, LEASE * SUSPEND_AT + 0.5)
        assert one.kernel.invalidated == [(0, 4096)]
        assert one.kernel.epochs == 0, "names stay; what hangs below them would be lost"
        assert one.file(number).pages.dirty, "what was stored has landed here"
        await connected(one)
        assert await one.read(number, 0, 6) == b"mapped", "resumed: nothing is lost"
        await one.close(number)
        assert made.content(b"file")[:6] == b"mapped"


async def test_a_mapped_page_is_dropped_in_time_although_what_it_held_before_is_on_its_way(autojump_clock):
    """Found by the simulator: the kernel locks such a page and waits for its write-back, and that waited for
    the server, which could not be reached. The page, and all behind it, could be read past the lease."""
    async with rig(1, lease_seconds=LEASE) as made:
        (one,) = made.clients
        made.make_file(b"file", b"x" * 8192)
        number = await one.open(b"file", os.O_RDWR)
        for page in range(2):
            await one.fs.files.read(number, page * 4096, 4096, cached=True)
        dropped = trio.Event()

        async def store_through_a_mapping(start: int, end: int) -> None:
            assert one.file(number).pages.writing
            await one.fs.files.write(number, 0, b"newer!" + b"x" * 4090, page=True)
            dropped.set()
            one.kernel.during_invalidation = None

        one.kernel.during_invalidation = store_through_a_mapping
        async with trio.open_nursery() as nursery:
            one.connector.reachable = False
            one.connector.cut()
            await one.fs.files.write(number, 0, b"mapped" + b"x" * 4090, page=True)
            nursery.start_soon(one.fs.files.fsync, number, False)
            await trio.sleep(LEASE * SUSPEND_AT + 0.5)
            in_time = dropped.is_set()
            one.connector.reachable = True
        assert in_time
        assert await one.read(number, 0, 6) == b"newer!"
        await one.close(number)
        assert made.content(b"file")[:6] == b"newer!"


class _SlowKernel(FakeKernel):
    """It takes its time to drop pages, and to tell the event loop that it has."""

    dropping = 0

    async def invalidate_pages(
        self, node_id: NodeId, start: int, end: int, returned: bytearray | None = None, turn: Turn | None = None
    ) -> None:
        self.dropping += 1
        await trio.sleep(0.1)
        self.dropping -= 1
        if returned is not None:
            returned[0] = 1
        await trio.sleep(0.1)


async def test_a_recall_is_not_over_while_its_pages_are_dropped_with_the_lease(autojump_clock):
    """Found by exploration: a page that was read while a recall had it dropped was to be dropped once more;
    just then the lease was about to run out, and that took the page off the books. The recall took it for
    gone."""
    async with rig(2, lease_seconds=LEASE, make_kernel=_SlowKernel) as made:
        one, two = made.clients
        made.make_file(b"file", b"x" * 4096)
        number, other = await one.open(b"file"), await two.open(b"file", os.O_RDWR)
        await one.touch(number, 0, 4096)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.write, other, 0, b"new")
            await trio.sleep(0.05)
            await one.touch(number, 0, 4096)
            await trio.sleep(0.1)
            one.fs.suspended()
        assert isinstance(one.kernel, _SlowKernel)
        assert one.kernel.dropping == 0, "the other has written, and the page may still be mapped"
        one.fs.resumed()
        assert await one.read(number, 0, 3) == b"new"
        await one.close(number)
        await two.close(other)


async def test_a_daemon_that_was_stopped_past_its_lease_serves_nothing_when_it_goes_on(autojump_clock):
    """Its timers have not run: only the clock that it asks can tell."""
    stopped_seconds = 0.0
    async with rig(1, lease_seconds=LEASE, clock=lambda: trio.current_time() + stopped_seconds) as made:
        (one,) = made.clients
        made.make_file(b"file", b"old")
        number = await one.open(b"file", os.O_RDWR)
        assert await one.read(number, 0, 3) == b"old"
        stopped_seconds = 3 * LEASE  # as after SIGCONT
        operations: list[Callable[[], object]] = [
            lambda: one.read(number, 0, 3),
            lambda: one.fs.files.write(number, 0, b"new", page=False),
            lambda: one.fs.names.getattr(one.file(number).inode.node_id),
            lambda: one.fs.names.lookup(ROOT, b"file"),
            lambda: one.fs.files.open(one.file(number).inode.node_id, os.O_RDONLY),
        ]
        for operation in operations:
            with trio.move_on_after(0.01) as scope:
                await operation()  # type: ignore[misc]
            assert scope.cancelled_caught
        stopped_seconds = 0.0
        await one.close(number)


async def test_nothing_is_lost_when_everybody_stood_still(autojump_clock):
    """A laptop with both on it sleeps, say: all timers are late, and what was sent is still to be read."""
    async with rig(1, lease_seconds=LEASE) as made:
        (one,) = made.clients
        made.make_file(b"file", b"old")
        number = await one.open(b"file", os.O_RDWR)
        await one.write(number, 0, b"new")
        session = one.remote.session.session_id
        await wait_all_tasks_blocked()
        autojump_clock.jump(20 * LEASE)
        assert await one.read(number, 0, 3) == b"new"
        await one.close(number)
        assert one.remote.session.session_id == session
        assert made.content(b"file") == b"new"


async def test_a_lost_lock_is_told_at_every_use_until_the_file_is_closed(autojump_clock):
    async with rig(2, lease_seconds=LEASE) as made:
        one, two = made.clients
        made.make_file(b"file", b"old")
        number, innocent = await one.open(b"file", os.O_RDWR), await one.open(b"file")
        await one.fs.locks.set(write_lock(one, number, await one.node(b"file")), wait=False)
        await away(made, one, FENCED_AFTER + 1)
        await connected(one)
        other = await two.open(b"file", os.O_RDWR)
        await two.fs.locks.set(write_lock(two, other, await two.node(b"file")), wait=False)
        for _ in range(2):
            with pytest.raises(FsError, match="EIO"):
                await one.read(number, 0, 3)
            with pytest.raises(FsError, match="EIO"):
                await one.fs.files.write(number, 0, b"new", page=False)
        assert await one.read(innocent, 0, 3) == b"old"
        for client, opened in (one, number), (one, innocent), (two, other):
            await client.close(opened)
        again = await one.open(b"file")
        assert await one.read(again, 0, 3) == b"old"
        await one.close(again)


async def test_an_open_file_is_opened_again_and_survives_its_unlinking(autojump_clock):
    async with rig(2, lease_seconds=LEASE) as made:
        one, two = made.clients
        made.make_file(b"file", b"content")
        number = await one.open(b"file")
        await away(made, one, FENCED_AFTER + 1)
        await connected(one)
        await wait_all_tasks_blocked()
        await two.fs.names.unlink(ROOT, b"file")
        assert await one.read(number, 0, 7) == b"content"
        await one.close(number)


async def test_a_program_that_waits_meanwhile_is_answered_in_the_next_session(autojump_clock):
    async with rig(1, lease_seconds=LEASE) as made:
        (one,) = made.clients
        made.make_file(b"file", b"content")
        node_id = await one.node(b"file")
        one.connector.reachable = False
        one.connector.cut()
        async with trio.open_nursery() as nursery:
            opened: list[int] = []

            async def use() -> None:
                number = await one.fs.files.open(node_id, os.O_RDWR)
                assert await one.read(number, 0, 7) == b"content"
                await one.fs.names.mkdir(ROOT, b"dir", 0o755, ME)
                opened.append(number)

            nursery.start_soon(use)
            await trio.sleep(3 * LEASE)
            assert not opened
            one.connector.reachable = True
        await one.close(opened[0])
        assert made.storage.lookup(made.storage.root().handle, b"dir")


async def test_a_recall_that_is_not_answered_costs_its_client_the_session(autojump_clock, caplog):
    async with rig(2, lease_seconds=LEASE) as made:
        one, two = made.clients
        made.make_file(b"file", b"old")
        number = await one.open(b"file", os.O_RDWR)
        await one.fs.files.read(number, 0, 3, cached=True)
        session = one.remote.session.session_id
        stuck = trio.Event()

        async def hang(start: int, end: int) -> None:
            await stuck.wait()

        one.kernel.during_invalidation = hang
        other = await two.open(b"file", os.O_RDWR)
        began = trio.current_time()
        await two.write(other, 0, b"new")
        assert FENCED_AFTER <= trio.current_time() - began < FENCED_AFTER + 1
        assert "a recall was not answered" in caplog.text
        await connected(one)
        assert one.remote.session.session_id != session
        with pytest.raises(FsError, match="EIO"):
            await one.fs.files.write(number, 0, b"x" * 4096, page=True)  # it could overwrite what is new
        one.kernel.during_invalidation = None
        stuck.set()
        await wait_all_tasks_blocked()
        with pytest.raises(FsError, match="EIO"):
            await one.fs.files.fsync(number, False)
        assert await one.read(number, 0, 3) == b"new"
        await one.close(number)
        await two.close(other)


async def test_a_half_open_connection_is_given_up_and_replaced(autojump_clock, caplog):
    async with rig(1, lease_seconds=LEASE) as made:
        (one,) = made.clients
        made.make_file(b"file", b"old")
        number = await one.open(b"file", os.O_RDWR)
        session = one.remote.session.session_id
        one.connector.streams[-1].swallow()
        await trio.sleep(LEASE)
        assert one.connector.attempts == 2
        assert one.remote.session.session_id == session
        assert await one.read(number, 0, 3) == b"old"
        assert "has not answered a heartbeat" in caplog.text
        await one.close(number)


async def test_an_idle_client_keeps_its_session(autojump_clock):
    async with rig(1, lease_seconds=LEASE) as made:
        (one,) = made.clients
        session = one.remote.session.session_id
        await trio.sleep(50 * LEASE)
        assert one.remote.session.session_id == session
        assert one.connector.attempts == 1
        assert 100 <= one.remote.session.requests["Heartbeat"] <= 200


async def test_a_server_that_talks_nonsense_costs_the_session_and_no_more(autojump_clock, caplog):
    async with rig(1, lease_seconds=LEASE) as made:
        (one,) = made.clients
        made.make_file(b"file", b"old")
        session = one.remote.session.session_id
        one.connector.streams[-1].peer.try_send([b"\xff" * 16])
        await trio.sleep(0.5)
        assert one.remote.session.session_id != session
        assert list(made.service.sessions) == [one.remote.session.session_id], "the old one was replaced"
        assert "the session is given up" in caplog.text
        number = await one.open(b"file")
        assert await one.read(number, 0, 3) == b"old"
        await one.close(number)
