"""Clients and server as in `tests.explore.world`, with the shipping sessions between them: connections die and
are made again, leases run out, the server is killed and started again.

Both ends are as they ship: `Session`, `Channel`, `Exchange` and `FrameSequence`, the codec, the lease, the
greeting; `Service`, its sessions, leases, grace, registry and journal. Not here: byte streams, and the loops
around a connection, which do no more than call what is called here (`Channel.serve`, `Session.run`,
`Service.serve`).

A connection dies without anybody being told: what is under way is lost, and what is sent from then on.

There is no time but what leases need. It passes in steps, each to the next deadline of a client whose
connection is dead: its caches are dropped, its lease is over, the server ends its session. In this order, as
the client counts from the sending of what the server has heard. The first may come at any moment; the others
not while anybody has still something to do, but to begin: that takes microseconds, and there are seconds
(docs/recovery.md tells of the limit). All others are heard of at every step.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, cast

from nfsfuse.engine.filesystem import Filesystem
from nfsfuse.engine.session import Session
from nfsfuse.machines.lease import SUSPEND_AT
from nfsfuse.protocol.codec import decode
from nfsfuse.protocol.framing import Frame
from nfsfuse.protocol.types import ClientId, RequestId
from nfsfuse.rpc.channel import Channel
from nfsfuse.rpc.sequence import FrameSequence
from nfsfuse.rpc.streams import ConnectionLost
from nfsfuse_server.machines.leases import MARGIN
from nfsfuse_server.service.service import Service, ServiceOptions
from nfsfuse_server.service.session import Session as ServerSession
from nfsfuse_server.state.recover import recover
from tests.explore.runner import Choice, Nursery, Runner
from tests.explore.wire import Wire, content, told
from tests.explore.world import InlineDisk, World, closes_waiting, make_engine
from tests.helpers.kernel_model import KernelModel
from tests.helpers.memory_state import MemoryLog, MemoryRegistry
from tests.sim.checks import check_client, check_clients_together, check_nothing_is_believed

SERVER = "server"
"""The group of what the server's process does."""


class Away(IntEnum):
    """How long a client is away, by the deadlines that have passed."""

    NOT_LONG = 0
    SUSPENDED = 1
    PAST_ITS_LEASE = 2
    FENCED = 3


_DEADLINES = {Away.SUSPENDED: SUSPEND_AT, Away.PAST_ITS_LEASE: 1.0, Away.FENCED: 1 + MARGIN}
"""As parts of the lease. The first two are the client's, the last one the server's."""

_TOLD = {
    Away.SUSPENDED: "is about to lose its lease",
    Away.PAST_ITS_LEASE: "has lost its lease",
    Away.FENCED: "is silent for so long that the server fences it, if others wait for it",
}


@dataclass(eq=False)
class ConnectedClient:
    """One client, and its newest connection. It is a group of the runner."""

    name: str
    wire: Wire
    alive: bool = True
    away: Away = Away.NOT_LONG
    server_end: ServerSession | None = None
    fs: Filesystem = field(init=False)
    kernel: KernelModel = field(init=False)
    session: Session = field(init=False)

    def __str__(self) -> str:
        return self.name

    @property
    def may_tell(self) -> list[RequestId]:
        """The requests whose answers may still tell of attributes."""
        return [call.id for call in self.session.channel.unanswered() if call.apply is not None]

    async def connect(self) -> Any:
        """What its session connects with."""
        return self.wire.near


@dataclass
class Disturbances:
    """What is still to go wrong. *connections*: how many die; *clients*: whose. *leases*: whether they may run
    out. *restarts*: of the server."""

    connections: int = 0
    clients: tuple[int, ...] = (0,)
    leases: bool = False
    restarts: int = 0


class ConnectedWorld(World):
    """The whole of it. Nothing goes wrong while it is *calm*."""

    def __init__(self, runner: Runner, clients: int, disturbances: Disturbances) -> None:
        self.registry, self.log = MemoryRegistry(), MemoryLog()
        self.left = disturbances
        self.calm = True
        self._identities = itertools.count(1)
        super().__init__(runner, clients)

    # --- the server ---

    def _make_service(self) -> Service:
        options = ServiceOptions()
        recovered = recover(self.storage, self.registry, self.log, "", options.lease_ms / 1000)
        service = Service(self.storage, options, recovered, self._identity, InlineDisk())
        service._nursery = cast(Any, Nursery(self.runner, SERVER))
        service.recovery.begin(self.runner.now, options.lease_ms / 1000 * (1 + MARGIN))
        return service

    def _identity(self, size: int) -> bytes:
        return next(self._identities).to_bytes(size)

    def _restart(self) -> None:
        """The server's process is killed, and started again on what outlives it."""
        self.left.restarts -= 1
        self.runner.kill(SERVER)
        for client in self.clients:
            client.wire.die()
            client.server_end = None
        self.storage.restart()
        self.service = self._make_service()

    # --- clients and connections ---

    def _connect(self, number: int) -> Any:
        client = ConnectedClient(f"client {number}", Wire(self.runner))
        self.clients.append(client)  # known before it is mounted: its frames have to be carried
        client.session = Session(
            client.connect, ClientId(bytes([number]) * 16), client.name,
            clock=lambda: self.runner.now, jitter=lambda: 0.0,
        )  # fmt: skip
        make_engine(client, client.session, self.storage.root(), self.runner)
        self.runner.spawn(f"{client} connects", client, self._begin(client))
        self.settle()
        while client.wire.down:
            self._receive(client)
            self.settle()
        self.clients.pop()
        return client

    def _greet(self, client: ConnectedClient) -> None:
        self.runner.spawn(f"{client} connects", client, self._go_on(client))

    @staticmethod
    async def _begin(client: ConnectedClient) -> None:
        client.session.begin(client.fs, await client.session.greet())

    @staticmethod
    async def _go_on(client: ConnectedClient) -> None:
        """As `Session._reconnect`."""
        try:
            greeted = await client.session.greet()
        except ConnectionLost:
            return
        client.session.go_on(greeted)

    def _die(self, client: ConnectedClient) -> None:
        self.left.connections -= 1
        client.wire.die()

    def _connect_again(self, client: ConnectedClient) -> None:
        client.session.channel.disconnect()
        client.wire, client.away = Wire(self.runner), Away.NOT_LONG
        self._greet(client)
        if not self.left.connections and not self.left.restarts:
            # Nothing can come between: whoever acts before the Welcome may as well act before the Hello.
            self.settle()
            self._receive(client)

    async def _welcome(self, client: ConnectedClient, wire: Wire, hello: Any) -> None:
        """As `Service.serve`."""
        try:
            client.server_end = await self.service._welcome(cast(Any, wire.far), hello)
        except ConnectionLost:
            wire.die()

    def _arrived(self, client: ConnectedClient, frame: Frame) -> None:
        """At the server."""
        wire = client.wire
        if not wire.said_hello:
            wire.said_hello = True
            hello = cast(Any, decode(frame.header)).message
            name = f"the server greets {client}"
            self.runner.spawn(name, SERVER, self._welcome(client, wire, hello))
        elif client.server_end is not None and client.server_end.channel._link is wire.far:
            channel = client.server_end.channel
            channel.heard_at = self.runner.now
            channel._arrived(frame)

    def _receive(self, client: ConnectedClient) -> None:
        """The next frame arrives at the client."""
        wire, channel = client.wire, client.session.channel
        if not wire.greeted:
            wire.let_welcome_arrive()
        else:
            channel.heard_at = self.runner.now
            channel._arrived(wire.down.popleft())

    # --- what may happen ---

    def settle(self) -> None:
        self.runner.settle()
        while any(client.wire.up for client in self.clients):
            for client in self.clients:
                while client.wire.up:
                    self._arrived(client, client.wire.up.popleft())
                    self.runner.settle()

    def choices(self) -> list[Choice]:
        """Disturbances come last: before, things go on as they do undisturbed."""
        found = sorted(self.runner.waiting, key=lambda choice: choice.label)
        alive = [client for client in self.clients if client.alive]
        for client in alive:
            if client.wire.down:
                what = f"{client} gets {told(client.wire.down[0])}"
                found.append(Choice(what, None, lambda client=client: self._receive(client)))
            if client.session.closes.pending:
                found.append(Choice(f"{client} tells what it has closed", None, client.session.closes.send))
        if not self.calm:
            for number, client in enumerate(self.clients):
                found += self._disturbances(number, client)
            if self.left.restarts:
                found.append(Choice("the server is killed and started again", None, self._restart))
            if self._waits_for_the_dead():
                found.append(Choice("grace is over", None, self._grace_over))
        return found

    def _disturbances(self, number: int, client: ConnectedClient) -> list[Choice]:
        found = []
        if client.alive and client.wire.dead:
            found.append(Choice(f"{client} connects again", None, lambda: self._connect_again(client)))
        elif client.alive and self.left.connections and number in self.left.clients:
            found.append(Choice(f"the connection of {client} dies", None, lambda: self._die(client)))
        then = self._next_deadline(client)
        if then is not None:
            found.append(Choice(f"{client} {_TOLD[then]}", None, lambda: self._pass(client, then)))
        return found

    def _next_deadline(self, client: ConnectedClient) -> Away | None:
        if not client.alive:
            known = client.session.session_id in self.service.sessions
            spared = client.away is Away.FENCED and not self._keeps_others_waiting(client)
            return Away.FENCED if known and not spared else None
        if not self.left.leases or not client.wire.dead or client.away is Away.FENCED:
            return None
        if client.away is Away.NOT_LONG:
            return Away.SUSPENDED
        busy = any(" begins to " not in choice.label for choice in self.runner.waiting)
        busy |= any(other.wire.down for other in self.clients)
        return None if busy else Away(client.away + 1)

    def _pass(self, client: ConnectedClient, deadline: Away) -> None:
        """Time passes until then. Whoever else is connected is heard of."""
        client.away = deadline
        session, lease = client.session, client.session.machine.lease
        now = self.runner.now = lease.renewed_at + _DEADLINES[deadline] * lease.seconds
        for other in self.clients:
            if other is not client and other.alive and other.server_end is not None:
                other.session.carry_out(other.session.machine.acknowledged(now, now))
                other.server_end.channel.heard_at = now
        if deadline is Away.SUSPENDED:
            heard_at = session.channel.heard_at
            session.carry_out(session.machine.advance(now, connected=False, heard_at=heard_at))
        elif deadline is Away.FENCED:
            there = self.service.sessions.get(session.session_id)
            self.service._fence_expired()
            if there is None or there.over.is_set():
                self._lose(client)  # else nobody has wanted anything of it, and it is spared

    def _keeps_others_waiting(self, client: ConnectedClient) -> bool:
        lease = self.service.leases._leases.get(client.session.session_id)
        return lease is not None and bool(lease.recalls)

    def _waits_for_the_dead(self) -> bool:
        grace = self.service.recovery._grace
        dead = {client.session.session_id for client in self.clients if not client.alive}
        return grace is not None and not grace.over and set(grace.waits_for()) <= dead

    def _grace_over(self) -> None:
        self.runner.now += self.service._options.lease_ms / 1000 * (1 + MARGIN)
        self.runner.spawn("grace", SERVER, self.service._forget_late())

    def crash(self, client: Any) -> None:
        """The client is gone. The server learns of it when its lease is over."""
        self._lose(client)
        client.alive = False
        client.wire.die()
        self.runner.kill(client)

    # --- is all as it should be? ---

    def check(self) -> None:
        self.service.tokens.check()
        self.service.journal.check()
        for session in self.service.sessions.values():
            session.channel.check()
        alive = [client for client in self.clients if client.alive]
        believing = []
        for client in alive:
            client.session.channel.check()
            client.session.machine.check()
            check_client(client.fs, client.kernel)
            session_id = client.session.session_id
            if session_id in self.service.sessions or self.service.recovery.is_absent(session_id):
                believing.append((client.name, client.fs))
            else:
                check_nothing_is_believed(client.name, client.kernel)
        check_clients_together(believing)

    def parts(self) -> tuple[Any, ...]:
        recovery, tokens = self.service.recovery, self.service.tokens
        grace = recovery._grace
        sessions = [
            (session.open_files, list(session.running), list(recovery._held_back), self._granted(session))
            for _, session in sorted(self.service.sessions.items())
        ]
        server = (
            tokens.manager, tokens._waiting, self._stored(), sessions, self.left,
            None if grace is None else grace._waits_for, list(recovery._held_back.values()),
            list(self.service.growths._unanswered.values()),
            [len(entries) for entries in self.service.journal._entries.values()],
        )  # fmt: skip
        clients = [self._client_parts(client) if client.alive else client.away for client in self.clients]
        tasks = sorted(self.runner.tasks, key=lambda task: task.name)
        return clients, server, [(task.name, task) for task in tasks], self.words

    @staticmethod
    def _granted(session: ServerSession) -> list[tuple[bytes, int]]:
        sent = session.channel.frames_sent
        return [(handle, sent - frame) for handle, frame in session.granted_in.items()]

    def _client_parts(self, client: ConnectedClient) -> tuple[Any, ...]:
        session, wire, fs = client.session, client.wire, client.fs
        lease, suspension, sequence = session.machine.lease, fs.suspension, session.channel._sequence
        far = client.server_end.channel if client.server_end is not None else None
        return (
            self._engine_parts(client),
            (suspension._wanted, suspension._running, client.away, lease.suspended, session.leased()),
            [(call.message, call.posted, call.task is None) for call in session.channel.unanswered()],
            closes_waiting(session.closes, client.server_end),
            (wire.dead, wire.greeted, [content(frame) for frame in wire.down]),
            (_kept(sequence), None if far is None else _kept(far._sequence)),
            None if far is None else _difference(session.channel, far),
        )


def _kept(sequence: FrameSequence) -> list[tuple[object, ...]]:
    return [content(Frame(kept.header, bytes(kept.payload))) for kept in sequence.unacknowledged()]


def _difference(near: Channel, far: Channel) -> tuple[int, int]:
    """How many frames are under way, or lost."""
    return near.frames_sent - far.frames_received, far.frames_sent - near.frames_received
