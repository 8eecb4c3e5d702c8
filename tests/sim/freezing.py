"""SIGSTOP for the daemon of one client: none of its tasks runs until it goes on, its clock and its kernel do.

A daemon's tasks are its session's and its filesystem's, all that these have begun, and a program's task while
it is in a request that the daemon handles. The scheduler is kept from running them by taking them from its
queue, where they stay out of sight of the simulated clock (``trio._core._run``; `tests.sim.world` uses it
too).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
from trio._core._run import GLOBAL_RUN_CONTEXT
from trio.abc import Instrument

from tests.sim.world import Client, World

T = TypeVar("T")

REQUESTS = (
    ("files", ("open", "create", "read", "write", "flush", "fsync")),
    ("inode_changes", ("setattr",)),
    ("names", ("lookup",)),
)
"""What the model of the kernel asks of a daemon, and waits for."""


class Freezer(Instrument):
    """One daemon, which runs until it is frozen."""

    def __init__(self, world: World, client: Client) -> None:
        self._client = client
        self._roots = {
            task
            for task in world.nursery.child_tasks
            if task.coro.cr_frame.f_locals.get("self") in (client.session, client.fs)
        }
        assert len(self._roots) == 2, self._roots
        self._inside: set[trio.lowlevel.Task] = set()
        self._held: list[trio.lowlevel.Task] = []
        self._thawed = trio.Event()
        self._thawed.set()
        for engine, methods in REQUESTS:
            for method in methods:
                self._stand_before(getattr(client.fs, engine), method)
        self._stand_before(client.fs, "attributes_for_kernel")
        self._stand_before_release(world.nursery)

    @property
    def frozen(self) -> bool:
        return not self._thawed.is_set()

    def freeze(self) -> None:
        """SIGSTOP."""
        assert not self.frozen
        self._thawed = trio.Event()
        trio.lowlevel.add_instrument(self)
        queue = GLOBAL_RUN_CONTEXT.runner.runq
        for task in [task for task in queue if self._is_daemons(task)]:
            queue.remove(task)
            self._held.append(task)

    def thaw(self) -> None:
        """SIGCONT."""
        trio.lowlevel.remove_instrument(self)
        GLOBAL_RUN_CONTEXT.runner.runq.extend(self._held)
        self._held.clear()
        self._thawed.set()

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if self._is_daemons(task):
            assert GLOBAL_RUN_CONTEXT.runner.runq.pop() is task
            self._held.append(task)

    def _is_daemons(self, task: trio.lowlevel.Task) -> bool:
        ancestor: trio.lowlevel.Task | None = task
        while ancestor is not None:
            if ancestor in self._roots or ancestor in self._inside:
                return True
            nursery = ancestor.parent_nursery
            ancestor = None if nursery is None else nursery.parent_task
        return False

    def _stand_before(self, engine: Any, method: str) -> None:
        """A request waits in the kernel's queue while nobody reads it."""
        handle: Callable[..., Awaitable[Any]] = getattr(engine, method)

        async def request(*arguments: Any, **keywords: Any) -> Any:
            task = trio.lowlevel.current_task()
            if task in self._inside:
                return await handle(*arguments, **keywords)
            while self.frozen:
                await self._thawed.wait()
            self._inside.add(task)
            try:
                return await handle(*arguments, **keywords)
            finally:
                self._inside.discard(task)

        setattr(engine, method, request)

    def _stand_before_release(self, nursery: trio.Nursery) -> None:
        """FUSE_RELEASE, which no program waits for."""
        files = self._client.fs.files
        release = files.release
        waiting: list[int] = []

        def request(number: int) -> None:
            if not self.frozen:
                release(number)
                return
            waiting.append(number)
            if len(waiting) == 1:
                nursery.start_soon(later)

        async def later() -> None:
            await self._thawed.wait()
            while waiting:
                release(waiting.pop(0))

        files.release = request  # type: ignore[method-assign]
