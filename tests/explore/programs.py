"""What the processes of a small world do, a step at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from nfsfuse.protocol.types import PAGE_SIZE
from tests.explore.connected import Disturbances
from tests.explore.world import World
from tests.helpers.kernel_model import WORD_SIZE, Descriptor, Mapping

NAME: Final = b"file"

Act = Callable[["Process"], Coroutine[Any, Any, None]]


@dataclass(eq=False)
class Process:
    """A process on *client* that does *acts*, one after the other. It begins with the file open (*flags*) and,
    if it is to load or store, mapped, and when it has done *before*."""

    world: World
    client: Any
    name: str
    flags: int
    mapped: bool
    acts: tuple[Act, ...]
    before: tuple[Act, ...]
    opened: Descriptor = field(init=False)
    mapping: Mapping = field(init=False)
    started: bool = False
    ended: bool = False

    async def start(self) -> None:
        self.opened = await self.client.kernel.open(NAME, self.flags)
        if self.mapped:
            self.mapping = await self.client.kernel.map(self.opened)
        for act in self.before:
            await act(self)
        self.started = True

    async def run(self) -> None:
        for act in self.acts:
            await self.world.runner.choose(f"{self.name} begins to {act.__name__}")
            await act(self)
        self.ended = True


def store(value: int, offset: int = 0) -> Act:
    """A store through the mapping."""

    async def store(process: Process) -> None:
        await process.client.kernel.store(process.mapping, offset, value.to_bytes(WORD_SIZE))
        process.world.word(offset).set(value, process.name)

    return store


def load(offset: int = 0) -> Act:
    """A load through the mapping."""

    async def load(process: Process) -> None:
        seen = await process.client.kernel.load(process.mapping, offset)
        process.world.word(offset).see(int.from_bytes(seen), process.name)

    return load


def read(offset: int = 0) -> Act:
    """pread(2) of one word."""

    async def read(process: Process) -> None:
        word = process.world.word(offset)
        number = word.begin(None)
        seen = await process.client.kernel.read(process.opened, offset, WORD_SIZE)
        word.end(number, int.from_bytes(seen), process.name)

    return read


def splice(offset: int = 0) -> Act:
    """splice(2) of one word, by the size that is believed. Nothing, of a file that is shorter, counts as 0."""

    async def splice(process: Process) -> None:
        word = process.world.word(offset)
        number = word.begin(None)
        seen = await process.client.kernel.splice(process.opened, offset, WORD_SIZE)
        word.end(number, int.from_bytes(seen), process.name)

    return splice


def write(value: int, offset: int = 0, pages: int = 0) -> Act:
    """pwrite(2) of one word, or of whole pages that begin with it (the others' first words are zero)."""

    async def write(process: Process) -> None:
        content = value.to_bytes(WORD_SIZE).ljust(pages * PAGE_SIZE, b"\0")
        word = process.world.word(offset)
        number = word.begin(value)
        written = await process.client.kernel.write(process.opened, offset, content)
        assert written == len(content)
        word.end(number, value, process.name)

    return write


def fsync() -> Act:
    async def fsync(process: Process) -> None:
        await process.client.kernel.fsync(process.opened)

    return fsync


def truncate(size: int) -> Act:
    """ftruncate(2) to a size that takes no word away."""

    async def truncate(process: Process) -> None:
        await process.client.kernel.truncate(process.opened, size)

    return truncate


def flush() -> Act:
    """What the kernel's flusher does now and then."""

    async def flush(process: Process) -> None:
        await process.client.kernel.write_back_some(process.opened.inode, 1)

    return flush


def evict() -> Act:
    """Memory pressure."""

    async def evict(process: Process) -> None:
        process.client.kernel.evict_some(process.opened.inode, 1)

    return evict


def read_ahead(pages: int) -> Act:
    """posix_fadvise(2) with POSIX_FADV_SEQUENTIAL: from now on this client's kernel reads so many at once."""

    async def read_ahead(process: Process) -> None:
        process.client.kernel.delays.reads_pages = pages

    return read_ahead


def run_another() -> Act:
    """execve(2): what is mapped goes, what is open is closed."""

    async def run_another(process: Process) -> None:
        await process.client.kernel.exec(process.opened, process.mapping if process.mapped else None)

    return run_another


def leave() -> Act:
    """munmap(2) and close(2)."""

    async def leave(process: Process) -> None:
        if process.mapped:
            await process.client.kernel.unmap(process.mapping)
        await process.client.kernel.close(process.opened)

    return leave


def made() -> Act:
    """The client takes the file for one that it has made: it shares its tokens when it is closed."""

    async def made(process: Process) -> None:
        process.client.fs.files[process.opened.handle].file.made_here = True

    return made


def open_again() -> Act:
    """open(2), of what was closed."""

    async def open_again(process: Process) -> None:
        process.opened = await process.client.kernel.open(NAME, process.flags)

    return open_again


@dataclass(frozen=True)
class Script:
    """What one process of a small world does, after what it has done *before*. *client* counts from 0."""

    client: int
    acts: tuple[Act, ...]
    writing: bool = True
    mapped: bool = True
    before: tuple[Act, ...] = ()


@dataclass(frozen=True)
class SmallWorld:
    """Who does what. *opens_late*: opening is explored, too. *crashes*: clients that may die at any moment.
    *disturbances*: what else goes wrong; then clients have real sessions (`tests.explore.connected`). *later*:
    daemons answer reads without tasks."""

    scripts: tuple[Script, ...]
    pages: int = 1
    crashes: tuple[int, ...] = ()
    opens_late: bool = False
    clients: int = 2
    disturbances: Disturbances | None = None
    later: bool = False

    def processes(self, world: World) -> list[Process]:
        for client in world.clients:
            client.kernel.delays.later = self.later
        return [
            Process(
                world,
                world.clients[script.client],
                f"client {script.client + 1} process {number + 1}",
                os.O_RDWR if script.writing else os.O_RDONLY,
                script.mapped,
                script.acts,
                script.before,
            )
            for number, script in enumerate(self.scripts)
        ]
