"""Recalls on the client, one after the other and several at once, by a kernel that takes its time."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from nfsfuse.engine.name_drops import DROP_SECONDS_MAX
from nfsfuse.engine.names import Absent, Found
from nfsfuse.machines.inodes import ROOT, NodeId
from nfsfuse.machines.turns import Turn
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode, name_point
from nfsfuse.protocol.types import PAGE_SIZE, AttributeChanges
from nfsfuse_server.service.tokens import TOLD_SECONDS_MAX
from tests.helpers.fake_kernel import ME, Client, contended, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")

P = PAGE_SIZE


def held_until(go_on: trio.Event) -> Callable[[int, int], Awaitable[None]]:
    async def wait(start: int, end: int) -> None:
        await go_on.wait()

    return wait


async def test_a_second_recall_of_a_page_waits_for_the_first_ones_invalidation() -> None:
    """Found by reading: K5. The first recall takes the page off the books when its invalidation begins; the
    second found nothing there and was acknowledged while the kernel still had the page."""
    async with rig(1) as world:
        world.make_file(b"file", b"x" * 4 * P)
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        assert await client.touch(number, 0, P) == b"x" * P
        handle = client.file(number).inode.handle
        go_on = trio.Event()
        client.kernel.during_invalidation = held_until(go_on)
        acknowledged: list[str] = []
        for name, mode in (("shared", TokenMode.SHARED), ("none", TokenMode.NONE)):
            recall = m.Recall(Token(handle, Resource.DATA, 0, P, mode))
            client.fs.recalls.arrived(recall, lambda _, name=name: acknowledged.append(name))
        await trio.testing.wait_all_tasks_blocked()
        assert acknowledged == []
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert acknowledged == ["shared", "none"]
        assert not client.file(number).tokens.holds(0, P, TokenMode.SHARED)


async def test_a_write_back_that_began_between_two_invalidations_is_taken() -> None:
    """Found by a litmus program that hung. A page that was read in during the first invalidation is dirty
    when that returns, and something other than the recall writes it back: pread(2) past the page cache,
    msync(2), the kernel's flusher. The write was parked in that gap, and nobody woke it when the next
    invalidation began, which waited for it."""
    async with rig(1) as world:
        world.make_file(b"file", b"x" * P)
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        await client.touch(number, 0, P)
        file = client.file(number)
        passes = 0
        written = trio.Event()
        acknowledged = trio.Event()
        invalidate = client.kernel.invalidate_pages

        async def write_back() -> None:
            await client.fs.files.write(number, 0, b"y" * P, page=True)
            written.set()

        async def invalidation(
            node_id: NodeId, start: int, end: int, returned: bytearray | None = None, turn: Turn | None = None
        ) -> None:
            nonlocal passes
            passes += 1
            if passes == 1:
                await client.touch(number, 0, P)  # it is up to date in the kernel again
                await invalidate(node_id, start, end, returned, turn)
                assert file.tokens.parked(0, P)
                nursery.start_soon(write_back)
                await trio.testing.wait_all_tasks_blocked()
            else:
                await written.wait()  # the kernel waits for a folio under write-back
                await invalidate(node_id, start, end, returned, turn)

        client.kernel.invalidate_pages = invalidation  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            recall = m.Recall(Token(file.inode.handle, Resource.DATA, 0, P, TokenMode.NONE))
            client.fs.recalls.arrived(recall, lambda _: acknowledged.set())
            with trio.fail_after(1):
                await acknowledged.wait()
        assert passes == 2
        assert world.content(b"file") == b"y" * P


async def test_pages_that_others_want_are_not_taken_before_the_program_has_gone_on_that_has_read_them() -> None:
    """From the second recall on: before that nobody looks at the programs behind reads."""
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 2 * P)
        one, two = world.clients
        number, other = await one.open(b"file", os.O_RDWR), await two.open(b"file", os.O_RDWR)
        for _ in range(2):
            await one.fs.files.read(number, 0, P, cached=True, thread=11)
            await two.touch(other, 0, P)
        first, second = one.kernel.turns
        assert first is None
        assert second is not None
        assert (second.start, second.end, second.thread) == (0, P, 11)
        assert (second.times, second.nanoseconds) == one.kernel.processor(11)
        await one.fs.files.read(number, 0, P, cached=True)
        await two.touch(other, 0, P)
        assert one.kernel.turns[2:] == [None], "no program waits: it is read ahead, say"
        await one.close(number)
        await two.close(other)


async def test_two_recalls_of_attributes_at_once_are_both_in_progress() -> None:
    """Found by reading: the end of the first made the kernel believe the attributes again, which the second
    was taking away."""
    async with rig(1) as world:
        world.make_file(b"file", b"x")
        client = world.clients[0]
        number = await client.open(b"file", os.O_RDWR)
        attributes = client.file(number).attributes
        attributes.kernel_trusts = True
        go_on = trio.Event()

        async def invalidate(node_id: int) -> bool:
            await go_on.wait()
            return True

        client.kernel.invalidate_attributes = invalidate  # type: ignore[method-assign,assignment]
        handle = client.file(number).inode.handle
        acknowledged: list[m.Recalled] = []
        for mode in (TokenMode.SHARED, TokenMode.NONE):
            recall = m.Recall(Token(handle, Resource.ATTR, 0, RANGE_END, mode))
            client.fs.recalls.arrived(recall, acknowledged.append)
        await trio.testing.wait_all_tasks_blocked()
        assert len(acknowledged) == 1
        assert attributes.revoking
        known = attributes.known
        assert known is None or not attributes.may_be_trusted(known)
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(acknowledged) == 2
        assert not attributes.revoking
        assert attributes.known is None


async def test_attributes_that_the_kernel_has_been_told_but_not_heard_are_distrusted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The answer to the lookup that makes the inode known is on its way, with the attributes: a notification
    finds nothing. It is sent again until it does, or until the kernel has forgotten the inode."""
    async with rig(1) as world:
        world.make_file(b"file", b"x")
        client = world.clients[0]
        node = await client.node(b"file")
        inode = client.fs.inodes[node]
        inode.attributes.kernel_trusts = True
        answers = [False, False, True]

        async def invalidate(node_id: int) -> bool:
            await trio.lowlevel.checkpoint()
            return answers.pop(0)

        client.kernel.invalidate_attributes = invalidate  # type: ignore[method-assign,assignment]
        recall = m.Recall(Token(inode.handle, Resource.ATTR, 0, RANGE_END, TokenMode.NONE))
        acknowledged: list[m.Recalled] = []
        client.fs.recalls.arrived(recall, acknowledged.append)
        await trio.sleep(1)
        assert acknowledged
        assert answers == []

        inode.attributes.granted(TokenMode.SHARED)
        inode.attributes.kernel_trusts = True
        answers += [False] * 100
        client.fs.recalls.arrived(recall, acknowledged.append)
        await trio.sleep(0.01)
        assert len(acknowledged) == 1
        inode.lookups = 0  # FUSE_FORGET
        await trio.sleep(0.01)
        assert len(acknowledged) == 2


async def test_what_was_recalled_is_written_back_first() -> None:
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 100_000)
        one, other = world.clients
        number = await one.open(b"file", os.O_RDWR)
        await one.write(number, P, b"dirty")
        reading = await other.open(b"file")
        assert await other.read(reading, P, 5) == b"dirty"
        assert one.kernel.invalidated == [], "nothing is in the kernel by a write past its page cache"
        await one.touch(number, 0, 4 * P)
        await one.write(number, 0, b"y" * 2 * P)
        assert one.kernel.invalidated == [(0, 2 * P)], "its pages lacked what was written"
        one.kernel.invalidated.clear()
        await one.touch(number, 0, 4 * P)
        assert await other.read(reading, P, 5) == b"y" * 5
        assert one.kernel.invalidated == [(P, 2 * P)], "the page that was asked for, no more"
        await one.close(number)


async def test_only_the_range_in_the_way_is_recalled() -> None:
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 100_000)
        one, other = world.clients
        first, second = [await client.open(b"file", os.O_RDWR) for client in world.clients]
        await one.write(first, 0, b"1" * P)
        await other.write(second, 8 * P, b"2" * P)
        assert one.kernel.invalidated == []
        assert one.file(first).tokens.holds(0, 8 * P, TokenMode.EXCLUSIVE)
        assert one.file(first).tokens.holds(9 * P, 20 * P, TokenMode.EXCLUSIVE)
        assert other.file(second).tokens.everything() == [(8 * P, 9 * P, TokenMode.EXCLUSIVE)]


async def test_a_large_range_of_dirty_pages_is_written_back_in_bulk_first() -> None:
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 200_000)
        one, other = world.clients
        number = await one.open(b"file", os.O_RDWR)
        await one.touch(number, 0, 32 * P)  # stores into these need not be told
        await other.read(await other.open(b"file"), 0, 32 * P)
        assert one.kernel.bulk == one.kernel.invalidated == [(0, 32 * P)]


async def test_a_recall_of_what_was_given_up_already_is_acknowledged_at_once() -> None:
    async with rig(1) as world:
        handle = world.make_file(b"never used")
        acknowledged: list[m.Recalled] = []
        for resource in Resource:
            recall = m.Recall(Token(handle, resource, 0, P, TokenMode.NONE))
            world.clients[0].fs.recalls.arrived(recall, acknowledged.append)
        assert len(acknowledged) == 3


# --- names ---


async def test_names_are_believed_until_another_client_changes_them() -> None:
    async with rig(2) as world:
        world.make_file(b"there")
        one, other = world.clients
        found = await one.fs.names.lookup(ROOT, b"there")
        absent = await one.fs.names.lookup(ROOT, b"absent")
        assert isinstance(found, Found)
        assert found.lasting
        assert absent == Absent(lasting=True)
        with one.asks():
            await one.fs.names.lookup(ROOT, b"there")
            await one.fs.names.lookup(ROOT, b"absent")
        await other.fs.names.unlink(ROOT, b"there")
        await other.fs.names.mkdir(ROOT, b"absent", 0o755, ME)
        assert sorted(one.kernel.entries) == [b"absent", b"there"]
        assert isinstance(await one.fs.names.lookup(ROOT, b"there"), Absent)
        assert isinstance(await one.fs.names.lookup(ROOT, b"absent"), Found)


async def test_a_name_is_expired_without_its_directory_s_lock_where_an_operation_is_pending_in_it() -> None:
    """Deadlock 6. The notification follows, for who has looked already."""
    async with rig(2) as world:
        world.make_file(b"there")
        one, other = world.clients
        await one.node(b"there")
        unlocked = trio.Event()

        async def wait_for_the_lock(parent: int, name: bytes) -> None:
            await unlocked.wait()
            one.kernel.entries.append(name)

        one.kernel.expire_entry = wait_for_the_lock  # type: ignore[method-assign,assignment]
        with one.fs.holdings.directory(one.fs.inodes[ROOT]).pending():
            began = trio.current_time()
            await other.fs.names.unlink(ROOT, b"there")
            assert trio.current_time() - began < DROP_SECONDS_MAX, "it is known to be locked"
        assert one.kernel.at_once == [b"there"]
        assert one.fs.name_drops.doubts, "somebody may go on from it"
        unlocked.set()
        await trio.testing.wait_all_tasks_blocked()
        assert one.kernel.entries == [b"there"]
        assert not one.fs.name_drops.doubts
        assert one.kernel.epochs == 0


async def test_a_name_is_expired_without_a_lock_that_an_operation_elsewhere_has() -> None:
    """Found by the stress of names: rename(2) between two directories holds the locks of both while it looks a
    name up in one of them; the other seemed idle, and the invalidation of a name in it waited for ever."""
    async with rig(2) as world:
        world.make_file(b"there")
        one, other = world.clients
        await one.node(b"there")
        unlocked = trio.Event()

        async def wait_for_the_lock(parent: int, name: bytes) -> None:
            await unlocked.wait()
            one.kernel.entries.append(name)

        one.kernel.expire_entry = wait_for_the_lock  # type: ignore[method-assign,assignment]
        await other.fs.names.unlink(ROOT, b"there")
        assert one.kernel.at_once == [b"there"]
        assert isinstance(await one.fs.names.lookup(ROOT, b"there"), Absent)
        assert one.kernel.entries == []
        unlocked.set()
        await trio.testing.wait_all_tasks_blocked()
        assert one.kernel.entries == [b"there"]


async def test_where_the_daemon_cannot_look_a_new_epoch_is_made() -> None:
    async with rig(2) as world:
        world.make_file(b"there")
        one, other = world.clients
        await one.node(b"there")

        async def cannot(*_: object) -> bool:
            return False

        one.kernel.expire_entry_at_once = cannot  # type: ignore[method-assign]
        with one.fs.holdings.directory(one.fs.inodes[ROOT]).pending():
            await other.fs.names.unlink(ROOT, b"there")
        assert one.kernel.epochs == 1


async def test_a_recall_does_not_wait_for_a_kernel_that_is_stuck_in_a_listing() -> None:
    """Found by the stress of names, deadlock 7: a listing's answer is taken in name by name, and waits at one
    that another program looks up, which waits for the server, which waits for this recall of a later one."""
    async with rig(2) as world:
        world.make_file(b"file")
        one, other = world.clients
        node, inode = await one.node(b"file"), other.fs.inodes[await other.node(b"file")]
        one.fs.inodes[node].lookups = 1
        attributes = one.fs.inodes[node].attributes
        attributes.kernel_trusts = True
        knows = trio.Event()
        told: list[bool] = []

        async def invalidate(node_id: int) -> bool:
            await trio.lowlevel.checkpoint()
            told.append(knows.is_set())
            return knows.is_set()

        one.kernel.invalidate_attributes = invalidate  # type: ignore[method-assign]
        with trio.fail_after(1):
            await other.fs.inode_changes.setattr(inode, AttributeChanges(mode=0o600))
        assert attributes.distrusting == 1, "it goes on"
        knows.set()
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.01)
        assert told[-1]
        assert attributes.distrusting == 0


async def test_the_kernel_is_told_of_a_last_name_that_has_been_removed_elsewhere() -> None:
    """It tells who watches the file, or the directory. A name of several is only expired, and nothing is told
    of what fails."""
    async with rig(2) as world:
        for name in (b"alone", b"first", b"replaced", b"new"):
            world.make_file(name)
        one, other = world.clients
        await other.fs.names.mkdir(ROOT, b"directory", 0o755, ME)
        await other.fs.names.mkdir(await other.node(b"directory"), b"within", 0o755, ME)
        await other.fs.names.link(await other.node(b"first"), ROOT, b"second")
        alone, replaced = await one.node(b"alone"), await one.node(b"replaced")
        await one.node(b"first")
        directory = await one.node(b"directory")
        with pytest.raises(FsError):
            await other.fs.names.rmdir(ROOT, b"directory")
        await other.fs.names.unlink(ROOT, b"alone")
        await other.fs.names.unlink(ROOT, b"first")
        await other.fs.names.rename(ROOT, b"new", ROOT, b"replaced", 0)
        await trio.testing.wait_all_tasks_blocked()
        assert one.kernel.entries == [b"directory", b"alone", b"first", b"replaced"]
        assert one.kernel.deleted == [alone, replaced]
        await one.node(b"directory")
        await other.fs.names.rmdir(await other.node(b"directory"), b"within")
        await other.fs.names.rmdir(ROOT, b"directory")
        await trio.testing.wait_all_tasks_blocked()
        assert one.kernel.deleted == [alone, replaced, directory]


async def test_what_has_been_found_at_a_removed_name_since_is_not_dropped() -> None:
    async with rig(2) as world:
        world.make_file(b"name")
        one, other = world.clients
        directory, node = one.fs.holdings.directory(one.fs.inodes[ROOT]), await one.node(b"name")
        handle = one.fs.inodes[node].handle
        await other.fs.names.rename(ROOT, b"name", ROOT, b"elsewhere", 0)
        await other.fs.names.mknod(ROOT, b"name", 0o100644, 0, ME)
        await one.node(b"name")
        one.fs.name_drops.gone(m.Gone(directory.inode.handle, b"name", handle))
        await trio.testing.wait_all_tasks_blocked()
        assert one.kernel.deleted == []


async def test_a_directory_that_was_moved_elsewhere_is_found_where_it_is_now() -> None:
    """Before who has moved it goes on; and again, when it goes on from there."""
    async with rig(2) as world:
        one, other = world.clients
        await other.fs.names.mkdir(ROOT, b"was", 0o755, ME)
        await one.node(b"was")
        await other.fs.names.rename(ROOT, b"was", ROOT, b"is", 0)
        assert one.kernel.found == [b"is"]
        await trio.testing.wait_all_tasks_blocked()
        await other.fs.names.rename(ROOT, b"is", ROOT, b"is now", 0)
        assert one.kernel.found == [b"is", b"is now"]


async def test_who_moves_a_directory_does_not_wait_long_for_a_client_that_cannot_find_it() -> None:
    async with rig(2) as world:
        one, other = world.clients
        await other.fs.names.mkdir(ROOT, b"was", 0o755, ME)
        await one.node(b"was")

        async def stuck(*_: object) -> None:
            await trio.sleep_forever()

        one.kernel.find_entry = stuck  # type: ignore[method-assign]
        began = trio.current_time()
        await other.fs.names.rename(ROOT, b"was", ROOT, b"is", 0)
        assert trio.current_time() - began == pytest.approx(TOLD_SECONDS_MAX)


async def test_a_renamed_name_that_was_not_left_to_us_is_not_believed() -> None:
    """Found by reading: K4. The kernel moves its entry, good for ever, to a name without a token."""
    async with rig(1) as world:
        world.make_file(b"old")
        client = world.clients[0]
        await client.node(b"old")
        point = name_point(b"new")
        await client.fs.names.rename(ROOT, b"old", ROOT, b"new", 0)
        assert client.kernel.at_once == [], "both names are held"
        recall = m.Recall(Token(client.fs.inodes[ROOT].handle, Resource.DIR, point, point + 1, TokenMode.NONE))
        directory = client.fs.holdings.directory(client.fs.inodes[ROOT])
        names = directory.cache.revoke(point, point + 1)  # it is being recalled while the rename is answered
        await client.fs.names.rename(ROOT, b"new", ROOT, b"old", 0)
        assert client.kernel.at_once == [b"new"], "what it moves is expired before it does"
        directory.cache.revoked(recall.token.start, recall.token.end, names)


async def list_all(client: object, number: int, offset: int) -> list[tuple[bytes, int, bool]]:
    items = await client.fs.directories.read(number, offset)  # type: ignore[attr-defined]
    return [(item.name, item.cookie, item.lasting) for item in items]


async def test_a_file_removed_elsewhere_does_not_fail_a_listing_shown_in_pieces() -> None:
    """Found by reading: ESTALE came out of readdir(3)."""
    async with rig(2) as world:
        names = [b"f%04d" % number for number in range(600)]
        for name in names:
            world.make_file(name)
        one, other = world.clients
        number = one.fs.directories.opendir(ROOT).number
        first = await list_all(one, number, 0)
        shown = {name for name, _, _ in first}
        left = [name for name in names if name not in shown]
        for name in left[:20]:
            await other.fs.names.unlink(ROOT, name)
        seen, offset = set(shown), first[-1][1]
        while more := await list_all(one, number, offset):
            seen |= {name for name, _, _ in more}
            offset = more[-1][1]
        assert set(names) - set(left[:20]) <= seen
        one.fs.directories.releasedir(number)


async def test_a_name_changed_elsewhere_since_it_was_listed_is_shown_but_not_believed() -> None:
    """Found by reading: K4. The rest of a listing was believed although another client had renamed a file in
    it, once the client held a token for that name again."""
    async with rig(2) as world:
        names = [b"f%04d" % number for number in range(600)]
        for name in names:
            world.make_file(name)
        one, other = world.clients
        number = one.fs.directories.opendir(ROOT).number
        first = await list_all(one, number, 0)
        assert all(lasting for name, _, lasting in first if name not in (b".", b".."))
        shown = {name for name, _, _ in first}
        moved = next(name for name in names if name not in shown)
        await other.fs.names.rename(ROOT, moved, ROOT, b"elsewhere", 0)
        assert isinstance(await one.fs.names.lookup(ROOT, moved), Absent)
        second = await list_all(one, number, first[-1][1])
        assert not [name for name, _, lasting in second if name == moved and lasting]
        assert isinstance(await one.fs.names.lookup(ROOT, moved), Absent)
        one.fs.directories.releasedir(number)


# --- who was granted a page and was killed before he could use it ---


async def test_pages_of_a_killed_program_do_not_wait_for_it() -> None:
    """Found by reading: the grant to a read or write that was killed while it was on its way entitled nobody to
    use the page once, and every recall of it waited for that for ever: its client was fenced."""

    async def read(client: Client, number: int) -> None:
        await client.read(number, 0, 3)

    async def write(client: Client, number: int) -> None:
        await client.write(number, 0, b"other")

    crossed = 0
    for work in (read, write):
        for milliseconds in range(50, 700, 50):
            async with rig(2, link_seconds=lambda: 0.1) as world:
                one, number, other, elsewhere = await contended(world)
                with trio.move_on_after(milliseconds / 1000) as killed:
                    await work(other, elsewhere)
                await trio.sleep(1)  # until everything has arrived
                crossed += killed.cancelled_caught and bool(other.file(elsewhere).tokens.held)
                with trio.fail_after(5):
                    assert await one.read(number, 0, 3) in (b"one", b"oth")
    assert crossed


# --- attributes ---


async def test_a_mode_changed_elsewhere_is_seen_at_once() -> None:
    async with rig(2) as world:
        world.make_file(b"file")
        one, other = world.clients
        node, inode = await one.node(b"file"), other.fs.inodes[await other.node(b"file")]
        for mode in (0o600, 0o640):
            await other.fs.inode_changes.setattr(inode, AttributeChanges(mode=mode))
            assert (await one.fs.names.getattr(node)).mode & 0o7777 == mode
            with one.asks():
                await one.fs.names.getattr(node)


async def test_an_absent_extended_attribute_is_remembered_until_one_is_set_elsewhere() -> None:
    async with rig(2) as world:
        world.storage.setxattr(world.make_file(b"file"), b"user.other", b"1", 0)
        one, other = world.clients
        node, elsewhere = await one.node(b"file"), await other.node(b"file")
        for _ in range(2):
            with pytest.raises(FsError) as caught:
                await one.fs.xattrs.get(node, b"user.x")
            assert caught.value.errno == errno.ENODATA
        assert len(one.sent("GetXattr")) == 1
        await other.fs.xattrs.set(elsewhere, b"user.x", b"v", 0)
        assert await one.fs.xattrs.get(node, b"user.x") == b"v"
