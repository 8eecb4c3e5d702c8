"""Clients, their kernels, a server and the links between them, in one deterministic run of trio.

Same seed, same run: trio's clock is simulated and jumps; trio shuffles the tasks that are ready with a random
number generator of its own (``trio._core._run._r``), which `simulate` seeds, and sorts them before, once it is
told that it matters (pytest-trio tells it so, too); everything else draws from the world's. Two deadlines at
the same instant would be ordered by address (trio's heap), so nothing that repeats starts at the same time as
another (`World.start_client`).
"""

from __future__ import annotations

import hashlib
import random
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import trio
from trio._core import _run
from trio.abc import Instrument
from trio.testing import MockClock

from nfsfuse.engine.filesystem import CacheOptions, Filesystem
from nfsfuse.engine.session import Session
from nfsfuse.machines.inodes import NodeId
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.messages import Heartbeat
from nfsfuse.protocol.types import ClientId, Credentials, InodeHandle
from nfsfuse_server.service.service import Service, ServiceOptions
from tests.helpers.connector import Connector
from tests.helpers.disk import SlowDisk
from tests.helpers.history import History, Violation
from tests.helpers.kernel_model import Delays, KernelModel
from tests.helpers.memory_storage import MemoryStorage
from tests.helpers.restartable import RestartableServer
from tests.helpers.session_owner import HookedOwner
from tests.sim.checks import check_client, check_clients_together, check_nothing_is_believed

T = TypeVar("T")

STORY_LENGTH = 4000
"""Events told of the inode of a violation."""

EVENTS_KEPT = 4000

FINISH_SECONDS_MAX = 15.0
"""Simulated seconds in which programs must end. A page changes hands in a few milliseconds."""


CUTS_PER_SECOND = 100.0
"""For a run in which connections are cut all the time: a run takes about a second."""

LONG_CUTS = (20.0, (8.2, 9.3), 400.0, 10.0)
"""How often, for how long, the time that programs then need, and the lease. Past the moment at which caches
are dropped, but within the lease and its margin, the longest pause between attempts to connect included."""

PARTITIONS = (0.5, (1.0, 30.0), 600.0, 10.0)
"""The same of clients that are away for longer than their lease, too, and lose their session. A partition
begins with slow answers: a lease that was counted from their arrival would seem to run on."""

SLOW_STEP_SECONDS_MAX = 1.0
"""Between two calls of a program in a run with partitions: a tenth of the lease, so that all of a partition is
looked at."""

ANSWER_PART_MAX = 0.65
"""How late they come, as part of the lease: later, and the client gives the connection up before
(`nfsfuse.machines.lease`: a heartbeat is due after a third of it, and to be answered within another)."""

STEPS_MAX = 200_000
"""Steps of tasks in which they must: time may stand still while two tasks wake each other for ever."""


@dataclass(slots=True)
class Options:
    """What a run is made of. Sizes are bytes, times are seconds."""

    seed: int
    clients: int = 2
    link_seconds_max: float = 0.001
    kernel_seconds_max: float = 0.0005
    read_ahead_pages_max: int = 3
    cache_bytes: int = 256 << 10
    dirty_bytes_max: int = 128 << 10
    restarts: int = 0  # how often the server is killed and started again
    server_seconds_max: float = 0.05  # how long one lives
    down_seconds_max: float = 0.5
    cuts_per_second: float = 0.0  # how often a client loses its connection, and has none for a while
    cut_seconds: tuple[float, float] = (0.0, 0.05)  # for how long, from and to
    finish_seconds: float = FINISH_SECONDS_MAX
    lease_seconds: float = 3600.0  # longer than any run: a lease that ends would cure a deadlock
    may_be_fenced: bool = False  # cuts may be longer than the lease; answers before them come late
    step_seconds_max: float = 0.005  # between two calls of a program of `tests.sim.names` or `partitions`
    write_directly: bool = True  # see `Files.write_directly`
    killed: float = 0.0  # see `Delays`, as the next
    later: float = 0.0  # not in seeds that are older than it: they would be other runs
    processor_seconds: tuple[float, ...] = ()  # how long programs wait for a processor, client by client
    check_every: int = 1  # how many steps of tasks there are from one check of the invariants to the next


@dataclass(slots=True, eq=False)
class Client:
    """One client: its kernel and the engine behind it."""

    name: str
    kernel: KernelModel
    fs: Filesystem
    session: Session
    owner: HookedOwner
    connector: Connector


def partitioned(seed: int, clients: int = 3) -> Options:
    """Clients that are cut off for longer than their lease, now and then."""
    often, cut_seconds, finish_seconds, lease_seconds = PARTITIONS
    return Options(
        seed,
        clients,
        check_every=5,
        cuts_per_second=often,
        cut_seconds=cut_seconds,
        finish_seconds=finish_seconds,
        lease_seconds=lease_seconds,
        may_be_fenced=True,
        step_seconds_max=SLOW_STEP_SECONDS_MAX,
    )


class _Conscience(Instrument):
    """Calls the checks after every step of a task. (trio would only log what an instrument raises.)"""

    def __init__(self) -> None:
        self.check: Callable[[], None] | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.check is not None:
            self.check()


@dataclass(eq=False)
class World:
    """The whole of it. Made by `simulate`."""

    options: Options
    rng: random.Random
    nursery: trio.Nursery
    scope: trio.CancelScope
    history: History = field(default_factory=History)
    clients: list[Client] = field(default_factory=list)
    steps: int = 0
    deadline: trio.CancelScope | None = None  # by which the programs have to end
    failure: Violation | None = None
    stuck: bool = False  # that is the failure; what tasks raise as they are ended is of our own making

    def __post_init__(self) -> None:
        self.events: deque[tuple[float, str, int | None, str]] = deque(maxlen=EVENTS_KEPT)
        self._trace = hashlib.sha256()
        ticks = iter(range(1, 1 << 60))
        self.clock = lambda: next(ticks)
        self.storage = MemoryStorage(self.clock)
        service_options = ServiceOptions(int(self.options.lease_seconds * 1000))
        self.server = RestartableServer(
            self.nursery, self.storage, self.rng.randbytes, lambda: SlowDisk(self.rng), service_options
        )
        self.restarts = 0
        self.fences = 0
        self._numbers = count(1)

    @property
    def service(self) -> Service:
        """The one that runs, or ran last."""
        return self.server.service

    # --- making it ---

    def make_file(self, name: bytes, content: bytes) -> InodeHandle:
        """A file in the root, on the server."""
        root = self.storage.root().handle
        node = self.storage.create(root, name, 0o644, Credentials(0, 0))
        if content:
            self.storage.write(node.handle, 0, content)
        return node.handle

    async def start_client(self) -> Client:
        """Connect and mount one more."""
        await trio.sleep(self.rng.random())  # no two in step
        name = f"client {next(self._numbers)}"
        connector = self.server.connector(
            name, there_seconds=self._link_seconds, back_seconds=self._link_seconds
        )
        session = Session(connector.connect, ClientId(self.rng.randbytes(16)), name, jitter=self.rng.random)
        greeted = await session.greet()
        delays = Delays(
            self.rng,
            self.options.kernel_seconds_max,
            read_ahead_pages_max=self.options.read_ahead_pages_max,
            killed=self.options.killed,
            later=self.options.later,
        )
        kernel = KernelModel(delays, lambda node, text: self.note(name, node, text))
        if self.options.processor_seconds:
            number = len(self.clients) % len(self.options.processor_seconds)
            kernel.processor_seconds = self.options.processor_seconds[number]
        cache = CacheOptions(self.options.cache_bytes, self.options.dirty_bytes_max, guard=True)
        kernel.fs = Filesystem(session, greeted.welcome.root, kernel, cache, self.clock)
        kernel.fs.files.write_directly = self.options.write_directly
        owner = HookedOwner.of(kernel.fs)
        owner.on_refused = self._refused
        forget = kernel.fs.fenced
        owner.on_fenced = lambda: self._fenced(name, forget)
        await self.nursery.start(session.run, owner, greeted)
        await self.nursery.start(kernel.fs.run)
        client = Client(name, kernel, kernel.fs, session, owner, connector)
        self.clients.append(client)
        return client

    def _refused(self, reclaimed: m.Reclaimed) -> None:
        self.fail(f"a claim was refused: {reclaimed}")

    def _fenced(self, name: str, forget: Callable[[], None]) -> None:
        self.fences += 1
        self.note(name, None, "is fenced")
        if not self.options.may_be_fenced:
            self.fail(f"{name} was fenced")
        forget()

    async def kill_servers(self) -> None:
        """Kill the server at random moments, and start it again, `Options.restarts` times."""
        while self.restarts < self.options.restarts:
            await trio.sleep(self.rng.random() * self.options.server_seconds_max)
            self.restarts += 1
            self.note("server", None, f"killed, the {self.restarts}. time")
            self.server.kill()
            await trio.sleep(self.rng.choice((0.0, self.rng.random() * self.options.down_seconds_max)))
            await self.server.restart()
            self.note("server", None, "started again")

    async def cut_links(self) -> None:
        """Cut connections at random moments. For less than a lease no program may notice."""
        while True:
            await trio.sleep(self.rng.random() * 2 / self.options.cuts_per_second)
            client = self.rng.choice(self.clients)
            if self.options.may_be_fenced:
                await self._answer_late(client)
            else:
                # The lease begins now: how long a cut is is known exactly.
                await client.session.call(Heartbeat())
            self.note(client.name, None, "its connection is cut")
            client.connector.reachable = False
            client.connector.cut()
            await trio.sleep(self.rng.uniform(*self.options.cut_seconds))
            client.connector.reachable = True
            while not client.session.connected:  # noqa: ASYNC110 - nothing tells of it but the log
                await trio.sleep(0.001 + self.rng.random() * 0.001)

    async def _answer_late(self, client: Client) -> None:
        """The server hears one last word of *client*, and its answer takes long."""
        part = max(self.rng.random(), self.rng.random()) * ANSWER_PART_MAX
        seconds = part * self.options.lease_seconds
        self.note(client.name, None, f"is not heard any more, answers arrive for {seconds:.1f} s")
        client.connector.delay_answers(seconds)
        client.session.post(Heartbeat())
        client.connector.mute()
        await trio.sleep(seconds + 2 * self.options.link_seconds_max)

    def _link_seconds(self) -> float:
        return self.rng.random() * self.options.link_seconds_max

    # --- watching it ---

    def note(self, who: str, node: NodeId | None, text: str) -> None:
        """Something happened."""
        self.events.append((trio.current_time(), who, node, text))
        self._trace.update(f"{trio.current_time()} {who} {node} {text} {self.steps}\n".encode())

    def digest(self) -> str:
        """Equal for equal runs."""
        return self._trace.hexdigest()[:16]

    def check(self) -> None:
        """Every invariant, as far as it holds between two steps; the first failure ends the run."""
        self.steps += 1
        if self.failure is not None:
            unshield(self.scope)
            return
        if self.deadline is not None and self.deadline.cancel_called:
            self.fail(f"programs have not ended after {self.options.finish_seconds:g} simulated seconds")
            self.stuck = True
        if self.steps > STEPS_MAX:
            self.fail(f"programs have not ended after {STEPS_MAX} steps")
            self.stuck = True
        if self.steps % self.options.check_every:
            return
        try:
            self.service.tokens.check()
            for client in self.clients:
                check_client(client.fs, client.kernel)
            over = [client for client in self.clients if self._is_over(client)]
            for client in over:
                check_nothing_is_believed(client.name, client.kernel)
            # With faults nobody tells who is over; past its lease a client serves nothing of what it holds.
            believing = [
                client
                for client in self.clients
                if client not in over
                and (self.options.may_be_fenced or client.session.leased(finishing=True))
            ]
            check_clients_together([(client.name, client.fs) for client in believing])
        except AssertionError as exc:
            self.fail(str(exc) or repr(exc))

    def _is_over(self, client: Client) -> bool:
        """Whether the server has given away what *client* held. One that does not serve yet has not."""
        session, service = client.session.session_id, self.service
        if not self.server.serves:
            return False
        over = session not in service.sessions and not service.recovery.is_absent(session)
        return over and self.options.may_be_fenced

    def fail(self, text: str) -> None:
        """The run is over, with a violation."""
        if self.failure is None:
            self.failure = Violation(text)
            self.failure.add_note(self.story())  # now, while everybody is still there
            self.scope.cancel()
            unshield(self.scope)

    def story(self) -> str:
        """The last events, and where everything stands."""
        lines = [
            f"{when:.6f} {who}{'' if node is None else f' inode {node}'}: {text}"
            for when, who, node, text in list(self.events)[-STORY_LENGTH:]
        ]
        for client in self.clients:
            for file in client.fs.holdings.files():
                lines.append(f"{client.name}: {_tokens(file)}")
            for inode in client.kernel.inodes.values():
                lines.append(f"{client.name}: kernel, {inode}")
        for events in {handle: None for handle, _ in self.service.tokens.manager._states}:
            told = self.service.tokens.manager.story(events).splitlines()[-STORY_LENGTH:]
            lines.append(f"server, inode {events.hex()}:")
            lines += [f"  {line}" for line in told]
        return "\n".join(lines)


def _tokens(file: Any) -> str:
    tokens = file.tokens
    return (
        f"inode {file.inode.node_id}: held {tokens.held!r}, in the kernel {tokens.in_kernel!r}, "
        f"recalls {tokens.revocations}, entitled {tokens._entitled}, writers {tokens.writers}, "
        f"dirty {file.pages.dirty!r}, writing {file.pages.writing!r}, attributes {file.attributes.mode.name} "
        f"{'revoking ' if file.attributes.revoking else ''}"
        f"{'changed here ' if file.attributes.changed_here else ''}size {file.attributes.size()}"
    )


def unshield(scope: trio.CancelScope) -> None:
    """Let the cancellation of *scope* reach what is shielded in it now. That may wait for what is gone: a run
    that has deadlocked could not end, and the clock, with nothing to jump to, would spin for ever."""
    statuses = [scope._cancel_status]
    while statuses:
        status = statuses.pop()
        if status is not None:
            for child in list(status._children):
                child._scope.shield = False
                statuses.append(child)


Play = Callable[[World], Awaitable[None]]
"""What the programs of a run do. It returns when they have ended."""


def simulate(options: Options, play: Play) -> World:
    """Run *play* in a world of its own; the world, once all of it has ended. Raises Violation, with the story
    as a note, for whatever is not as it should be."""
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r.seed(options.seed)
    conscience = _Conscience()
    worlds: list[World] = []

    async def main() -> None:
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            world = World(options, random.Random(options.seed), nursery, nursery.cancel_scope)
            worlds.append(world)
            await world.server.start()
            for _ in range(options.clients):
                await world.start_client()
            conscience.check = world.check
            with trio.move_on_after(options.finish_seconds) as world.deadline:
                async with trio.open_nursery() as disturbers:
                    disturbers.start_soon(world.kill_servers)
                    if options.cuts_per_second:
                        disturbers.start_soon(world.cut_links)
                    await play(world)
                    disturbers.cancel_scope.cancel()
            conscience.check = None
            nursery.cancel_scope.cancel()

    failure: BaseException | None = None
    try:
        trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[conscience])
    except (Exception, BaseExceptionGroup) as exc:
        failure = exc
    if not worlds:
        assert failure is not None
        raise failure
    world = worlds[0]
    violation = world.failure
    if failure is not None and not world.stuck:
        # A task that died is the cause; that a check failed in the same instant is what followed.
        violation = _violation_in(failure)
    if violation is None:
        try:
            world.history.check()
        except Violation as exc:
            violation = exc
    if violation is not None:
        if violation is not world.failure:
            violation.add_note(world.story())
        # Once more at the end: of a long output that is what is kept.
        violation.add_note(f"seed {options.seed}, {options}: {violation}")
        raise violation from None
    return world


def _violation_in(failure: BaseException) -> Violation:
    leaf = failure
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    if isinstance(leaf, Violation):
        return leaf
    where = traceback.extract_tb(leaf.__traceback__)[-6:]
    return Violation(f"an exception: {leaf!r}\n" + "".join(traceback.format_list(where)))
