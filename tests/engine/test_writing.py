"""Writes that had to wait: what the kernel has read in the meantime lacks them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.growths import Growths
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.engine.write_back import WriteBack
from nfsfuse.engine.writing import Writer
from nfsfuse.machines.data_tokens import Phase
from nfsfuse.machines.inodes import InodeTable
from nfsfuse.machines.page_cache import PageCache
from nfsfuse.machines.tellings import Age
from nfsfuse.machines.turns import Turn
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.tokens import TokenMode
from nfsfuse.protocol.types import PAGE_SIZE, Attributes, InodeHandle, Node


def node(handle: bytes, ino: int) -> Node:
    return Node(InodeHandle(handle), Attributes(ino, 0o100644, 1, 0, 0, 0, PAGE_SIZE, 8, 0, 0, 0, 0))


class Silent:
    """A server that nobody should ask."""

    def ask(self, message: Any, payload: Any, apply: Any, failed: Any) -> None:
        raise AssertionError(message)

    async def call(self, message: Any, payload: Any = b"", apply: Any = None) -> Any:
        raise AssertionError(message)

    def post(self, message: Any) -> None:
        raise AssertionError(message)

    def leased(self, *, finishing: bool = False) -> bool:
        return True

    async def until_leased(self) -> None:
        """The lease always runs."""


class Kernel:
    """Notes what is invalidated; *on_invalidate* is what happens during it."""

    def __init__(self) -> None:
        self.invalidated: list[tuple[int, int]] = []
        self.on_invalidate: Callable[[], None] = lambda: None

    async def invalidate_pages(
        self,
        node_id: int,
        start: int,
        end: int,
        returned: bytearray | None = None,
        turn: Turn | None = None,
    ) -> None:
        self.invalidated.append((start, end))
        await trio.lowlevel.checkpoint()
        action, self.on_invalidate = self.on_invalidate, lambda: None
        action()
        if returned is not None:
            returned[0] = 1

    async def write_back_pages(self, node_id: int, generation: int, start: int, end: int) -> None:
        raise AssertionError

    async def invalidate_attributes(self, node_id: int) -> None:
        raise AssertionError


class Refusing(Silent):
    """A server that refuses everything, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def call(self, message: Any, payload: Any = b"", apply: Any = None) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked.append(message)
        raise FsError(errno.EIO)


class Slow(Silent):
    """A server that takes writes, once `open` is set."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.written: list[tuple[int, bytes]] = []

    def ask(self, message: Any, payload: Any, apply: Any, failed: Any) -> None:
        assert isinstance(message, m.Write)
        self.written.append((message.offset, bytes(payload)))

        async def answer() -> None:
            await self.open.wait()
            apply(m.Written(node(b"file", 2).attributes), b"")

        trio.lowlevel.spawn_system_task(answer)


def make_write_back(remote: Any, cache: PageCache | None = None) -> WriteBack:
    """Whose answers come in the order in which they were made."""
    pages = cache or PageCache(1 << 20, guard=False)
    return WriteBack(remote, pages, 1 << 20, lambda file: None, lambda handle, attributes: Age.NEWEST)


def writer_of_a_file(
    kernel: Kernel, *, pages: int = 1, remote: Silent | None = None, write_back: WriteBack | None = None
) -> tuple[Writer, CachedFile]:
    """A file of *pages*, held exclusively, open for writing, its size known."""
    inodes = InodeTable(node(b"root", 1))
    cache = PageCache(1 << 20, guard=False)
    holdings = Holdings(Silent(), inodes, cache, lambda inode: None)
    if write_back is None:
        write_back = make_write_back(Silent(), cache)
    inode = inodes.known(node(b"file", 2))
    file = holdings.file(inode)
    file.tokens.writers = 1
    file.tokens.granted(0, pages * PAGE_SIZE, TokenMode.EXCLUSIVE)
    inode.attributes.granted(TokenMode.EXCLUSIVE)
    inode.attributes.learned(replace(node(b"file", 2).attributes, size=pages * PAGE_SIZE))
    inode.attributes.learned_no_xattrs()
    remote = remote or Silent()
    page_protocol, growths = PageProtocol(kernel, write_back), Growths(remote, kernel)
    return Writer(remote, holdings, write_back, page_protocol, growths), file


async def write_parked(writer: Writer, file: CachedFile, meanwhile: Callable[[], None]) -> None:
    """A write comes while a recall is closed; *meanwhile* is what happens before it runs."""
    recall = file.tokens.revoke(0, PAGE_SIZE, TokenMode.NONE)
    recall.phase = Phase.CLOSED

    async def write() -> None:
        await writer.write(file, 0, b"new", append=False, direct=False, page=False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert file.pages.read(0, 3) is None
        file.tokens.reduce(0, PAGE_SIZE, TokenMode.NONE)
        file.tokens.revoked(recall)
        file.tokens.granted(0, PAGE_SIZE, TokenMode.EXCLUSIVE)
        meanwhile()
        file.wake()
    assert file.pages.read(0, 3) == b"new"
    file.check()


async def test_a_page_read_while_a_write_was_parked_is_dropped_before_the_write_is_taken_in() -> None:
    """The kernel's page had the bytes, was dropped by the recall, and has been read again without them."""
    kernel = Kernel()
    writer, file = writer_of_a_file(kernel)
    await write_parked(writer, file, lambda: file.tokens.answered(0, PAGE_SIZE))
    assert kernel.invalidated == [(0, PAGE_SIZE)]
    assert not file.tokens.in_kernel


async def test_what_a_program_stored_into_that_page_does_not_undo_the_write() -> None:
    """The page comes back whole, with the old bytes, and is taken in first."""
    kernel = Kernel()
    writer, file = writer_of_a_file(kernel)

    def launder() -> None:
        assert file.pages.read(0, 3) is None, "the write was taken in before the page that lacks it"
        file.pages.write(0, b"old" + b"stored".ljust(PAGE_SIZE - 3), 0.0)

    kernel.on_invalidate = launder
    await write_parked(writer, file, lambda: file.tokens.answered(0, PAGE_SIZE))
    assert file.pages.read(0, 9) == b"newstored"


async def test_a_page_read_again_during_the_invalidation_is_dropped_again() -> None:
    kernel = Kernel()
    writer, file = writer_of_a_file(kernel)
    kernel.on_invalidate = lambda: file.tokens.answered(0, PAGE_SIZE)
    await write_parked(writer, file, lambda: file.tokens.answered(0, PAGE_SIZE))
    assert kernel.invalidated == [(0, PAGE_SIZE)] * 2
    assert not file.tokens.in_kernel


async def test_a_write_that_nobody_overtook_costs_no_invalidation() -> None:
    """Its page may be locked by itself, so that an invalidation would wait for ever."""
    kernel = Kernel()
    writer, file = writer_of_a_file(kernel)
    await write_parked(writer, file, lambda: None)
    assert kernel.invalidated == []


async def test_a_write_past_the_kernels_pages_drops_them_first() -> None:
    kernel = Kernel()
    writer, file = writer_of_a_file(kernel)
    file.tokens.answered(0, PAGE_SIZE)

    def launder() -> None:
        file.pages.write(0, b"old" + b"stored".ljust(PAGE_SIZE - 3), 0.0)

    kernel.on_invalidate = launder
    await writer.write(file, 0, b"new", append=False, direct=True, page=False)
    assert file.pages.read(0, 9) == b"newstored"
    assert kernel.invalidated == [(0, PAGE_SIZE)]


async def test_a_page_read_beside_the_invalidation_of_another_one_is_dropped_before_the_write_is_taken_in() -> (
    None
):
    """A write past the kernel's cache to two pages, of which the kernel has one. While that is taken away the
    kernel reads in the other, which is in nobody's way: it lacks the write, too."""
    kernel = Kernel()
    writer, file = writer_of_a_file(kernel, pages=2)
    file.tokens.answered(PAGE_SIZE, 2 * PAGE_SIZE)
    kernel.on_invalidate = lambda: file.tokens.answered(0, PAGE_SIZE)
    await writer.write(file, 0, b"new".ljust(2 * PAGE_SIZE), append=False, direct=True, page=False)
    assert kernel.invalidated == [(PAGE_SIZE, 2 * PAGE_SIZE), (0, PAGE_SIZE)]
    assert not file.tokens.in_kernel


async def test_a_waiting_write_drops_also_the_page_that_is_read_beside_the_invalidation_of_another_one() -> (
    None
):
    kernel = Kernel()
    writer, file = writer_of_a_file(kernel, pages=2)
    recall = file.tokens.revoke(0, PAGE_SIZE, TokenMode.EXCLUSIVE)
    recall.phase = Phase.CLOSED
    kernel.on_invalidate = lambda: file.tokens.answered(0, PAGE_SIZE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            partial(writer.write, file, 0, b"new".ljust(2 * PAGE_SIZE), append=False, direct=False, page=False)
        )
        await trio.testing.wait_all_tasks_blocked()
        file.tokens.answered(PAGE_SIZE, 2 * PAGE_SIZE)
        file.tokens.revoked(recall)
        file.wake()
    assert kernel.invalidated == [(PAGE_SIZE, 2 * PAGE_SIZE), (0, PAGE_SIZE)]


async def test_a_write_past_the_kernels_pages_waits_for_an_invalidation_that_is_under_way() -> None:
    """The page that is being taken away lacks the write, is dirty perhaps, and comes back whole."""
    kernel, server = Kernel(), Slow()
    write_back = make_write_back(server)
    writer, file = writer_of_a_file(kernel, write_back=write_back)
    file.tokens.answered(0, PAGE_SIZE)
    recall = file.tokens.revoke(0, PAGE_SIZE, TokenMode.NONE)
    assert file.tokens.invalidate(recall) == [(0, PAGE_SIZE)]
    page = b"old" + b"stored".ljust(PAGE_SIZE - 3)
    async with trio.open_nursery() as nursery:
        await nursery.start(write_back.run)
        async with trio.open_nursery() as writes:
            writes.start_soon(partial(writer.write, file, 0, b"new", append=False, direct=True, page=False))
            await trio.testing.wait_all_tasks_blocked()
            await writer.write(file, 0, page, append=False, direct=False, page=True)
            recall.phase = Phase.CLOSED
            file.tokens.revoked(recall)
            file.wake()
            await trio.testing.wait_all_tasks_blocked()
            assert file.pages.read(0, 9) == b"oldstored", "it is on its way"
            server.open.set()
        nursery.cancel_scope.cancel()
    assert file.pages.read(0, 9) == b"newstored"


@pytest.mark.parametrize(("pages", "hastened"), [(1, True), (16, True), (17, False)])
async def test_a_page_that_a_small_recall_has_written_back_goes_to_the_server_at_once(
    pages: int, hastened: bool
) -> None:
    """While the invalidation returns. What is recalled in bulk is gathered first, and goes in large writes."""
    server = Slow()
    write_back = make_write_back(server)
    writer, file = writer_of_a_file(Kernel(), pages=pages, write_back=write_back)
    file.tokens.answered(0, PAGE_SIZE)
    recall = file.tokens.revoke(0, pages * PAGE_SIZE, TokenMode.NONE)
    file.tokens.invalidate(recall)
    async with trio.open_nursery() as nursery:
        await nursery.start(write_back.run)
        writer.write_at_once(file, 0, bytes(PAGE_SIZE), append=False, direct=False, page=True)
        assert server.written == [(0, bytes(PAGE_SIZE))] * hastened
        server.open.set()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("direct", "data"), [(True, TokenMode.EXCLUSIVE), (False, TokenMode.NONE)])
async def test_a_direct_write_asks_for_data_with_the_attributes_also_if_it_holds_them(
    direct: bool, data: TokenMode
) -> None:
    """Livelock: four clients lost either while they waited for the other. A write through the kernel's cache
    must not ask for pages it holds: it may have one of them locked, which a recall of it would wait for."""
    remote = Refusing()
    writer, file = writer_of_a_file(Kernel(), remote=remote)
    file.attributes.reduced(TokenMode.NONE)
    with pytest.raises(FsError):
        await writer.write(file, 0, b"new", append=False, direct=direct, page=False)
    assert remote.asked == [m.GetToken(file.inode.handle, data, 0, PAGE_SIZE, TokenMode.EXCLUSIVE)]
