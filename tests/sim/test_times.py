"""What stat(2) tells of the times of a file, on every client: it goes on telling it until something is written,
and a time that was set stays set."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count

import pytest
import trio

from nfsfuse.engine.cached_file import CachedFile
from nfsfuse.engine.page_protocol import PageProtocol
from nfsfuse.machines.attribute_cache import AttributeCache
from nfsfuse.protocol.types import PAGE_SIZE, AttributeChanges
from tests.helpers.history import Violation
from tests.helpers.kernel_model import Descriptor, KernelModel
from tests.sim.world import Options, Play, World, simulate

SET_NS = 10**6
"""A time that no clock of the simulation tells."""

LONG = 5.0
"""Seconds: whatever is dirty in a daemon is written back by then."""


ASKED = 6
"""How often a program asks for the times of what another one is writing."""


def _options(seed: int, clients: int) -> Options:
    return Options(seed, clients, check_every=5, finish_seconds=20 * LONG)


def _far_away(seed: int) -> Options:
    """Many writes are made while one is on its way."""
    return replace(_options(seed, 1), link_seconds_max=0.05)


class Wrong(Exception):
    """Times that no local filesystem tells."""


async def _is_told_everywhere(world: World, opened: list[Descriptor], told: tuple[int, int]) -> None:
    for client, descriptor in zip(world.clients, opened, strict=True):
        now = await client.kernel.stat_times(descriptor)
        if now != told:
            raise Wrong(f"{client.name} tells {now}, after {told} had been told")


async def _write(kernel: KernelModel, opened: Descriptor, number: int) -> None:
    offset = (0, 100, 3 * PAGE_SIZE)[number % 3] + number  # within, and beyond the end
    await kernel.write(opened, offset, bytes(8))


@dataclass
class _WriteAndAsk:
    """Clients take turns: one writes and asks for the times. Then all are asked, again and again."""

    async def __call__(self, world: World) -> None:
        world.make_file(b"file", bytes(PAGE_SIZE))
        opened = [await client.kernel.open(b"file", os.O_RDWR) for client in world.clients]
        for number in range(6):
            writer = number % len(world.clients)
            kernel = world.clients[writer].kernel
            await _write(kernel, opened[writer], number)
            told = await kernel.stat_times(opened[writer])
            await _is_told_everywhere(world, opened, told)
            await trio.sleep(LONG)
            await _is_told_everywhere(world, opened, told)
        for client, descriptor in zip(world.clients, opened, strict=True):
            await client.kernel.close(descriptor)
        again = [await client.kernel.open(b"file", os.O_RDONLY) for client in world.clients]
        await _is_told_everywhere(world, again, told)
        for client, descriptor in zip(world.clients, again, strict=True):
            await client.kernel.close(descriptor)


@dataclass
class _StoreAndSet:
    """One client stores into a page, or writes within the file; one sets the time. What was stored is written
    back later, and that is nothing new."""

    across: bool
    mapped: bool

    async def __call__(self, world: World) -> None:
        world.make_file(b"file", bytes(2 * PAGE_SIZE))
        opened = [await client.kernel.open(b"file", os.O_RDWR) for client in world.clients]
        for number in range(4):
            storing = number % len(world.clients)
            setting = (storing + self.across) % len(world.clients)
            kernel, descriptor = world.clients[storing].kernel, opened[storing]
            mapping = await kernel.map(descriptor)
            if self.mapped:
                await kernel.store(mapping, PAGE_SIZE, number.to_bytes(8))
            else:
                await kernel.write(descriptor, PAGE_SIZE, number.to_bytes(8))
            await world.clients[setting].kernel.utime(opened[setting], SET_NS + number)
            await kernel.unmap(mapping)
            await kernel.fsync(descriptor)
            await trio.sleep(LONG)
            for client, asked in zip(world.clients, opened, strict=True):
                mtime, _ = await client.kernel.stat_times(asked)
                if mtime != SET_NS + number:
                    raise Wrong(f"{client.name} tells {mtime}, after {SET_NS + number} was set")
        for client, descriptor in zip(world.clients, opened, strict=True):
            await client.kernel.close(descriptor)


async def _store_set_and_store(world: World) -> None:
    world.make_file(b"file", bytes(PAGE_SIZE))
    kernel = world.clients[0].kernel
    opened = await kernel.open(b"file", os.O_RDWR)
    mapping = await kernel.map(opened)
    await kernel.store(mapping, 0, bytes(8))
    await kernel.utime(opened, SET_NS)
    await kernel.store(mapping, 0, b"newer..8")
    await kernel.unmap(mapping)
    await kernel.fsync(opened)
    mtime, _ = await kernel.stat_times(opened)
    await kernel.close(opened)
    if mtime == SET_NS:
        raise Wrong("what was stored after the time was set has not changed it")


@dataclass
class _AskAWriter:
    """A program that writes on and on does not put off who asks for the times."""

    asked: int = 0

    async def __call__(self, world: World) -> None:
        world.make_file(b"file", bytes(PAGE_SIZE))
        kernel = world.clients[0].kernel
        opened = await kernel.open(b"file", os.O_RDWR)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, kernel, opened, nursery.cancel_scope)
            told = await kernel.stat_times(opened)
            while self.asked < ASKED:
                await trio.sleep(0.01)
                with trio.fail_after(1):
                    now = await kernel.stat_times(opened)
                self.asked += now > told
                told = now
            nursery.cancel_scope.cancel()
        await kernel.close(opened)

    async def _write(self, kernel: KernelModel, opened: Descriptor, scope: trio.CancelScope) -> None:
        for number in count():
            if scope.cancel_called:
                break
            with trio.CancelScope(shield=True):
                await kernel.write(opened, number * 8, bytes(8))


@pytest.mark.parametrize("seed", range(6))
def test_what_was_told_of_a_write_is_told_ever_after(seed: int) -> None:
    simulate(_options(seed, 2), _WriteAndAsk())


@pytest.mark.parametrize("mapped", [True, False], ids=["stored", "written"])
@pytest.mark.parametrize("across", [False, True], ids=["here", "there"])
def test_a_time_that_was_set_is_not_overwritten_by_what_was_written_before(across: bool, mapped: bool) -> None:
    for seed in range(4):
        simulate(_options(seed, 2), _StoreAndSet(across, mapped))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_stored_after_a_time_was_set_changes_it(seed: int) -> None:
    simulate(_options(seed, 1), _store_set_and_store)


@pytest.mark.parametrize("seed", range(2))
def test_who_writes_on_and_on_keeps_nobody_from_the_times(seed: int) -> None:
    play = _AskAWriter()
    simulate(_far_away(seed), play)
    assert play.asked == ASKED


def test_a_writer_that_is_not_kept_waiting_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CachedFile, "times_wanted", lambda self: nullcontext())
    with pytest.raises(Violation, match="TooSlowError"):
        simulate(_far_away(0), _AskAWriter())


async def _take_nothing(self: PageProtocol, file: object) -> None:
    """Instead of `PageProtocol.take_stores`: pages that are dirty in the kernel stay so."""


MUTATIONS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], Play]]] = {
    "times are told while data are dirty": (
        lambda patch: patch.setattr(AttributeCache, "times_are_known", lambda self: self.known is not None),
        _WriteAndAsk,
    ),
    "stores stay in the kernel while a time is set": (
        lambda patch: patch.setattr(PageProtocol, "take_stores", _take_nothing),
        lambda: _StoreAndSet(across=False, mapped=True),
    ),
    "other clients keep what they have written while a time is set": (
        lambda patch: patch.setattr(AttributeChanges, "sets_mtime", lambda self: False),
        lambda: _StoreAndSet(across=True, mapped=False),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_deliberate_bugs_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate, play = MUTATIONS[name]
    mutate(monkeypatch)
    with pytest.raises(Violation, match=r"Wrong.*tells"):
        _try(play)


def _try(play: Callable[[], Play]) -> None:
    for seed in range(8):
        simulate(_options(seed, 2), play())
