"""Opening and closing on the client: what it costs, and what it leaves."""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Callable

import pytest
import trio
import trio.testing

from nfsfuse.engine.closes import RELEASE_SECONDS
from nfsfuse.engine.names import Absent, Found
from nfsfuse.machines.inodes import ROOT
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import RANGE_END, TokenMode
from nfsfuse.protocol.types import PAGE_SIZE, AttributeChanges, InodeHandle
from tests.helpers.fake_kernel import ME, Client, rig

pytestmark = pytest.mark.usefixtures("autojump_clock")

P = PAGE_SIZE


async def test_a_small_file_comes_with_its_open() -> None:
    async with rig() as world:
        world.make_file(b"small", b"hello")
        client = world.clients[0]
        node = await client.node(b"small")
        with client.asks("Open"):
            number = await client.fs.files.open(node, os.O_RDONLY)
            assert await client.read(number, 0, 4096) == b"hello"
            assert await client.read(number, 3, 4096) == b"lo"


async def test_opening_for_reading_under_tokens_needs_no_round_trip() -> None:
    async with rig() as world:
        world.make_file(b"file", b"x" * 100_000)
        client = world.clients[0]
        node = await client.node(b"file")
        first = await client.fs.files.open(node, os.O_RDONLY)
        assert await client.read(first, 0, 8192) == b"x" * 8192
        await client.close(first)
        with client.asks():
            again = await client.fs.files.open(node, os.O_RDONLY)
            await client.close(again)
        with client.asks():
            assert (await client.fs.names.getattr(node)).size == 100_000
            assert await client.node(b"file") == node


async def test_opening_for_writing_alone_takes_all_of_the_file_at_once() -> None:
    async with rig() as world:
        world.make_file(b"file", b"x" * 100)
        client = world.clients[0]
        node = await client.node(b"file")
        reading = await client.fs.files.open(node, os.O_RDONLY)
        assert await client.read(reading, 0, 100) == b"x" * 100
        with client.asks("Open"):
            number = await client.fs.files.open(node, os.O_RDWR)
            assert client.kernel.invalidated == [], "upgraded in place: nobody else has it"
            await client.write(number, 0, b"y" * P)
        assert client.file(number).tokens.everything() == [(0, RANGE_END, TokenMode.EXCLUSIVE)]


async def test_k2_opening_for_writing_gives_up_what_others_share() -> None:
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 3 * P)
        one, other = world.clients
        for client in world.clients:
            number = await client.open(b"file")
            assert await client.read(number, 0, 3 * P) == b"x" * 3 * P
        writing = await one.open(b"file", os.O_RDWR)
        tokens = one.file(writing).tokens
        assert tokens.shared() == []
        assert one.kernel.invalidated == [(0, 3 * P)]
        assert other.kernel.invalidated == []
        assert one.file(writing).pages.read(0, 1) is None
        await trio.testing.wait_all_tasks_blocked()
        world.check()
        # It comes back exclusively, when it is used.
        assert await one.read(writing, 0, P) == b"x" * P
        assert tokens.holds(0, P, TokenMode.EXCLUSIVE)
        assert other.kernel.invalidated, "the other had it cached"


async def test_giving_up_lets_a_read_in_until_its_last_invalidation_has_returned() -> None:
    """Found by reading: it was closed after the first of several ranges, and a read that held a folio of the
    second was parked while the kernel waited for that folio (deadlock 2)."""
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 200_000)
        one, other = world.clients
        await other.read(await other.open(b"file"), 0, 4 * P)
        reading = await one.open(b"file")
        for page in (0, 2):
            await one.read(reading, page * P, P)
        answers: list[bytes] = []

        async def read_the_second(start: int, end: int) -> None:
            if (start, end) == (2 * P, 3 * P) and not answers:
                with trio.fail_after(5):
                    answers.append(await one.read(reading, start, P))

        one.kernel.during_invalidation = read_the_second
        await one.open(b"file", os.O_RDWR)
        assert answers == [b"x" * P]
        assert one.kernel.invalidated == [(0, P), (2 * P, 3 * P), (2 * P, 3 * P)]


async def test_two_programs_that_open_for_writing_at_once_give_up_once_and_lose_nothing() -> None:
    """Found by reading: the second gave the tokens back while the kernel was still at the first's pages."""
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 200_000)
        one, other = world.clients
        await other.read(await other.open(b"file"), 0, 4 * P)
        await one.read(await one.open(b"file"), 0, 4 * P)
        go_on = trio.Event()
        opened: list[int] = []

        async def wait(start: int, end: int) -> None:
            await go_on.wait()

        async def open_and_write(page: int) -> None:
            number = await one.open(b"file", os.O_RDWR)
            opened.append(number)
            await one.write(number, page * P, b"w" * P)

        one.kernel.during_invalidation = wait
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_and_write, 0)
            nursery.start_soon(open_and_write, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert opened == []
            assert not [post for post in one.remote.posts if isinstance(post, m.ReturnTokens)]
            go_on.set()
        for number in opened:
            await one.close(number)
        assert world.content(b"file")[: 3 * P] == b"w" * 2 * P + b"x" * P


async def test_an_open_that_is_interrupted_leaves_the_file_usable() -> None:
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 200_000)
        one, other = world.clients
        await other.read(await other.open(b"file"), 0, P)
        await one.read(await one.open(b"file"), 0, P)
        go_on = trio.Event()

        async def wait(start: int, end: int) -> None:
            await go_on.wait()

        one.kernel.during_invalidation = wait
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.open, b"file", os.O_RDWR)
            interrupted = trio.CancelScope()
            await trio.testing.wait_all_tasks_blocked()
            with interrupted:
                interrupted.deadline = trio.current_time() + 1
                await one.open(b"file", os.O_RDWR)
            assert interrupted.cancelled_caught
            go_on.set()
        third = await one.open(b"file", os.O_RDWR)
        assert one.file(third).tokens.writers == 2
        await one.write(third, 0, b"y")
        await one.close(third)
        assert world.content(b"file")[:2] == b"yx"


@pytest.mark.parametrize("milliseconds", [50, 150])
async def test_a_new_file_of_a_killed_program_is_closed(milliseconds: int) -> None:
    """Found by reading: the answer came when nobody waited for it, and what it opened stayed open for ever;
    when the kernel forgot the file the mount ended."""
    async with rig(2, link_seconds=lambda: 0.1) as world:
        one, other = world.clients
        assert isinstance(await one.fs.names.lookup(ROOT, b"new"), Absent)
        with trio.move_on_after(milliseconds / 1000) as killed:
            await one.fs.files.create(ROOT, b"new", 0o644, os.O_RDWR, ME)
        assert killed.cancelled_caught
        assert one.fs.names.lookup_at_once(ROOT, b"new") is None, "only the server can tell"
        await trio.sleep(1)
        assert one.kernel.entries == [b"new"] * 2, "the kernel believed that there was nothing; asked meanwhile"
        assert len(one.fs.inodes) == 1, "the kernel was not told of it, and will not forget it"
        node = await one.node(b"new")
        file = one.fs.holdings.file(one.fs.inodes[node])
        assert (file.open_count, file.tokens.writers, file.open_ids) == (0, 0, [])
        assert len(one.remote.released) == 1
        one.fs.names.forget(node, 1)
        assert await other.node(b"new")


async def test_a_file_that_is_being_opened_by_creat_is_not_forgotten() -> None:
    """Found by the stress of names: open(O_CREAT) of a file that was there had been answered by the server, and
    the kernel forgot the other name by which it knew the file. An assertion ended the mount."""
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 3 * P)
        one = world.clients[0]
        for client in world.clients:
            number = await client.open(b"file")
            await client.read(number, 0, 3 * P)
            await client.close(number)
        node = await one.node(b"file")
        known = one.fs.inodes[node].lookups

        async def forget(start: int, end: int) -> None:
            assert one.fs.holdings.file(one.fs.inodes[node]).open_count == 1
            one.fs.names.forget(node, known)

        one.kernel.during_invalidation = forget
        number, found = await one.fs.files.create(ROOT, b"file", 0o644, os.O_RDWR, ME)
        assert one.kernel.invalidated == [(0, 3 * P)], "what both had was given up in between"
        assert found.inode is one.fs.inodes[node]
        assert found.inode.lookups == 1
        await one.write(number, 0, b"y")
        await one.close(number)
        one.fs.names.forget(node, 1)
        assert one.fs.inodes.by_handle(found.inode.handle) is None
        assert world.content(b"file")[:2] == b"yx"


@pytest.mark.parametrize("milliseconds", [50, 150])
async def test_names_that_a_killed_program_was_to_change_are_asked_for_anew(milliseconds: int) -> None:
    async with rig(link_seconds=lambda: 0.1) as world:
        for name in (b"old", b"gone", b"moved"):
            world.make_file(name)
        client = world.clients[0]
        names = client.fs.names
        for name in (b"gone", b"moved", b"here", b"made"):
            await names.lookup(ROOT, name)
        expired = client.kernel.entries
        for work, changed in (
            (lambda: names.unlink(ROOT, b"gone"), [b"gone"]),
            (lambda: names.rename(ROOT, b"moved", ROOT, b"here", 0), [b"here", b"moved"]),
            (lambda: names.mkdir(ROOT, b"made", 0o755, ME), [b"made"]),
        ):
            expired.clear()
            with trio.move_on_after(milliseconds / 1000) as killed:
                await work()
            assert killed.cancelled_caught
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(expired) == changed
            await trio.sleep(1)
            assert sorted(expired) == sorted(changed * 2), "once more when it was made"
        for name, there in ((b"gone", False), (b"moved", False), (b"here", True), (b"made", True)):
            assert isinstance(await names.lookup(ROOT, name), Found) == there, name


async def test_close_writes_back_before_it_returns_and_a_release_needs_no_wait() -> None:
    async with rig() as world:
        world.make_file(b"file")
        client = world.clients[0]
        number = await client.open(b"file", os.O_WRONLY)
        await client.write(number, 0, b"data")
        assert world.content(b"file") == b""
        await client.fs.files.flush(number)
        assert world.content(b"file") == b"data"
        assert not inspect.iscoroutinefunction(client.fs.files.release)
        with client.asks():
            client.fs.files.release(number)
        assert len(client.remote.released) == 1


async def test_closing_what_was_open_for_reading_asks_nobody() -> None:
    async with rig() as world:
        world.make_file(b"file", b"x")
        client = world.clients[0]
        number = await client.open(b"file")
        with client.asks():
            await client.close(number)


async def test_create_needs_one_round_trip_and_leaves_everything_to_its_maker() -> None:
    async with rig() as world:
        client = world.clients[0]
        with client.asks("Create"):
            number, found = await client.fs.files.create(
                1, b"new", 0o644, os.O_RDWR | os.O_CREAT | os.O_EXCL, ME
            )
            await client.write(number, 0, b"content")
            assert await client.read(number, 0, 100) == b"content"
            node_id = found.inode.node_id
            assert (await client.fs.names.getattr(node_id, size_only=True)).size == 7
        with client.asks("Write"):  # who asks for the times has it written back, and the close need not do that
            assert (await client.fs.names.getattr(node_id)).size == 7
            await client.close(number)
        assert world.content(b"new") == b"content"


async def test_truncation_drops_what_is_cached_here_and_elsewhere() -> None:
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 2 * P)
        one, other = world.clients
        reading = await other.open(b"file")
        assert await other.read(reading, 0, 2 * P) == b"x" * 2 * P
        writing = await one.open(b"file", os.O_RDWR)
        await one.write(writing, P, b"dirty")
        inode = one.file(writing).inode
        attributes = await one.fs.inode_changes.setattr(inode, AttributeChanges(size=100))
        assert attributes.size == 100
        assert one.file(writing).pages.valid.intervals(100) == []
        assert await one.read(writing, 0, 2 * P) == b"x" * 100
        assert await other.read(reading, 0, 2 * P) == b"x" * 100
        await one.write(writing, 200, b"beyond")  # what was cut off stays cut off
        assert await other.read(reading, 0, 2 * P) == b"x" * 100 + bytes(100) + b"beyond"


async def test_truncated_by_its_open() -> None:
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 2 * P)
        one, other = world.clients
        reading = await other.open(b"file")
        assert await other.read(reading, 0, P) == b"x" * P
        writing = await one.open(b"file", os.O_WRONLY | os.O_TRUNC)
        assert await other.read(reading, 0, P) == b""
        await one.write(writing, 0, b"new")
        assert await other.read(reading, 0, P) == b"new"


async def test_an_unlinked_open_file_opened_under_tokens_alone_stays_readable() -> None:
    async with rig(2) as world:
        world.make_file(b"file", b"x" * 100_000)
        one, other = world.clients
        node = await one.node(b"file")
        await one.close(await one.fs.files.open(node, os.O_RDONLY))
        with one.asks():
            number = await one.fs.files.open(node, os.O_RDONLY)
        await other.fs.names.unlink(1, b"file")
        assert await one.read(number, 90_000, 100_000) == b"x" * 10_000
        await one.close(number)


async def create(client: Client, name: bytes, content: bytes) -> int:
    """A new file, written and still open."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    number, _ = await client.fs.files.create(ROOT, name, 0o644, flags, ME)
    await client.write(number, 0, content)
    return number


def count_recalls(client: Client) -> list[m.Recall]:
    recalled: list[m.Recall] = []
    arrived = client.fs.recalls.arrived

    def recall(message: m.Recall, acknowledge: Callable[[m.Recalled], None]) -> None:
        recalled.append(message)
        arrived(message, acknowledge)

    client.owner.on_recall = recall
    return recalled


async def test_a_new_file_that_is_closed_can_be_read_by_others_without_a_recall() -> None:
    async with rig(2) as world:
        maker, reader = world.clients
        recalled = count_recalls(maker)
        number = await create(maker, b"new", b"hello")
        file = maker.file(number)
        assert file.tokens.holds(0, RANGE_END, TokenMode.EXCLUSIVE)
        await maker.close(number)
        assert file.tokens.everything() == [(0, RANGE_END, TokenMode.SHARED)]
        assert file.attributes.mode is TokenMode.SHARED
        await trio.sleep(RELEASE_SECONDS)
        await trio.testing.wait_all_tasks_blocked()
        with reader.asks("Lookup", "Open"):
            theirs = await reader.open(b"new")
            assert await reader.read(theirs, 0, P) == b"hello"
        assert recalled == []
        with maker.asks():
            again = await maker.open(b"new")
            assert await maker.read(again, 0, P) == b"hello"


async def test_new_files_that_are_read_before_the_server_knows_that_they_are_closed_cost_one_recall() -> None:
    async with rig(2) as world:
        maker, reader = world.clients
        recalled = count_recalls(maker)
        for name in (b"first", b"second"):
            await maker.close(await create(maker, name, b"hello"))
        for name, asked in ((b"first", ("Lookup", "Open")), (b"second", ("Lookup",))):
            with reader.asks(*asked):
                theirs = await reader.open(name)
                assert await reader.read(theirs, 0, P) == b"hello"
            await reader.close(theirs)
        (recall,) = recalled
        assert recall.token.mode is TokenMode.SHARED
        assert maker.remote.session.requests["Release"] == 1


async def test_a_new_file_is_opened_for_writing_again_with_one_round_trip() -> None:
    async with rig() as world:
        client = world.clients[0]
        await client.close(await create(client, b"new", b"hello"))
        for expected in (("Open",), ()):
            with client.asks(*expected):
                number = await client.open(b"new", os.O_RDWR)
                await client.write(number, 0, b"j")
            assert client.file(number).tokens.everything() == [(0, RANGE_END, TokenMode.EXCLUSIVE)]
            await client.close(number)


async def test_a_new_file_that_others_want_already_is_not_shared_at_its_close() -> None:
    """Their recall takes what there is: it must not find less than it has been told it takes."""
    async with rig(2) as world:
        maker, reader = world.clients
        number = await create(maker, b"new", b"x" * P)
        await maker.touch(number, 0, P)
        go_on = trio.Event()

        async def wait(start: int, end: int) -> None:
            await go_on.wait()

        maker.kernel.during_invalidation = wait
        await maker.fs.files.flush(number)
        theirs = await reader.open(b"new")
        read: list[bytes] = []

        async def read_it() -> None:
            read.append(await reader.read(theirs, 0, P))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_it)
            await trio.testing.wait_all_tasks_blocked()
            file = maker.file(number)
            assert file.tokens.revocations
            maker.fs.files.release(number)
            assert not file.tokens.shared()
            go_on.set()
        assert read == [b"x" * P]


async def test_what_the_server_refuses_of_a_new_file_is_not_shared() -> None:
    """K3: it stays dirty until it is given up."""

    def full(operation: str, handle: InodeHandle | None) -> None:
        if operation == "write":
            raise FsError(errno.ENOSPC)

    async with rig(fault=full) as world:
        client = world.clients[0]
        number = await create(client, b"new", b"x" * P)
        file = client.file(number)
        with pytest.raises(FsError):
            await client.fs.files.flush(number)
        client.fs.files.release(number)
        assert not file.tokens.shared()


# --- contents that come with their names ---


async def test_who_opens_files_gets_their_contents_with_their_names() -> None:
    async with rig() as world:
        for name in (b"first", b"second", b"third"):
            world.make_file(name, name)
        client = world.clients[0]
        with client.asks("Lookup", "Open"):
            await client.close(await client.open(b"first"))
        for name in (b"second", b"third"):
            with client.asks("Lookup"):
                number = await client.open(name)
                assert await client.read(number, 0, P) == name
                await client.close(number)
        assert client.sent("Release") == []


async def test_who_only_looks_at_names_gets_no_contents_after_a_while() -> None:
    async with rig() as world:
        names = [b"%d" % number for number in range(20)]
        for name in names:
            world.make_file(name, name)
        client = world.clients[0]
        await client.close(await client.open(b"0"))
        for name in names[1:]:
            await client.node(name)
        inodes = [client.fs.inodes[await client.node(name)] for name in names]
        held = [client.fs.holdings.existing_file(inode.handle) for inode in inodes]
        came = [file is not None and bool(file.pages.valid) for file in held]
        assert came[1]
        assert not any(came[4:])


async def test_a_content_that_came_ahead_is_recalled_like_any_other() -> None:
    async with rig(2) as world:
        for name in (b"first", b"second"):
            world.make_file(name, b"old")
        reader, writer = world.clients
        await reader.close(await reader.open(b"first"))
        await reader.node(b"second")
        theirs = await writer.open(b"second", os.O_WRONLY)
        await writer.fs.files.write(theirs, 0, b"new", page=False)
        number = await reader.open(b"second")
        assert await reader.read(number, 0, P) == b"new"


async def test_a_file_that_somebody_writes_does_not_come_ahead() -> None:
    """Nobody is asked to give anything up for what may not be wanted."""
    async with rig(2) as world:
        for name in (b"first", b"second"):
            world.make_file(name, b"old")
        reader, writer = world.clients
        theirs = await writer.open(b"second", os.O_WRONLY)
        await writer.fs.files.write(theirs, 0, b"new", page=False)
        await reader.close(await reader.open(b"first"))
        node = await reader.node(b"second")
        assert not reader.fs.holdings.file(reader.fs.inodes[node]).pages.valid
        assert writer.file(theirs).tokens.holds(0, P, TokenMode.EXCLUSIVE)


async def test_what_is_no_small_file_has_no_content_to_come_ahead() -> None:
    async with rig() as world:
        client = world.clients[0]
        world.make_file(b"first", b"x")
        world.make_file(b"empty")
        world.make_file(b"large", bytes((64 << 10) + 1))
        await client.fs.names.mkdir(ROOT, b"directory", 0o755, ME)
        await client.close(await client.open(b"first"))
        for name in (b"empty", b"large", b"directory"):
            client.fs.holdings.opens_ahead.opened()
            node = await client.node(name)
            assert client.fs.holdings.existing_file(client.fs.inodes[node].handle) is None


async def test_a_file_without_a_name_is_open_alone_and_can_be_given_one() -> None:
    async with rig(2) as world:
        one, two = world.clients
        with one.asks("TmpFile"):
            number, found = await one.fs.files.create(ROOT, None, 0o600, os.O_RDWR, ME)
            assert found.attributes.nlink == 0
            await one.write(number, 0, b"content")
        assert isinstance(await two.fs.names.lookup(ROOT, b"name"), Absent)
        await one.fs.names.link(found.inode.node_id, ROOT, b"name")
        other = await two.open(b"name")
        assert await two.read(other, 0, P) == b"content"
        await two.close(other)
        await one.close(number)
        world.check()
        assert world.content(b"name") == b"content"


async def test_a_file_without_a_name_is_gone_with_its_last_close() -> None:
    async with rig() as world:
        client = world.clients[0]
        number, found = await client.fs.files.create(ROOT, None, 0o600, os.O_RDWR, ME)
        again = await client.fs.files.open(found.inode.node_id, os.O_RDONLY)
        await client.close(number)
        assert await client.read(again, 0, P) == b""
        await client.close(again)
        client.fs.names.forget(found.inode.node_id, found.inode.lookups)
        await trio.sleep(2 * RELEASE_SECONDS)
        await trio.testing.wait_all_tasks_blocked()
        assert world.storage.orphans() == []
