"""Programs whose every call must be done exactly once: names that each process makes, moves and removes in one
directory of everybody's, records that it appends to everybody's file, and a lock of everybody's. A call that is
done twice, or not at all, fails or shows in the end: each process knows what it has made.

A client that may be fenced (`Options.may_be_fenced`) is told EIO where nobody knows whether a call was done:
then it was, or it was not. A rename has left one of its two names.

These are calls on the engine: the kernel's part in them is to pass them on.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field

import trio

from nfsfuse.engine.locks import LockRequest
from nfsfuse.engine.names import Found
from nfsfuse.machines.inodes import ROOT
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.locks import LockKind, LockMode, LockRange
from nfsfuse.protocol.types import OFFSET_MAX, Credentials, LockOwner
from tests.helpers.history import Violation
from tests.sim.world import Client, World

ME = Credentials(0, 0)

LOG = b"log"
RECORD_SIZE = 8


@dataclass(slots=True)
class _Mutex:
    """Who holds the lock, as the programs know. *times* counts how often it was taken."""

    holder: str | None = None
    times: int = 0


@dataclass(slots=True)
class _Process:
    world: World
    client: Client
    number: int
    steps: int
    mutex: _Mutex
    names: set[bytes] = field(default_factory=set)  # as they are
    perhaps: set[bytes] = field(default_factory=set)  # as they may be
    one_of: list[set[bytes]] = field(default_factory=list)  # of each of these there is one
    records: set[int] = field(default_factory=set)
    records_perhaps: set[int] = field(default_factory=set)
    made: int = 0

    @property
    def name(self) -> str:
        return f"{self.client.name} process {self.number}"

    async def run(self) -> None:
        for _ in range(self.steps):
            draw = self.world.rng.random()
            if draw < 0.3 or not self.names:
                await self._make()
            elif draw < 0.5:
                await self._rename()
            elif draw < 0.7:
                await self._remove()
            elif draw < 0.8:
                await self._append()
            elif not self.world.options.may_be_fenced:  # which takes locks away
                await self._lock()
            if self.world.rng.random() < 0.5:
                await trio.sleep(self.world.rng.random() * self.world.options.step_seconds_max)

    async def _is_done(self, what: str, doing: Awaitable[object]) -> bool:
        """Do it; False if nobody knows whether it was done. It is about names that nobody else uses, so there
        is no other reason why it could fail than that it was done before, or what it needs was not."""
        self._note(what)
        try:
            await doing
        except FsError as exc:
            if exc.errno == errno.EIO and self.world.options.may_be_fenced:
                self._note(f"{what}: perhaps")
                return False
            raise Violation(f"{self.name}: {what}: {exc}: not everything was done once") from exc
        return True

    async def _make(self) -> None:
        fs, name = self.client.fs, self._fresh()
        match self.world.rng.randrange(3):
            case 0:
                name = b"d" + name
                mkdir = fs.names.mkdir(ROOT, name, 0o755, ME)
                made = await self._is_done(f"mkdir {name!r}", self._forgotten(mkdir))
            case 1:
                symlink = fs.names.symlink(ROOT, name, b"somewhere", ME)
                made = await self._is_done(f"symlink {name!r}", self._forgotten(symlink))
            case _:
                made = await self._is_done(f"create {name!r}", self._create(name))
        (self.names if made else self.perhaps).add(name)

    async def _create(self, name: bytes) -> None:
        files = self.client.fs.files
        number, found = await files.create(ROOT, name, 0o644, os.O_RDWR | os.O_EXCL, ME)
        await files.flush(number)
        files.release(number)
        self.client.fs.names.forget(found.inode.node_id, 1)

    async def _forgotten(self, making: Awaitable[Found]) -> None:
        """The kernel forgets at once what it has made."""
        self.client.fs.names.forget((await making).inode.node_id, 1)

    async def _rename(self) -> None:
        old = self._any()
        new = (b"d" if old.startswith(b"d") else b"") + self._fresh()
        self.names.remove(old)
        rename = self.client.fs.names.rename(ROOT, old, ROOT, new, 0)
        if await self._is_done(f"rename {old!r} to {new!r}", rename):
            self.names.add(new)
        else:
            self.one_of.append({old, new})

    async def _remove(self) -> None:
        name, names = self._any(), self.client.fs.names
        self.names.remove(name)
        remove = names.rmdir if name.startswith(b"d") else names.unlink
        if not await self._is_done(f"remove {name!r}", remove(ROOT, name)):
            self.perhaps.add(name)

    async def _append(self) -> None:
        record = self.world.history.new_value()
        appended = await self._is_done(f"append {record:#x}", self._appended(record.to_bytes(RECORD_SIZE)))
        (self.records if appended else self.records_perhaps).add(record)

    async def _appended(self, record: bytes) -> None:
        fs = self.client.fs
        found = await fs.names.lookup(ROOT, LOG)
        assert isinstance(found, Found)
        await self.client.kernel.takes_in(found)
        number = await fs.files.open(found.inode.node_id, os.O_WRONLY | os.O_APPEND)
        try:
            await fs.files.write(number, 0, record, page=False)
            await fs.files.flush(number)
        finally:
            fs.files.release(number)
            self.client.kernel.forget(found.inode.node_id)

    async def _lock(self) -> None:
        locks, mutex = self.client.fs.locks, self.mutex
        self._note("lock")
        await locks.set(self._request(LockMode.WRITE), wait=True)
        if mutex.holder is not None:
            raise Violation(f"{self.name} got the lock that {mutex.holder} has")
        mutex.holder, mutex.times = self.name, mutex.times + 1
        await trio.sleep(self.world.rng.random() * 0.01)
        mutex.holder = None
        self._note("unlock")
        await locks.set(self._request(LockMode.UNLOCK), wait=False)

    def _request(self, mode: LockMode) -> LockRequest:
        owner = LockOwner(self.number)
        return LockRequest(ROOT, 1, owner, LockKind.POSIX, mode, LockRange(0, OFFSET_MAX), owner)

    def _any(self) -> bytes:
        return self.world.rng.choice(sorted(self.names))

    def _fresh(self) -> bytes:
        self.made += 1
        return f"{self.client.name[-1]}{self.number}-{self.made}".encode()

    def _note(self, text: str) -> None:
        self.world.note(self.name, None, text)


@dataclass(slots=True)
class NamesAndLocks:
    """*processes* on every client make *steps* calls each."""

    steps: int = 40
    processes: int = 2

    async def __call__(self, world: World) -> None:
        world.make_file(LOG, b"")
        mutex = _Mutex()
        processes = [
            _Process(world, client, 10 * at + number, self.steps, mutex)
            for at, client in enumerate(world.clients, start=1)
            for number in range(1, self.processes + 1)
        ]
        async with trio.open_nursery() as nursery:
            for process in processes:
                nursery.start_soon(process.run)
        _check_names(world, processes)
        _check_records(world, processes)
        world.service.locks.manager.check()
        world.service.journal.check()


def _check_names(world: World, processes: list[_Process]) -> None:
    found = {entry.name for entry in world.storage.readdir(world.storage.root().handle, 0, 10_000)[0]} - {LOG}
    expected = set[bytes]().union(*(process.names for process in processes))
    perhaps = set[bytes]().union(*(process.perhaps for process in processes))
    for pair in [pair for process in processes for pair in process.one_of]:
        if len(pair & found) != 1:
            raise Violation(f"one of {pair} should be there, not {pair & found}")
        found -= pair
    if not expected <= found <= expected | perhaps:
        raise Violation(f"there should not be {found - expected - perhaps}, there should be {expected - found}")


def _check_records(world: World, processes: list[_Process]) -> None:
    handle = world.storage.lookup(world.storage.root().handle, LOG).handle
    content = world.storage.read(handle, 0, 1 << 20)
    words = (content[at : at + RECORD_SIZE] for at in range(0, len(content), RECORD_SIZE))
    found = Counter(int.from_bytes(word) for word in words)
    if world.options.may_be_fenced:
        del found[0]  # what was lost before something that was not
    expected = set[int]().union(*(process.records for process in processes))
    perhaps = set[int]().union(*(process.records_perhaps for process in processes))
    if not expected <= set(found) <= expected | perhaps or max(found.values(), default=1) > 1:
        raise Violation(f"{sorted(expected)} were appended, perhaps {sorted(perhaps)}; there are {found}")
