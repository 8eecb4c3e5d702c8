"""Write-behind: what is merged, when it goes, and who is told when it fails."""

from __future__ import annotations

import errno
import os

import pytest
import trio
import trio.testing

from nfsfuse.engine.filesystem import CacheOptions
from nfsfuse.engine.write_back import GATHERED_EXTENTS_MAX
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import EXTENTS_PER_WRITE_MAX
from nfsfuse.protocol.types import PAGE_SIZE, AttributeChanges, InodeHandle
from tests.helpers.fake_kernel import Client, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")

P = PAGE_SIZE


class Failing:
    """A fault hook: the next *left* writes fail with ENOSPC."""

    def __init__(self, left: int = 0) -> None:
        self.left = left

    def __call__(self, operation: str, handle: InodeHandle | None) -> None:
        if operation == "write" and self.left > 0:
            self.left -= 1
            raise FsError(errno.ENOSPC)


async def fsync_fails(client: Client, number: int) -> bool:
    try:
        await client.fs.files.fsync(number, False)
    except FsError as exc:
        return exc.errno == errno.ENOSPC
    return False


@pytest.mark.parametrize("backwards", [False, True])
async def test_adjacent_writes_are_merged_into_large_requests(backwards: bool) -> None:
    size = 4 << 20
    async with rig() as world:
        world.make_file(b"file")
        client = world.clients[0]
        number = await client.open(b"file", os.O_WRONLY)
        offsets = range(0, size, 16 * 1024)
        for offset in reversed(offsets) if backwards else offsets:
            await client.write(number, offset, bytes([offset >> 14 & 0xFF]) * 16 * 1024)
        await client.close(number)
        sizes = client.sent("Write")
        assert sum(sizes) == size
        assert min(sizes) >= 512 * 1024
        assert world.content(b"file") == b"".join(bytes([o >> 14 & 0xFF]) * 16 * 1024 for o in offsets)


async def test_what_is_overwritten_is_sent_once() -> None:
    async with rig() as world:
        world.make_file(b"file")
        client = world.clients[0]
        number = await client.open(b"file", os.O_WRONLY)
        for turn in range(50):
            await client.write(number, 0, bytes([turn]) * 100)
        await client.close(number)
        assert client.sent("Write") == [100]


async def test_old_data_go_without_being_asked_for() -> None:
    async with rig() as world:
        world.make_file(b"file")
        client = world.clients[0]
        number = await client.open(b"file", os.O_WRONLY)
        await client.write(number, 0, b"in time")
        assert world.content(b"file") == b""
        await trio.sleep(2)
        assert world.content(b"file") == b"in time"
        await client.close(number)


async def test_whoever_makes_too_much_dirty_waits() -> None:
    limit = 1 << 20
    async with rig(options=CacheOptions(8 << 20, limit, guard=True)) as world:
        world.make_file(b"file")
        client = world.clients[0]
        number = await client.open(b"file", os.O_WRONLY)
        most = 0
        for index in range(64):
            await client.write(number, 2 * index * 65536, b"x" * 65536)  # nothing to merge
            most = max(most, client.fs.cache.dirty_bytes)
        assert limit / 2 < most <= limit + 65536
        await client.close(number)
        assert client.fs.cache.dirty_bytes == 0


async def test_dirty_data_are_read_back_over_what_the_server_has() -> None:
    async with rig() as world:
        world.make_file(b"file", b"s" * 100_000)
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        await client.write(number, 10, b"mine")
        assert await client.read(number, 0, 20) == b"s" * 10 + b"mine" + b"s" * 6
        await client.close(number)


async def test_a_failure_is_told_once_to_every_open_file_and_the_data_are_sent_again() -> None:
    """errseq_t of Linux: by the next fsync or close of each that was open, never twice, never to later ones."""
    fault = Failing()
    async with rig(fault=fault) as world:
        world.make_file(b"file")
        client = world.clients[0]
        one, other = [await client.open(b"file", os.O_RDWR) for _ in range(2)]
        await client.write(one, 0, b"kept")
        fault.left = 1
        assert await fsync_fails(client, one)
        assert client.file(one).pages.read(0, 4) == b"kept"
        assert client.fs.cache.dirty_bytes == 4
        later = await client.open(b"file", os.O_RDWR)
        assert not await fsync_fails(client, one)
        assert world.content(b"file") == b"kept"
        assert await fsync_fails(client, other)
        assert not await fsync_fails(client, other)
        assert not await fsync_fails(client, later)
        for number in (one, other, later):
            await client.close(number)


async def test_a_failure_in_the_background_is_told_by_close() -> None:
    fault = Failing()
    async with rig(fault=fault) as world:
        world.make_file(b"file")
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        await client.write(number, 0, b"kept")
        fault.left = 1
        await trio.sleep(5)
        assert fault.left == 0
        assert world.content(b"file") == b"kept", "tried again"
        with pytest.raises(FsError) as caught:
            await client.fs.files.flush(number)
        assert caught.value.errno == errno.ENOSPC
        await client.close(number)


async def test_a_server_that_is_full_fails_every_fsync_until_it_is_not() -> None:
    fault = Failing()
    async with rig(fault=fault) as world:
        world.make_file(b"file")
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        await client.write(number, 0, b"kept")
        fault.left = 10**6
        assert [await fsync_fails(client, number) for _ in range(3)] == [True] * 3
        fault.left = 0
        assert not await fsync_fails(client, number)
        assert world.content(b"file") == b"kept"
        await client.close(number)


async def test_data_that_the_server_refuses_during_a_recall_are_lost_loudly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault = Failing()
    async with rig(2, fault=fault) as world:
        world.make_file(b"file", b"old!")
        one, other = world.clients
        number = await one.open(b"file", os.O_RDWR)
        await one.write(number, 0, b"new!")
        fault.left = 10**6
        assert await other.read(await other.open(b"file"), 0, 4) == b"old!"
        fault.left = 0
        assert "data are lost" in caplog.text
        assert await fsync_fails(one, number)
        await one.close(number)


@pytest.mark.parametrize("size", [100, 5000])
async def test_appends_of_two_clients_are_all_at_the_true_end(size: int) -> None:
    async with rig(2) as world:
        world.make_file(b"log")
        records = 30

        async def append(client: Client, letter: bytes) -> None:
            number = await client.open(b"log", os.O_WRONLY | os.O_APPEND)
            for _ in range(records):
                await client.write(number, 0, letter * size)  # the kernel's offset is only its guess
            await client.close(number)

        async with trio.open_nursery() as nursery:
            for client, letter in zip(world.clients, (b"a", b"b"), strict=True):
                nursery.start_soon(append, client, letter)
        log = world.content(b"log")
        found = [log[at : at + size] for at in range(0, len(log), size)]
        assert sorted(found) == [b"a" * size] * records + [b"b" * size] * records


async def test_a_file_that_grows_shows_its_size_to_others_at_once() -> None:
    async with rig(2) as world:
        world.make_file(b"file")
        one, other = world.clients
        number = await one.open(b"file", os.O_WRONLY)
        node = await other.node(b"file")
        for size in (10, 5000, 100_000):
            await one.write(number, size - 10, b"0123456789")
            assert (await other.fs.names.getattr(node)).size == size
        await one.close(number)


async def test_a_write_after_a_truncating_open_survives_an_older_write_back() -> None:
    """Found by reading: see `test_page_cache`; here through the whole engine."""
    async with rig() as world:
        world.make_file(b"file")
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        await client.write(number, 0, b"old" * 100_000)
        pages = client.file(number).pages
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.fs.files.fsync, number, False)
            while not pages.writing:
                await trio.lowlevel.checkpoint()
            client.file(number).truncated(0)
            await client.write(number, 0, b"new" * 100_000)
        await client.close(number)
        assert world.content(b"file") == b"new" * 100_000


async def test_small_extents_go_many_to_a_message() -> None:
    count = 3 * EXTENTS_PER_WRITE_MAX
    async with rig() as world:
        world.make_file(b"file", bytes(2 * count * P))
        client = world.clients[0]
        number = await client.open(b"file", os.O_WRONLY)
        with client.asks():
            for at in range(count):
                await client.write(number, 2 * at * P, b"x" * P)
        with client.asks(*["WriteExtents"] * 3):
            await trio.sleep(2)
        assert client.fs.cache.dirty_bytes == 0
        assert world.content(b"file") == (b"x" * P + bytes(P)) * count
        await client.close(number)


async def test_so_many_small_extents_do_not_wait_for_their_time() -> None:
    async with rig() as world:
        world.make_file(b"file", bytes(2 * (GATHERED_EXTENTS_MAX + 1) * 8))
        client = world.clients[0]
        number = await client.open(b"file", os.O_WRONLY)
        for at in range(GATHERED_EXTENTS_MAX + 1):
            await client.write(number, 16 * at, b"x" * 8)
        await trio.testing.wait_all_tasks_blocked()
        assert len(client.file(number).pages.dirty) < GATHERED_EXTENTS_MAX * 2 // 3
        assert client.sent("WriteExtents")
        await client.close(number)
        assert world.content(b"file") == (b"x" * 8 + bytes(8)) * (GATHERED_EXTENTS_MAX + 1)


async def test_what_has_been_dirty_longest_goes_although_a_file_is_emptied_and_written_all_the_time() -> None:
    async with rig() as world:
        world.make_file(b"busy")
        world.make_file(b"other")
        client = world.clients[0]
        busy, other = await client.open(b"busy", os.O_RDWR), await client.open(b"other", os.O_RDWR)
        await client.write(busy, 0, b"x")
        await client.write(other, 0, b"y")
        for _ in range(6):
            await client.fs.inode_changes.setattr(client.file(busy).inode, AttributeChanges(size=0))
            await client.write(busy, 0, b"x")
            await trio.sleep(0.3)
        assert world.content(b"other") == b"y"
        await client.close(busy)
        await client.close(other)
