"""Whatever fails, and however: every descriptor that is open afterwards has its owner, without any help of the
collector of garbage. (What is not closed keeps the room of a file that is removed.)"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nfsfuse.ports.session_owner import Callback
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.locks import LockKind, LockMode
from nfsfuse.protocol.messages import CLIENT_REQUESTS, Message, Request
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import (
    AttributeChanges,
    Credentials,
    Extent,
    InodeHandle,
    LockOpenId,
    LockOwner,
    OpenId,
    RequestId,
    Sync,
)
from nfsfuse_server.service.disk import Disk
from nfsfuse_server.service.requests import SESSION_MESSAGES
from nfsfuse_server.storage.descriptors import Descriptor, OpenInode
from nfsfuse_server.storage.interface import Storage
from nfsfuse_server.storage.local import LocalStorage
from tests.helpers.failing_kernel import FailingKernel
from tests.helpers.garbage import nothing_for_the_collector
from tests.helpers.service import Client, Serving, serving
from tests.helpers.steps import MarkingDisk, StepsOnly

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="persistent handles need root")

ME = Credentials(0, 0)
ERRNOS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOENT, errno.ESTALE, errno.EMFILE)
CALLS_MAX: Final = 40
"""System calls in one request, at most: one that fails each time is tried for ever."""

SECRET = bytes(range(32))


@pytest.fixture
def uncollected() -> Iterator[None]:
    with nothing_for_the_collector(Descriptor, OpenInode):
        yield


class World:
    """A service over a directory, with one client that has a file open, called ``file``, and all tokens."""

    def __init__(self, server: Serving, storage: LocalStorage, client: Client, path: Path) -> None:
        self.server, self.storage, self.client, self.path = server, storage, client, path
        self.root = client.root.handle
        self.file = InodeHandle(b"")
        self.other = InodeHandle(b"")
        self.directory = InodeHandle(b"")
        self._numbers = 0

    async def begin(self) -> None:
        self.file = (await self.create(b"file")).node.handle
        self.other = (await self.create(b"other")).node.handle
        made, _ = await self.ask(m.MkDir(self.root, b"directory", 0o755, ME))
        self.directory = made.node.handle
        for handle in (self.file, self.other):
            await self.ask(m.GetToken(handle, TokenMode.EXCLUSIVE, 0, RANGE_END, TokenMode.EXCLUSIVE))
            await self.ask(m.Write(handle, 0), bytes(8192))

    async def ask(self, message: Request[Any], payload: bytes = b"") -> tuple[Any, bytes | bytearray]:
        return await self.client.session.call(message, payload)

    async def create(self, name: bytes) -> m.Opened:
        opened, _ = await self.ask(m.Create(self.root, name, 0o644, os.O_RDWR | os.O_CREAT, ME))
        return opened

    def name(self) -> bytes:
        """One that was not used before."""
        self._numbers += 1
        return b"name %d" % self._numbers

    def present(self, kind: str = "file") -> bytes:
        """A name that a program on the server has just made."""
        name = self.name()
        path = self.path / os.fsdecode(name)
        if kind == "link":
            path.symlink_to("nowhere")
        elif kind == "directory":
            path.mkdir()
        else:
            path.write_bytes(b"x" * 100)
        return name

    def handle(self, name: bytes) -> InodeHandle:
        return self.storage.lookup(self.root, name).handle

    def check(self) -> None:
        """Every open descriptor is the cache's, or was there before."""
        self.storage._cache.check()
        ours = {inode.path.number for inode in self.storage._cache._inodes.values()}
        there = {
            number
            for number in map(int, os.listdir("/proc/self/fd"))
            if _target(number).startswith(f"{self.path}/") and ".nfsfuse-orphans" not in _target(number)
        }
        assert there <= ours, [_target(number) for number in there - ours]


def _target(number: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:  # of the listing itself
        return ""


Made = tuple[Request[Any], bytes]
REQUESTS: Final[dict[type[Message], Callable[[World], Made]]] = {
    m.Lookup: lambda w: (m.Lookup(w.root, w.present(), True), b""),
    m.GetAttr: lambda w: (m.GetAttr(w.handle(w.present())), b""),
    m.SetAttr: lambda w: (m.SetAttr(w.handle(w.present()), _EVERYTHING), b""),
    m.ReadLink: lambda w: (m.ReadLink(w.handle(w.present("link"))), b""),
    m.SymLink: lambda w: (m.SymLink(w.root, w.name(), b"target", ME), b""),
    m.MkNod: lambda w: (m.MkNod(w.root, w.name(), 0o104755, 0, Credentials(1, 1)), b""),
    m.MkDir: lambda w: (m.MkDir(w.root, w.name(), 0o755, Credentials(1, 1)), b""),
    m.Link: lambda w: (m.Link(w.file, w.root, w.name()), b""),
    m.Unlink: lambda w: (m.Unlink(w.root, w.present()), b""),
    m.RmDir: lambda w: (m.RmDir(w.root, w.present("directory")), b""),
    m.Rename: lambda w: (m.Rename(w.root, w.present(), w.root, w.present(), 0), b""),
    m.ReadDir: lambda w: (m.ReadDir(w.directory, 0, 10), b""),
    m.StatFs: lambda w: (m.StatFs(), b""),
    m.GetXattr: lambda w: (m.GetXattr(w.file, b"user.x"), b""),
    m.SetXattr: lambda w: (m.SetXattr(w.file, b"user.x", 0), b"value"),
    m.ListXattr: lambda w: (m.ListXattr(w.file), b""),
    m.RemoveXattr: lambda w: (m.RemoveXattr(w.file, b"user.y"), b""),
    m.Open: lambda w: (m.Open(w.handle(w.present()), os.O_RDWR | os.O_TRUNC, True), b""),
    m.Create: lambda w: (m.Create(w.root, w.name(), 0o4755, os.O_RDWR | os.O_CREAT, Credentials(1, 1)), b""),
    m.Release: lambda w: (m.Release((m.Closed(OpenId(77)), m.Closed(OpenId(78)))), b""),
    m.Read: lambda w: (m.Read(w.handle(w.present()), 0, 8192, TokenMode.SHARED), b""),
    m.Write: lambda w: (m.Write(w.file, 0, Sync.ALL), bytes(4096)),
    m.Fsync: lambda w: (m.Fsync(w.file, False), b""),
    m.Fallocate: lambda w: (m.Fallocate(w.file, 0, 0, 16384), b""),
    m.Seek: lambda w: (m.Seek(w.file, 0, os.SEEK_DATA), b""),
    m.CopyRange: lambda w: (m.CopyRange(w.file, 0, w.other, 0, 4096), b""),
    m.GetToken: lambda w: (
        m.GetToken(w.handle(w.present()), TokenMode.SHARED, 0, RANGE_END, TokenMode.SHARED), b"",
    ),
    m.GetLock: lambda w: (m.GetLock(w.file, LockOwner(1), LockKind.POSIX, LockMode.READ, 9, 1), b""),
    m.SetLock: lambda w: (
        m.SetLock(w.file, LockOpenId(1), LockOwner(1), LockKind.POSIX, LockMode.READ, 9, 1, 1, False), b"",
    ),
    m.FlushLocks: lambda w: (m.FlushLocks(w.file, LockOwner(1)), b""),
    m.WriteExtents: lambda w: (
        m.WriteExtents(w.file, (Extent(0, 4096), Extent(8192, 4096)), Sync.ALL), bytes(8192),
    ),
    m.Grown: lambda w: (m.Grown(w.file, 8192), b""),
    m.Accessed: lambda w: (m.Accessed((w.file, w.other)), b""),
    m.TmpFile: lambda w: (m.TmpFile(w.root, 0o600, Credentials(1, 1)), b""),
    m.LookupNumber: lambda w: (m.LookupNumber((w.path / os.fsdecode(w.present())).stat().st_ino), b""),
    m.LookupParent: lambda w: (m.LookupParent(w.directory), b""),
    m.GetInodeFlags: lambda w: (m.GetInodeFlags(w.handle(w.present()), True), b""),
    m.SetInodeFlags: lambda w: (m.SetInodeFlags(w.handle(w.present()), False, (0,)), b""),
    m.ReleaseLocks: lambda w: (m.ReleaseLocks(w.file, LockOpenId(1), None), b""),
}  # fmt: skip
_EVERYTHING = AttributeChanges(mode=0o600, uid=1, gid=1, size=10, mtime_ns=5)


def test_every_request_is_tried() -> None:
    """A new one is to be put into the table above."""
    assert set(REQUESTS) == set(CLIENT_REQUESTS) - SESSION_MESSAGES - {m.Hello}


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
@pytest.mark.usefixtures("autojump_clock", "uncollected")
async def test_every_failure_of_every_request(
    kind: type[Message], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, disk = LocalStorage(tmp_path, SECRET), MarkingDisk()
    kernel = FailingKernel(monkeypatch)
    steps = StepsOnly(storage, disk)
    async with serving(storage=cast(Storage, steps), disk=disk) as server:
        steps.guarded = True
        world = World(server, storage, await server.client(), tmp_path)
        await world.begin()
        for number in ERRNOS:
            for call in range(1, CALLS_MAX):
                message, payload = REQUESTS[kind](world)
                kernel.arm(call, number)
                try:
                    reply, _ = await world.ask(message, payload)
                except FsError:
                    reply = None
                fired = kernel.disarm()
                if isinstance(reply, m.Opened):
                    await world.ask(m.Release((m.Closed(reply.open_id),)))
                del reply
                world.check()
                if not fired:
                    break
            else:
                raise AssertionError("one system call after the other, without end")
    storage.close()


@pytest.mark.usefixtures("autojump_clock", "uncollected")
async def test_a_handle_that_is_stale(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path, SECRET)
    async with serving(storage=storage) as server:
        world = World(server, storage, await server.client(), tmp_path)
        await world.begin()
        gone = world.handle(world.present())
        os.unlink(tmp_path / "name 1")
        storage._cache.forget(storage._inode(gone))
        for message in (
            m.GetAttr(gone),
            m.Read(gone, 0, 100, TokenMode.SHARED),
            m.Open(gone, os.O_RDWR, True),
            m.Unlink(gone, b"x"),
            m.Fsync(gone, False),
            m.SetAttr(gone, _EVERYTHING),
        ):
            with pytest.raises(FsError):
                await world.ask(message)
            world.check()
    storage.close()


class GatedDisk(Disk):
    """Slow calls wait in their threads for nobody, and before that for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.gate.set()

    async def slow(self, call: Callable[[], Any]) -> Any:
        await self.gate.wait()
        return await super().slow(call)


async def until(condition: Callable[[], bool]) -> None:
    """Threads are at work, which offer nothing to wait for."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


@pytest.mark.parametrize("how", ["goodbye", "fenced", "cancelled"])
@pytest.mark.usefixtures("uncollected")
async def test_a_client_that_is_gone_in_the_middle(how: str, tmp_path: Path) -> None:
    """Its requests wait: for a disk, in a thread; for a token that another client holds; for a lock."""
    storage, disk = LocalStorage(tmp_path, SECRET), GatedDisk()
    async with serving(storage=storage, disk=disk) as server:
        holder = await server.client()
        holder.owner.on_recall = lambda recall, acknowledge: None
        world = World(server, storage, await server.client(), tmp_path)
        await world.begin()
        held = world.present()
        await holder.session.call(
            m.GetToken(world.handle(held), TokenMode.EXCLUSIVE, 0, RANGE_END, TokenMode.EXCLUSIVE)
        )
        disk.gate = trio.Event()
        session = server.service.sessions[world.client.session.session_id]
        waiting = [  # four
            world.client.session.channel._ask(message, payload, None, None, lambda failure: None)
            for message, payload in (
                (m.Write(world.file, 0, Sync.ALL), bytes(4096)),
                (m.Fsync(world.file, False), b""),
                (m.GetAttr(world.handle(held)), b""),
                (m.Open(world.handle(held), os.O_RDWR | os.O_TRUNC, True), b""),
            )
        ]
        await until(lambda: len(session.running) == 4)
        if how == "cancelled":
            for asked in waiting:
                session.cancel(RequestId(asked.id))
        else:
            session.end(how)
        await wait_all_tasks_blocked()
        disk.gate.set()
        sessions = server.service.sessions
        await until(lambda: not session.running and (how == "cancelled" or session.id not in sessions))
        del waiting
        world.check()
        assert not storage._cache.pinned(world.file) or how == "cancelled"
    storage.close()


def _give_up(callback: Callback, acknowledge: Callable[[m.Recalled | m.Done], None]) -> None:
    acknowledge(m.Recalled((callback.token,)) if isinstance(callback, m.Recall) else m.Done())


@pytest.mark.usefixtures("autojump_clock")
async def test_space_is_freed_by_a_thread_whoever_lets_go_last(tmp_path: Path) -> None:
    """The last close, the last token, the end of a session: of a file that is removed."""
    storage, disk = LocalStorage(tmp_path, SECRET), MarkingDisk()
    steps = StepsOnly(storage, disk)
    async with serving(storage=cast(Storage, steps), disk=disk) as server:
        steps.guarded = True
        one, two = await server.client(), await server.client()
        for client in (one, two):
            client.owner.on_recall = _give_up
        root = one.root.handle
        for how in ("closed", "returned", "ended"):
            name = how.encode()
            opened, _ = await one.session.call(m.Create(root, name, 0o644, os.O_RDWR | os.O_CREAT, ME))
            handle = opened.node.handle
            await one.session.call(m.GetToken(handle, TokenMode.EXCLUSIVE, 0, RANGE_END, TokenMode.NONE))
            await two.session.call(m.Unlink(root, name))
            assert storage.orphans() == [handle]
            tokens = (
                Token(handle, Resource.DATA, 0, RANGE_END, TokenMode.NONE),
                Token(handle, Resource.ATTR, 0, RANGE_END, TokenMode.NONE),
            )
            if how == "returned":
                await one.session.call(m.Release((m.Closed(opened.open_id),)))
                one.session.return_tokens(tokens)
            elif how == "closed":
                one.session.return_tokens(tokens)
                await one.session.call(m.Release((m.Closed(opened.open_id),)))
            else:
                await one.session.call(m.Goodbye())
            await wait_all_tasks_blocked()
            assert storage.orphans() == [], how
    storage.close()
