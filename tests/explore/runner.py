"""Coroutines run one at a time, and what may happen next is for somebody else to choose.

The engines wait through trio: for a change, for a lock, for a while. Here they wait through this module, which
has as much of trio's vocabulary as they use and no clock: tasks that can go on do so, first come first served,
until all of them wait. What is left then are *choices*: tasks that wait for something which may happen at any
moment (a message to arrive, a page's lock to be looked at). `Runner.take` makes one of them happen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import SimpleNamespace, TracebackType
from typing import Any

import outcome
import trio

CLOSES_MAX = 10
"""Waits that a task may still begin while it is closed."""


class _Park:
    """Waits until its task is made ready."""

    def __await__(self) -> Generator[_Park, None, None]:
        yield self


class Task:
    """A coroutine under way, of *group*: a client, or the server. *result* is what it is woken up with."""

    __slots__ = ("coroutine", "group", "name", "result")

    def __init__(self, name: str, group: object, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.name = name
        self.group = group
        self.coroutine = coroutine
        self.result: outcome.Outcome[Any] | None = None


class Choice:
    """Something that may happen next. *label* tells it; *happen* is None for one that only wakes *task*."""

    __slots__ = ("happen", "label", "task")

    def __init__(self, label: str, task: Task | None, happen: Callable[[], None] | None = None) -> None:
        self.label = label
        self.task = task
        self.happen = happen


class Runner:
    """The tasks of one world. *group* (a client, the server) is whom a task belongs to; a group can die."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.current: Task | None = None
        self.waiting: list[Choice] = []
        self.now = 0.0  # seconds
        self._ready: deque[Task] = deque()
        self._dead: list[Task] = []
        self.nurseries: list[OpenNursery] = []

    def spawn(self, name: str, group: object, coroutine: Coroutine[Any, Any, Any]) -> Task:
        task = Task(name, group, coroutine)
        self.tasks.append(task)
        self._ready.append(task)
        return task

    def ready(self, task: Task) -> None:
        if task in self.tasks:
            self._ready.append(task)

    def settle(self) -> None:
        """Run until every task waits."""
        while self._ready:
            task = self._ready.popleft()
            if task not in self.tasks:
                continue
            self.current = task
            try:
                task.coroutine.send(None)
            except StopIteration:
                self.tasks.remove(task)
                self._ended(task)
            finally:
                self.current = None

    def _ended(self, task: Task) -> None:
        for nursery in self.nurseries:
            nursery.ended(task)

    async def choose(self, label: str) -> None:
        """Wait until somebody chooses that this happens."""
        assert self.current is not None
        self.waiting.append(Choice(label, self.current))
        await _Park()

    def take(self, choice: Choice) -> None:
        """Let it happen, and everything that follows of itself."""
        if choice.happen is not None:
            choice.happen()
        else:
            assert choice.task is not None
            self.waiting.remove(choice)
            self.ready(choice.task)
        self.settle()

    def kill(self, group: object) -> None:
        """Whatever *group* was doing is over, without a word."""
        dead = [task for task in self.tasks if task.group == group]
        self._dead += dead
        self.tasks = [task for task in self.tasks if task.group != group]
        self.waiting = [choice for choice in self.waiting if choice.task not in dead]

    def cancel(self, group: object) -> None:
        """Whatever *group* was doing is cancelled, and ends as it does then: at once."""
        self.cancel_tasks([task for task in self.tasks if task.group == group])

    def cancel_tasks(self, tasks: list[Task]) -> None:
        """Whatever these were doing is cancelled."""
        before = self.current
        for task in tasks:
            self.tasks.remove(task)
            self.waiting = [choice for choice in self.waiting if choice.task is not task]
            self.current = task
            try:
                task.coroutine.throw(trio.Cancelled._create(source="explicit"))
            except (trio.Cancelled, StopIteration):
                self._ended(task)
                continue
            finally:
                self.current = before
            raise AssertionError(f"{task.name} goes on although it is cancelled")

    def close(self) -> None:
        """Nothing is going to run any more. A world is left as it is, in the middle of something: what the
        finally clauses of its tasks come upon, as they are closed, means nothing."""
        for task in (*self.tasks, *self._dead):
            for _ in range(CLOSES_MAX):
                try:
                    task.coroutine.close()
                except Exception:  # also RuntimeError, if it waits again
                    continue
                break
        self.tasks.clear()
        self._dead.clear()


class ParkingLot:
    """trio.lowlevel.ParkingLot."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.parked: list[Task] = []

    async def park(self) -> None:
        assert self._runner.current is not None
        self.parked.append(self._runner.current)
        await _Park()

    def unpark(self) -> None:
        """The first of those who wait, if any do."""
        if self.parked:
            self._runner.ready(self.parked.pop(0))

    def unpark_all(self) -> None:
        parked, self.parked = self.parked, []
        for task in parked:
            self._runner.ready(task)


class Event:
    """trio.Event."""

    def __init__(self, runner: Runner) -> None:
        self._lot = ParkingLot(runner)
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._lot.unpark_all()

    async def wait(self) -> None:
        while not self._set:
            await self._lot.park()


class Lock:
    """trio.Lock: first come, first served."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.owner: Task | None = None
        self._queue: list[Task] = []

    def locked(self) -> bool:
        return self.owner is not None

    async def __aenter__(self) -> None:
        task = self._runner.current
        assert task is not None
        assert self.owner is not task, "it would wait for itself"
        if self.owner is None:
            self.owner = task
            return
        self._queue.append(task)
        while self.owner is not task:
            await _Park()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.owner = self._queue.pop(0) if self._queue else None
        if self.owner is not None:
            self._runner.ready(self.owner)


class CancelScope:
    """trio.CancelScope: nobody cancels anything here."""

    def __init__(self, *, shield: bool = False) -> None:
        self.shield = shield
        self.cancel_called = False

    def cancel(self) -> None:
        raise AssertionError("nobody cancels anything here")

    def __enter__(self) -> CancelScope:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class Nursery:
    """trio.Nursery, as far as starting goes. What it starts belongs to *group*."""

    def __init__(self, runner: Runner, group: object) -> None:
        self._runner = runner
        self._group = group

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> None:
        self._runner.spawn(f"{self._group} {function.__name__}", self._group, function(*arguments))


    async def start(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> None:
        """trio.Nursery.start, of what starts with nothing to tell."""
        started = Event(self._runner)
        status = SimpleNamespace(started=started.set)
        coroutine = function(*arguments, task_status=status)
        self._runner.spawn(f"{self._group} {function.__name__}", self._group, coroutine)
        await started.wait()


class OpenNursery:
    """trio.open_nursery(). What it starts belongs to the group of the task that opened it."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._tasks: list[Task] = []
        self._lot = ParkingLot(runner)
        self.cancel_scope = SimpleNamespace(cancel=self._cancel)

    async def __aenter__(self) -> OpenNursery:
        assert self._runner.current is not None
        self._group = self._runner.current.group
        self._runner.nurseries.append(self)
        return self

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> None:
        name = f"{self._group} {function.__name__}"
        self._tasks.append(self._runner.spawn(name, self._group, function(*arguments)))

    def ended(self, task: Task) -> None:
        """A task of somebody's has ended."""
        if task in self._tasks:
            self._tasks.remove(task)
            self._lot.unpark_all()

    def _cancel(self) -> None:
        self._runner.cancel_tasks(list(self._tasks))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while kind is None and self._tasks:
            await self._lot.park()
        self._runner.nurseries.remove(self)


class CapacityLimiter:
    """trio.CapacityLimiter, in worlds too small to need one."""

    def __init__(self, total: int) -> None:
        self._left = total

    async def __aenter__(self) -> None:
        self._left -= 1
        assert self._left >= 0, "somebody would have to wait"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left += 1


async def _checkpoint() -> None:
    """trio.lowlevel.checkpoint: nothing else runs at it here; what matters is chosen elsewhere."""


def trio_of(runner: Runner) -> SimpleNamespace:
    """What stands in for the module trio."""

    async def sleep(seconds: float) -> None:
        await runner.choose("a while passes")

    async def wait_task_rescheduled(abandon: Callable[..., object]) -> Any:
        task = runner.current
        assert task is not None
        while task.result is None:
            await _Park()
        result, task.result = task.result, None
        return result.unwrap()

    def reschedule(task: Task, result: outcome.Outcome[Any]) -> None:
        task.result = result
        runner.ready(task)

    sleep_of: Callable[[float], Awaitable[None]] = sleep
    return SimpleNamespace(
        Cancelled=trio.Cancelled,
        CancelScope=CancelScope,
        Event=lambda: Event(runner),
        Lock=lambda: Lock(runner),
        Nursery=Nursery,
        CapacityLimiter=CapacityLimiter,
        current_time=lambda: runner.now,
        open_nursery=lambda: OpenNursery(runner),
        sleep=sleep_of,
        lowlevel=SimpleNamespace(
            ParkingLot=lambda: ParkingLot(runner),
            checkpoint=_checkpoint,
            current_clock=lambda: SimpleNamespace(current_time=lambda: runner.now),
            current_task=lambda: runner.current,
            wait_task_rescheduled=wait_task_rescheduled,
            reschedule=reschedule,
        ),
    )
