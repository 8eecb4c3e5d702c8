"""fsync(2): one round trip where one write holds all that is dirty, with the errors of two; two otherwise."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar

import pytest
import trio
import trio.testing

from nfsfuse.engine.write_back import SYNCED_WRITES_IN_FLIGHT_MAX
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import EXTENTS_PER_WRITE_MAX, IO_SIZE_MAX
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import PAGE_SIZE, InodeHandle, Sync
from tests.helpers.disk import InlineDisk
from tests.helpers.fake_kernel import Client, Rig, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")

P = PAGE_SIZE
T = TypeVar("T")


class Disk:
    """The storage's fault hook: what it was asked to do with data, and with which error it fails what."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failing: dict[str, list[int]] = {}
        self.synced = trio.Event()

    def __call__(self, operation: str, handle: InodeHandle | None) -> None:
        if operation not in ("write", "fsync"):
            return
        self.done.append(operation)
        errors = self.failing.get(operation)
        if errors and (error := errors.pop(0)):
            raise FsError(error)
        if operation == "fsync":
            self.synced.set()


def slow_disk(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Whatever waits for the server's disk waits for so long. That is only fsync, and writes beyond 64 KiB."""

    async def slow(self: InlineDisk, call: Callable[[], T]) -> T:
        await trio.sleep(seconds)
        return call()

    monkeypatch.setattr(InlineDisk, "slow", slow)


async def opened(world: Rig, client: Client, name: bytes = b"file", content: bytes = b"") -> int:
    world.make_file(name, content)
    return await client.open(name, os.O_RDWR)


async def fsync_error(client: Client, number: int) -> int:
    try:
        await client.fs.files.fsync(number, False)
    except FsError as exc:
        return exc.errno
    return 0


def syncs(client: Client) -> list[Sync]:
    return [message.sync for message, _ in client.remote.calls if isinstance(message, m.WRITES)]


@pytest.mark.parametrize(("data_only", "sync"), [(False, Sync.ALL), (True, Sync.DATA)])
@pytest.mark.parametrize("size", [100, P, IO_SIZE_MAX - 1])
async def test_what_one_write_holds_is_on_the_disk_after_one_round_trip(
    data_only: bool, sync: Sync, size: int
) -> None:
    async with rig() as world:
        client = world.clients[0]
        number = await opened(world, client)
        await client.write(number, 0, b"d" * size)
        with client.asks("Write"):
            await client.fs.files.fsync(number, data_only)
        assert syncs(client) == [sync]
        assert not client.file(number).pages.dirty
        world.storage.crash()
        assert world.content(b"file") == b"d" * size
        await client.close(number)


async def test_several_extents_are_one_request_as_well() -> None:
    async with rig() as world:
        client = world.clients[0]
        number = await opened(world, client)
        await client.write(number, 0, b"one")
        await client.write(number, 10 * P, b"two")
        with client.asks("WriteExtents"):
            await client.fs.files.fsync(number, False)
        assert syncs(client) == [Sync.ALL]
        world.storage.crash()
        assert world.content(b"file") == b"one" + bytes(10 * P - 3) + b"two"
        await client.close(number)


async def test_more_extents_than_one_request_takes_are_few_requests_and_one_to_synchronise() -> None:
    async with rig() as world:
        client = world.clients[0]
        number = await opened(world, client)
        count = 3 * EXTENTS_PER_WRITE_MAX
        for at in range(count):
            await client.write(number, at * P, b"some")
        with client.asks("WriteExtents", "WriteExtents", "WriteExtents", "Fsync"):
            await client.fs.files.fsync(number, False)
        world.storage.crash()
        assert world.content(b"file") == b"".join([b"some" + bytes(P - 4)] * count)[: -(P - 4)]
        await client.close(number)


async def test_an_extent_of_more_than_one_write_takes_a_request_of_its_own_to_synchronise() -> None:
    async with rig() as world:
        client = world.clients[0]
        number = await opened(world, client)
        size = 3 * IO_SIZE_MAX + P
        await client.write(number, 0, b"d" * size)
        assert await fsync_error(client, number) == 0
        assert set(syncs(client)) == {Sync.NONE}
        assert isinstance(client.remote.calls[-1][0], m.Fsync)
        world.storage.crash()
        assert world.content(b"file") == b"d" * size
        await client.close(number)


async def test_what_is_on_its_way_is_synchronised_after_it_has_arrived() -> None:
    async with rig(link_seconds=lambda: 0.01) as world:
        client = world.clients[0]
        number = await opened(world, client)
        await client.write(number, 0, b"one")
        with client.asks("Write", "Write", "Fsync"):
            client.fs.write_back.hasten(client.file(number), 0, P)
            await client.write(number, 10 * P, b"two")
            assert await fsync_error(client, number) == 0
        world.storage.crash()
        assert world.content(b"file") == b"one" + bytes(10 * P - 3) + b"two"
        await client.close(number)


async def test_with_nothing_dirty_the_file_is_synchronised_all_the_same() -> None:
    async with rig() as world:
        client = world.clients[0]
        number = await opened(world, client)
        await client.write(number, 0, b"data")
        await client.fs.files.flush(number)
        with client.asks("Fsync"):
            assert await fsync_error(client, number) == 0
        world.storage.crash()
        assert world.content(b"file") == b"data"
        await client.close(number)


async def test_what_is_written_meanwhile_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_disk(monkeypatch, 0.1)
    async with rig() as world:
        client = world.clients[0]
        number = await opened(world, client)
        await client.write(number, 0, b"before")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.fs.files.fsync, number, False)
            await trio.sleep(0.05)
            await client.write(number, 10 * P, b"after")
        assert client.file(number).pages.dirty.intervals() == [(10 * P, 10 * P + 5)]
        await client.close(number)


@pytest.mark.parametrize("sync", [Sync.DATA, Sync.ALL])
async def test_a_write_of_a_synchronous_file_is_on_the_disk_when_it_returns(sync: Sync) -> None:
    async with rig() as world:
        client = world.clients[0]
        number = await opened(world, client)
        with client.asks("Write"):
            await client.fs.files.write(number, 0, b"data", page=False, sync=sync)
        assert syncs(client) == [sync]
        world.storage.crash()
        assert world.content(b"file") == b"data"
        await client.close(number)


async def test_the_kernel_asks_for_that_itself_after_a_write_through_its_cache() -> None:
    async with rig() as world:
        client = world.clients[0]
        client.fs.files.write_directly = False
        number = await opened(world, client)
        with client.asks():
            await client.fs.files.write(number, 0, b"data", page=False, sync=Sync.ALL)
            await client.fs.files.write(number, 0, bytes(P), page=True, sync=Sync.ALL)
        await client.close(number)


# --- errors ---


async def test_a_failure_of_the_disk_is_told_once_to_every_open_file_and_the_data_are_not_sent_again() -> None:
    disk = Disk()
    async with rig(fault=disk) as world:
        client = world.clients[0]
        one = await opened(world, client)
        other = await client.open(b"file", os.O_RDWR)
        await client.write(one, 0, b"data")
        disk.done.clear()
        disk.failing["fsync"] = [errno.EIO]
        with client.asks("Write"):
            assert await fsync_error(client, one) == errno.EIO
        assert disk.done == ["write", "fsync"]
        assert not client.file(one).pages.dirty
        with client.asks("Fsync"):
            assert await fsync_error(client, one) == 0
        later = await client.open(b"file", os.O_RDWR)
        assert [await fsync_error(client, other) for _ in range(2)] == [errno.EIO, 0]
        assert await fsync_error(client, later) == 0
        for number in (one, other, later):
            await client.close(number)


async def test_data_that_are_refused_stay_dirty_and_nothing_is_synchronised() -> None:
    disk = Disk()
    async with rig(fault=disk) as world:
        client = world.clients[0]
        number = await opened(world, client)
        await client.write(number, 0, b"data")
        disk.done.clear()
        disk.failing["write"] = [errno.ENOSPC, errno.ENOSPC]
        with client.asks("Write"):
            assert await fsync_error(client, number) == errno.ENOSPC
        assert disk.done == ["write"]
        assert client.file(number).pages.refused
        with client.asks("Write"):
            assert await fsync_error(client, number) == errno.ENOSPC, "tried again, once"
        with client.asks("Write", "Fsync"):
            assert await fsync_error(client, number) == 0
        assert syncs(client) == [Sync.ALL, Sync.NONE, Sync.NONE]
        world.storage.crash()
        assert world.content(b"file") == b"data"
        await client.close(number)


async def test_what_a_killed_program_would_have_been_told_is_told_to_the_next_fsync(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow_disk(monkeypatch, 0.1)
    disk = Disk()
    async with rig(fault=disk) as world:
        client = world.clients[0]
        number = await opened(world, client)
        await client.write(number, 0, b"data")
        disk.failing["fsync"] = [errno.EIO]
        with trio.move_on_after(0.05) as killed:
            await client.fs.files.fsync(number, False)
        assert killed.cancelled_caught
        await trio.sleep(0.1)
        assert [await fsync_error(client, number) for _ in range(2)] == [errno.EIO, 0]
        await client.close(number)


async def test_a_write_is_done_again_with_its_sync_by_a_server_that_was_restarted() -> None:
    disk = Disk()
    async with rig(fault=disk, link_seconds=lambda: 1.0) as world:
        client = world.clients[0]
        number = await opened(world, client)
        await client.write(number, 0, b"data")
        disk.done.clear()
        errors: list[int] = []

        async def fsync() -> None:
            errors.append(await fsync_error(client, number))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fsync)
            await disk.synced.wait()
            world.server.kill()  # the answer is not on its way yet
            world.storage.crash()
            await world.server.restart()
        assert errors == [0]
        assert disk.done == ["write", "fsync"] * 2
        assert world.content(b"file") == b"data"
        await client.close(number)


# --- recalls ---


async def test_who_waits_for_the_pages_already_does_not_wait_for_the_disk() -> None:
    async with rig() as world:
        client = world.clients[0]
        number = await opened(world, client)
        await client.write(number, 0, b"data")
        file = client.file(number)
        recall = file.tokens.revoke(0, P, TokenMode.EXCLUSIVE)
        with client.asks("Write", "Fsync"):
            assert await fsync_error(client, number) == 0
        assert syncs(client) == [Sync.NONE]
        file.tokens.revoked(recall)
        await client.close(number)


async def test_a_recall_waits_for_the_disk_with_the_write_and_its_client_is_not_fenced_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow_disk(monkeypatch, 100.0)
    async with rig(2, lease_seconds=10.0) as world:
        one, two = world.clients
        number = await opened(world, one, content=b"old!")
        await one.write(number, 0, b"new!")
        sessions = set(world.service.sessions)
        elsewhere = await two.open(b"file")
        await one.write(number, 0, b"data")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.fs.files.fsync, number, False)
            await trio.testing.wait_all_tasks_blocked()
            assert one.file(number).pages.writing
            assert await two.read(elsewhere, 0, 4) == b"data"
        assert set(world.service.sessions) == sessions
        await one.close(number)


async def test_the_write_back_of_a_recall_does_not_wait_for_the_fsyncs_of_other_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow_disk(monkeypatch, 5.0)
    async with rig(2) as world:
        one, two = world.clients
        number = await opened(world, one)
        await one.write(number, 0, b"wanted")
        count = SYNCED_WRITES_IN_FLIGHT_MAX + 1
        others = [await opened(world, one, b"other %d" % each) for each in range(count)]
        for other in others:
            await one.write(other, 0, b"data")
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for other in others:
                nursery.start_soon(one.fs.files.fsync, other, False)
            await trio.testing.wait_all_tasks_blocked()
            assert syncs(one).count(Sync.ALL) == SYNCED_WRITES_IN_FLIGHT_MAX
            assert await two.read(await two.open(b"file"), 0, 6) == b"wanted"
            assert trio.current_time() - began < 1.0
        for each in (number, *others):
            await one.close(each)
