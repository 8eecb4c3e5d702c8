"""Two or three clients and their server, to be explored: the shipping engines and machines, and no clock.

What ships runs here as it is: the whole client engine (`Filesystem`), the server's handlers, driver and token
manager, the memory storage; in front of it the kernel model of the simulator. Not here: bytes on a wire (a link
is a queue of messages in each direction, in order), threads, time.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

from nfsfuse.engine.closes import Closes
from nfsfuse.engine.filesystem import CacheOptions, Filesystem
from nfsfuse.machines.access_times import AccessTimes
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError
from nfsfuse.protocol.messages import Message, Request
from nfsfuse.protocol.tokens import Token
from nfsfuse.protocol.types import ClientId, Credentials, InodeHandle, Node, OpenId, RequestId, SessionId
from nfsfuse.rpc.exchange import Answering, RequestArrived
from nfsfuse_server.service.disk import Disk
from nfsfuse_server.service.requests import Requests
from nfsfuse_server.service.service import Service, ServiceOptions
from nfsfuse_server.service.session import Session
from nfsfuse_server.state.recover import recover
from tests.explore.register import Register
from tests.explore.runner import Choice, Nursery, ParkingLot, Runner
from tests.helpers.kernel_model import WORD_SIZE, KernelModel
from tests.helpers.memory_state import MemoryLog, MemoryRegistry
from tests.helpers.memory_storage import MemoryStorage
from tests.sim.checks import check_client, check_clients_together

T = TypeVar("T")

class InlineDisk(Disk):
    def __init__(self) -> None:
        self.inline_calls = self.thread_calls = 0

    def quick(self, call: Callable[[], T]) -> T | Coroutine[Any, Any, T]:
        return call()

    async def slow(self, call: Callable[[], T]) -> T:
        return call()


class _Delays:
    """In the place of `kernel_model.Delays`: whatever takes a while, takes it until chosen. Reads are of one
    page, if a program does not want more."""

    def __init__(self, runner: Runner) -> None:
        self.reads_pages = 1
        self.later = False
        self._runner = runner
        self.random = _NoDice()

    def read_ahead_pages(self) -> int:
        return self.reads_pages

    def reads_later(self) -> bool:
        return self.later

    async def unless_killed(self, work: Awaitable[T]) -> T:
        return await work

    async def pause(self) -> None:
        task = self._runner.current
        assert task is not None
        await self._runner.choose(f"{task.name} goes on")


class _NoDice:
    """In the place of random.Random: no write-back in bulk, the first pages first."""

    def randint(self, low: int, high: int) -> int:
        return low

    def random(self) -> float:
        return 1.0

    def sample(self, things: list[T], count: int) -> list[T]:
        return things[:count]


@dataclass(slots=True, eq=False)
class _Ask:
    """A request on its way to the server, or being answered."""

    number: RequestId
    message: Any
    payload: bytes
    apply: Callable[[Message, bytes], None] | None
    failed: Callable[[Exception], None] | None
    answered: ParkingLot
    reply: tuple[Any, bytes] | Exception | None = None

    def arrive(self, reply: tuple[Any, bytes] | FsError) -> None:
        """What `Channel._apply` does with a reply: the hook, then the caller."""
        if isinstance(reply, FsError):
            if self.failed is not None:
                self.failed(reply)
        elif self.apply is not None:
            self.apply(*reply)
        self.reply = reply
        self.answered.unpark_all()


@dataclass(eq=False)
class Client:
    """One client, and the two directions of its link. It is a group of the runner."""

    name: str
    runner: Runner
    up: deque[_Ask | Callable[[], None]] = field(default_factory=deque)
    down: deque[Callable[[], None]] = field(default_factory=deque)
    asked: dict[RequestId, _Ask] = field(default_factory=dict)
    unanswered: dict[RequestId, _Ask] = field(default_factory=dict)  # here: the answer may be on its way
    answering: Answering = field(init=False)
    frames_sent: int = 0  # by the server
    frames_received: int = 0
    alive: bool = True
    fs: Filesystem = field(init=False)
    kernel: KernelModel = field(init=False)
    session: Session = field(init=False)
    requests: Requests = field(init=False)
    closes: Closes = field(init=False)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _newest: RequestId = field(init=False)

    def __post_init__(self) -> None:
        self.closes = Closes(
            lambda closed: self.post(m.Release(closed)), lambda handles: self.post(m.Accessed(handles))
        )

    def __str__(self) -> str:
        return self.name

    # --- the Remote port ---

    async def call(
        self,
        message: Request[Any],
        payload: Any = b"",
        apply: Callable[[Message, bytes], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> tuple[Any, bytes]:
        ask = self._ask(message, bytes(payload), apply, failed)
        while ask.reply is None:
            await ask.answered.park()
        if isinstance(ask.reply, Exception):
            raise ask.reply
        return ask.reply

    def ask(
        self,
        message: Request[Any],
        payload: Any,
        apply: Callable[[Message, bytes], None],
        failed: Callable[[FsError], None],
    ) -> Callable[[], None]:
        self._ask(message, bytes(payload), apply, failed)
        return self._nobody_gives_up

    @staticmethod
    def _nobody_gives_up() -> None:
        raise AssertionError("no program is killed")

    def has_room(self) -> bool:
        return True

    def post(self, message: Request[Any]) -> None:
        self._ask(message, b"", None, None)

    def _ask(self, message: Any, payload: bytes, apply: Any, failed: Any) -> _Ask:
        number = self._newest = RequestId(next(self._numbers))
        ask = _Ask(number, message, payload, apply, failed, ParkingLot(self.runner))
        self.up.append(ask)
        self.asked[number] = ask
        self.unanswered[number] = ask
        return ask

    def answer_arrives(self, ask: _Ask, reply: tuple[Any, bytes] | FsError) -> None:
        self.answering = Answering(ask.number, next(iter(self.unanswered)), self._newest)
        ask.arrive(reply)
        del self.unanswered[ask.number]

    @property
    def may_tell(self) -> list[RequestId]:
        """The requests whose answers may still tell of attributes."""
        return [ask.number for ask in self.unanswered.values() if ask.apply is not None]

    def return_tokens(self, tokens: tuple[Token, ...]) -> None:
        self.closes.send()
        self.post(m.ReturnTokens(tokens, self.frames_received))

    def release(self, open_id: OpenId, tokens: tuple[Token, ...], *, at_once: bool = False) -> None:
        self.closes.add(m.Closed(open_id, tokens, self.frames_received if tokens else 0))
        if at_once:
            self.closes.send()

    def accessed(self, handle: InodeHandle) -> None:
        self.closes.accessed(handle)

    def tell_pending(self) -> None:
        self.closes.send()

    def leased(self, *, finishing: bool = False) -> bool:
        return True

    async def until_leased(self) -> None:
        pass


class _ServerChannel:
    """The server's end of a client's link, as `Requests`, `Tokens` and `Session` know it."""

    frames_acknowledged = 0

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def frames_sent(self) -> int:
        return self._client.frames_sent

    def _send(self, what: str, arrive: Callable[[], None]) -> None:
        arrive.__doc__ = what
        self._client.frames_sent += 1
        self._client.down.append(arrive)

    def reply(self, number: RequestId, message: Message, payload: Any = b"") -> None:
        ask = self._client.asked.pop(number)
        content = (message, bytes(payload))
        arrive = partial(self._client.answer_arrives, ask, content)
        self._send(f"the reply to its {_short(ask.message)}", arrive)

    def fail(self, number: RequestId, errno: int, detail: str = "") -> None:
        ask = self._client.asked.pop(number)
        failure = FsError(errno, detail)
        arrive = partial(self._client.answer_arrives, ask, failure)
        self._send(f"the failure of its {_short(ask.message)}", arrive)

    async def writable(self) -> None:
        pass

    def post(self, message: m.Recall | m.Grew, acknowledged: Callable[[Message, bytes], None]) -> None:
        client = self._client

        def acknowledge(reply: m.Recalled | m.Done) -> None:
            client.up.append(lambda: acknowledged(reply, b""))

        def arrive() -> None:
            if isinstance(message, m.Grew):
                client.fs.recalls.arrived(message, acknowledge)
                return
            client.closes.send()
            client.fs.recalls.arrived(message, acknowledge)

        self._send(f"the {_short(message)}", arrive)


class _Kernel(KernelModel):
    """Without dentries: how long it takes to distrust them makes no difference."""

    async def distrust_entries(self) -> None:
        pass


def make_engine(client: Any, remote: Any, root: Node, runner: Runner) -> None:
    """Its kernel and its engine, which asks *remote*."""
    client.kernel = _Kernel(cast(Any, _Delays(runner)), lambda node, text: None)
    client.fs = client.kernel.fs = Filesystem(
        remote, root, client.kernel, CacheOptions(1 << 20, 1 << 20), lambda: 1
    )
    client.fs.files.write_directly = True
    client.fs.files.access_times = AccessTimes.NONE  # nothing depends on them, and there would be more states
    nursery = Nursery(runner, client)
    for part in (client.fs, client.fs.recalls, client.fs.write_back):
        part._nursery = nursery
    client.fs.reader.nursery = client.fs.changes.nursery = client.fs.name_drops.nursery = nursery


class World:
    """The whole of it. *words* are the registers that programs use, by file and offset."""

    def __init__(self, runner: Runner, clients: int) -> None:
        self.runner = runner
        ticks = itertools.count(1)
        self.storage = MemoryStorage(lambda: next(ticks))
        self.service = self._make_service()
        self.words: dict[int, Register] = {}
        self.clients: list[Any] = []
        for number in range(clients):
            self.clients.append(self._connect(number + 1))

    def _make_service(self) -> Service:
        options, disk = ServiceOptions(), InlineDisk()
        recovered = recover(self.storage, MemoryRegistry(), MemoryLog(), "", options.lease_ms / 1000)
        service = Service(self.storage, options, recovered, lambda size: bytes(size), disk)
        service._nursery = cast(Any, Nursery(self.runner, "server"))
        service.recovery.begin(0.0, 0.0)
        return service

    def _connect(self, number: int) -> Any:
        client = Client(f"client {number}", self.runner)
        identity = ClientId(bytes([number]) * 16)
        session = client.session = Session(
            SessionId(identity), identity, client.name, self.service.sync_errors, self.service.open_counts
        )
        session.channel = cast(Any, _ServerChannel(client))
        session.nursery = cast(Any, Nursery(self.runner, f"server for {client}"))
        service = self.service
        client.requests = Requests(
            session, self.storage, service.driver, service.tokens, service.leases, service.journal,
            service.recovery,
        )  # fmt: skip
        service.sessions[session.id] = session
        service.leases.opened(session.id, 0.0)
        make_engine(client, client, self.storage.root(), self.runner)
        return client

    def make_file(self, name: bytes, content: bytes) -> InodeHandle:
        """A file in the root, on the server."""
        root = self.storage.root().handle
        node = self.storage.create(root, name, 0o644, Credentials(0, 0))
        self.storage.write(node.handle, 0, content)
        return node.handle

    def word(self, offset: int) -> Register:
        """The register at *offset*."""
        return self.words.setdefault(offset, Register())

    # --- what may happen ---

    def choices(self) -> list[Choice]:
        """All that may happen now, always in the same order. What a client sends arrives at once: an order in
        which it came later is the same, for all that anybody sees, as one in which it was sent later."""
        found = sorted(self.runner.waiting, key=lambda choice: choice.label)
        for client in self.clients:
            if client.down:
                what = client.down[0].__doc__
                found.append(Choice(f"{client} gets {what}", None, self._receiver(client)))
            if client.closes.pending:
                found.append(Choice(f"{client} tells what it has closed", None, client.closes.send))
        return found

    def take(self, choice: Choice) -> None:
        """Let it happen, and what follows of itself."""
        self.runner.take(choice)
        self.settle()

    def settle(self) -> None:
        """Go on until something has to be chosen."""
        self.runner.settle()
        while any(client.up for client in self.clients):
            for client in self.clients:
                while client.up:
                    first = client.up.popleft()
                    if isinstance(first, _Ask):
                        client.requests.arrived(RequestArrived(first.number, first.message, first.payload))
                    else:
                        first()
            self.runner.settle()

    def _receiver(self, client: Client) -> Callable[[], None]:
        def receive() -> None:
            client.frames_received += 1
            client.down.popleft()()

        return receive

    # --- the end of a client ---

    def crash(self, client: Client) -> None:
        """The client is gone, its session over: what only it had is lost."""
        self._lose(client)
        client.alive = False
        client.up.clear()
        client.down.clear()
        self.runner.kill(client)
        client.session.over.set()
        client.session.give_up_queued()
        self.runner.cancel(f"server for {client}")
        self.service._release(client.session)

    def _lose(self, client: Any) -> None:
        """What only *client* has is lost."""
        for offset, word in self.words.items():
            if self._has_dirty(client, offset):
                stored = self.storage.read(self.handle, offset, WORD_SIZE)
                word.lose(int.from_bytes(stored))

    handle: InodeHandle

    def _has_dirty(self, client: Any, offset: int) -> bool:
        file = client.fs.holdings.existing_file(self.handle)
        return file is not None and file.tokens.held.at(offset) == 2

    # --- is all as it should be? ---

    def check(self) -> None:
        """Every invariant."""
        self.service.tokens.check()
        alive = [client for client in self.clients if client.alive]
        for client in alive:
            check_client(client.fs, client.kernel)
        check_clients_together([(client.name, client.fs) for client in alive])

    def parts(self) -> tuple[Any, ...]:
        """All that makes a world what it is."""
        clients = [self._parts_of(client) if client.alive else None for client in self.clients]
        server = (
            self.service.tokens.manager, self.service.tokens._waiting, self._stored(),
            list(self.service.growths._unanswered.values()),
        )  # fmt: skip
        tasks = sorted(self.runner.tasks, key=lambda task: task.name)
        return clients, server, [(task.name, task) for task in tasks], self.words

    def _stored(self) -> tuple[Any, ...]:
        return self.storage.getattr(self.handle), self.storage.read(self.handle, 0, 1 << 16)

    @staticmethod
    def _engine_parts(client: Any) -> tuple[Any, ...]:
        kernel, write_back = client.kernel, client.fs.write_back
        told = client.fs.holdings._tellings._told
        return (
            [
                (handle, each.attributes, each.clear, older)
                for handle, each in sorted(told.items())
                if (older := sum(number <= each.newest for number in client.may_tell))
            ],
            client.fs.holdings._files,
            list(client.fs.files._open.values()),
            (write_back._in_flight, write_back._synced_in_flight),
            (list(write_back._dirty_files), write_back._slots),
            (kernel.inodes, kernel._version, kernel.failed_write_backs),
        )

    def _parts_of(self, client: Client) -> tuple[Any, ...]:
        return (
            *self._engine_parts(client),
            client.up,
            client.down,
            closes_waiting(client.closes, client.session),
            [
                (handle, frame - client.frames_received)
                for handle, frame in client.session.granted_in.items()
                if frame > client.frames_received
            ],
            client.session.open_files,
        )


def closes_waiting(closes: Closes, session: Session | None) -> list[tuple[object, ...]]:
    """What of the closes that wait matters: not how many frames there had been, but what the server is going
    to heed of them."""

    def is_heeded(closed: m.Closed, token: Token) -> bool:
        # As Session.knows_of_grants, which changes something.
        if session is None:
            return False
        granted_in = max(session.granted_in.get(token.handle, 0), session.granted_in_floor)
        return granted_in <= closed.frames_received

    return [
        (closed.open_id, closed.tokens, [is_heeded(closed, token) for token in closed.tokens])
        for closed in closes.pending
    ]


def _short(message: object) -> str:
    match message:
        case m.Recall(token=token):
            return f"recall of {token.resource.name} at {token.start} to {token.mode.name}"
        case m.Read() | m.Write():
            return f"{type(message).__name__} at {message.offset}"
        case m.WriteExtents():
            return f"WriteExtents at {[extent.offset for extent in message.extents]}"
        case _:
            return type(message).__name__
