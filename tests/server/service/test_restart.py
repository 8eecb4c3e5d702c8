"""The service killed and started again, over sessions: what is done once, what waits, what is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nfsfuse.engine.session import Session
from nfsfuse.protocol import messages as m
from nfsfuse.protocol.errors import FsError, ProtocolError
from nfsfuse.protocol.locks import LockKind, LockMode, OwnedLock
from nfsfuse.protocol.messages import Request
from nfsfuse.protocol.tokens import RANGE_END, Resource, Token, TokenMode
from nfsfuse.protocol.types import (
    OFFSET_MAX,
    ClientId,
    Credentials,
    InodeHandle,
    LockOpenId,
    LockOwner,
    OpenFile,
    OpenId,
)
from nfsfuse_server.service.requests import HANDLERS
from nfsfuse_server.service.service import ServiceOptions
from nfsfuse_server.state.interface import StateError
from tests.helpers.connector import Connector
from tests.helpers.disk import InlineDisk
from tests.helpers.memory_storage import MemoryStorage
from tests.helpers.restartable import RestartableServer
from tests.helpers.session_owner import HookedOwner, begin

ME = Credentials(0, 0)
LEASE = 10.0
GRACE = 12.0
WHOLE = 0, RANGE_END
EXCLUSIVE, SHARED = TokenMode.EXCLUSIVE, TokenMode.SHARED


@dataclass(eq=False)
class Client:
    """A session, what it claims after a restart, and what of that was refused."""

    session: Session
    connector: Connector
    owner: HookedOwner
    claims: list[m.Reclaim]
    refused: list[m.Reclaimed]

    async def ask(self, message: Request[m.Message], payload: bytes = b"") -> m.Message:
        reply, _ = await self.session.call(message, payload)
        return reply


class World:
    """A server and its clients."""

    def __init__(self, nursery: trio.Nursery, options: ServiceOptions) -> None:
        numbers = count(1)
        self._nursery = nursery
        self.storage = MemoryStorage(lambda: next(numbers))
        self.server = RestartableServer(
            nursery, self.storage, lambda size: next(numbers).to_bytes(size, "big"), InlineDisk, options
        )  # fmt: skip
        self.root = self.storage.root().handle
        node = self.storage.create(self.root, b"file", 0o644, ME)
        self.file = node.handle

    async def client(self, *, there_seconds: float = 0.0, back_seconds: float = 0.0) -> Client:
        number = len(self.server.service.sessions) + 1
        connector = self.server.connector(
            f"client {number}", there_seconds=there_seconds, back_seconds=back_seconds
        )
        session = Session(connector.connect, ClientId(bytes([number]) * 16), f"client {number}")
        owner = HookedOwner()
        client = Client(session, connector, owner, [], [])
        owner.on_new_epoch = lambda welcome: client.claims
        owner.on_refused = client.refused.append
        owner.on_recall = lambda recall, acknowledge: acknowledge(m.Recalled(()))
        await begin(self._nursery, session, owner)
        return client

    def names(self) -> list[bytes]:
        return sorted(entry.name for entry in self.storage.readdir(self.root, 0, 100)[0])

    async def crash(self) -> None:
        self.server.kill()
        await self.server.restart()

    def lock(self, mode: LockMode = LockMode.WRITE, *, wait: bool = False) -> m.SetLock:
        return m.SetLock(
            self.file, LockOpenId(1), LockOwner(1), LockKind.POSIX, mode, 0, OFFSET_MAX, 7, wait
        )  # fmt: skip

    def check(self) -> None:
        service = self.server.service
        service.tokens.check()
        service.locks.manager.check()
        service.journal.check()


@asynccontextmanager
async def world(options: ServiceOptions | None = None) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        made = World(nursery, options or ServiceOptions())
        await made.server.start()
        yield made
        made.check()
        nursery.cancel_scope.cancel()


def claim(*tokens: Token, files: tuple[OpenFile, ...] = (), locks: tuple[OwnedLock, ...] = ()) -> m.Reclaim:
    return m.Reclaim(tokens, files, locks)


# --- once ---


async def test_a_create_whose_reply_was_lost_is_answered_and_not_repeated(autojump_clock):
    async with world() as w:
        client = await w.client(back_seconds=1.0)
        replies = []

        async def create() -> None:
            replies.append(await client.ask(m.Create(w.root, b"new", 0o644, os.O_RDWR | os.O_EXCL, ME)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)
            await wait_all_tasks_blocked()
            assert w.names() == [b"file", b"new"]
            await w.crash()
        (opened,) = replies
        assert isinstance(opened, m.Opened)
        assert opened.tokens == ()
        (session,) = w.server.service.sessions.values()
        assert session.open_files == {opened.open_id: opened.node.handle}
        await client.ask(m.Release((m.Closed(opened.open_id),)))


async def test_a_create_that_did_not_arrive_is_done_after_the_restart(autojump_clock):
    async with world() as w:
        client = await w.client(there_seconds=1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ask, m.Create(w.root, b"new", 0o644, os.O_RDWR | os.O_EXCL, ME))
            await wait_all_tasks_blocked()
            assert w.names() == [b"file"]
            await w.crash()
        assert w.names() == [b"file", b"new"]


async def test_an_error_is_told_again_as_well(autojump_clock):
    """The second look would find that the name is there: EEXIST, where it was EEXIST then. But a removal that
    failed then must not succeed now."""
    async with world() as w:
        client = await w.client(back_seconds=1.0)
        w.storage.mkdir(w.root, b"directory", 0o755, ME)
        inside = w.storage.lookup(w.root, b"directory").handle
        w.storage.mkdir(inside, b"x", 0o755, ME)
        caught = []

        async def remove() -> None:
            try:
                await client.ask(m.RmDir(w.root, b"directory"))
            except FsError as exc:
                caught.append(exc.errno)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            await wait_all_tasks_blocked()
            w.server.kill()
            w.storage.rmdir(inside, b"x")
            await w.server.restart()
        assert caught == [errno.ENOTEMPTY]


async def test_requests_are_asked_again_in_their_order_over_any_number_of_restarts(autojump_clock):
    async with world() as w:
        client = await w.client(there_seconds=0.5, back_seconds=0.5)
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(client.ask, m.MkDir(w.root, b"%02d" % number, 0o755, ME))
            for _ in range(5):
                await trio.sleep(0.7)
                await w.crash()
        assert w.names() == sorted([b"file", *(b"%02d" % number for number in range(20))])


# --- grace ---


async def test_nothing_is_granted_before_everybody_is_back(autojump_clock):
    async with world() as w:
        one, two = await w.client(), await w.client()
        await one.ask(w.lock())
        two.connector.delay_seconds = 3.0
        began = trio.current_time()
        one.claims = [claim(locks=(owned(w.file),))]
        await w.crash()
        reply = await one.ask(m.MkDir(w.root, b"new", 0o755, ME))
        assert isinstance(reply, m.Entry)
        assert trio.current_time() - began >= 3.0
        assert not w.server.service.recovery.in_grace


async def test_who_does_not_return_is_forgotten_after_the_grace_time(autojump_clock):
    async with world() as w:
        one, two = await w.client(), await w.client()
        await two.ask(w.lock())
        two.connector.reachable = False
        await w.crash()
        began = trio.current_time()
        await one.ask(w.lock(wait=True))
        assert GRACE <= trio.current_time() - began <= GRACE + LEASE / 10
        assert len(w.server.registry._sessions) == 1


async def test_grace_is_as_long_as_the_leases_of_those_it_waits_for(autojump_clock):
    """The administrator has shortened the lease: who is away may believe for the old one what it holds."""
    async with world() as w:
        one, two = await w.client(), await w.client()
        await two.ask(w.lock())
        two.connector.reachable = False
        w.server._options = ServiceOptions(lease_ms=1000)
        await w.crash()
        began = trio.current_time()
        await one.ask(w.lock(wait=True))
        assert GRACE <= trio.current_time() - began <= GRACE + LEASE / 10


async def test_a_fresh_export_has_no_grace(autojump_clock):
    async with world() as w:
        assert not w.server.service.recovery.in_grace
        client = await w.client()
        began = trio.current_time()
        await client.ask(m.GetAttr(w.root))
        assert trio.current_time() == began


async def test_a_goodbye_leaves_nothing_to_wait_for(autojump_clock):
    async with world() as w:
        one, two = await w.client(), await w.client()
        await two.session.goodbye()
        await wait_all_tasks_blocked()
        await w.crash()
        began = trio.current_time()
        await one.ask(m.GetAttr(w.root))
        assert trio.current_time() - began < 1.0


async def test_a_new_session_waits_for_grace_like_the_others(autojump_clock):
    async with world() as w:
        one = await w.client()
        one.connector.reachable = False
        await w.crash()
        began = trio.current_time()
        two = await w.client()
        await two.ask(m.GetAttr(w.root))
        assert trio.current_time() - began >= GRACE


async def test_what_is_held_back_can_be_cancelled(autojump_clock):
    async with world() as w:
        one, two = await w.client(), await w.client()
        two.connector.reachable = False
        await w.crash()
        with trio.move_on_after(2.0) as scope:
            await one.ask(m.MkDir(w.root, b"never", 0o755, ME))
        assert scope.cancelled_caught
        await trio.sleep(GRACE)
        await one.ask(m.GetAttr(w.root))
        assert w.names() == [b"file"], "it was given up before it began"


async def test_a_second_restart_within_grace(autojump_clock):
    async with world() as w:
        one, two = await w.client(), await w.client()
        await one.ask(w.lock())
        one.claims = [claim(locks=(owned(w.file),))]
        two.connector.reachable = False
        await w.crash()
        await trio.sleep(GRACE / 2)
        await w.crash()
        began = trio.current_time()
        two.connector.reachable = True
        with pytest.raises(FsError) as caught:
            await two.ask(w.lock())
        assert caught.value.errno == errno.EAGAIN, "it is still held"
        assert trio.current_time() - began < GRACE, "both have come back"
        assert w.server.service._epoch == 3


async def test_without_grace_everybody_is_forgotten_at_once(autojump_clock):
    async with world(ServiceOptions(grace_seconds=0.0)) as w:
        one = await w.client()
        fenced = []
        one.owner.on_fenced = lambda: fenced.append(True)
        await one.ask(w.lock())
        await w.crash()
        began = trio.current_time()
        await one.ask(m.GetAttr(w.root))
        assert trio.current_time() - began < 1.0
        assert fenced == [True]


async def test_what_was_held_back_and_is_malformed_ends_its_own_session_only(autojump_clock):
    async with world() as w:
        one, two, three = await w.client(), await w.client(), await w.client()
        three.connector.delay_seconds = 1.0
        await w.crash()

        def malformed(message: object) -> object:
            raise ProtocolError("so it is")

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(HANDLERS, m.MkDir, malformed)
            before = one.session.session_id
            async with trio.open_nursery() as nursery:
                nursery.start_soon(two.ask, m.GetAttr(w.root))
                with pytest.raises(FsError):
                    await one.ask(m.MkDir(w.root, b"new", 0o755, ME))
        await two.ask(m.GetAttr(w.root))
        await three.ask(m.GetAttr(w.root))
        assert before not in w.server.service.sessions


# --- reclaims ---


def owned(file: InodeHandle, owner: int = 1) -> OwnedLock:
    return OwnedLock(file, LockOpenId(1), LockOwner(owner), LockKind.POSIX, LockMode.WRITE, 0, OFFSET_MAX, 7)


async def test_tokens_open_files_and_locks_are_taken_back(autojump_clock):
    async with world() as w:
        one, two = await w.client(), await w.client()
        opened = await one.ask(m.Open(w.file, os.O_RDWR, True))
        assert isinstance(opened, m.Opened)
        await one.ask(w.lock())
        (session_id, _) = w.server.service.sessions
        held = w.server.service.tokens.manager.tokens_of(session_id)
        assert held
        one.claims = [claim(*held, files=(OpenFile(opened.open_id, w.file),), locks=(owned(w.file),))]
        await w.crash()
        await one.ask(m.Write(w.file, 0), b"under a token that was reclaimed")
        service = w.server.service
        assert set(service.tokens.manager.tokens_of(session_id)) == set(held)
        assert [lock.start for lock in service.locks.manager.locks_of(session_id)] == [0]
        assert service.sessions[session_id].open_files == {opened.open_id: w.file}
        assert one.refused == []
        again = await one.ask(m.Open(w.file, os.O_RDONLY, False))
        assert isinstance(again, m.Opened)
        assert again.open_id > opened.open_id, "numbers are not used twice"
        with pytest.raises(FsError):
            await two.ask(w.lock())


async def test_an_open_file_that_was_unlinked_stays_open(autojump_clock):
    async with world() as w:
        one = await w.client()
        opened = await one.ask(m.Open(w.file, os.O_RDWR, False))
        assert isinstance(opened, m.Opened)
        await one.ask(m.Unlink(w.root, b"file"))
        one.claims = [claim(files=(OpenFile(opened.open_id, w.file),))]
        await w.crash()
        await one.ask(m.Heartbeat())
        await wait_all_tasks_blocked()
        assert not w.server.service.recovery.in_grace
        assert w.storage.getattr(w.file).nlink == 0
        await one.ask(m.Release((m.Closed(opened.open_id),)))
        with pytest.raises(FsError) as caught:
            w.storage.getattr(w.file)
        assert caught.value.errno == errno.ESTALE


async def test_an_unlinked_file_that_nobody_claims_goes_with_grace(autojump_clock):
    async with world() as w:
        one = await w.client()
        await one.ask(m.Open(w.file, os.O_RDWR, False))
        await one.ask(m.Unlink(w.root, b"file"))
        w.server.kill()
        await w.server.restart()
        assert w.storage.orphans() == [w.file]
        await one.ask(m.Heartbeat())
        await wait_all_tasks_blocked()
        assert w.storage.orphans() == []


async def test_what_conflicts_is_refused_and_told(autojump_clock):
    async with world() as w:
        one, two = await w.client(), await w.client()
        token = Token(w.file, Resource.DATA, *WHOLE, EXCLUSIVE)
        shared = Token(w.root, Resource.DIR, *WHOLE, SHARED)
        gone = OpenFile(OpenId(5), InodeHandle(b"memory:" + bytes(7) + b"\x63"))
        one.claims = [claim(token, shared, locks=(owned(w.file),))]
        two.claims = [claim(token, shared, files=(gone,), locks=(owned(w.file, 2),))]
        two.connector.delay_seconds = 1.0
        await w.crash()
        await two.ask(m.Heartbeat())
        assert one.refused == []
        assert two.refused == [m.Reclaimed((token,), (gone.open_id,), (owned(w.file, 2),))]


async def test_a_claim_after_grace_is_refused(autojump_clock):
    async with world() as w:
        one = await w.client()
        token = Token(w.file, Resource.DATA, *WHOLE, EXCLUSIVE)
        reply = await one.ask(claim(token))
        assert reply == m.Reclaimed((token,), (), ())
        assert w.server.service.tokens.manager.tokens_of(next(iter(w.server.service.sessions))) == ()


async def test_a_session_that_is_not_known_is_a_new_one(autojump_clock):
    async with world() as w:
        one = await w.client()
        fenced = []
        one.owner.on_fenced = lambda: fenced.append(True)
        before = one.session.session_id
        w.server.kill()
        w.server.registry.remove([before])
        await w.server.restart()
        await one.ask(m.GetAttr(w.root))
        assert fenced == [True]
        assert one.session.session_id != before


async def test_a_dead_daemons_session_is_not_waited_for_when_it_is_replaced(autojump_clock):
    async with world() as w:
        one = await w.client()
        one.connector.reachable = False
        await w.crash()
        connector = w.server.connector("another")
        began = trio.current_time()
        session = Session(
            connector.connect, ClientId(b"another daemon!!"), "another", replaces=one.session.session_id
        )
        await begin(w._nursery, session)
        await session.call(m.GetAttr(w.root))
        assert trio.current_time() - began < 1.0


async def test_a_dead_client_costs_one_grace_over_any_number_of_restarts(autojump_clock):
    """Restarts that come faster than that would else keep everybody waiting for ever."""
    async with world() as w:
        dead, two = await w.client(), await w.client()
        dead.connector.reachable = False
        dead.connector.cut()
        began = trio.current_time()
        served = 0.0
        async with trio.open_nursery() as nursery:
            asked = trio.Event()

            async def ask() -> None:
                await two.ask(m.GetToken(w.file, EXCLUSIVE, *WHOLE, TokenMode.NONE))
                asked.set()

            await w.crash()
            nursery.start_soon(ask)
            while not asked.is_set():
                lived_from = trio.current_time()
                with trio.move_on_after(3.0):
                    await asked.wait()
                served += trio.current_time() - lived_from
                if not asked.is_set():
                    w.server.kill()
                    await trio.sleep(20.0)  # nobody could come back: it does not count
                    await w.server.restart()
        assert GRACE <= served < GRACE + 3.0, "what is not written down when it dies is waited again"
        assert trio.current_time() - began > 3 * 20.0


async def test_who_has_come_back_is_waited_for_anew_after_the_next_restart(autojump_clock):
    """Its lease was renewed when it came back: it may believe in what it holds for as long as any other."""
    async with world() as w:
        one, two = await w.client(), await w.client()
        token = Token(w.file, Resource.DATA, *WHOLE, EXCLUSIVE)
        await one.ask(m.GetToken(w.file, EXCLUSIVE, *WHOLE, TokenMode.NONE))
        one.claims = [claim(token)]
        one.connector.reachable = False
        await w.crash()
        await trio.sleep(0.7 * GRACE)
        one.connector.reachable = True
        await one.ask(m.Heartbeat())
        one.connector.reachable = False
        await w.crash()
        await trio.sleep(0.8 * GRACE)
        assert w.server.service.recovery.in_grace
        one.connector.reachable = True
        await one.ask(m.Heartbeat())
        await wait_all_tasks_blocked()
        assert not w.server.service.recovery.in_grace
        assert one.refused == []
        assert w.server.service.tokens.manager.tokens_of(one.session.session_id) == (token,)
        await two.ask(m.GetAttr(w.root))


async def test_who_came_in_grace_and_died_in_it_is_waited_for_by_nobody(autojump_clock):
    """It was granted nothing. Else clients that come and die would keep a server that restarts in grace."""
    async with world() as w:
        dead, two = await w.client(), await w.client()
        dead.connector.reachable = False
        await w.crash()
        began = trio.current_time()
        for _ in range(5):
            await trio.sleep(0.15 * GRACE)
            another = await w.client()
            another.connector.reachable = False
            await w.crash()
        await two.ask(m.GetToken(w.file, EXCLUSIVE, *WHOLE, TokenMode.NONE))
        assert GRACE <= trio.current_time() - began < 1.4 * GRACE, "for the first alone"


async def test_who_came_in_grace_goes_on_over_the_next_restart(autojump_clock):
    async with world() as w:
        dead = await w.client()
        dead.connector.reachable = False
        await w.crash()
        another = await w.client()
        session = another.session.session_id
        async with trio.open_nursery() as nursery:
            nursery.start_soon(another.ask, m.MkDir(w.root, b"new", 0o755, ME))
            await trio.sleep(1.0)
            another.connector.delay_seconds = 4.0
            await w.crash()
            w.server.registry.remove([dead.session.session_id])
            await w.crash()
            await wait_all_tasks_blocked()
            assert not w.server.service.recovery.in_grace, "it does not wait"
            await (await w.client()).ask(m.GetAttr(w.root))
        assert w.names() == [b"file", b"new"], "done once, although the session was not waited for"
        assert another.session.session_id == session
        await w.crash()
        assert w.server.service.recovery.in_grace, "by now it may hold something"


async def test_who_came_in_grace_opens_nothing_before_it_is_over(autojump_clock):
    """An open file would be the first that it holds."""
    async with world() as w:
        dead = await w.client()
        dead.connector.reachable = False
        await w.crash()
        another = await w.client()
        with trio.move_on_after(1.0) as scope:
            await another.ask(m.Open(w.file, os.O_RDWR, False))
        assert scope.cancelled_caught
        await w.crash()
        await another.ask(m.Open(w.file, os.O_RDWR, False))
        assert trio.current_time() >= GRACE


async def test_nothing_is_granted_before_the_registry_knows(autojump_clock, caplog):
    async with world() as w:
        one = await w.client()
        w.server.kill()
        granting = w.server.registry.granting

        def fails() -> None:
            raise StateError("disk full")

        w.server.registry.granting = fails  # type: ignore[method-assign]
        await w.server.restart()
        with trio.move_on_after(3.0) as scope:
            await one.ask(m.GetAttr(w.root))
        assert scope.cancelled_caught
        assert "nothing is granted, as that cannot be written down: disk full" in caplog.text
        w.server.registry.granting = granting  # type: ignore[method-assign]
        await one.ask(m.GetAttr(w.root))


async def test_a_client_that_was_away_while_there_was_no_server_either_has_its_time(autojump_clock):
    async with world() as w:
        one = await w.client()
        one.claims = [claim(Token(w.file, Resource.DATA, *WHOLE, EXCLUSIVE))]
        for _ in range(2):
            w.server.kill()
            await trio.sleep(10 * GRACE)
            one.connector.reachable = False
            await w.server.restart()
            await trio.sleep(0.3 * GRACE)
        one.connector.reachable = True
        await one.ask(m.Heartbeat())
        assert one.refused == []


async def test_a_session_cannot_come_back_before_that_is_written_down(autojump_clock, caplog):
    """Else the next restart would wait too short for it: it believes in what it holds from its Welcome on."""
    async with world() as w:
        one = await w.client()
        one.connector.reachable = False
        await w.crash()
        await trio.sleep(0.2 * GRACE)
        registry = w.server.registry
        waited = registry.waited

        def fails(sessions: object) -> None:
            raise StateError("disk full")

        registry.waited = fails  # type: ignore[method-assign]
        one.connector.reachable = True
        with trio.move_on_after(0.3 * GRACE) as scope:
            await one.ask(m.Heartbeat())
        assert scope.cancelled_caught
        assert "the server cannot take a session back: disk full" in caplog.text
        registry.waited = waited  # type: ignore[method-assign]
        await one.ask(m.Heartbeat())
        w.server.kill()
        assert [each.waited_seconds for each in w.server.registry.start("", 10.0).sessions] == [0.0]
        await w.server.restart()


async def test_the_reboot_of_the_servers_machine_is_told(autojump_clock):
    async with world() as w:
        one = await w.client()
        welcomes: list[m.Welcome] = []

        def new_epoch(welcome: m.Welcome) -> list[m.Reclaim]:
            welcomes.append(welcome)
            return []

        one.owner.on_new_epoch = new_epoch
        await w.crash()
        await one.ask(m.GetAttr(w.root))
        w.server.boot_id = "second boot"
        await w.crash()
        await one.ask(m.GetAttr(w.root))
        assert [(welcome.epoch, welcome.rebooted) for welcome in welcomes] == [(2, False), (3, True)]
