"""Programs whose every call must be done exactly once: names that each process makes, moves and removes in one
directory of everybody's, and a lock of everybody's. A call that is done twice, or not at all, fails or shows in
the end: each process knows what it has made.

These are calls on the engine: the kernel's part in them is to pass them on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import trio

from nfsfuse.engine.locks import LockRequest
from nfsfuse.machines.inodes import ROOT
from nfsfuse.protocol.locks import LockKind, LockMode, LockRange
from nfsfuse.protocol.types import OFFSET_MAX, Credentials, LockOwner
from tests.helpers.history import Violation
from tests.sim.world import Client, World

ME = Credentials(0, 0)


@dataclass(slots=True)
class _Mutex:
    """Who holds the lock, as the programs know. *times* counts how often it was taken."""

    holder: str | None = None
    times: int = 0


@dataclass(slots=True)
class _Process:
    world: World
    client: Client
    name: str
    owner: LockOwner
    steps: int
    mutex: _Mutex
    names: set[bytes] = field(default_factory=set)  # as they are
    made: int = 0

    async def run(self) -> None:
        names = self.client.fs.names
        for _ in range(self.steps):
            draw = self.world.rng.random()
            if draw < 0.35 or not self.names:
                await self._make()
            elif draw < 0.55:
                old = self._any()
                new = (b"d" if old.startswith(b"d") else b"") + self._fresh()
                self._note(f"rename {old!r} to {new!r}")
                await names.rename(ROOT, old, ROOT, new, 0)
                self.names.remove(old)
                self.names.add(new)
            elif draw < 0.75:
                name = self._any()
                self._note(f"remove {name!r}")
                await (names.rmdir if name.startswith(b"d") else names.unlink)(ROOT, name)
                self.names.remove(name)
            else:
                await self._lock()
            if self.world.rng.random() < 0.5:
                await trio.sleep(self.world.rng.random() * 0.005)

    async def _make(self) -> None:
        fs, name = self.client.fs, self._fresh()
        match self.world.rng.randrange(3):
            case 0:
                name = b"d" + name
                self._note(f"mkdir {name!r}")
                found = await fs.names.mkdir(ROOT, name, 0o755, ME)
            case 1:
                self._note(f"symlink {name!r}")
                found = await fs.names.symlink(ROOT, name, b"somewhere", ME)
            case _:
                self._note(f"create {name!r}")
                number, found = await fs.files.create(ROOT, name, 0o644, os.O_RDWR | os.O_EXCL, ME)
                await fs.files.flush(number)
                fs.files.release(number)
        self.names.add(name)
        fs.names.forget(found.inode.node_id, 1)

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
        return LockRequest(ROOT, 1, self.owner, LockKind.POSIX, mode, LockRange(0, OFFSET_MAX), self.owner)

    def _any(self) -> bytes:
        return self.world.rng.choice(sorted(self.names))

    def _fresh(self) -> bytes:
        self.made += 1
        return f"{self.name}-{self.made}".encode()

    def _note(self, text: str) -> None:
        self.world.note(self.name, None, text)


@dataclass(slots=True)
class NamesAndLocks:
    """*processes* on every client make *steps* calls each."""

    steps: int = 40
    processes: int = 2

    async def __call__(self, world: World) -> None:
        mutex = _Mutex()
        processes = [
            _Process(world, client, f"{number}{process}", LockOwner(10 * number + process), self.steps, mutex)
            for number, client in enumerate(world.clients, start=1)
            for process in range(1, self.processes + 1)
        ]
        async with trio.open_nursery() as nursery:
            for process in processes:
                nursery.start_soon(process.run)
        expected = set[bytes]().union(*(process.names for process in processes))
        found = {entry.name for entry in world.storage.readdir(world.storage.root().handle, 0, 10_000)[0]}
        if found != expected:
            raise Violation(f"there should not be {found - expected}, there should be {expected - found}")
        world.service.locks.manager.check()
        world.service.journal.check()
