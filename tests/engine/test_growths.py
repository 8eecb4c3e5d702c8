"""A file becomes longer: who is told, when, and what it costs."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from nfsfuse.machines.inodes import NodeId
from nfsfuse.protocol.types import AttributeChanges
from tests.helpers.fake_kernel import Client, FakeKernel, Rig, rig

APPEND = os.O_WRONLY | os.O_APPEND


class SlowKernel(FakeKernel):
    """It takes as long over a growth as `gate` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()

    async def grow(self, node_id: NodeId, generation: int, size: int) -> bool:
        await self.gate.wait()
        return await super().grow(node_id, generation, size)


async def write(client: Client) -> None:
    number = await client.open(b"file", os.O_RDWR)
    await client.write(number, 190, b"n" * 10)


async def append(client: Client) -> None:
    await client.write(await client.open(b"file", APPEND), 100, b"n" * 100)


async def truncate(client: Client) -> None:
    inode = client.fs.inodes[await client.node(b"file")]
    await client.fs.inode_changes.setattr(inode, AttributeChanges(size=200))


async def allocate(client: Client) -> None:
    file = client.file(await client.open(b"file", os.O_RDWR))
    await client.fs.ranges.fallocate(file, 0, 0, 200)


async def copy(client: Client) -> None:
    file = client.file(await client.open(b"file", os.O_RDWR))
    assert await client.fs.ranges.copy(file, 0, file, 100, 100) == 100


GROWTHS = (write, append, truncate, allocate, copy)


async def watched(world: Rig, mode: int = os.O_RDONLY) -> int:
    """A file of 100 bytes that the second client has open; there."""
    world.make_file(b"file", b"o" * 100)
    return await world.clients[1].open(b"file", mode)


@pytest.mark.parametrize("mode", [os.O_RDONLY, os.O_RDWR])
@pytest.mark.parametrize("grow", GROWTHS)
async def test_whoever_has_it_open_knows_before_the_call_returns(
    autojump_clock: trio.testing.MockClock, grow: Callable[[Client], Awaitable[None]], mode: int
) -> None:
    async with rig(2) as world:
        await watched(world, mode)
        await grow(world.clients[0])
        assert world.clients[1].kernel.grown == [200]
        assert world.clients[0].kernel.grown == []


@pytest.mark.parametrize("grow", GROWTHS)
async def test_the_call_waits_for_that_and_so_does_who_wants_to_change_it_again(
    autojump_clock: trio.testing.MockClock, grow: Callable[[Client], Awaitable[None]]
) -> None:
    """A truncation that came before somebody knows of the growth would be undone there by it."""
    done: list[str] = []
    async with rig(3, make_kernel=SlowKernel) as world, trio.open_nursery() as nursery:
        await watched(world)
        world.clients[2].kernel.gate.set()  # type: ignore[attr-defined]

        async def grow_it() -> None:
            await grow(world.clients[0])
            done.append("longer")

        async def cut() -> None:
            inode = world.clients[2].fs.inodes[await world.clients[2].node(b"file")]
            await world.clients[2].fs.inode_changes.setattr(inode, AttributeChanges(size=50))
            done.append("shorter")

        await world.clients[2].node(b"file")
        nursery.start_soon(grow_it)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(cut)
        await trio.testing.wait_all_tasks_blocked()
        assert done == []
        world.clients[1].kernel.gate.set()  # type: ignore[attr-defined]
        await trio.testing.wait_all_tasks_blocked()
        assert done == ["longer", "shorter"]


async def test_data_are_given_up_while_others_are_told(autojump_clock: trio.testing.MockClock) -> None:
    """What waits for a page may be what keeps a kernel from being told."""
    async with rig(2, make_kernel=SlowKernel) as world, trio.open_nursery() as nursery:
        number = await watched(world)
        nursery.start_soon(append, world.clients[0])
        await trio.testing.wait_all_tasks_blocked()
        read = world.clients[1].fs.reader.read_at_once
        assert read(world.clients[1].file(number), 0, 100, cached=False) is None
        world.clients[1].kernel.gate.set()  # type: ignore[attr-defined]
        assert len(await world.clients[1].read(number, 0, 4096)) == 200


async def test_who_is_alone_with_it_asks_nobody(autojump_clock: trio.testing.MockClock) -> None:
    async with rig(2) as world:
        other = await watched(world)
        await world.clients[1].close(other)
        number = await world.clients[0].open(b"file", os.O_RDWR)
        await world.clients[0].write(number, 0, b"n" * 110)
        world.clients[0].remote.calls.clear()
        for end in range(120, 200, 10):
            await world.clients[0].write(number, end - 10, b"n" * 10)
        assert world.clients[0].remote.calls == []
        assert world.clients[1].kernel.grown == []


async def test_when_others_have_closed_it_they_are_asked_once_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with rig(2) as world:
        other = await watched(world)
        number = await world.clients[0].open(b"file", os.O_RDWR)
        await world.clients[0].write(number, 0, b"n" * 110)
        await world.clients[1].close(other)
        await trio.sleep(0.2)  # closes are told together; what is dirty is not written back yet
        for end, asked in ((120, ["Grown"]), (130, []), (140, [])):
            with world.clients[0].asks(*asked):
                await world.clients[0].write(number, end - 10, b"n" * 10)
        assert world.clients[1].kernel.grown == [110]


async def test_a_write_within_it_and_a_truncation_are_told_to_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with rig(2) as world:
        await watched(world)
        number = await world.clients[0].open(b"file", os.O_RDWR)
        await world.clients[0].write(number, 0, b"n" * 100)
        inode = world.clients[0].file(number).inode
        await world.clients[0].fs.inode_changes.setattr(inode, AttributeChanges(size=50))
        assert world.clients[0].sent("Grown") == []
        assert world.clients[1].kernel.grown == []


async def test_what_became_longer_meanwhile_is_told_when_it_is_opened(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with rig(2) as world:
        other = await watched(world)
        node_id = world.clients[1].file(other).inode.node_id
        await world.clients[1].close(other)
        await append(world.clients[0])
        assert world.clients[1].kernel.grown == []
        again = await world.clients[1].fs.files.open(node_id, os.O_RDONLY)
        assert world.clients[1].kernel.grown == [200]
        await world.clients[1].close(again)
        await world.clients[1].close(await world.clients[1].fs.files.open(node_id, os.O_RDONLY))
        assert world.clients[1].kernel.grown == [200]


async def test_a_kernel_that_appends_elsewhere_than_it_knows_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with rig() as world:
        world.make_file(b"file", b"o" * 100)
        number = await world.clients[0].open(b"file", APPEND)
        await world.clients[0].write(number, 100, b"n" * 50)
        assert world.clients[0].kernel.grown == []
        await world.clients[0].write(number, 100, b"n" * 50)
        assert world.clients[0].kernel.grown == [200]


async def test_a_session_that_is_over_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async with rig(2, make_kernel=SlowKernel) as world, trio.open_nursery() as nursery:
        await watched(world)
        nursery.start_soon(append, world.clients[0])
        await trio.testing.wait_all_tasks_blocked()
        (over,) = [s for s in world.service.sessions.values() if s.client_name == "client 1"]
        over.end("by the test")
        await trio.sleep(1)
        world.clients[1].kernel.gate.set()  # type: ignore[attr-defined]
