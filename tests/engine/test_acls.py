"""ACLs that the kernel keeps (promise 2): whoever asks is told the newest, whichever client set it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from random import Random

import pytest
import trio

from nfsfuse.engine.acls import Acls
from nfsfuse.machines.attribute_cache import AttributeCache
from nfsfuse.machines.inodes import NodeId
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import ACL_ACCESS, ACL_DEFAULT, CAPABILITY, AttributeChanges, InodeHandle
from tests.helpers.acl_kernel import ACL, AclKernel
from tests.helpers.disk import SlowDisk
from tests.helpers.fake_kernel import ME, Rig, rig
from tests.helpers.history import History, Violation

pytestmark = pytest.mark.usefixtures("autojump_clock")

CALLS = 40
"""Of each program."""

PROGRAMS = 2
"""On each client."""

SEEDS = 6

SEEDS_MAX = 20
"""Within which a deliberate bug is found."""

STUCK_SECONDS = 60.0
"""Of simulated time: whoever is not through by then never will be."""

PLACE = ("file", 0)


async def program(name: str, kernel: AclKernel, node: NodeId, random: Random, history: History) -> None:
    """Calls, one after the other, and what was told."""
    for _ in range(CALLS):
        match random.choices(["get", "set", "stat", "chmod"], [12, 3, 3, 1])[0]:
            case "get":
                begin = history.now()
                acl = await kernel.acl(node)
                history.read(name, PLACE, int(acl or b"0"), begin)
            case "set":
                value = history.new_value()
                setting = history.begin_write(name, PLACE, value)
                await kernel.set_acl(node, b"%d" % value)
                history.end(setting)
            case "stat":
                await kernel.stat(node)
            case _:
                await kernel.chmod(node, 0o600 | random.randrange(8))


async def play(seed: int, patch: pytest.MonkeyPatch) -> None:
    """Three clients set and ask for one ACL, on a server whose answers overtake one another."""
    patch.setattr("trio._core._run._r", Random(seed))
    random, history = Random(seed), History()
    async with rig(
        3,
        make_kernel=lambda: AclKernel(random),
        make_disk=lambda: SlowDisk(random, inline=0.5, seconds_max=0.004),
        link_seconds=lambda: random.random() * 0.001,
    ) as world:
        world.make_file(b"file")
        with trio.fail_after(STUCK_SECONDS):
            async with trio.open_nursery() as nursery:
                for number, client in enumerate(world.clients):
                    assert isinstance(client.kernel, AclKernel)
                    client.kernel.fs = client.fs
                    node = await client.node(b"file")
                    for _ in range(PROGRAMS):
                        nursery.start_soon(
                            program, f"client {number}", client.kernel, node, random, history
                        )
        history.check()


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whoever_asks_is_told_the_newest(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    await play(seed, monkeypatch)


def the_kernel_is_thought_to_keep_none(patch: pytest.MonkeyPatch) -> None:
    """A recall leaves the ACL to a kernel that does not believe the attributes."""
    acl_told = AttributeCache.acl_told

    def forgotten(self: AttributeCache) -> bool:
        may_keep = acl_told(self)
        self.kernel_keeps_acls = False
        return may_keep

    patch.setattr(AttributeCache, "acl_told", forgotten)


def what_is_changing_is_kept(patch: pytest.MonkeyPatch) -> None:
    """The kernel is not told before the answer that it may not keep it."""
    get = Acls.get

    async def told_too_late(self: Acls, node_id: int, name: bytes) -> bytes:
        kernel = self._kernel
        self._kernel = _Silent()  # type: ignore[assignment]
        try:
            return await get(self, node_id, name)
        finally:
            self._kernel = kernel

    class _Silent:
        async def invalidate_attributes(self, node_id: NodeId) -> bool:
            await trio.lowlevel.checkpoint()
            return True

    patch.setattr(Acls, "get", told_too_late)


@pytest.mark.parametrize("bug", [the_kernel_is_thought_to_keep_none, what_is_changing_is_kept])
async def test_an_acl_that_is_believed_after_it_was_changed_elsewhere_is_found(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    with pytest.RaisesGroup(Violation, allow_unwrapped=True, flatten_subgroups=True):
        for seed in range(SEEDS_MAX):
            await play(seed, monkeypatch)


# --- what it costs ---


def give(world: Rig, handle: InodeHandle, name: bytes) -> None:
    """What a file has before anybody looks."""
    world.storage.setxattr(handle, name, b"1", 0)


async def test_that_there_is_none_comes_with_the_attributes() -> None:
    async with rig() as world:
        world.make_file(b"file")
        client = world.clients[0]
        node = await client.node(b"file")
        for name in (ACL_ACCESS, ACL_DEFAULT):
            with client.asks(), pytest.raises(FsError) as told:
                client.fs.acls.at_once(node, name)
            assert told.value.errno == errno.ENODATA


async def test_also_of_what_is_made_and_after_a_change_of_the_mode() -> None:
    async with rig() as world:
        client = world.clients[0]
        made = await client.fs.names.mkdir(1, b"directory", 0o755, ME)
        number, found = await client.fs.files.create(1, b"file", 0o644, os.O_RDWR, ME)
        await client.fs.inode_changes.setattr(found.inode, AttributeChanges(mode=0o600))
        for inode in (made.inode, found.inode):
            with client.asks(), pytest.raises(FsError):
                client.fs.acls.at_once(inode.node_id, ACL_ACCESS)
        await client.close(number)


async def test_with_the_token_comes_whether_there_is_one() -> None:
    """Where ATTR was taken meanwhile it is one round trip, as it is for the attributes."""
    async with rig(2) as world:
        world.make_file(b"file")
        one, other = world.clients
        node = await one.node(b"file")
        theirs = await other.node(b"file")
        await other.fs.inode_changes.setattr(other.fs.inodes[theirs], AttributeChanges(mode=0o600))
        assert one.fs.acls.at_once(node, ACL_ACCESS) is None
        with one.asks("GetAttr"), pytest.raises(FsError) as told:
            await one.fs.acls.get(node, ACL_ACCESS)
        assert told.value.errno == errno.ENODATA


async def test_an_acl_is_asked_for_once() -> None:
    async with rig() as world:
        give(world, world.make_file(b"file"), ACL)
        client = world.clients[0]
        node = await client.node(b"file")
        with client.asks("GetXattr"):
            assert await client.fs.acls.get(node, ACL) == b"1"
        with client.asks():
            assert client.fs.acls.at_once(node, ACL) == b"1"


async def test_a_filesystem_without_acls_is_asked_once_for_all() -> None:
    """The memory storage is one. To the kernel there is none: any other failure would let nobody in."""
    async with rig() as world:
        client = world.clients[0]
        for number, name in enumerate((b"a", b"b")):
            give(world, world.make_file(name), b"user.other")
            node = await client.node(name)
            with client.asks(*["GetXattr"] * (number == 0)), pytest.raises(FsError) as told:
                await client.fs.acls.get(node, ACL_ACCESS)
            assert told.value.errno == errno.ENODATA
        with pytest.raises(FsError) as refused:
            await client.fs.xattrs.set(node, ACL_ACCESS, b"acl", 0)
        assert refused.value.errno == errno.EOPNOTSUPP


# --- what a write takes away ---


async def test_a_write_takes_capabilities_away_before_it_returns() -> None:
    async with rig(2) as world:
        handle = world.make_file(b"file", b"program")
        give(world, handle, CAPABILITY)
        one, other = world.clients
        theirs = await other.node(b"file")
        assert await other.fs.xattrs.get(theirs, CAPABILITY) == b"1"
        number = await one.open(b"file", os.O_RDWR)
        await one.write(number, 0, b"PROGRAM")
        with pytest.raises(FsError) as gone:
            world.storage.getxattr(handle, CAPABILITY)
        assert gone.value.errno == errno.ENODATA
        with pytest.raises(FsError):
            await other.fs.xattrs.get(theirs, CAPABILITY)
        with one.asks():
            await one.write(number, 0, b"program")  # it is known that there are none
        await one.close(number)


async def test_what_was_written_is_at_the_server_before_capabilities_are() -> None:
    async with rig(2) as world:
        world.make_file(b"file", b"")
        one, other = world.clients
        mine, elsewhere = await one.open(b"file", os.O_RDWR), await other.open(b"file", os.O_RDWR)
        await one.write(mine, 0, b"mine")
        node = one.file(mine).inode.node_id
        with one.asks("Write", "SetXattr"):
            await one.fs.xattrs.set(node, CAPABILITY, b"1", 0)
        await other.write(elsewhere, 0, b"elsewhere")  # takes them away
        await one.fs.xattrs.set(node, CAPABILITY, b"1", 0)
        assert world.content(b"file") == b"elsewhere"
        assert not one.file(mine).pages.dirty
        assert not other.file(elsewhere).pages.dirty
        await one.close(mine)
        await other.close(elsewhere)
