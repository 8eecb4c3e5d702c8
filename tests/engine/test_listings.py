"""Listings in the engine: round trips, what the kernel may keep of them, and what it was never told of."""

from __future__ import annotations

import errno
import os

import pytest
import trio
import trio.testing

from nfsfuse.engine.directories import SOUGHT_ENTRIES, Item
from nfsfuse.engine.names import STATISTICS_SECONDS
from nfsfuse.machines.inodes import ROOT
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.limits import LISTING_ENTRIES_MAX
from nfsfuse.protocol.tokens import Resource
from tests.helpers.fake_kernel import ME, Client, Rig, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")


async def show(client: Client, number: int, offset: int = 0, *, count: int | None = None) -> list[Item]:
    """What a kernel does with a listing, up to *count* entries: it counts each that it is told of."""
    shown: list[Item] = []
    while items := await client.fs.directories.read(number, offset):
        for item in items:
            if item.inode is not None:
                if len(shown) == count:
                    return shown
                item.inode.lookups += 1
                shown.append(item)
            offset = item.cookie
    return shown


def make_files(world: Rig, count: int) -> list[bytes]:
    names = [b"f%05d" % number for number in range(count)]
    for name in names:
        world.make_file(name)
    return names


async def test_a_directory_costs_a_round_trip_for_each_piece() -> None:
    async with rig() as world:
        names = make_files(world, LISTING_ENTRIES_MAX + 1)
        client = world.clients[0]
        number = client.fs.directories.opendir(ROOT).number
        with client.asks("ReadDir", "ReadDir"):
            assert [item.name for item in await show(client, number)] == names
        client.fs.directories.releasedir(number)
        number = client.fs.directories.opendir(ROOT).number
        with client.asks():
            assert [item.name for item in await show(client, number)] == names
        client.fs.directories.releasedir(number)


async def test_the_kernel_keeps_a_listing_until_a_name_changes_elsewhere() -> None:
    async with rig(2) as world:
        make_files(world, 3)
        one, other = world.clients
        opening = one.fs.directories.opendir(ROOT)
        assert (opening.cached, opening.kept) == (True, False)
        await show(one, opening.number)
        one.fs.directories.releasedir(opening.number)
        opening = one.fs.directories.opendir(ROOT)
        assert (opening.cached, opening.kept) == (True, True)
        assert one.kernel.invalidated == []
        await other.fs.names.mkdir(ROOT, b"new", 0o755, ME)
        assert len(one.kernel.invalidated) == 1, "a program that rewinds its listing must see it"
        assert b"new" in [item.name for item in await show(one, opening.number)]
        assert len(one.kernel.invalidated) > 1, "what it had read before may have come late"
        one.fs.directories.releasedir(opening.number)


async def test_what_was_listed_and_not_told_goes_back() -> None:
    """Found by reading: such inodes stayed for ever, with their tokens."""
    async with rig() as world:
        names = make_files(world, 100)
        client = world.clients[0]
        number = client.fs.directories.opendir(ROOT).number
        shown = await show(client, number, count=10)
        assert len(client.fs.inodes) == 101
        client.fs.directories.releasedir(number)
        assert len(client.fs.inodes) == 11
        assert len(client.remote.returned) == 90
        await trio.testing.wait_all_tasks_blocked()
        session = client.remote.session
        held = world.service.tokens.manager.handles_held(next(iter(world.service.sessions)))
        assert session is not None
        assert len(set(held)) == 11
        number = client.fs.directories.opendir(ROOT).number
        assert [item.name for item in await show(client, number)] == names, "and is listed again"
        client.fs.directories.releasedir(number)
        for item in shown:
            assert item.inode is not None
            client.fs.names.forget(item.inode.node_id, item.inode.lookups)
        assert {token.resource for token in client.remote.returned} == {Resource.ATTR}


async def test_a_listing_tells_who_has_no_extended_attributes() -> None:
    async with rig(2) as world:
        make_files(world, 2)
        one, other = world.clients
        await other.fs.xattrs.set(await other.node(b"f00001"), b"user.x", b"v", 0)
        number = one.fs.directories.opendir(ROOT).number
        first, second = [item.inode for item in await show(one, number)]
        assert first is not None
        assert second is not None
        with one.asks():
            for name in (b"user.x", b"security.capability", b"system.posix_acl_access"):
                with pytest.raises(FsError) as caught:
                    await one.fs.xattrs.get(first.node_id, name)
                assert caught.value.errno == errno.ENODATA
            assert await one.fs.xattrs.names(first.node_id) == ()
        assert await one.fs.xattrs.get(second.node_id, b"user.x") == b"v"
        await other.fs.xattrs.set(await other.node(b"f00000"), b"user.y", b"w", 0)
        assert await one.fs.xattrs.get(first.node_id, b"user.y") == b"w"
        one.fs.directories.releasedir(number)


async def test_how_full_the_filesystem_is_may_be_a_little_old() -> None:
    async with rig() as world:
        names = world.clients[0].fs.names
        with world.clients[0].asks("StatFs", "StatFs"):
            told = await names.statfs()
            assert await names.statfs() == told
            await trio.sleep(STATISTICS_SECONDS + 0.1)
            await names.statfs()


async def test_a_listing_of_files_that_others_are_writing_recalls_them_all_at_once() -> None:
    """Each has its attributes for itself; one recall after the other would take a round trip for each."""
    seconds = 0.01
    async with rig(2, link_seconds=lambda: seconds) as world:
        one, other = world.clients
        count = 50
        for number in range(count):
            opened, _ = await other.fs.files.create(ROOT, b"f%02d" % number, 0o644, os.O_RDWR, ME)
            await other.write(opened, 0, b"x" * (number + 1))
        listing = one.fs.directories.opendir(ROOT).number
        begin = trio.current_time()
        shown = await show(one, listing)
        assert trio.current_time() - begin < count * 2 * seconds / 2, "a fraction of a round trip for each"
        sizes = {item.name: item.attributes.size for item in shown if item.attributes is not None}
        assert sizes == {b"f%02d" % number: number + 1 for number in range(count)}
        one.fs.directories.releasedir(listing)


async def test_a_lease_that_runs_out_takes_the_kernels_listings() -> None:
    """Promise 8: they are read without asking."""
    async with rig() as world:
        make_files(world, 3)
        client = world.clients[0]
        number = client.fs.directories.opendir(ROOT).number
        await show(client, number)
        client.fs.directories.releasedir(number)
        client.fs.suspended()
        await trio.testing.wait_all_tasks_blocked()
        assert len(client.kernel.invalidated) == 1
        opening = client.fs.directories.opendir(ROOT)
        assert not opening.kept
        client.fs.directories.releasedir(opening.number)
        client.fs.resumed()


async def test_a_program_goes_where_it_likes_in_a_listing_that_is_known() -> None:
    """Wherever a listing has led costs nothing, and elsewhere few names: xfstests generic/676 goes to places at
    random, for which it took a whole piece each."""
    async with rig() as world:
        names = make_files(world, LISTING_ENTRIES_MAX + 200)
        client = world.clients[0]
        directories = client.fs.directories
        number = directories.opendir(ROOT).number
        shown = await show(client, number)
        with client.asks():
            last = LISTING_ENTRIES_MAX - 1  # of the first piece
            for at in (0, 5, 1000, last - 1, last, last + 100, 1):
                (found, *_) = await directories.read(number, shown[at].cookie)
                assert found.name == names[at + 1]
            assert await directories.read(number, shown[-1].cookie) == []
        directories.releasedir(number)


async def test_a_place_that_no_listing_has_led_to_costs_few_names() -> None:
    async with rig() as world:
        names = make_files(world, LISTING_ENTRIES_MAX + 200)
        client = world.clients[0]
        directories = client.fs.directories
        number = directories.opendir(ROOT).number
        cookies = [item.cookie for item in await show(client, number)]
        directories.releasedir(number)
        client.fs.holdings.directory(client.fs.inodes[ROOT]).cache.forget()
        number = directories.opendir(ROOT).number
        client.remote.calls.clear()
        for at in (1000, 10, 2000):
            (found, *_) = await directories.read(number, cookies[at])
            assert found.name == names[at + 1]
        limits = [message.limit for message, _ in client.remote.calls if isinstance(message, m.ReadDir)]
        assert limits == [SOUGHT_ENTRIES] * 3
        assert [item.name for item in await show(client, number, cookies[2000])] == names[2001:]
        directories.releasedir(number)
