"""The server killed and started again under clients that have something: programs only notice a pause."""

from __future__ import annotations

import errno
import os

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nfsfuse.engine.locks import LockRequest
from nfsfuse.machines.inodes import ROOT
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.locks import LockKind, LockMode, LockRange
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import OFFSET_MAX, AttributeChanges, LockOwner
from tests.helpers.fake_kernel import ME, Client, Rig, rig

LEASE = 10.0


async def crash(rig_: Rig, *, down_seconds: float = 0.0) -> None:
    rig_.server.kill()
    await trio.sleep(down_seconds)
    await rig_.server.restart()


def held(rig_: Rig, client: Client) -> set[Token]:
    """What the server believes that *client* holds."""
    return set(rig_.service.tokens.manager.tokens_of(client.remote.session.session_id))


def lock(node_id: int, mode: LockMode = LockMode.WRITE, *, owner: int = 1, open_file: int = 1) -> LockRequest:
    return LockRequest(
        node_id, open_file, LockOwner(owner), LockKind.POSIX, mode, LockRange(0, OFFSET_MAX), 7
    )


@pytest.mark.parametrize("down_seconds", [0.0, LEASE / 2, 10 * LEASE])
async def test_dirty_data_are_written_back_after_the_restart(autojump_clock, down_seconds):
    async with rig(2, lease_seconds=LEASE) as r:
        r.make_file(b"file", b"old" * 4000)
        one, two = r.clients
        number = await one.open(b"file", os.O_RDWR)
        await one.write(number, 4096, b"new")
        assert one.file(number).pages.dirty
        before = held(r, one)
        await crash(r, down_seconds=down_seconds)
        await one.fs.files.fsync(number, False)
        assert r.content(b"file")[4096:4099] == b"new"
        assert held(r, one) >= {token for token in before if token.resource is Resource.DATA}
        other = await two.open(b"file")
        assert await two.read(other, 4096, 3) == b"new"
        await two.close(other)
        await one.close(number)


async def test_what_is_dirty_is_what_another_client_reads_after_grace(autojump_clock):
    async with rig(2, lease_seconds=LEASE) as r:
        r.make_file(b"file", bytes(8192))
        one, two = r.clients
        number, other = await one.open(b"file", os.O_RDWR), await two.open(b"file")
        await one.write(number, 0, b"dirty")
        one.connector.delay_seconds = 3.0
        began = trio.current_time()
        await crash(r)
        assert await two.read(other, 0, 5) == b"dirty", "a grant before the reclaim would read the old data"
        assert trio.current_time() - began >= 3.0
        await two.close(other)
        await one.close(number)


async def test_a_write_back_that_was_under_way_is_done(autojump_clock):
    async with rig() as r:
        r.make_file(b"file", bytes(8192))
        (one,) = r.clients
        number = await one.open(b"file", os.O_RDWR)
        await one.write(number, 0, b"x" * 8192)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.fs.files.fsync, number, False)
            r.server.kill()
            await wait_all_tasks_blocked()
            assert one.file(number).pages.writing, "it has not been answered"
            await r.server.restart()
        assert r.content(b"file") == b"x" * 8192
        await one.close(number)


async def test_an_exclusive_lock_is_kept(autojump_clock):
    async with rig(2, lease_seconds=LEASE) as r:
        r.make_file(b"file")
        one, two = r.clients
        number, other = await one.open(b"file", os.O_RDWR), await two.open(b"file", os.O_RDWR)
        nodes = await one.node(b"file"), await two.node(b"file")
        await one.fs.locks.set(lock(nodes[0], open_file=number), wait=False)
        got: list[str] = []

        async def wait_for_it() -> None:
            await two.fs.locks.set(lock(nodes[1], open_file=other), wait=True)
            got.append("two has it")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_it)
            await wait_all_tasks_blocked()
            one.connector.delay_seconds = 2.0
            await crash(r)
            await trio.sleep(LEASE)
            assert got == [], "it was never free"
            with pytest.raises(FsError) as caught:
                await two.fs.locks.set(lock(nodes[1], owner=2, open_file=other), wait=False)
            assert caught.value.errno == errno.EAGAIN
            await one.fs.locks.set(lock(nodes[0], LockMode.UNLOCK, open_file=number), wait=False)
        assert got == ["two has it"]
        assert not one.fs.files[number].lost_lock
        await one.close(number)
        await two.close(other)


async def test_open_files_stay_open_although_they_are_unlinked(autojump_clock):
    async with rig(2, lease_seconds=LEASE) as r:
        r.make_file(b"file", b"content")
        one, two = r.clients
        number = await one.open(b"file", os.O_RDWR)
        await two.fs.names.unlink(ROOT, b"file")
        await crash(r)
        await one.write(number, 7, b", and more")
        await one.fs.files.fsync(number, False)
        assert await one.read(number, 0, 100) == b"content, and more"
        await one.close(number)
        await wait_all_tasks_blocked()
        assert r.storage.orphans() == [] or held(r, one)


async def test_names_and_attributes_that_are_held_are_believed_after_it(autojump_clock):
    async with rig(2, lease_seconds=LEASE) as r:
        r.make_file(b"file")
        one, two = r.clients
        await one.node(b"file")
        await one.fs.names.mkdir(ROOT, b"directory", 0o755, ME)
        await one.node(b"directory")
        await crash(r)
        await wait_all_tasks_blocked()
        await trio.sleep(1)
        with one.asks():
            await one.node(b"directory")
        with one.asks("Lookup"):
            await one.node(b"file")  # its times may have changed unnoticed
        with one.asks():
            await one.node(b"file")
        await two.fs.names.rename(ROOT, b"file", ROOT, b"moved", 0)
        await one.node(b"moved")
        with pytest.raises(AssertionError):
            await one.node(b"file")


async def test_a_chmod_whose_reply_was_lost_is_told_and_done_once(autojump_clock):
    async with rig(2, lease_seconds=LEASE) as r:
        handle = r.make_file(b"file")
        one, two = r.clients
        node = await one.node(b"file")
        inode = one.fs.inodes[node]
        attributes: list[int] = []

        async def chmod() -> None:
            changed = await one.fs.inode_changes.setattr(inode, AttributeChanges(mode=0o600))
            attributes.append(changed.mode & 0o777)

        one.connector.delay_answers(1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chmod)
            await wait_all_tasks_blocked()
            assert r.storage.getattr(handle).mode & 0o777 == 0o600
            r.server.kill()
            await r.server.restart()
            await two.fs.inode_changes.setattr(
                two.fs.inodes[await two.node(b"file")], AttributeChanges(mode=0o644)
            )
        assert attributes == [0o600]
        assert r.storage.getattr(handle).mode & 0o777 == 0o644, "it was not done again after the other one"


async def test_a_reclaim_that_is_refused_costs_that_file_only(autojump_clock):
    async with rig(1, lease_seconds=LEASE) as r:
        r.make_file(b"lost", bytes(8192))
        r.make_file(b"kept", bytes(8192))
        (one,) = r.clients
        lost, kept = await one.open(b"lost", os.O_RDWR), await one.open(b"kept", os.O_RDWR)
        await one.write(lost, 0, b"lost")
        await one.write(kept, 0, b"kept")
        r.server.kill()
        await r.server.restart()
        # Somebody has it already: what no correct server lets happen.
        handle = one.file(lost).inode.handle
        thief = Token(handle, Resource.DATA, 0, RANGE_END, TokenMode.EXCLUSIVE)
        assert r.service.tokens.manager.reclaim(b"thief", thief)  # type: ignore[arg-type]
        await one.fs.files.fsync(kept, False)
        assert r.content(b"kept")[:4] == b"kept"
        r.service.tokens.manager.drop_session(b"thief")  # type: ignore[arg-type]
        with pytest.raises(FsError) as caught:
            await one.fs.files.fsync(lost, False)
        assert caught.value.errno == errno.EIO
        assert r.content(b"lost")[:4] == bytes(4)
        await one.write(lost, 0, b"anew")
        await one.close(lost)
        assert r.content(b"lost")[:4] == b"anew"
        await one.close(kept)


async def test_after_a_reboot_nothing_clean_is_believed(autojump_clock):
    async with rig(1, lease_seconds=LEASE) as r:
        handle = r.make_file(b"file", b"before" + bytes(9000))
        (one,) = r.clients
        number = await one.open(b"file", os.O_RDWR)
        await one.write(number, 8192, b"dirty")
        assert await one.read(number, 0, 6) == b"before"
        r.server.kill()
        r.storage.write(handle, 0, b"AFTER!")  # what the disk had was older; here it is at least different
        r.server.boot_id = "second boot"
        await r.server.restart()
        await wait_all_tasks_blocked()
        await trio.sleep(1)
        assert await one.read(number, 0, 6) == b"AFTER!"
        assert await one.read(number, 8192, 5) == b"dirty"
        await one.close(number)


async def test_a_recall_of_the_old_epoch_ends_here_and_is_acknowledged_to_nobody(autojump_clock):
    async with rig(2, lease_seconds=LEASE) as r:
        r.make_file(b"file", bytes(8192))
        one, two = r.clients
        number, other = await one.open(b"file", os.O_RDWR), await two.open(b"file")
        await one.write(number, 0, b"dirty")
        file = one.file(number)
        let_go = trio.Event()

        async def slow(start: int, end: int) -> None:
            await let_go.wait()

        one.kernel.during_invalidation = slow
        file.tokens.answered(0, 4096)  # its kernel has the page
        read: list[bytes] = []

        async def reader() -> None:
            read.append(await two.read(other, 0, 5))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await wait_all_tasks_blocked()
            assert file.tokens.revocations, "it is being recalled"
            await crash(r)
            await trio.sleep(0.5)
            one.kernel.during_invalidation = None
            let_go.set()
        assert read == [b"dirty"]
        await two.close(other)
        await one.close(number)
