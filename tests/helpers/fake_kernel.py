"""Clients' engines over in-memory connections to one service with the memory storage, and a kernel that only
records what it is asked (and may be made to take its time over an invalidation)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import trio
import trio.testing

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.filesystem import CacheOptions, Filesystem
from nfsfuse.engine.holdings import Holdings
from nfsfuse.engine.names import Found
from nfsfuse.engine.reading import Reader
from nfsfuse.engine.session import Session
from nfsfuse.machines.inodes import ROOT, Inode, InodeTable, NodeId
from nfsfuse.machines.page_cache import PageCache
from nfsfuse.machines.turns import Turn
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message, Request
from nfsfuse.protocol.tokens import Token
from nfsfuse.protocol.types import PAGE_SIZE, Attributes, ClientId, Credentials, InodeHandle, Node, OpenId
from nfsfuse.rpc.exchange import Answering
from nfsfuse_server.service.disk import Disk
from nfsfuse_server.service.service import Service, ServiceOptions
from tests.helpers.connector import Connector
from tests.helpers.disk import InlineDisk
from tests.helpers.memory_base import Fault, no_fault
from tests.helpers.memory_storage import MemoryStorage
from tests.helpers.restartable import RestartableServer
from tests.helpers.session_owner import HookedOwner

T = TypeVar("T")

ME = Credentials(0, 0)


class FakeKernel:
    """The Kernel port. *during_invalidation* is awaited in every `invalidate_pages`, with its range."""

    checks_permissions = True

    def __init__(self) -> None:
        self.invalidated: list[tuple[int, int]] = []
        self.turns: list[Turn | None] = []
        self.bulk: list[tuple[int, int]] = []
        self.entries: list[bytes] = []
        self.at_once: list[bytes] = []
        self.found: list[bytes] = []
        self.deleted: list[NodeId] = []
        self.epochs = 0
        self.attributes = 0
        self.grown: list[int] = []
        self.during_invalidation: Callable[[int, int], Awaitable[None]] | None = None

    async def invalidate_pages(
        self,
        node_id: NodeId,
        start: int,
        end: int,
        returned: bytearray | None = None,
        turn: Turn | None = None,
    ) -> None:
        self.invalidated.append((start, end))
        self.turns.append(turn)
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
            if self.during_invalidation is not None:
                await self.during_invalidation(start, end)
        if returned is not None:
            returned[0] = 1

    def processor(self, thread: int) -> tuple[int, int] | None:
        return (7, thread * 1000)  # times, nanoseconds

    async def write_back_pages(self, node_id: NodeId, generation: int, start: int, end: int) -> None:
        self.bulk.append((start, end))

    async def invalidate_attributes(self, node_id: NodeId) -> bool:
        self.attributes += 1
        return True

    async def grow(self, node_id: NodeId, generation: int, size: int) -> bool:
        self.grown.append(size)
        return True

    async def learn_size(self, node_id: NodeId, generation: int) -> int | None:
        return None

    async def expire_entry(self, parent: NodeId, name: bytes) -> None:
        self.entries.append(name)

    async def delete_entry(self, parent: NodeId, child: NodeId, name: bytes) -> None:
        self.deleted.append(child)

    async def expire_entry_at_once(self, parent: Inode, name: bytes, child: Inode | None) -> bool:
        self.at_once.append(name)
        return True

    async def find_entry(self, parent: Inode, name: bytes, child: Inode, attributes: Attributes) -> None:
        self.found.append(name)

    async def distrust_entries(self) -> None:
        self.epochs += 1


class RecordingRemote:
    """A session that keeps what was asked (`calls`, waited for), told (`posts`), given up and closed."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.calls: list[tuple[Message, int]] = []  # and the bytes of payload
        self.posts: list[Message] = []
        self.returned: list[Token] = []
        self.released: list[OpenId] = []

    async def call(
        self, message: Request[Any], payload: Any = b"", apply: Any = None, failed: Any = None
    ) -> tuple[Any, Any]:
        self.calls.append((message, len(payload)))
        return await self.session.call(message, payload, apply, failed)

    def ask(
        self, message: Request[Any], payload: Any, apply: Any, failed: Any
    ) -> Callable[[], None]:
        self.calls.append((message, len(payload)))
        return self.session.ask(message, payload, apply, failed)

    @property
    def answering(self) -> Answering:
        return self.session.answering

    def has_room(self) -> bool:
        return self.session.has_room()

    def post(self, message: Request[Message]) -> None:
        self.posts.append(message)
        self.session.post(message)

    def return_tokens(self, tokens: tuple[Token, ...]) -> None:
        self.returned += tokens
        self.session.return_tokens(tokens)

    def release(self, open_id: OpenId, tokens: tuple[Token, ...], *, at_once: bool = False) -> None:
        self.released.append(open_id)
        self.session.release(open_id, tokens, at_once=at_once)

    def accessed(self, handle: InodeHandle) -> None:
        self.session.accessed(handle)

    def tell_pending(self) -> None:
        self.session.tell_pending()

    def leased(self, *, finishing: bool = False) -> bool:
        return self.session.leased(finishing=finishing)

    async def until_leased(self) -> None:
        await self.session.until_leased()


@dataclass(eq=False)
class Client:
    """One client; its methods are what programs do, by name in the root."""

    fs: Filesystem
    kernel: FakeKernel
    remote: RecordingRemote
    connector: Connector
    owner: HookedOwner

    async def node(self, name: bytes) -> NodeId:
        found = await self.fs.names.lookup(ROOT, name)
        assert isinstance(found, Found), name
        return found.inode.node_id

    async def open(self, name: bytes, flags: int = os.O_RDONLY) -> int:
        return await self.fs.files.open(await self.node(name), flags)

    async def read(self, number: int, offset: int, size: int) -> bytes:
        return bytes(await self.fs.files.read(number, offset, size))

    async def touch(self, number: int, offset: int, size: int) -> bytes:
        """A load through a mapping: the kernel has the pages up to date afterwards."""
        return bytes(await self.fs.files.read(number, offset, size, cached=True))

    async def write(self, number: int, offset: int, data: bytes) -> None:
        assert await self.fs.files.write(number, offset, data, page=False) == len(data)

    async def close(self, number: int) -> None:
        try:
            await self.fs.files.flush(number)
        finally:
            self.fs.files.release(number)

    async def close_ignoring_errors(self, number: int) -> None:
        """As programs mostly do."""
        with suppress(FsError):
            await self.close(number)

    def file(self, number: int) -> CachedFile:
        return self.fs.files[number].file

    @contextmanager
    def asks(self, *expected: str) -> Iterator[None]:
        """What is done in this block makes exactly these round trips."""
        before = len(self.remote.calls)
        yield
        asked = [type(message).__name__ for message, _ in self.remote.calls[before:]]
        assert asked == list(expected), asked

    def sent(self, name: str) -> list[int]:
        """The sizes of the payloads of all requests of this name."""
        return [size for message, size in self.remote.calls if type(message).__name__ == name]


@dataclass(eq=False)
class Rig:
    """The server and its clients."""

    storage: MemoryStorage
    server: RestartableServer
    clients: list[Client] = field(default_factory=list)

    @property
    def service(self) -> Service:
        """The one that runs."""
        return self.server.service

    def make_file(self, name: bytes, content: bytes = b"") -> InodeHandle:
        node = self.storage.create(self.storage.root().handle, name, 0o644, ME)
        if content:
            self.storage.write(node.handle, 0, content)
        return node.handle

    def content(self, name: bytes) -> bytes:
        """What the server has."""
        return self.storage.read(self.storage.lookup(self.storage.root().handle, name).handle, 0, 1 << 24)

    def check(self) -> None:
        """Every invariant, while nothing is under way."""
        self.service.tokens.check()
        for client in self.clients:
            client.fs.check()


LONE_FILE = InodeHandle(b"file")


def reader_of_a_file(remote: Any) -> tuple[Reader, CachedFile]:
    """A reader behind *remote*, and a file of one page, `LONE_FILE`, that is open for writing."""
    root, file = (
        Node(InodeHandle(handle), Attributes(ino, 0o100644, 1, 0, 0, 0, PAGE_SIZE, 8, 0, 0, 0, 0))
        for ino, handle in ((1, b"root"), (2, LONE_FILE))
    )
    inodes = InodeTable(root)
    holdings = Holdings(remote, inodes, PageCache(1 << 20, guard=False), lambda inode: None)
    cached = holdings.file(inodes.known(file))
    cached.tokens.writers = 1
    return Reader(remote, holdings, FakeKernel()), cached


async def contended(world: Rig) -> tuple[Client, int, Client, int]:
    """Two clients with one file open for writing, of which the first has written a piece: each with the number
    of its open file."""
    world.make_file(b"file", b"x" * 4 * PAGE_SIZE)
    one, other = world.clients
    number, elsewhere = await one.open(b"file", os.O_RDWR), await other.open(b"file", os.O_RDWR)
    await one.write(number, 0, b"one")
    return one, number, other, elsewhere


@asynccontextmanager
async def rig(
    clients: int = 1,
    *,
    fault: Fault = no_fault,
    options: CacheOptions | None = None,
    make_kernel: Callable[[], FakeKernel] | None = None,
    make_disk: Callable[[], Disk] = InlineDisk,
    link_seconds: Callable[[], float] = lambda: 0.0,
    lease_seconds: float = 3600.0,
    clock: Callable[[], float] = trio.current_time,
) -> AsyncIterator[Rig]:
    """A server and *clients*, checked at the end; leases outlast the test, unless it says otherwise. *clock*
    is the clients' own.
    To be used under `autojump_clock`."""
    ticks = count(1)
    storage = MemoryStorage(lambda: next(ticks), fault)
    identities = count(1)
    async with trio.open_nursery() as nursery:
        server = RestartableServer(
            nursery, storage, lambda size: next(identities).to_bytes(size), make_disk,
            ServiceOptions(int(lease_seconds * 1000)),
        )  # fmt: skip
        made = Rig(storage, server)
        await server.start()
        for number in range(clients):
            connector = server.connector(
                f"client {number}", 1 << 23, there_seconds=link_seconds, back_seconds=link_seconds
            )
            session = Session(
                connector.connect, ClientId(bytes([number + 1]) * 16), f"client {number}", clock=clock
            )
            greeted = await session.greet()
            kernel, remote = (make_kernel or FakeKernel)(), RecordingRemote(session)
            fs = Filesystem(
                remote, greeted.welcome.root, kernel, options or CacheOptions(guard=True), lambda: next(ticks)
            )
            owner = HookedOwner.of(fs)
            await nursery.start(session.run, owner, greeted)
            await nursery.start(fs.run)
            made.clients.append(Client(fs, kernel, remote, connector, owner))
        yield made
        await trio.testing.wait_all_tasks_blocked()
        made.check()
        nursery.cancel_scope.cancel()
