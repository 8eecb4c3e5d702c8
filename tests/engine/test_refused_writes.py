"""What the server's filesystem refuses during write-behind: kept, tried again, told, and given up loudly."""

from __future__ import annotations

import errno
import os

import pytest
import trio
import trio.testing

from nfsfuse.engine.filesystem import CacheOptions
from nfsfuse.engine.write_back import DIRTY_AGE_SECONDS_MAX
from nfsfuse.machines.inodes import NodeId
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import PAGE_SIZE, AttributeChanges, InodeHandle
from tests.helpers.fake_kernel import Client, FakeKernel, Rig, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")

P = PAGE_SIZE
MIB = 1 << 20
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class Disk:
    """A fault hook: while *error* is set, writes fail with it; only those to *only*, if that is given."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.only: InodeHandle | None = None
        self.refused = 0

    def __call__(self, operation: str, handle: InodeHandle | None) -> None:
        if self.error and operation == "write" and self.only in (None, handle):
            self.refused += 1
            raise FsError(self.error)


async def error_of(client: Client, operation: str, number: int, *arguments: object) -> int:
    """The errno of an operation on an open file, 0 if it succeeds."""
    try:
        if operation == "write":
            await client.write(number, *arguments)  # type: ignore[arg-type]
        elif operation == "fsync":
            await client.fs.files.fsync(number, False)
        else:
            await client.fs.files.flush(number)
    except FsError as exc:
        return exc.errno
    return 0


async def store_page(client: Client, number: int, page: int) -> int:
    """The kernel writes a mapped page back, and takes its time about it; the errno it is told."""
    await trio.sleep(0.001)
    try:
        await client.fs.files.write(number, page * P, b"m" * P, page=True)
    except FsError as exc:
        return exc.errno
    return 0


async def refused(world: Rig, disk: Disk, data: bytes = b"kept") -> tuple[Client, int]:
    """A client with a file whose *data* the server has refused in the background."""
    world.make_file(b"file")
    client = world.clients[0]
    number = await client.open(b"file", os.O_RDWR)
    disk.error = disk.error or errno.ENOSPC
    await client.write(number, 0, data)
    await trio.sleep(2 * DIRTY_AGE_SECONDS_MAX)
    assert client.file(number).pages.refused
    return client, number


def hold_invalidations(client: Client) -> trio.Event:
    """From now on, and only these are recorded: until the event is set."""
    dropped = trio.Event()

    async def until_dropped(_start: int, _end: int) -> None:
        await dropped.wait()

    client.kernel.invalidated.clear()
    client.kernel.during_invalidation = until_dropped
    return dropped


@pytest.mark.parametrize("error", ERRORS)
async def test_a_write_is_told_what_is_known_by_then_and_nothing_more_is_taken_in(error: int) -> None:
    disk = Disk(error)
    async with rig(fault=disk) as world:
        client, number = await refused(world, disk)
        assert await error_of(client, "write", number, 4, b"more") == error
        assert client.fs.cache.dirty_bytes == 4
        assert await error_of(client, "fsync", number) == error
        disk.error = 0
        assert await error_of(client, "write", number, 4, b"more") == 0, "no need to wait for the background"
        assert await error_of(client, "fsync", number) == 0, "it was told"
        assert world.content(b"file") == b"keptmore"
        await client.close(number)


async def test_what_was_refused_is_read_back(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    async with rig(fault=disk) as world:
        client, number = await refused(world, disk)
        assert await client.read(number, 0, 10) == b"kept"
        disk.error = 0
        await client.close_ignoring_errors(number)
    assert "file: the server refuses 4 bytes at 0: ENOSPC" in caplog.text


async def test_the_background_goes_on_when_there_is_room_again_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Disk()
    async with rig(fault=disk) as world:
        client, number = await refused(world, disk, b"k" * 5 * MIB)
        disk.error = 0
        await trio.sleep(30)
        assert world.content(b"file") == b"k" * 5 * MIB
        assert "file: what the server refused before is written" in caplog.text
        assert await error_of(client, "flush", number) == errno.ENOSPC, "nobody has been told yet"
        assert await error_of(client, "flush", number) == 0
        await client.close(number)


async def test_a_full_server_is_asked_seldom_and_the_log_is_short(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    async with rig(fault=disk) as world:
        client, number = await refused(world, disk, b"k" * 20 * MIB)
        before, lines = disk.refused, len(caplog.records)
        await trio.sleep(600)
        assert 30 <= disk.refused - before <= 80
        assert len(caplog.records) == lines
        disk.error = 0
        await client.close_ignoring_errors(number)


async def test_every_page_stored_through_a_mapping_is_kept_and_none_is_sent_for_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The kernel's write-back of a mapped page is always taken in: it would take it for clean otherwise."""
    disk = Disk()
    async with rig(fault=disk) as world:
        client, number = await refused(world, disk, b"x" * P)
        before = disk.refused
        for page in range(1, 2 * MIB // P):
            assert await client.fs.files.write(number, page * P, b"m" * P, page=True) == P
        assert disk.refused - before <= 3
        assert await error_of(client, "fsync", number) == errno.ENOSPC, "so msync(2) is told"
        disk.error = 0
        assert await error_of(client, "fsync", number) == 0
        assert world.content(b"file")[: P + 1] == b"x" * P + b"m"
        await client.close(number)
    assert "lost" not in caplog.text


async def test_stores_through_mappings_are_refused_when_memory_is_full_of_what_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    disk = Disk()
    async with rig(fault=disk, options=CacheOptions(8 * MIB, MIB, guard=True)) as world:
        client, number = await refused(world, disk, b"x" * P)
        errors = [await store_page(client, number, page) for page in range(16 * MIB // P)]
        assert set(errors) == {0, errno.ENOSPC}
        assert MIB <= errors.count(0) * P <= 3 * MIB
        assert caplog.text.count("stores through mappings are lost") == 1
        assert client.fs.cache.dirty_bytes <= 3 * MIB
        assert await error_of(client, "fsync", number) == errno.ENOSPC
        disk.error = 0
        await client.close_ignoring_errors(number)


async def test_pages_that_there_is_no_memory_for_are_dropped_by_their_kernel() -> None:
    """Found by the simulator: they stayed there, for clean, when all else was written; and nowhere else."""
    disk = Disk()
    async with rig(fault=disk, options=CacheOptions(dirty_bytes_max=2 * P, guard=True)) as world:
        client, number = await refused(world, disk, b"r" * 3 * P)
        await client.touch(number, 3 * P, 3 * P)
        dropped = hold_invalidations(client)
        assert [await store_page(client, number, page) for page in (3, 4, 5)] == 3 * [errno.ENOSPC]
        dropped.set()
        await trio.testing.wait_all_tasks_blocked()
        tokens = client.file(number).tokens
        assert not tokens.in_kernel.overlaps(3 * P, 6 * P)
        assert not tokens.untaken
        assert client.kernel.invalidated == [(3 * P, 4 * P), (4 * P, 6 * P)]
        disk.error = 0
        assert await error_of(client, "fsync", number) == errno.ENOSPC
        assert await client.fs.files.read(number, 3 * P, P, cached=True) == b""
        await client.close(number)


async def test_a_page_that_there_is_no_memory_for_is_not_shared_before_its_kernel_has_dropped_it() -> None:
    """Found by the simulator: once its file was closed it counted as clean, as others see it, and stayed."""
    disk = Disk()
    async with rig(2, fault=disk, options=CacheOptions(dirty_bytes_max=2 * P, guard=True)) as world:
        client, number = await refused(world, disk, b"r" * 3 * P)
        await client.touch(number, 3 * P, P)
        dropped = hold_invalidations(client)
        assert await store_page(client, number, 3) == errno.ENOSPC
        disk.error = 0
        assert await error_of(client, "flush", number) == errno.ENOSPC
        client.fs.files.release(number)
        async with trio.open_nursery() as nursery:
            other, seen = world.clients[1], list[bytes]()

            async def read() -> None:
                seen.append(await other.read(await other.open(b"file"), 3 * P, P))

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            assert seen == []
            dropped.set()
        assert seen == [b""]
        assert client.kernel.invalidated == [(3 * P, 4 * P)]


async def test_a_file_that_cannot_be_written_does_not_stop_another() -> None:
    """Its owner's quota may be used up, say."""
    disk = Disk()
    async with rig(fault=disk, options=CacheOptions(8 * MIB, MIB, guard=True)) as world:
        handle = world.make_file(b"one")
        world.make_file(b"two")
        client = world.clients[0]
        one, two = await client.open(b"one", os.O_RDWR), await client.open(b"two", os.O_RDWR)
        disk.error, disk.only = errno.EDQUOT, handle
        await client.write(one, 0, b"x" * (MIB - P))
        await trio.sleep(3)
        await client.write(two, 0, b"y" * 10 * MIB)
        await client.close(two)
        assert world.content(b"two") == b"y" * 10 * MIB
        disk.error = 0
        await client.close_ignoring_errors(one)


async def test_a_writer_does_not_wait_for_room_that_will_never_be() -> None:
    disk = Disk(errno.ENOSPC)
    async with rig(fault=disk, options=CacheOptions(64 * MIB, MIB, guard=True)) as world:
        world.make_file(b"one")
        world.make_file(b"two")
        client = world.clients[0]
        one, two = await client.open(b"one", os.O_RDWR), await client.open(b"two", os.O_RDWR)
        await client.write(one, 0, b"x" * 4 * MIB)  # in one piece: more than may be dirty
        await trio.sleep(3)
        with trio.fail_after(5):
            assert await error_of(client, "write", two, 0, b"y") == errno.ENOSPC
        disk.error = 0
        for number in (one, two):
            await client.close_ignoring_errors(number)


async def test_the_last_close_gives_up_loudly_and_by_name(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    async with rig(fault=disk) as world:
        client, number = await refused(world, disk, b"k" * 2 * P)
        file, pages_of_kernel = client.file(number), client.kernel.invalidated
        await client.fs.files.read(number, 0, 2 * P, cached=True)  # through a mapping: the kernel has them now
        another = await client.open(b"file")
        assert await error_of(client, "flush", number) == errno.ENOSPC
        client.fs.files.release(number)
        await trio.sleep(1)
        assert file.pages.dirty_bytes == 2 * P, "somebody has it open"
        client.fs.files.release(another)
        await trio.sleep(1)
        assert client.fs.cache.dirty_bytes == 0
        assert (0, 2 * P) in pages_of_kernel, "or programs would go on finding it there"
        assert "file: 8192 bytes are lost, which the server refused to the end: ENOSPC" in caplog.text
        disk.error = 0
        again = await client.open(b"file", os.O_RDWR)
        assert await client.read(again, 0, 10) == b""
        assert (await client.fs.names.getattr(await client.node(b"file"))).size == 0
        await client.write(again, 0, b"new")
        await client.close(again)
        assert world.content(b"file") == b"new"
        assert "is written" not in caplog.text, "it never was"


async def test_data_of_a_killed_program_are_given_up_when_the_server_refuses_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It does not wait for the write-back (no flush), which finds nobody to tell."""
    disk = Disk()
    async with rig(fault=disk) as world:
        world.make_file(b"file")
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        await client.write(number, 0, b"k" * 3 * MIB)
        disk.error = errno.EDQUOT
        client.fs.files.release(number)
        await trio.sleep(30)
        assert client.fs.cache.dirty_bytes == 0
        assert "which the server refused to the end: EDQUOT" in caplog.text


async def test_who_opens_the_file_in_time_keeps_what_was_refused() -> None:
    disk = Disk()
    async with rig(fault=disk) as world:
        client, number = await refused(world, disk, b"k" * P)
        await client.fs.files.read(number, 0, P, cached=True)
        again: list[int] = []

        async def open_again() -> None:
            again.append(await client.open(b"file", os.O_RDWR))

        async with trio.open_nursery() as nursery:

            async def opened_meanwhile(start: int, end: int) -> None:
                client.kernel.during_invalidation = None
                nursery.start_soon(open_again)
                await trio.testing.wait_all_tasks_blocked()

            client.kernel.during_invalidation = opened_meanwhile
            client.fs.files.release(number)
            await trio.sleep(1)
        disk.error = 0
        assert await error_of(client, "fsync", again[0]) == 0
        assert world.content(b"file") == b"k" * P
        await client.close(again[0])


@pytest.mark.parametrize("size", [0, 100, P + 100, 10 * P])
async def test_a_file_can_be_truncated_on_a_full_server(size: int) -> None:
    """That is how programs make room. What is below the new size is still to be written."""
    disk = Disk()
    async with rig(fault=disk) as world:
        client, number = await refused(world, disk, b"k" * 2 * P)
        inode = client.file(number).inode
        told = await client.fs.inode_changes.setattr(inode, AttributeChanges(size=size))
        assert told.size == size
        assert client.fs.cache.dirty_bytes == min(size, 2 * P)
        disk.error = 0
        await client.close_ignoring_errors(number)
        expected = b"k" * min(size, 2 * P)
        assert world.content(b"file") == expected + bytes(size - len(expected))


async def test_a_file_can_be_opened_truncating_on_a_full_server() -> None:
    disk = Disk()
    async with rig(fault=disk) as world:
        client, number = await refused(world, disk, b"k" * 2 * P)
        truncating = await client.open(b"file", os.O_WRONLY | os.O_TRUNC)
        assert client.fs.cache.dirty_bytes == 0
        disk.error = 0
        await client.write(truncating, 0, b"new")
        await client.close_ignoring_errors(truncating)
        await client.close_ignoring_errors(number)
        assert world.content(b"file") == b"new"


async def test_stat_does_not_fail_for_data_that_cannot_be_written() -> None:
    disk = Disk()
    async with rig(2, fault=disk) as world:
        client, number = await refused(world, disk)
        node = await client.node(b"file")
        other = world.clients[1]
        assert (await other.fs.names.getattr(await other.node(b"file"))).size == 0, "as the server has it"
        await client.fs.names.getattr(node)
        disk.error = 0
        await client.close_ignoring_errors(number)
        assert world.content(b"file") == b"kept"


async def test_a_recall_tries_all_that_is_dirty_before_it_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    """The requests that went out together are refused; nothing need be lost for that."""

    class FullForAMoment(Disk):
        left = 10**6

        def __call__(self, operation: str, handle: InodeHandle | None) -> None:
            if operation == "write":
                self.left -= 1
                self.error = self.error if self.left >= 0 else 0
            super().__call__(operation, handle)

    disk = FullForAMoment()
    async with rig(2, fault=disk) as world:
        one, number = await refused(world, disk, b"n" * 12 * MIB)
        other = world.clients[1]
        elsewhere = await other.open(b"file", os.O_RDWR)  # that recalls the attributes
        disk.left = 5
        await other.fs.ranges.fallocate(other.file(elsewhere), 0, 12 * MIB, MIB)  # and this all data
        assert disk.left < 0, "it was refused, and tried again"
        assert world.content(b"file") == b"n" * 12 * MIB + bytes(MIB)
        assert "are lost" not in caplog.text
        await one.close_ignoring_errors(number)


async def test_a_recall_loses_what_is_refused_and_the_size_it_had(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    async with rig(2, fault=disk) as world:
        one, number = await refused(world, disk, b"n" * 2 * P)
        other = world.clients[1]
        assert await other.read(await other.open(b"file"), 0, 2 * P) == b""
        assert "file: 8192 bytes are recalled and refused, the data are lost: ENOSPC" in caplog.text
        disk.error = 0
        assert await one.read(number, 0, P) == b""
        assert (await one.fs.names.getattr(await one.node(b"file"))).size == 0
        assert await error_of(one, "fsync", number) == errno.ENOSPC
        assert await error_of(one, "fsync", number) == 0
        await one.close(number)


async def test_a_loss_while_the_attributes_are_recalled_leaves_them_to_the_others() -> None:
    """What is still dirty then does not make this client the holder of the size again."""
    goes_on = trio.Event()

    class SlowKernel(FakeKernel):
        async def invalidate_attributes(self, node_id: NodeId) -> bool:
            await goes_on.wait()
            return True

    disk = Disk()
    async with rig(2, fault=disk, make_kernel=SlowKernel) as world:
        one, number = await refused(world, disk, b"n" * 3 * P)
        one.file(number).attributes.kernel_trusts = True
        other = world.clients[1]
        node = await other.node(b"file")
        handle = one.file(number).inode.handle
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.fs.names.getattr, node)
            await trio.testing.wait_all_tasks_blocked()
            await other.remote.session.call(m.GetToken(handle, TokenMode.SHARED, 0, P, TokenMode.NONE))
            assert one.file(number).pages.dirty.intervals() == [(P, 3 * P)]
            goes_on.set()
        assert not one.file(number).attributes.changed_here
        assert await error_of(one, "fsync", number) == errno.ENOSPC
        disk.error = 0
        assert await error_of(one, "fsync", number) == 0
        assert world.content(b"file") == bytes(P) + b"n" * 2 * P
        await one.close(number)


@pytest.mark.parametrize("has_room", [False, True])
async def test_a_recall_waits_for_who_tries_once_more_what_was_refused(
    has_room: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The recall has tried the first of two requests, and waits for the answer to the other, when a program's
    fsync tries the first again."""
    disk = Disk()
    async with rig(2, fault=disk, link_seconds=lambda: 0.001) as world:
        one, number = await refused(world, disk, b"n" * 2 * MIB)
        other = world.clients[1]
        elsewhere = await other.open(b"file", os.O_RDWR)
        pages = one.file(number).pages

        told: list[int] = []

        async def sync() -> None:
            told.append(await error_of(one, "fsync", number))

        async def sync_in_between() -> None:
            while pages.writing.intervals() != [(MIB, 2 * MIB)]:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.0001)
            await trio.sleep(0.0004)
            nursery.start_soon(sync)
            await trio.sleep(0.0008)
            if has_room:
                disk.error = 0  # the second was refused, the first is not there yet

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync_in_between)
            await other.fs.ranges.fallocate(other.file(elsewhere), 0, 4 * MIB, P)
        lost = MIB if has_room else 2 * MIB
        assert f"{lost} bytes are recalled and refused, the data are lost" in caplog.text
        assert world.content(b"file")[:MIB] == (b"n" * MIB if has_room else bytes(MIB))
        disk.error = 0
        await sync()
        assert errno.ENOSPC in told, "the one in between may have ended before the loss, or told of it"
        assert await error_of(one, "fsync", number) == 0
        await one.close(number)


@pytest.mark.parametrize("before", [False, True])
async def test_a_loss_is_told_also_to_those_who_know_of_the_refusal(before: bool) -> None:
    disk = Disk()
    async with rig(2, fault=disk) as world:
        one, number = await refused(world, disk)
        if before:
            assert await error_of(one, "fsync", number) == errno.ENOSPC
        await world.clients[1].read(await world.clients[1].open(b"file"), 0, P)
        disk.error = 0
        assert await error_of(one, "fsync", number) == errno.ENOSPC
        assert await error_of(one, "fsync", number) == 0
        await one.close(number)


async def test_a_failure_of_the_servers_disk_is_told_to_every_client_that_had_written() -> None:
    def fails_once(operation: str, handle: InodeHandle | None) -> None:
        if operation == "fsync" and not told:
            told.append(operation)
            raise FsError(errno.EIO)

    told: list[str] = ["not yet"]
    async with rig(3, fault=fails_once) as world:
        world.make_file(b"file")
        numbers = [await client.open(b"file", os.O_RDWR) for client in world.clients]
        for place, (client, number) in enumerate(zip(world.clients[:2], numbers, strict=False)):
            await client.write(number, place * P, b"data")
            await client.fs.files.flush(number)
        told.clear()
        found = []
        for client, number in zip(world.clients, numbers, strict=True):
            found.append([await error_of(client, "fsync", number) for _ in range(2)])
            await client.close(number)
        assert found == [[errno.EIO, 0], [errno.EIO, 0], [0, 0]]


async def test_a_failure_of_the_servers_disk_is_told_to_every_open_file_once() -> None:
    """The server's kernel says it to its first fsync only."""

    def fails_once(operation: str, handle: InodeHandle | None) -> None:
        if operation == "fsync" and not told:
            told.append(operation)
            raise FsError(errno.EIO)

    told: list[str] = []
    async with rig(fault=fails_once) as world:
        world.make_file(b"file")
        client = world.clients[0]
        one, other = [await client.open(b"file", os.O_RDWR) for _ in range(2)]
        await client.write(one, 0, b"data")
        assert await error_of(client, "fsync", one) == errno.EIO
        assert await error_of(client, "fsync", one) == 0
        assert await error_of(client, "flush", other) == errno.EIO
        for number in (one, other):
            await client.close(number)
