"""What goes wrong in a run: connections, clients, the server and its disk. Drawn from the seed, swarm-wise.

=============  ==========================================================================================
REFUSE         the server's disk takes no data for a while: ENOSPC, EDQUOT, EIO or EROFS
CUT            a client has no connection for less than its lease. Nobody may notice
CUT_OFF        it has none for longer than its lease: it is fenced
FREEZE         its daemon is stopped for less than its lease (SIGSTOP), while its kernel goes on
FREEZE_LONG    for longer than its lease: it is fenced when it goes on
KILL           kill -9 of its daemon, and of all its programs; sometimes another comes in its place
RESTART        kill -9 of the server, which is started again; perhaps once more while grace lasts
=============  ==========================================================================================

Nothing happens to a client twice at a time; everything else may coincide.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from random import Random

import trio

from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.types import InodeHandle
from nfsfuse_server.machines.leases import MARGIN
from tests.helpers.losses import Losses
from tests.sim.freezing import Freezer
from tests.sim.world import Client, World, unshield

LEASE_SECONDS = 2.0

SHORT = 0.1, 0.5
"""Parts of the lease for which a client may be away unnoticed: with the third of it after which it would have
renewed, and the pauses between its attempts to connect, it is back before the server's patience ends."""

LONG = 1 + 2 * MARGIN, 2.0
"""Parts of the lease after which a client that is away has been fenced, if somebody waits for it."""

PAUSE_SECONDS_MAX = 1.5
"""From one fault of a kind to the next, at most."""

FINISH_SECONDS = 120.0
"""Simulated seconds in which the programs must end. Each fault delays some of them by at most two leases."""


class Kind(Enum):
    """See above."""

    REFUSE = "refuse"
    CUT = "cut"
    CUT_OFF = "cut off"
    FREEZE = "freeze"
    FREEZE_LONG = "freeze long"
    KILL = "kill"
    RESTART = "restart"


def drawn(seed: int) -> Counter[Kind]:
    """How often each fault strikes in the run of *seed*: a few kinds, a few times."""
    rng = Random(f"faults {seed}")
    kinds = rng.sample(list(Kind), rng.randint(1, 3))
    return Counter({kind: rng.randint(1, 3) for kind in kinds})


class RefusingDisk:
    """The storage's fault hook: while *error* is set no data are taken."""

    def __init__(self) -> None:
        self.error = 0
        self.refused = 0

    def __call__(self, operation: str, handle: InodeHandle | None) -> None:
        if self.error and operation == "write":
            self.refused += 1
            raise FsError(self.error, "injected")


@dataclass(eq=False)
class Machine:
    """One client, and what becomes of it. *programs* is the scope that its programs run in; *stale*: its kernel
    may serve what is not true any more: its daemon could not tell it (docs/recovery.md, "What cannot be")."""

    client: Client
    freezer: Freezer
    programs: trio.CancelScope = field(default_factory=trio.CancelScope)
    stale: bool = False
    may_be_fenced: bool = False
    fences: int = 0
    busy: trio.Lock = field(default_factory=trio.Lock)
    purged: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False)
class Faults:
    """Everything that goes wrong in *world*. *counts* says how often; *arrived* is called for each client that
    comes in the place of a dead one."""

    world: World
    losses: Losses
    counts: Counter[Kind]
    arrived: Callable[[Machine], None]
    disk: RefusingDisk = field(default_factory=RefusingDisk)
    machines: list[Machine] = field(default_factory=list)
    struck: Counter[Kind] = field(default_factory=Counter)
    fences: int = 0
    spared: int = 0
    """Times that a client was away for longer than its lease, and was not fenced."""
    over: bool = False
    server_lives: trio.Lock = field(default_factory=trio.Lock)
    """Held by who needs the server to live on for a while, and by who kills it."""

    @property
    def _rng(self) -> Random:
        return self.world.rng

    def adopt(self, client: Client) -> Machine:
        """*client* may be struck from now on."""
        machine = Machine(client, Freezer(self.world, client))
        begin_anew = client.fs._begin_anew

        async def purged(forgotten: object) -> None:
            await begin_anew(forgotten)  # type: ignore[arg-type]
            machine.purged.set()

        client.fs._begin_anew = purged  # type: ignore[method-assign,assignment]
        client.owner.on_fenced = lambda: self._fenced(machine)
        self.machines.append(machine)
        return machine

    def _fenced(self, machine: Machine) -> None:
        name = machine.client.name
        self.world.note(name, None, "is fenced")
        if not machine.may_be_fenced:
            self.world.fail(f"{name} was fenced, and had not been away for its lease")
        self.fences += 1
        machine.fences += 1
        machine.client.fs.fenced()

    async def run(self) -> None:
        """All of it, one after the other of each kind; returns when it is over."""
        self.world.storage._fault = self.disk
        async with trio.open_nursery() as nursery:
            for kind, count in sorted(self.counts.items(), key=lambda item: item[0].name):
                nursery.start_soon(self._strike, kind, count)
        self.over = True

    async def _strike(self, kind: Kind, count: int) -> None:
        strikes: dict[Kind, Callable[[], Awaitable[None]]] = {
            Kind.REFUSE: self._refuse,
            Kind.CUT: lambda: self._on_somebody(self._cut, SHORT),
            Kind.CUT_OFF: lambda: self._on_somebody(self._cut, LONG),
            Kind.FREEZE: lambda: self._on_somebody(self._freeze, SHORT),
            Kind.FREEZE_LONG: lambda: self._on_somebody(self._freeze, LONG),
            Kind.KILL: self._kill,
            Kind.RESTART: self._restart,
        }
        for _ in range(count):
            await trio.sleep(self._rng.random() * PAUSE_SECONDS_MAX)
            await strikes[kind]()
            self.struck[kind] += 1

    # --- the disk, the server ---

    async def _refuse(self) -> None:
        error = self._rng.choice((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS))
        self.world.note("server", None, f"its disk refuses data: {errno.errorcode[error]}")
        self.disk.error = error
        await trio.sleep(self._rng.uniform(0.01, 3.0))
        self.disk.error = 0
        self.world.note("server", None, "its disk takes data again")

    async def _restart(self) -> None:
        async with self.server_lives:
            self.world.note("server", None, "killed")
            self.world.server.kill()
            await trio.sleep(self._rng.choice((0.0, self._rng.random() * LEASE_SECONDS)))
            await self.world.server.restart()
            self.world.restarts += 1
            self.world.note("server", None, "started again")
        if self._rng.random() < 0.5:  # else the next may come before grace is over
            await self.world.service.recovery.granting.wait()

    # --- clients ---

    async def _on_somebody(
        self, strike: Callable[[Machine, float], Awaitable[None]], leases: tuple[float, float]
    ) -> None:
        machine = self._rng.choice(self.machines)
        async with machine.busy:
            if machine not in self.machines:
                return  # it has died meanwhile
            await self._settled(machine)
            seconds = self._rng.uniform(*leases) * LEASE_SECONDS
            machine.may_be_fenced = seconds > LEASE_SECONDS
            machine.purged = trio.Event()
            fences = machine.fences
            await strike(machine, seconds)
            if machine.may_be_fenced:
                await self._settled(machine)
            if machine.fences != fences:
                await machine.purged.wait()
            elif machine.may_be_fenced:
                self.spared += 1  # nobody has waited for it for long enough; or the server began anew
            machine.stale = machine.may_be_fenced = False

    async def _settled(self, machine: Machine) -> None:
        """Wait until its lease runs."""
        session = machine.client.session
        while not (session.connected and session.leased()):  # noqa: ASYNC110 - nothing tells of it but the log
            await trio.sleep(0.01 + self._rng.random() * 0.01)

    async def _cut(self, machine: Machine, seconds: float) -> None:
        client = machine.client
        self.world.note(client.name, None, f"is cut off for {seconds:.3f} s")
        client.connector.reachable = False
        client.connector.cut()
        await trio.sleep(seconds)
        client.connector.reachable = True

    async def _freeze(self, machine: Machine, seconds: float) -> None:
        name = machine.client.name
        self.world.note(name, None, f"is stopped for {seconds:.3f} s")
        machine.stale = machine.may_be_fenced
        machine.freezer.freeze()
        try:
            await trio.sleep(seconds)
        finally:
            machine.freezer.thaw()
        self.world.note(name, None, "goes on")

    async def _kill(self) -> None:
        if len(self.machines) < 2:
            return
        machine = self._rng.choice(self.machines)
        async with machine.busy:
            if machine not in self.machines:
                return
            client = machine.client
            self.world.note(client.name, None, "is killed")
            client.connector.reachable = False
            client.connector.cut()  # what its tasks do in their last gasp reaches nobody
            machine.programs.cancel()
            unshield(machine.programs)  # the kernel lets go of all that waits for a daemon which is dead
            client.session.stop()
            assert client.fs._nursery is not None
            client.fs._nursery.cancel_scope.cancel()
            self.machines.remove(machine)
            self.world.clients.remove(client)
            self.losses.died(client.name)
        if self._rng.random() < 0.5:
            async with self.server_lives:  # there is no mount without a server
                client = await self.world.start_client()
            self.arrived(self.adopt(client))
