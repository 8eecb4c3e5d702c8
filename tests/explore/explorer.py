"""Every way in which a small world can go: each state once, checked when it is first seen.

A world cannot be copied, as coroutines cannot. So one is made, led along the choices that were made before,
and then on through states nobody has seen, until it comes to one that somebody has. `explore` goes depth
first, which makes these ways long and their number small; `shortest` breadth first, to tell a violation in as
few steps as there are.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from nfsfuse.protocol.types import PAGE_SIZE
from tests.explore.connected import ConnectedWorld
from tests.explore.programs import NAME, Process, SmallWorld
from tests.explore.runner import Choice, Runner
from tests.explore.stand_in import without_trio
from tests.explore.state import fingerprint
from tests.explore.world import World
from tests.helpers.history import Violation

SETUP_STEPS_MAX = 500
"""Choices until every process has its file open. It takes some twenty each."""

RUNS_PER_COLLECTION = 50
"""Worlds made between two runs of the garbage collector, which would else look at each of them many times."""


class TooLarge(Exception):
    """A world has more states than it may."""


Way = tuple[int, ...]
"""The choices that were made, by their numbers."""


@dataclass
class Found:
    """What an exploration has seen: states, steps from one to another, states in which all is done; and how
    long the longest way was, and how many worlds it took."""

    states: int = 0
    steps: int = 0
    ends: int = 0
    depth: int = 0
    worlds: int = 0


@dataclass(eq=False)
class Run:
    """One world under way, and what has happened in it."""

    small: SmallWorld
    runner: Runner
    story: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = self._make_world()
        self.world.handle = self.world.make_file(NAME, bytes(self.small.pages * PAGE_SIZE))
        self.processes = self.small.processes(self.world)
        self._start()
        if isinstance(self.world, ConnectedWorld):
            self.world.calm = False

    def _make_world(self) -> World:
        disturbances = self.small.disturbances
        if disturbances is None:
            return World(self.runner, self.small.clients)
        return ConnectedWorld(self.runner, self.small.clients, replace(disturbances))

    def _start(self) -> None:
        """Open everywhere, in one way; or have that explored, too."""
        for process in self.processes:
            self.runner.spawn(process.name, process.client, self._process(process))
            if not self.small.opens_late:
                self.world.settle()
                self._until_started(process)
        self.world.settle()

    @staticmethod
    async def _process(process: Process) -> None:
        await process.start()
        await process.run()

    def _until_started(self, process: Process) -> None:
        for _ in range(SETUP_STEPS_MAX):
            choices = [c for c in self.world.choices() if " begins to " not in c.label]
            if process.started and not choices:
                return
            self.world.take(choices[0])
        raise AssertionError(f"{process.name} does not get to open its file")

    def choices(self) -> list[Choice]:
        """What may happen next."""
        found = self.world.choices()
        for number in self.small.crashes:
            client = self.world.clients[number]
            if client.alive and not all(p.ended for p in self.processes if p.client is client):
                found.append(Choice(f"{client} dies", None, lambda client=client: self.world.crash(client)))
        return found

    def take(self, number: int) -> None:
        """Let the choice of this number happen."""
        choice = self.choices()[number]
        self.story.append(choice.label)
        self.world.take(choice)

    def check(self) -> None:
        """Raise Violation for whatever is not as it should be."""
        try:
            self.world.check()
        except AssertionError as exc:
            raise Violation(str(exc) or repr(exc)) from exc
        if not self.choices():
            waiting = [p.name for p in self.processes if p.client.alive and not p.ended]
            if waiting:
                raise Violation(f"{' and '.join(waiting)} can never go on")

    def mark(self) -> int:
        """Equal for equal states."""
        return fingerprint(*self.world.parts(), [(p.name, p.ended) for p in self.processes])


@contextmanager
def led(small: SmallWorld, way: Way) -> Iterator[Run]:
    """A world led along *way*. What goes wrong with it is a Violation, with the story as a note."""
    runner = Runner()
    with without_trio(runner):
        run = Run(small, runner)
        try:
            for number in way:
                run.take(number)
            yield run
        except TooLarge:
            raise
        except Exception as exc:
            violation = exc if isinstance(exc, Violation) else Violation(f"an exception: {exc!r}")
            violation.add_note("\n".join(f"{at:3}. {label}" for at, label in enumerate(run.story, 1)))
            raise violation from exc
        finally:
            runner.close()


@dataclass(eq=False)
class _Exploration:
    small: SmallWorld
    states_max: int
    found: Found = field(default_factory=Found)
    seen: set[int] = field(default_factory=set)

    def is_new(self, run: Run, depth: int) -> bool:
        run.check()
        mark = run.mark()
        if mark in self.seen:
            return False
        self.seen.add(mark)
        found = self.found
        found.states = len(self.seen)
        found.depth = max(found.depth, depth)
        found.ends += not run.choices()
        if found.states > self.states_max:
            raise TooLarge(f"more than {self.states_max} states")
        return True

    def depth_first(self) -> None:
        to_go: list[Way] = [()]
        while to_go:
            way = to_go.pop()
            self._count_world()
            with led(self.small, way) as run:
                while self.is_new(run, len(way)):
                    choices = len(run.choices())
                    to_go += [(*way, number) for number in range(1, choices)]
                    self.found.steps += choices
                    if choices == 0:
                        break
                    way = (*way, 0)
                    run.take(0)

    def breadth_first(self) -> None:
        to_go: deque[Way] = deque([()])
        while to_go:
            way = to_go.popleft()
            self._count_world()
            with led(self.small, way) as run:
                if self.is_new(run, len(way)):
                    choices = len(run.choices())
                    self.found.steps += choices
                    to_go += [(*way, number) for number in range(choices)]

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """The garbage collector looks when it is told to. A violation says after how many states it came."""
        gc.disable()
        try:
            yield
        except Violation as exc:
            exc.add_note(f"after {len(self.seen)} states")
            raise
        finally:
            gc.enable()

    def _count_world(self) -> None:
        self.found.worlds += 1
        if self.found.worlds % RUNS_PER_COLLECTION == 0:
            gc.collect()


def explore(small: SmallWorld, *, states_max: int = 1_000_000) -> Found:
    """See every state of *small*. Raises Violation for the first bad one, with the way there as a note;
    TooLarge if there are more than *states_max*."""
    exploration = _Exploration(small, states_max)
    with exploration.under_way():
        exploration.depth_first()
    return exploration.found


def shortest(small: SmallWorld, *, states_max: int = 1_000_000) -> Found:
    """The same, breadth first: the violation that is raised is one of those with the fewest steps."""
    exploration = _Exploration(small, states_max)
    with exploration.under_way():
        exploration.breadth_first()
    return exploration.found
